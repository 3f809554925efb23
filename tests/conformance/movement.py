"""Generators of the operators that move data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onnx import TensorProto

from .cases import Case, Draw, Operand, generator


@generator("Identity")
def identity(d: Draw) -> Case:
    return d.node(d.data(d.shape()))


@generator("Cast")
def cast(d: Draw) -> Case:
    floats = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    others = (TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT8E4M3FN)
    to = d.pick(*floats) if d.chance(0.85) else d.pick(*others)
    return d.node(
        d.data(d.shape()),
        to=int(to),
        saturate=d.pick(0, 1) if d.chance(0.1) else None,
        round_mode=d.pick("up", "down", "nearest") if d.chance(0.1) else None,
    )


@generator("CastLike")
def cast_like(d: Draw) -> Case:
    kinds = (np.float64, np.float32, np.float16) if d.chance(0.85) else (np.int32, np.int64, bool)
    like = Operand("like", np.ones(d.pick((), (1,), (2, 3)), d.pick(*kinds)), changes=False)
    return d.node(
        d.data(d.shape()),
        like,
        saturate=d.pick(0, 1) if d.chance(0.1) else None,
        round_mode=d.pick("up", "down", "nearest") if d.chance(0.1) else None,
    )


@generator("Dropout")
def dropout(d: Draw) -> Case:
    return d.node(
        d.data(d.shape()),
        outputs=d.pick(1, 1, 1, 2),
        ratio=d.pick(None, 0.0, 0.3, 0.5),
        training_mode=d.pick(None, None, False, False, True),
        seed=d.pick(None, 1),
    )


@generator("Flatten")
def flatten(d: Draw) -> Case:
    shape = d.shape(1)
    first = 0 if d.since < 11 else -len(shape)
    return d.node(d.data(shape), axis=d.pick(None, d.integer(first, len(shape))))


@generator("Squeeze")
def squeeze(d: Draw) -> Case:
    shape = d.shape(sizes=(1, 1, 1, 2, 3, 4))
    ones = [a for a, n in enumerate(shape) if n == 1]
    axes = d.axes(len(shape), ones)
    if d.since < 11 and not d.chance(0.1):
        axes = [a % len(shape) for a in axes]
    return d.node(d.data(shape), axes=axes if axes and d.chance(0.85) else None)


@generator("Unsqueeze")
def unsqueeze(d: Draw) -> Case:
    shape = d.shape(0, 4)
    rank = len(shape) + d.integer(1, 2)
    chosen = d.rng.permutation(rank)[: rank - len(shape)].tolist()
    if d.since >= 11:
        chosen = [d.signed(a, rank) for a in chosen]
    return d.node(d.data(shape), axes=chosen)


@generator("Transpose")
def transpose(d: Draw) -> Case:
    shape = d.shape()
    return d.node(d.data(shape), perm=d.pick(None, *[d.rng.permutation(len(shape)).tolist()] * 4))


@generator("Trilu")
def trilu(d: Draw) -> Case:
    shape = d.shape(2)
    far = (2**63 - 1, -(2**63), 1000, -1000)
    k = d.pick(*far) if d.chance(0.1) else d.integer(-shape[-2] - 1, shape[-1] + 1)
    return d.node(d.data(shape), k=d.pick(None, k, k, k), upper=d.pick(None, 0, 1, 1, 0, 2))


@generator("Reshape")
def reshape(d: Draw) -> Case:
    shape = d.shape(0, 5, sizes=(1, 2, 2, 3, 4, 6))
    target = _regrouped(d, shape)
    allowzero = d.pick(None, 0, 1)
    zero_copies = not (d.has("allowzero") and allowzero)
    for axis, n in enumerate(target):
        if zero_copies and axis < len(shape) and shape[axis] == n and d.chance(0.3):
            target[axis] = 0
    if target and d.chance(0.4) and (zero_copies or 0 not in target):
        target[d.integer(0, len(target) - 1)] = -1
    return d.node(d.data(shape), shape=np.array(target, np.int64), allowzero=allowzero)


def _regrouped(d: Draw, shape: list[int]) -> list[int]:
    """The same number of elements on other axes: prime factors in order, or shuffled, regrouped."""
    factors = [p for n in shape for p in _primes(n)]
    if 0 in shape:
        factors = list(shape)
    if d.chance(0.2):
        d.rng.shuffle(factors)
    target: list[int] = []
    for factor in factors:
        if target and d.chance(0.4):
            target[-1] *= factor
        else:
            target.append(int(factor))
        if d.chance(0.15):
            target.append(1)
    return target


def _primes(n: int) -> list[int]:
    return {4: [2, 2], 6: [2, 3], 1: []}.get(n, [n])


@generator("Expand")
def expand(d: Draw) -> Case:
    shape = d.shape(0, 4, sizes=(1, 1, 2, 3))
    target = [d.pick(1, n, n) if n > 1 else d.integer(1, 3) for n in shape]
    target = target[d.integer(0, len(target)) :] if d.chance(0.2) else target
    target = d.integers(1, 2, d.pick(0, 0, 1, 2)) + target
    return d.node(d.data(shape), shape=np.array(target, np.int64))


@generator("Tile")
def tile(d: Draw) -> Case:
    shape = d.shape(1, 4, sizes=(1, 2, 3))
    repeats = [d.pick(1, 1, 2, 3) for _ in shape]
    if d.chance(0.03):
        repeats[d.integer(0, len(shape) - 1)] = 0
    return d.node(d.data(shape), repeats=repeats)


@generator("DepthToSpace")
def depth_to_space(d: Draw) -> Case:
    block = d.pick(1, 2, 2, 3)
    shape = [d.integer(1, 2), d.integer(1, 3) * block**2, d.integer(1, 3), d.integer(1, 3)]
    return d.node(d.data(shape), blocksize=block, mode=d.pick(None, "DCR", "CRD"))


@generator("SpaceToDepth")
def space_to_depth(d: Draw) -> Case:
    block = d.pick(1, 2, 2, 3)
    shape = [d.integer(1, 2), d.integer(1, 3), d.integer(1, 2) * block, d.integer(1, 2) * block]
    return d.node(d.data(shape), blocksize=block, mode=d.pick(None, "DCR", "CRD"))


@generator("Pad")
def pad(d: Draw) -> Case:
    shape = d.shape(1, 5)
    rank = len(shape)
    axes = None
    if d.has("axes") and d.chance(0.5):
        axes = [d.signed(a, rank) for a in d.rng.permutation(rank)[: d.integer(1, rank)].tolist()]
    count = rank if axes is None else len(axes)
    low = -2 if d.chance(0.5) else 0
    pads = [d.integer(low, 2) if d.chance(0.4) else 0 for _ in range(2 * count)]
    if d.chance(0.3):  # one axis alone, perhaps cut at one end and grown at the other
        chosen = d.integer(0, count - 1)
        pads = [d.integer(-2, 3) if i % count == chosen else 0 for i in range(2 * count)]
    value = d.pick(None, 0.0, 0.0, -0.0, 1.5, float("-inf"))
    mode = d.pick(
        None, "constant", "constant", "reflect", "edge", "wrap" if d.since >= 19 else None
    )
    if not _has_what_to_pad_with([shape[a] for a in axes or range(rank)], pads, mode):
        mode = "constant"
    return d.node(d.data(shape), pads=pads, mode=mode, value=value, constant_value=value, axes=axes)


def _has_what_to_pad_with(sizes: list[int], pads: list[int], mode: str | None) -> bool:
    """Whether as much is left of each axis that grows as the mode reads of it.

    The specification says nothing of what is there otherwise; onnxruntime 1.32 refuses it, 1.23
    reads what is beside its input in memory, or ends the process.
    """
    if mode in (None, "constant"):
        return True
    grown = zip(sizes, pads[: len(sizes)], pads[len(sizes) :], strict=True)
    return all(
        size + min(low, 0) + min(high, 0) > (max(low, high) if mode == "reflect" else 0)
        for size, low, high in grown
        if max(low, high) > 0
    )


@generator("CenterCropPad")
def center_crop_pad(d: Draw) -> Case:
    shape = d.shape(1, 5)
    rank = len(shape)
    axes = None
    if d.chance(0.6):
        axes = [d.signed(a, rank) for a in d.rng.permutation(rank)[: d.integer(1, rank)].tolist()]
    sizes = [shape[axis] for axis in (range(rank) if axes is None else axes)]
    target = [n if d.chance(0.5) else d.integer(0 if d.chance(0.1) else 1, n + 4) for n in sizes]
    return d.node(d.data(shape), shape=np.array(target, d.pick(np.int32, np.int64)), axes=axes)


@generator("Slice")
def slice_(d: Draw) -> Case:
    shape = d.shape(1, 5)
    rank, all_axes = len(shape), d.chance(0.2)
    count = rank if all_axes else d.integer(1, rank)
    axes = list(range(count)) if all_axes else d.rng.permutation(rank)[:count].tolist()
    sizes = [shape[a] for a in axes]
    far = (2**31 - 1, 2**63 - 1, -(2**31), -(2**63), 1000, -1000)
    starts = [d.pick(*far) if d.chance(0.15) else d.integer(-n - 2, n + 2) for n in sizes]
    ends = [d.pick(*far) if d.chance(0.25) else d.integer(-n - 2, n + 2) for n in sizes]
    steps = [d.pick(1, 1, 1, 2, 3, -1, -1, -2, 100, -100) for _ in sizes]
    if d.since >= 10:
        axes = [d.signed(a, rank) for a in axes]
    return d.node(
        d.data(shape),
        starts=starts,
        ends=ends,
        axes=None if all_axes else axes,
        steps=d.pick(None, steps, steps, steps),
    )


@generator("Gather")
def gather(d: Draw) -> Case:
    shape = d.shape(1, 4)
    axis = d.axis(len(shape)) if d.since >= 11 else d.integer(0, len(shape) - 1)
    size = shape[axis]
    low = -size if d.since >= 11 else 0
    indices = d.rng.integers(
        low, max(size, 1), d.pick((), (0,), (1,), (2,), (3,), (5,), (1, 2), (2, 2))
    )
    if d.chance(0.3) and size:
        indices = d.rng.permutation(size)[: d.integer(0, size)]
    axis = d.pick(axis, axis, None if axis == 0 else axis)
    if d.chance(0.2):  # a table, such as an embedding's
        case = d.node(d.constant(shape), indices=indices, axis=axis)
        return replace(case, run_time=frozenset(("indices",)))
    return d.node(d.data(shape), indices=indices, axis=axis)


@generator("Concat")
def concat(d: Draw) -> Case:
    shape = d.shape(1, 4, sizes=(1, 2, 3))
    axis = d.axis(len(shape)) if d.since >= 11 else d.integer(0, len(shape) - 1)
    parts = []
    for _ in range(d.integer(1, 4)):
        if parts and d.chance(0.15):
            parts.append(parts[0])
            continue
        own = list(shape)
        own[axis] = d.pick(1, 2, 3, shape[axis], 0 if d.chance(0.1) else 1)
        parts.append(d.constant(own) if d.chance(0.2) else d.data(own))
    if not any(part.is_data for part in parts):
        parts[-1] = d.data(shape)
    return d.node(*parts, axis=axis)


@generator("Split")
def split(d: Draw) -> Case:
    shape = d.shape(1, 4, sizes=(2, 3, 4, 6))
    axis = d.axis(len(shape)) if d.since >= 11 else d.integer(0, len(shape) - 1)
    size, outputs = shape[axis], d.integer(1, 4)
    listed = None
    number = outputs if d.has("num_outputs") and d.chance(0.5) else None
    if number is None and (d.since >= 18 or d.chance(0.7)):
        cuts = sorted(d.integers(0, size, outputs - 1))
        listed = np.diff([0, *cuts, size]).tolist()
    elif size % outputs and number is None:
        outputs = 1
    return d.node(
        d.data(shape), outputs=outputs, split=listed, num_outputs=number,
        axis=None if axis == 0 and d.chance(0.5) else axis,
    )  # fmt: skip


@generator("CumSum")
def cumulated(d: Draw) -> Case:
    shape = d.shape(1, 5)
    axis = np.full(d.pick((), (1,)), d.axis(len(shape)))
    return d.node(
        d.data(shape), axis=axis, exclusive=d.pick(None, 0, 1), reverse=d.pick(None, 0, 1)
    )


@generator("DFT")
def fourier(d: Draw) -> Case:
    shape = d.shape(1, 4)
    inverse, onesided = d.pick(None, 0, 1), d.pick(None, 0, 1)
    parts = d.pick(1, 2)
    if onesided:
        parts = 2 if inverse else 1
    axis = d.integer(0, len(shape) - 1)
    given = axis == (1 if d.since < 20 else len(shape) - 1) and d.chance(0.5)
    return d.node(
        d.data([*shape, parts]),
        dft_length=d.pick(None, None, d.integer(1, 6)),
        axis=None if given else d.signed(axis, len(shape) + 1),
        inverse=inverse,
        onesided=onesided,
    )


@generator("ReverseSequence")
def reverse_sequence(d: Draw) -> Case:
    shape = d.shape(2, 5)
    batch = d.pick(None, 0, 1)
    time = {None: d.pick(None, 0), 0: 1, 1: d.pick(None, 0)}[batch]
    size, count = shape[0 if time is None else time], shape[1 if batch is None else batch]
    lengths = d.integers(min(1, size), size, count)
    return d.node(d.data(shape), sequence_lens=lengths, batch_axis=batch, time_axis=time)


@generator("Compress")
def compress(d: Draw) -> Case:
    shape = d.shape(1, 4)
    axis = d.axis(len(shape)) if d.since >= 11 else d.integer(0, len(shape) - 1)
    axis = None if d.chance(0.2) else axis
    size = int(np.prod(shape)) if axis is None else shape[axis]
    return d.node(d.data(shape), condition=d.rng.random(d.integer(0, size)) < 0.7, axis=axis)


def _indices_along(d: Draw, shape: list[int], axis: int) -> np.ndarray:
    """Positions along an axis for some or all positions of the others."""
    axis %= len(shape)
    own = [n if d.chance(0.8) else d.integer(min(1, n), n) for n in shape]
    own[axis] = d.integer(0, 4) if shape[axis] else 0
    size = shape[axis]
    return d.rng.integers(-size, max(size, 1), own)


@generator("GatherElements")
def gather_elements(d: Draw) -> Case:
    shape = d.shape(1, 4)
    axis = d.axis(len(shape))
    default = axis % len(shape) == 0 and d.chance(0.5)
    return d.node(
        d.data(shape),
        indices=_indices_along(d, shape, axis),
        axis=None if default else axis,
    )


@generator("Scatter", "ScatterElements")
def scatter_elements(d: Draw) -> Case:
    shape = d.shape(1, 4)
    axis = d.axis(len(shape))
    indices = _indices_along(d, shape, axis)
    return d.node(
        d.constant(shape) if d.chance(0.2) else d.data(shape),
        Operand("indices", indices, changes=False),
        d.data(indices.shape),
        axis=None if axis % len(shape) == 0 and d.chance(0.5) else axis,
        reduction=d.pick(None, "none", "none", "add", "mul", "max", "min"),
    )


def _indices_of_slices(d: Draw, shape: list[int], batch: int, named: int) -> np.ndarray:
    free = d.integers(1, 3, d.integer(0 if batch else 1, 2))
    parts = [d.rng.integers(-n, max(n, 1), [*shape[:batch], *free]) for n in
             shape[batch : batch + named]]  # fmt: skip
    return np.stack(parts, axis=-1)


@generator("GatherND")
def gather_nd(d: Draw) -> Case:
    shape = d.shape(1, 5, sizes=(1, 2, 3, 4))
    batch = d.integer(0, min(2, len(shape) - 1)) if d.has("batch_dims") else 0
    named = d.integer(1, len(shape) - batch)
    return d.node(
        d.data(shape),
        indices=_indices_of_slices(d, shape, batch, named),
        batch_dims=batch or d.pick(None, 0),
    )


@generator("ScatterND")
def scatter_nd(d: Draw) -> Case:
    shape = d.shape(1, 4)
    named = d.integer(1, len(shape))
    indices = _indices_of_slices(d, shape, 0, named)
    return d.node(
        d.constant(shape) if d.chance(0.2) else d.data(shape),
        Operand("indices", indices, changes=False),
        d.data([*indices.shape[:-1], *shape[named:]]),
        reduction=d.pick(None, "none", "none", "add", "mul", "max", "min"),
    )
