"""How operators that move data move a change along with it.

Each function takes the node, a change, and the direction: from input 0 to output 0 (``True``) or
back. It returns the change on the other side, or raises ``Refused`` where the change cannot follow.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import TensorProto

from onnx_bnfold.affine import Affine, Float64, joined
from onnx_bnfold.graph import Dims
from onnx_bnfold.reasons import Reason, Refused
from onnx_bnfold.view import FLOATS, NodeView


def varying(change: Affine) -> list[int]:
    """Return the axes along which a change varies."""
    return [axis for axis, size in enumerate(change.shape) if size > 1]


def axis_of(view: NodeView, axis: int, rank: int) -> int:
    """Return an axis counted from the front.

    Raises:
        Refused: there is no such axis.
    """
    if not -rank <= axis < rank:
        raise Refused(
            Reason.INCONSISTENT_SHAPES, view.label, f"it has no axis {axis}; repair the model"
        )
    return axis % rank


# Longest axis along which a change is held: a shape in a broken model may name any number.
LONGEST = 2**24


def bounded(view: NodeView, elements: int) -> int:
    """Return a number of elements; it is refused if nothing of that length should be allocated."""
    if elements > LONGEST:
        raise Refused(
            Reason.SEARCH_LIMIT,
            view.label,
            f"an axis, or several that it merges, have more than {LONGEST:,} elements",
        )
    return elements


def size(view: NodeView, dims: Dims, axis: int) -> int:
    """Return a dim that has to be static.

    Raises:
        Refused: it is not, or is beyond ``LONGEST``.
    """
    dim = dims[axis]
    if not isinstance(dim, int):
        raise Refused(
            Reason.UNKNOWN_SHAPE,
            view.label,
            f"the size of axis {axis} is not static; export the model with a fixed size there",
        )
    return bounded(view, dim)


def cut(array: Float64, axis: int, part: slice) -> Float64:
    """Slice an array along an axis, unless it is constant along it."""
    if array.shape[axis] == 1:
        return array
    return array[(slice(None),) * axis + (part,)]


def _refuse_axis(view: NodeView, axis: int) -> Refused:
    return Refused(
        Reason.AXES, view.label, f"it mixes elements along axis {axis}, on which the change varies"
    )


def unmoved(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Elementwise operators."""
    return change


