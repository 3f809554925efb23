"""Operators that move values about: reshaping, cutting, joining, padding, resizing."""

import numpy as np
from onnx import helper

from .builder import Builder
from .constants import constant
from .floats import FLOATS


def _listed(b: Builder, op: str, x: str, since: int, values: list[int], name: str, **extra) -> str:
    """Append a node whose `values` are an attribute before an opset and an input from it on."""
    if b.opset < since:
        return b.one(op, [x], **{name: values}, **extra)
    return b.one(op, [x, b.integers(*values)], **extra)


def identity(b: Builder, x: str) -> str:
    return b.one("Identity", [x])


def dropout(b: Builder, x: str) -> str:
    ratio = b.draw.pick([0.0, 0.3, 0.5])
    outputs = b.draw.pick([1, 1, 2]) if b.opset >= 10 else 1
    inputs = [x]
    extra = {}
    if b.opset < 12:
        extra["ratio"] = ratio
    elif b.draw.chance(0.6):
        inputs.append(b.initializer(np.array(ratio, np.float32)))
        if b.draw.chance(0.4):
            inputs.append(b.initializer(np.array(False)))
    y = b.add("Dropout", inputs, outputs=outputs, **extra)[0]
    b.scope.pool.append(y)
    return y


def cast(b: Builder, x: str) -> str:
    """Go to another float type, and often back."""
    here = b.type(x)
    there = b.draw.pick([t for t in FLOATS if t != here or b.draw.chance(0.1)] or [here])
    extra = {"saturate": 1} if b.opset >= 19 and b.draw.chance(0.1) else {}
    y = b.one("Cast", [x], to=helper.np_dtype_to_tensor_dtype(there), **extra)
    if b.draw.chance(0.4):
        y = b.one("Cast", [y], to=helper.np_dtype_to_tensor_dtype(here))
    elif b.opset >= 15 and b.draw.chance(0.1):
        y = b.one("CastLike", [y, x])
    return y


def cast_like(b: Builder, x: str) -> str:
    """Go to the type of another tensor, a constant or an input, of whatever shape."""
    d = b.draw
    b.need(b.opset >= 15)
    # onnxruntime refuses a `saturate` of 0, unless it drops the Cast that it makes of this.
    extra = {"saturate": 1} if b.opset >= 19 and d.chance(0.3) else {}
    others = [t for t in b.scope.pool if t != x]
    if others and d.chance(0.4):
        return b.one("CastLike", [x, d.pick(others)], **extra)
    like = constant(b, np.zeros(d.pick([(), (1,), (2, 3)])), d.pick(FLOATS), "like")
    return b.one("CastLike", [x, like], **extra)


def squeeze(b: Builder, x: str) -> str:
    ones = [i for i, n in enumerate(b.shape(x)) if n == 1]
    b.need(bool(ones))
    if b.draw.chance(0.1):
        return b.one("Squeeze", [x])
    axes = b.draw.some(ones, b.draw.between(1, len(ones)))
    if b.opset < 11:
        b.need(axes == sorted(axes) or b.draw.chance(0.2))
    return _listed(b, "Squeeze", x, 13, [b.axis(b.rank(x), a) for a in axes], "axes")


def unsqueeze(b: Builder, x: str) -> str:
    number = b.draw.between(1, 2)
    rank = b.rank(x) + number
    b.need(rank <= 6)
    axes = b.draw.some(range(rank), number)
    return _listed(b, "Unsqueeze", x, 13, [b.axis(rank, a) for a in axes], "axes")


def transpose(b: Builder, x: str) -> str:
    rank = b.rank(x)
    if b.draw.chance(0.1):
        return b.one("Transpose", [x])
    if rank > 2 and b.draw.chance(0.5):  # channels to the end, or back
        order = b.draw.pick([[0, *range(2, rank), 1], [0, rank - 1, *range(1, rank - 1)]])
    else:
        order = b.draw.shuffled(range(rank))
    y = b.one("Transpose", [x], perm=order)
    if b.draw.chance(0.3):
        y = b.one("Transpose", [y], perm=[int(i) for i in np.argsort(order)])
    return y


def flatten(b: Builder, x: str) -> str:
    rank = b.rank(x)
    axis = 1 if b.draw.chance(0.7) else b.draw.between(0, rank)
    if axis == 1 and b.draw.chance(0.5):
        return b.one("Flatten", [x])
    return b.one("Flatten", [x], axis=b.axis(rank, axis) if axis < rank else axis)


def _factors(b: Builder, n: int) -> int:
    return b.draw.pick([f for f in range(1, n + 1) if n % f == 0])


