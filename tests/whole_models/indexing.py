"""Operators that take or put elements at positions, and those that make positions."""

import numpy as np
from onnx import helper

from .builder import Builder
from .constants import constant


def _some_axis(b: Builder, x: str) -> int:
    b.need(b.rank(x) > 0 and b.array(x).size > 0)
    rank = b.rank(x)
    return min(1, rank - 1) if b.draw.chance(0.4) else b.draw.between(0, rank - 1)


def _positions(b: Builder, values: np.ndarray) -> str:
    kind = b.draw.pick([np.int64, np.int64, np.int32])
    return b.initializer(np.asarray(values, kind))


def _along(b: Builder, x: str, axis: int, count: int, distinct: bool) -> np.ndarray:
    """Return positions on an axis for each position of the others, some of them from the end."""
    d, shape = b.draw, list(b.shape(x))
    n = shape[axis]
    if d.chance(0.3):  # of a part of the others alone
        shape = [k if i == axis else d.between(max(1, k - 1), k) for i, k in enumerate(shape)]
    if d.chance(0.4):  # alike for all others
        order = d.shuffled(range(n)) if distinct else [d.between(0, n - 1) for _ in range(count)]
        wide = [-1 if i == axis else 1 for i in range(len(shape))]
        shape[axis] = len(order[:count])
        chosen = np.broadcast_to(np.reshape(order[:count], wide), shape)
    elif distinct:
        chosen = d.arrays.random(shape).argsort(axis).take(range(min(count, n)), axis)
    else:
        shape[axis] = count
        chosen = d.arrays.integers(0, n, shape)
    return chosen - n if d.chance(0.2) else chosen


def gather_elements(b: Builder, x: str) -> str:
    b.need(b.opset >= 11)
    axis = _some_axis(b, x)
    count = b.draw.between(1, b.shape(x)[axis] + 1)
    indices = _positions(b, _along(b, x, axis, count, distinct=False))
    extra = {} if axis == 0 and b.draw.chance(0.5) else {"axis": b.axis(b.rank(x), axis)}
    return b.one("GatherElements", [x, indices], **extra)


def _tuples(b: Builder, x: str, batch: int, distinct: bool) -> np.ndarray:
    """Return tuples of positions on the axes behind so many, some of them from the end."""
    d, shape = b.draw, b.shape(x)
    b.need(b.array(x).size > 0)
    depth = d.between(1, len(shape) - batch)
    sizes = shape[batch : batch + depth]
    total = int(np.prod(sizes))
    if distinct:
        flat = np.array(d.shuffled(range(total)))[: d.between(1, total)]
    else:
        flat = d.arrays.integers(0, total, (*shape[:batch], *([2] * d.pick([0, 1, 1, 2]))))
    chosen = np.stack(np.unravel_index(flat, sizes), axis=-1)
    return chosen - np.array(sizes) if d.chance(0.2) else chosen


def gather_nd(b: Builder, x: str) -> str:
    b.need(b.opset >= 11 and b.rank(x) > 0)
    batch = b.draw.between(0, b.rank(x) - 1) if b.opset >= 12 and b.draw.chance(0.5) else 0
    batch *= not b.symbolic  # onnxruntime does not see that indices are of another batch
    indices = b.initializer(_tuples(b, x, batch, distinct=False).astype(np.int64))
    extra = {"batch_dims": batch} if batch or (b.draw.chance(0.3) and b.opset >= 12) else {}
    return b.one("GatherND", [x, indices], **extra)


def _reduction(b: Builder) -> dict:
    if b.opset < 16 or b.draw.chance(0.6):
        return {}
    newer = ["max", "min"] if b.opset >= 18 else []
    return {"reduction": b.draw.pick(["none", "add", "mul", *newer])}


def _data(b: Builder, x: str) -> str:
    """Return what is scattered into: most often the tensor, else a constant of its shape."""
    if b.draw.chance(0.15):
        values = b.draw.normal(*b.shape(x)) * b.draw.pick([0, 1])
        return constant(b, values, b.type(x), "scattered")
    return x


def _updates(b: Builder, found: str, x: str, data: str) -> str:
    """Return what is scattered: elements of the tensor itself, or a constant of that shape."""
    if data == x and b.draw.chance(0.5):
        return constant(b, b.draw.normal(*b.shape(found)), b.type(x), "updates")
    return found


def scatter_elements(b: Builder, x: str) -> str:
    """Append Scatter or ScatterElements."""
    axis, extra, data = _some_axis(b, x), _reduction(b), _data(b, x)
    count = b.draw.between(1, b.shape(x)[axis])
    once = extra.get("reduction", "none") == "none"
    places = _along(b, x, axis, count, distinct=once)
    cut = [b.draw.pick([0, n - k]) for n, k in zip(b.shape(x), places.shape, strict=True)]
    ends = [k + c for k, c in zip(places.shape, cut, strict=True)]
    if b.opset < 10:
        (found,) = b.add("Slice", [x], starts=cut, ends=ends)
    else:
        (found,) = b.add("Slice", [x, b.integers(*cut), b.integers(*ends)])
    updates = _updates(b, found, x, data)
    where = {} if axis == 0 and b.draw.chance(0.5) else {"axis": b.axis(b.rank(x), axis)}
    op = "ScatterElements" if b.opset >= 11 else "Scatter"
    return b.one(op, [data, _positions(b, places), updates], **where, **extra)