def cast(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Cast between float types."""
    source = view.type_of(view.name_in(0))
    target = view.attribute("to", TensorProto.UNDEFINED)
    if source not in FLOATS or target not in FLOATS:
        raise Refused(Reason.UNSUPPORTED_TYPE, view.label, "it does not cast float to float")
    return change


def windowed(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Pooling over the axes from 2 on."""
    for axis in varying(change):
        if axis >= 2:
            raise _refuse_axis(view, axis)
    return change


def kept(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Operators that keep every axis on which the change varies as it is."""
    before, after = view.dims_in(0), view.dims_out(0)
    for axis in varying(change):
        if size(view, before, axis) != size(view, after, axis):
            raise _refuse_axis(view, axis)
    return change


def resized(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Resize: its weights sum to one unless it extrapolates with a constant."""
    if view.attribute("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise Refused(Reason.OPAQUE, view.label, "it crops and may fill with a constant")
    return kept(view, change, forward)


def expanded(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Expand: new leading axes, and axes of size 1 that grow."""
    before, after = view.dims_in(0), view.dims_out(0)
    new = len(after) - len(before)
    if forward:
        lifted = change.map(lambda a: a.reshape((1,) * new + a.shape))
    else:
        lifted = change
    for axis in varying(lifted):
        if axis < new or size(view, before, axis - new) != size(view, after, axis):
            raise _refuse_axis(view, axis)
    return lifted if forward else change.map(lambda a: a.reshape(a.shape[new:]))


def transposed(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Transpose."""
    perm = view.attribute("perm", list(range(change.rank))[::-1])
    order = tuple(perm) if forward else tuple(int(i) for i in np.argsort(perm))
    if sorted(order) != list(range(change.rank)):
        raise Refused(
            Reason.INCONSISTENT_SHAPES, view.label, "its perm does not fit its input; repair it"
        )
    return change.map(lambda a: a.transpose(order))


def _listed_axes(view: NodeView, rank: int) -> tuple[int, ...] | None:
    listed = view.integers(1, view.attribute("axes", None))
    return None if listed is None else tuple(sorted(axis_of(view, a, rank) for a in listed))


def squeezed(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Squeeze."""
    dims = view.dims_in(0)
    axes = _listed_axes(view, len(dims))
    if axes is None:
        axes = tuple(a for a in range(len(dims)) if size(view, dims, a) == 1)
    return _with_axes(change, axes, added=not forward)


def unsqueezed(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Unsqueeze."""
    axes = _listed_axes(view, len(view.dims_out(0)))
    return _with_axes(change, axes or (), added=forward)


def _with_axes(change: Affine, axes: tuple[int, ...], *, added: bool) -> Affine:
    if added:
        return change.map(lambda a: np.expand_dims(a, axes))
    return change.map(lambda a: np.squeeze(a, axes))


def reduced(view: NodeView, change: Affine, forward: bool) -> Affine:
    """ReduceMean, ReduceMax and the like, over axes on which the change does not vary."""
    rank = len(view.dims_in(0))
    axes = _listed_axes(view, rank)
    if not axes:
        noop = view.attribute("noop_with_empty_axes", 0)
        axes = () if noop else tuple(range(rank))
    keep = bool(view.attribute("keepdims", 1))
    wide = change if forward or keep else _with_axes(change, axes, added=True)
    for axis in varying(wide):
        if axis in axes:
            raise _refuse_axis(view, axis)
    return _with_axes(change, axes, added=False) if forward and not keep else wide


def reshaped(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Reshape and Flatten, through the block of axes on which the change varies."""
    source, target = view.dims_in(0), view.dims_out(0)
    if not forward:
        source, target = target, source
    source, target = _completed(source, target)
    axes = varying(change)
    if not axes:
        return change.map(lambda a: a.reshape((1,) * len(target)))
    window = _window(source, target, axes[0], axes[-1])
    if window is None:
        raise Refused(
            Reason.UNKNOWN_SHAPE,
            view.label,
            "the sizes around the channel axis are not static, or it merges channels with the "
            "batch; export the model with fixed sizes there",
        )
    (start, stop), (first, last) = window
    bounded(view, math.prod(d for d in source[start:stop] if isinstance(d, int)))
    return change.map(lambda a: _reshape_block(a, source, target, start, stop, first, last))


def _completed(source: Dims, target: Dims) -> tuple[Dims, Dims]:
    """Work out the one size that is not known behind equal leading axes (``x.view(N, -1)``)."""
    equal = 0
    while equal < min(len(source), len(target)) and _same_dim(source[equal], target[equal]):
        equal += 1
    return (
        (*source[:equal], *_filled(source[equal:], target[equal:])),
        (*target[:equal], *_filled(target[equal:], source[equal:])),
    )


def _filled(dims: Dims, other: Dims) -> Dims:
    """Replace the only unknown size by what makes the number of elements that of ``other``."""
    total = math.prod(d if isinstance(d, int) else 0 for d in other)
    rest = math.prod(d for d in dims if isinstance(d, int))
    unknown = [d for d in dims if not isinstance(d, int)]
    if len(unknown) != 1 or total <= 0 or rest <= 0:
        return dims
    return tuple(d if isinstance(d, int) else total // rest for d in dims)


def _reshape_block(
    array: Float64, source: Dims, target: Dims, start: int, stop: int, first: int, last: int
) -> Float64:
    if array.size == 1:
        return array.reshape((1,) * len(target))
    block: Any = source[start:stop]
    wide = np.broadcast_to(array, (1,) * start + block + (1,) * (len(source) - stop))
    inner: Any = target[first:last]
    return wide.reshape((1,) * first + inner + (1,) * (len(target) - last))


def _window(
    source: Dims, target: Dims, low: int, high: int
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Find blocks of axes of both shapes that hold the same elements in the same order.

    The source's block covers axes ``low`` to ``high``. What is outside the blocks has the same
    number of elements on each side, because a reshape keeps the number of all elements.
    """
    left = 0
    while left < low and left < len(target) and _same_dim(source[left], target[left]):
        left += 1
    right = 0
    room = min(len(source) - 1 - high, len(target) - left)
    while right < room and _same_dim(source[~right], target[~right]):
        right += 1
    end_s, end_t = len(source) - right, len(target) - right
    for stop in range(high + 1, end_s + 1):  # a block that begins at the equal front
        for last in range(left + 1, end_t + 1):
            if _same_size(source[left:stop], target[left:last]):
                return (left, stop), (left, last)
    for start in range(low, left - 1, -1):  # a block that ends at the equal back
        for first in range(end_t - 1, left - 1, -1):
            if _same_size(source[start:end_s], target[first:end_t]):
                return (start, end_s), (first, end_t)
    return None


def _same_dim(a: int | str | None, b: int | str | None) -> bool:
    return a is not None and a == b


def _same_size(a: Dims, b: Dims) -> bool:
    static = all(isinstance(d, int) and d > 0 for d in (*a, *b))
    return static and math.prod(a) == math.prod(b)  # type: ignore[arg-type]


def depth_to_space(view: NodeView, change: Affine, forward: bool) -> Affine:
    """DepthToSpace: blocks of channels become blocks of positions."""
    block = view.attribute("blocksize", 1) ** 2
    interleaved = view.attribute("mode", "DCR") == "CRD"
    return _depth(view, change, block, interleaved, narrow=forward)


def space_to_depth(view: NodeView, change: Affine, forward: bool) -> Affine:
    """SpaceToDepth: blocks of positions become blocks of channels."""
    block = view.attribute("blocksize", 1) ** 2
    return _depth(view, change, block, interleaved=False, narrow=not forward)


def _depth(
    view: NodeView, change: Affine, block: int, interleaved: bool, *, narrow: bool
) -> Affine:
    """Turn a change over C*block channels into one over C (``narrow``), or back."""
    for axis in varying(change):
        if axis != 1:
            raise _refuse_axis(view, axis)
    if not narrow:
        return change.map(lambda a: _repeated(a, block, interleaved))
    narrowed = change.map(lambda a: _first_of(a, block, interleaved))
    again = narrowed.map(lambda a: _repeated(a, block, interleaved))
    if not again.agrees_with(change):
        raise _refuse_axis(view, 1)
    return narrowed


def _repeated(array: Float64, block: int, interleaved: bool) -> Float64:
    if array.shape[1] == 1:
        return array
    if interleaved:
        return np.repeat(array, block, axis=1)
    return np.concatenate([array] * block, axis=1)


def _first_of(array: Float64, block: int, interleaved: bool) -> Float64:
    if array.shape[1] == 1:
        return array
    count = array.shape[1] // block
    return array[:, ::block] if interleaved else array[:, :count]


def _pads(view: NodeView) -> list[int]:
    listed = view.integers(1, view.attribute("pads", view.attribute("paddings", None)))
    if listed is None:
        raise Refused(Reason.PARAMETERS_NOT_CONSTANT, view.label, "its pads are not constant")
    axes = view.integers(3, None) if view.opset >= 18 else None
    rank = len(view.dims_in(0))
    if axes is None:
        return listed
    whole = [0] * (2 * rank)
    for i, axis in enumerate(axes):
        whole[axis_of(view, axis, rank)] = listed[i]
        whole[axis_of(view, axis, rank) + rank] = listed[i + len(axes)]
    return whole


def padded(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Pad; zeros let every scale pass, and a shift only where it can stop at the zeros."""
    pads = _pads(view)
    rank = change.rank
    repeats = view.attribute("mode", "constant") != "constant"
    for axis in varying(change):
        if min(pads[axis], pads[axis + rank]) < 0 or (repeats and max(pads[axis::rank]) > 0):
            raise _refuse_axis(view, axis)
    grown = [axis for axis in range(rank) if max(pads[axis::rank]) > 0]
    if repeats or not grown:
        return change
    fill: Any = view.value(2) if view.opset >= 11 else view.attribute("value", 0.0)
    if fill is not None and np.any(np.asarray(fill) != 0):
        raise Refused(Reason.OPAQUE, view.label, "it pads with a constant that is not zero")
    if change.has_shift and len(grown) > 1:
        raise Refused(Reason.NO_SHIFT, view.label, "a scale passes it but a shift does not")
    for axis in grown:
        if change.has_shift or axis in varying(change):
            change = _beside_zeros(view, change, axis, (pads[axis], pads[axis + rank]), forward)
    return change


def _beside_zeros(
    view: NodeView, change: Affine, axis: int, pads: tuple[int, int], forward: bool
) -> Affine:
    """Extend a change along an axis by elements that stay zero, or take those off again."""
    inner = size(view, view.dims_in(0), axis)
    one, still = Affine.identity(change.rank), (pads[0], inner, pads[1])
    bounded(view, sum(still))
    if forward:
        return joined([one, change, one], axis, still)
    kept = change.map(lambda a: cut(a, axis, slice(pads[0], pads[0] + inner)))
    zeros = (
        cut(change.shift, axis, part) for part in (slice(pads[0]), slice(sum(still[:2]), None))
    )
    if any(z.any() for z in zeros if z.size):
        raise Refused(Reason.NO_SHIFT, view.label, "the zeros it adds cannot be shifted")
    return kept


def tiled(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Tile: what varies along a repeated axis is repeated with it."""
    before, after = view.dims_in(0), view.dims_out(0)
    for axis in varying(change):
        inner, outer = size(view, before, axis), size(view, after, axis)
        repeats = outer // inner
        if forward:
            change = joined([change] * repeats, axis, [inner] * repeats)
            continue
        once = _cut_change(change, axis, inner)
        if not joined([once] * repeats, axis, [inner] * repeats).agrees_with(change):
            raise _refuse_axis(view, axis)
        change = once
    return change


def _cut_change(change: Affine, axis: int, stop: int) -> Affine:
    return change.map(lambda a: cut(a, axis, slice(stop)))


def sliced(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Slice; backwards, the elements it leaves out keep their values."""
    dims = view.dims_in(0)
    parts = _slices(view, len(dims))
    for axis in varying(change):
        if axis in parts:
            change = _picked(view, change, axis, np.arange(size(view, dims, axis))[parts[axis]],
                             size(view, dims, axis), forward)  # fmt: skip
    return change


def _slices(view: NodeView, rank: int) -> dict[int, slice]:
    starts = view.integers(1, view.attribute("starts", None))
    ends = view.integers(2, view.attribute("ends", None))
    if starts is None or ends is None:
        raise Refused(Reason.PARAMETERS_NOT_CONSTANT, view.label, "its bounds are not constant")
    axes = view.integers(3, view.attribute("axes", None)) or list(range(len(starts)))
    steps = (view.integers(4, None) if view.opset >= 10 else None) or [1] * len(starts)
    return {
        axis_of(view, axis, rank): _python_slice(start, end, step)
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True)
    }


def _python_slice(start: int, end: int, step: int) -> slice:
    # ONNX writes "to the very beginning" of a backward slice as an end far below zero.
    return slice(start, None if step < 0 and end < -(2**30) else end, step)


def _picked(
    view: NodeView, change: Affine, axis: int, chosen: np.ndarray[Any, Any], count: int,
    forward: bool,
) -> Affine:  # fmt: skip
    """Take elements along an axis, or put them back where they came from."""
    if forward:
        return change.map(lambda a: a if a.shape[axis] == 1 else np.take(a, chosen, axis))
    back = Affine(
        _scattered(change.scale, 1.0, axis, chosen, count),
        _scattered(change.shift, 0.0, axis, chosen, count),
    )
    again = back.map(lambda a: np.take(a, chosen, axis))
    if not again.agrees_with(change):
        raise Refused(Reason.CONFLICT, view.label, "it reads one channel twice")
    return Affine.of(back.scale, back.shift)


def _scattered(
    array: Float64, rest: float, axis: int, chosen: np.ndarray[Any, Any], count: int
) -> Float64:
    whole = np.full((*array.shape[:axis], count, *array.shape[axis + 1 :]), rest)
    whole[(slice(None),) * axis + (chosen,)] = array
    return whole


def gathered(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Gather; on the axis the change varies along, the indices must be a constant list."""
    dims = view.dims_in(0)
    axis = axis_of(view, view.attribute("axis", 0), len(dims))
    count = len(view.dims_in(1))
    ones = tuple(range(axis, axis + count))
    on_axis = axis in varying(change) if forward else any(a in ones for a in varying(change))
    if not on_axis:
        if forward:
            return change.map(lambda a: np.expand_dims(a.take(0, axis), ones))
        return change.map(lambda a: np.expand_dims(np.squeeze(a, ones), axis))
    indices = view.value(1)
    if indices is None or count != 1:
        raise _refuse_axis(view, axis)
    return _picked(view, change, axis, indices, size(view, dims, axis), forward)


# Moves whose way back leaves elements of the input undecided: they keep their values unless
# another reader says otherwise.
PARTIAL = (sliced, gathered)