def reshape(b: Builder, x: str) -> str:
    """Merge axes, split one, or both; with 0 and -1 where they say the same."""
    d, shape = b.draw, list(b.shape(x))
    b.need(0 not in shape and bool(shape))
    new = list(shape)
    if len(new) > 1 and d.chance(0.6):
        at = d.between(0 if d.chance(0.2) else min(1, len(new) - 2), len(new) - 2)
        new[at : at + 2] = [new[at] * new[at + 1]]
    if d.chance(0.5) and len(new) < 6:
        at = d.between(min(1, len(new) - 1), len(new) - 1)
        part = _factors(b, new[at])
        new[at : at + 1] = d.shuffled([part, new[at] // part])
    asked = list(new)
    if d.chance(0.6) and asked[0] == shape[0]:
        asked[0] = 0
    free = [i for i, n in enumerate(asked) if n != 0]
    if free and d.chance(0.5):
        asked[d.pick(free)] = -1
    extra = {"allowzero": 0} if b.opset >= 14 and d.chance(0.2) else {}
    if b.opset >= 10 and d.chance(0.15):
        return b.one("Reshape", [x, _computed_shape(b, x, asked)], **extra)
    return b.one("Reshape", [x, b.integers(*asked)], **extra)


def _computed_shape(b: Builder, x: str, asked: list[int]) -> str:
    """Return a shape that is put together at run time from the tensor's own."""
    (whole,) = b.add("Shape", [x])
    (first,) = b.add("Slice", [whole, b.integers(0), b.integers(1)])
    b.need(asked[0] in (0, b.shape(x)[0]) and len(asked) > 1)
    return b.add("Concat", [first, b.integers(*asked[1:])], axis=0)[0]


def channel_shuffle(b: Builder, x: str) -> str:
    shape = b.shape(x)
    b.need(len(shape) >= 2 and shape[1] > 1)
    groups = _factors(b, shape[1])
    rest = list(shape[2:])
    y = b.one("Reshape", [x, b.integers(0, groups, shape[1] // groups, *rest)])
    y = b.one("Transpose", [y], perm=[0, 2, 1, *range(3, 3 + len(rest))])
    return b.one("Reshape", [y, b.integers(0, -1, *rest)])


def expand(b: Builder, x: str) -> str:
    d, shape = b.draw, b.shape(x)
    new = [d.between(1, 3) if n == 1 and d.chance(0.6) else d.pick([1, n]) for n in shape]
    if d.chance(0.2):
        new = [d.between(1, 2), *new]
    elif d.chance(0.2):
        new = new[d.between(0, len(new)) :]
    return b.one("Expand", [x, b.integers(*new)])


def tile(b: Builder, x: str) -> str:
    repeats = [b.draw.pick([1, 1, 2, 3]) for _ in b.shape(x)]
    return b.one("Tile", [x, b.integers(*repeats)])


def slice_(b: Builder, x: str) -> str:
    d, shape = b.draw, b.shape(x)
    b.need(bool(shape))
    axes = d.some(range(len(shape)), d.between(1, min(2, len(shape))))
    steps = [d.weighted({1: 6, 2: 2, -1: 2, -2: 1, 3: 0.5}) if b.opset >= 10 else 1 for _ in axes]
    far = [2**31, 2**62, 100, -100, -(2**40)]
    starts, ends = [], []
    for axis, step in zip(axes, steps, strict=True):
        n = shape[axis]
        start, end = d.between(0, n - 1), d.between(1, n)
        if d.chance(0.6):
            start, end = min(start, end - 1), max(start + 1, end)
        if step < 0:
            start, end = end - 1, start - 1
        start = start - n if d.chance(0.2) else start
        end = (-n - 1 if end < 0 else end) if not d.chance(0.2) else d.pick(far)
        starts.append(d.pick(far) if d.chance(0.12) else start)
        ends.append(end)
    if b.opset < 10:
        return b.one("Slice", [x], axes=axes, starts=starts, ends=ends)
    if axes == list(range(len(axes))) and d.chance(0.3):
        inputs = [x, b.integers(*starts), b.integers(*ends)]
        inputs += ["", b.integers(*steps)] if steps != [1] * len(axes) else []
        return b.one("Slice", inputs)
    axes = [b.axis(len(shape), a) for a in axes]
    lists = [starts, ends, axes] + ([steps] if d.chance(0.7) or min(steps) != 1 else [])
    b.need(len(lists) == 4 or max(steps) == 1)
    return b.one("Slice", [x, *[b.integers(*v) for v in lists]])


def gather(b: Builder, x: str) -> str:
    d, shape = b.draw, b.shape(x)
    b.need(bool(shape))
    axis = min(1, len(shape) - 1) if d.chance(0.6) else d.between(0, len(shape) - 1)
    n = shape[axis]
    low = -n if b.opset >= 11 and d.chance(0.3) else 0
    kind = d.weighted({"permuted": 4, "any": 4, "scalar": 1, "matrix": 0.7})
    if kind == "permuted":
        chosen = np.array(d.shuffled(range(n)))[: d.between(max(1, n - 1), n)]
    else:
        size = {"any": (d.between(1, n + 1),), "scalar": (), "matrix": (2, d.between(1, 3))}[kind]
        b.need(n > 0)
        chosen = d.arrays.integers(low, n, size)
    kind_of = d.pick([np.int64, np.int64, np.int32])
    indices = b.initializer(np.asarray(chosen, kind_of))
    return b.one("Gather", [x, indices], axis=b.axis(len(shape), axis))


def pad(b: Builder, x: str) -> str:
    d, shape = b.draw, b.shape(x)
    mode = d.weighted({"constant": 6, "edge": 2, "reflect": 2, "wrap": 1 if b.opset >= 19 else 0})
    rank = len(shape)
    axes = list(range(rank))
    if b.opset >= 18 and d.chance(0.3):
        axes = d.some(axes, d.between(1, rank))
    wide = [min(2, shape[a] - 1) if mode == "reflect" else 2 for a in axes] * 2
    amounts = [d.between(0, w) if d.chance(0.4) else 0 for w in wide]
    if d.chance(0.25):
        amounts = [-1 if d.chance(0.2) else n for n in amounts]
    value = d.weighted({0.0: 5, 1.5: 1, None: 3}) if mode == "constant" else None
    extra = {"mode": mode} if mode != "constant" or d.chance(0.5) else {}
    if b.opset < 11:
        return b.one("Pad", [x], pads=amounts, value=value, **extra)
    inputs = [x, b.integers(*amounts)]
    inputs.append("" if value is None else constant(b, np.array(value), b.type(x), "pad"))
    if axes != list(range(rank)):
        inputs.append(b.integers(*[b.axis(rank, a) for a in axes]))
    while not inputs[-1]:
        inputs.pop()
    return b.one("Pad", inputs, **extra)


def split(b: Builder, x: str) -> str:
    """Cut a tensor; join the parts again in another order, or go on from one of them."""
    d, shape = b.draw, b.shape(x)
    axes = [i for i, n in enumerate(shape) if n > 1]
    b.need(bool(axes))
    axis = 1 if 1 in axes and d.chance(0.7) else d.pick(axes)
    number = d.between(2, min(3, shape[axis]))
    sizes, where = d.split(shape[axis], number), b.axis(len(shape), axis)
    if shape[axis] % number == 0 and d.chance(0.5):
        extra = {"num_outputs": number} if b.opset >= 18 else {}
        parts = b.add("Split", [x], outputs=number, axis=where, **extra)
    elif b.opset < 13:
        parts = b.add("Split", [x], outputs=number, axis=where, split=sizes)
    else:
        parts = b.add("Split", [x, b.integers(*sizes)], outputs=number, axis=where)
    b.scope.pool += parts
    if d.chance(0.4):
        return b.one("Concat", d.shuffled(parts), axis=axis)
    return d.pick(parts)


def trilu(b: Builder, x: str) -> str:
    d = b.draw
    b.need(b.rank(x) >= 2 and b.opset >= 14)
    inputs, size = [x], max(b.shape(x)[-2:])
    if d.chance(0.6):
        inputs.append(b.initializer(np.array(d.between(-size, size), np.int64)))
    extra = {"upper": d.pick([0, 1])} if d.chance(0.7) else {}
    return b.one("Trilu", inputs, **extra)


def center_crop_pad(b: Builder, x: str) -> str:
    d, rank = b.draw, b.rank(x)
    b.need(rank >= 1 and b.opset >= 18)
    axes = d.some(list(range(rank)), d.between(1, rank)) if d.chance(0.7) else list(range(rank))
    sizes = [max(1, b.shape(x)[axis] + d.between(-2, 2)) for axis in axes]
    extra = {"axes": [b.axis(rank, a) for a in axes]} if axes != list(range(rank)) else {}
    return b.one("CenterCropPad", [x, b.integers(*sizes)], **extra)


def depth_to_space(b: Builder, x: str) -> str:
    b.need(b.rank(x) == 4)
    if b.channels(x) % 4:
        weight = b.draw.normal(4 * b.draw.between(1, 2), b.channels(x), 1, 1)
        x = b.one("Conv", [x, constant(b, weight, b.type(x), "weight")])
    extra = {"mode": b.draw.pick(["DCR", "CRD"])} if b.opset >= 11 and b.draw.chance(0.7) else {}
    return b.one("DepthToSpace", [x], blocksize=2, **extra)


def space_to_depth(b: Builder, x: str) -> str:
    b.need(b.rank(x) == 4)
    size = 2 if all(n % 2 == 0 for n in b.shape(x)[2:]) else 1
    extra = {"mode": b.draw.pick(["DCR", "CRD"])} if b.opset >= 28 and b.draw.chance(0.5) else {}
    return b.one("SpaceToDepth", [x], blocksize=size, **extra)


MOVEMENTS = {
    identity: 2,
    dropout: 1,
    cast: 2.5,
    cast_like: 1.2,
    trilu: 1,
    center_crop_pad: 1,
    squeeze: 2,
    unsqueeze: 2,
    transpose: 5,
    flatten: 3,
    reshape: 6,
    channel_shuffle: 2,
    expand: 2,
    tile: 2,
    slice_: 5,
    gather: 4,
    pad: 4,
    split: 4,
    depth_to_space: 2.5,
    space_to_depth: 3,
}