def scatter_nd(b: Builder, x: str) -> str:
    b.need(b.opset >= 11 and b.rank(x) > 0)
    extra, data = _reduction(b), _data(b, x)
    places = _tuples(b, x, 0, distinct=True).astype(np.int64)
    other = np.roll(places, 1, axis=0)
    (found,) = b.add("GatherND", [x, b.initializer(other)])
    updates = _updates(b, found, x, data)
    if extra.get("reduction", "none") != "none" and b.draw.chance(0.5):
        places = np.broadcast_to(places[:1], places.shape).copy()
    return b.one("ScatterND", [data, b.initializer(places), updates], **extra)


def compress(b: Builder, x: str) -> str:
    d = b.draw
    b.need(b.opset >= 9 and b.array(x).size > 0)
    axis = _some_axis(b, x)
    flat = d.chance(0.15)
    size = b.array(x).size if flat else b.shape(x)[axis]
    kept = d.arrays.random(d.between(1, size)) < 0.7
    if not b.strange:
        kept[d.between(0, len(kept) - 1)] = True
    extra = {} if flat else {"axis": b.axis(b.rank(x), axis)}
    return b.one("Compress", [x, b.initializer(kept)], **extra)


def reverse_sequence(b: Builder, x: str) -> str:
    d = b.draw
    b.need(b.opset >= 10 and b.rank(x) >= 2 and b.array(x).size > 0)
    batch = d.pick([0, 1])
    lengths = d.arrays.integers(1, b.shape(x)[1 - batch] + 1, b.shape(x)[batch])
    extra = {} if batch == 1 and d.chance(0.4) else {"batch_axis": batch, "time_axis": 1 - batch}
    return b.one("ReverseSequence", [x, b.initializer(lengths.astype(np.int64))], **extra)


def where(b: Builder, x: str) -> str:
    """Choose between a tensor and a constant, another layer of itself or its negative."""
    d, shape = b.draw, b.shape(x)
    b.need(b.opset >= 9)
    form = [n if d.chance(0.5) else 1 for n in shape][d.between(0, len(shape)) :]
    mask = b.initializer(d.arrays.integers(0, 2, form).astype(bool))
    kind = d.weighted({"zero": 2, "number": 1, "constant": 1.5, "negative": 1})
    if kind == "negative":
        other = b.one("Neg", [x])
    else:
        size = () if kind != "constant" else [n if d.chance(0.5) else 1 for n in shape]
        other = constant(b, d.normal(*size) * (kind != "zero"), b.type(x), "other")
    return b.one("Where", [mask, *d.shuffled([x, other])])


def _read(b: Builder, indices: str, x: str, axis: int) -> str:
    """Let positions on an axis be an output, and let a Cast or a Gather read them."""
    d = b.draw
    b.scope.positions.append(indices)
    if d.chance(0.35):
        table = constant(b, d.normal(b.shape(x)[axis], *[2] * d.pick([0, 1])), b.type(x), "table")
        b.need(b.rank(indices) + b.rank(table) <= 6)
        return b.one("Gather", [table, indices])
    return b.one("Cast", [indices], to=helper.np_dtype_to_tensor_dtype(b.type(x)))


def arg_extreme(b: Builder, x: str) -> str:
    """Append ArgMax or ArgMin, and what reads it, or go on from the tensor."""
    d, axis = b.draw, _some_axis(b, x)
    extra = {} if axis == 0 and d.chance(0.5) else {"axis": b.axis(b.rank(x), axis)}
    if d.chance(0.6):
        extra["keepdims"] = d.pick([0, 1])
    if b.opset >= 12 and d.chance(0.4):
        extra["select_last_index"] = d.pick([0, 1])
    (indices,) = b.add(d.pick(["ArgMax", "ArgMin"]), [x], **extra)
    return _read(b, indices, x, axis)


def top_k(b: Builder, x: str) -> str:
    d, axis = b.draw, _some_axis(b, x)
    if d.chance(0.3):
        axis = b.rank(x) - 1
    k = d.between(1, b.shape(x)[axis])
    extra = {} if axis == b.rank(x) - 1 and d.chance(0.5) else {"axis": b.axis(b.rank(x), axis)}
    if b.opset >= 11:
        extra |= {"largest": d.pick([0, 1])} if d.chance(0.5) else {}
        extra |= {"sorted": 1} if d.chance(0.2) else {}
    if b.opset < 10:
        values, indices = b.add("TopK", [x], outputs=2, k=k, **extra)
    else:
        values, indices = b.add("TopK", [x, b.integers(k)], outputs=2, **extra)
    b.scope.pool.append(values)
    return _read(b, indices, x, axis) if d.chance(0.3) else values


INDEXING = {
    gather_elements: 3,
    gather_nd: 3,
    scatter_elements: 5,
    scatter_nd: 3,
    compress: 2.5,
    reverse_sequence: 2.5,
    where: 2.5,
    arg_extreme: 3,
    top_k: 3,
}
