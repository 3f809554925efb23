"""How operators that move data move a change along with it.

Each function takes the node, a change, and the direction: from input 0 to output 0 (``True``) or
back. It returns the change on the other side, or raises ``Refused`` where the change cannot follow.
"""

from __future__ import annotations

import math
from collections.abc import Collection
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


def resized(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Resize and Upsample, where they leave the axes on which the change varies as they are.

    Their weights sum to one at every position, those of the cubic filter too, unless what lies
    outside is a constant.
    """
    mode = view.attribute("coordinate_transformation_mode", "half_pixel")
    if mode == "tf_crop_and_resize":
        raise Refused(Reason.OPAQUE, view.label, "it crops and may fill with a constant")
    for axis in varying(change):
        # One of the modes reads half an element farther on even where the scale is 1.
        if mode == "tf_half_pixel_for_nn" or not _keeps_axis(view, axis, change.rank):
            raise _refuse_axis(view, axis)
    return change


def _keeps_axis(view: NodeView, axis: int, rank: int) -> bool:
    """Whether a Resize scales an axis by exactly 1; that its size stays is not enough."""
    listed = view.attribute("axes", list(range(rank)))
    axes = [axis_of(view, each, rank) for each in listed]
    if axis not in axes:
        return True
    scales = _scales(view)
    if scales:
        return len(scales) == len(axes) and scales[axes.index(axis)] == 1
    # By sizes: what the policy makes of them may be another scale that ends in the same size.
    return view.attribute("keep_aspect_ratio_policy", "stretch") == "stretch" and size(
        view, view.dims_in(0), axis
    ) == size(view, view.dims_out(0), axis)


def _scales(view: NodeView) -> list[float]:
    """Return the scales of a Resize or Upsample, none where it is given sizes instead.

    Raises:
        Refused: they are computed at run time.
    """
    if view.opset < 9:
        sides = [view.attribute("height_scale", 1.0), view.attribute("width_scale", 1.0)]
        return view.attribute("scales", [1.0, 1.0, *sides])
    slot = 1 if view.op == "Upsample" or view.opset < 11 else 2
    sized = view.constant(3)
    if view.name_in(3) and (sized is None or sized.size):
        return []
    value = view.value(slot)
    return [] if value is None else [float(each) for each in value.reshape(-1)]


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
    if axes == ():  # all of size 1 in onnxruntime, none in onnx
        raise Refused(Reason.OPAQUE, view.label, "its list of axes is empty; leave it out")
    if axes is None:
        axes = tuple(a for a in range(len(dims)) if size(view, dims, a) == 1)
    return _with_axes(change, axes, added=not forward)


def unsqueezed(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Unsqueeze."""
    listed = view.integers(1, view.attribute("axes", None)) or ()
    rank = len(view.dims_in(0)) + len(listed)
    return _with_axes(change, tuple(axis_of(view, a, rank) for a in listed), added=forward)


def _with_axes(change: Affine, axes: tuple[int, ...], *, added: bool) -> Affine:
    axes = tuple(dict.fromkeys(axes))  # a Squeeze or Reduce may name one twice
    if added:
        return change.map(lambda a: np.expand_dims(a, axes))
    return change.map(lambda a: np.squeeze(a, axes))


def reduced(view: NodeView, change: Affine, forward: bool) -> Affine:
    """ReduceMean, ReduceMax and the like, over axes on which the change does not vary."""
    rank = len(view.dims_in(0))
    dims, axes = view.dims_in(0), _listed_axes(view, rank)
    if not axes:
        noop = view.attribute("noop_with_empty_axes", 0)
        axes = () if noop else tuple(range(rank))
    if any(dims[axis] == 0 for axis in axes):  # 0 or not a number, the lowest number or infinite
        raise Refused(Reason.OPAQUE, view.label, "it reduces an axis without elements")
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
    interleaved = view.attribute("mode", "DCR") == "CRD"
    return _depth(view, change, block, interleaved, narrow=not forward)


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
    placed = [axis_of(view, axis, rank) for axis in axes]
    _require_distinct(view, placed)
    for i, axis in enumerate(placed):
        whole[axis] = listed[i]
        whole[axis + rank] = listed[i + len(axes)]
    return whole


def _require_distinct(view: NodeView, axes: Collection[int]) -> None:
    """Refuse a node that names an axis twice, of which the specification leaves the effect open."""
    if len(set(axes)) < len(axes):
        raise Refused(
            Reason.INCONSISTENT_SHAPES, view.label, "it names an axis twice; repair the model"
        )


def padded(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Pad; zeros let every scale pass, and a shift only where it can stop at the zeros."""
    pads = _pads(view)
    rank = change.rank
    around = {axis: (pads[axis], pads[axis + rank]) for axis in range(rank)}
    grown = [axis for axis, sides in around.items() if max(sides) > 0]
    if view.attribute("mode", "constant") != "constant":
        for axis in varying(change):
            if axis in grown:
                raise _refuse_axis(view, axis)
        grown = []  # every element is one of the input
    elif grown:
        _require_zeros(view)
        if change.has_shift and len(grown) > 1:
            raise Refused(Reason.NO_SHIFT, view.label, "a scale passes it but a shift does not")
    for axis, (front, back) in around.items():
        concerned = axis in varying(change) or (axis in grown and change.has_shift)
        if concerned and (front or back):
            count = size(view, view.dims_in(0), axis)
            bounded(view, max(front, 0) + count + max(back, 0))
            positions = np.arange(-front, count + back)
            chosen = np.where(positions < count, positions, -1)
            change = _picked(view, change, axis, chosen, count, forward)
    return change


def _require_zeros(view: NodeView) -> None:
    fill: Any = view.value(2) if view.opset >= 11 else view.attribute("value", 0.0)
    if fill is not None and np.any(np.asarray(fill) != 0):
        raise Refused(Reason.OPAQUE, view.label, "it pads with a constant that is not zero")


def tiled(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Tile: what varies along a repeated axis is repeated with it."""
    before, after = view.dims_in(0), view.dims_out(0)
    for axis in varying(change):
        inner, outer = size(view, before, axis), size(view, after, axis)
        if not outer:
            raise _refuse_axis(view, axis)
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
            count = size(view, dims, axis)
            change = _picked(view, change, axis, _sliced(parts[axis], count), count, forward)
    return change


def _slices(view: NodeView, rank: int) -> dict[int, tuple[int, int, int]]:
    """Return start, end and step by axis, as they are written."""
    starts = view.integers(1, view.attribute("starts", None))
    ends = view.integers(2, view.attribute("ends", None))
    if starts is None or ends is None:
        raise Refused(Reason.PARAMETERS_NOT_CONSTANT, view.label, "its bounds are not constant")
    axes = view.integers(3, view.attribute("axes", None)) or list(range(len(starts)))
    steps = (view.integers(4, None) if view.opset >= 10 else None) or [1] * len(starts)
    placed = [axis_of(view, axis, rank) for axis in axes]
    _require_distinct(view, placed)
    return dict(zip(placed, zip(starts, ends, steps, strict=True), strict=True))


def _sliced(part: tuple[int, int, int], count: int) -> Positions:
    """Return the positions that a Slice takes of ``count`` elements.

    A start is moved to the nearest element, and an end to one past the last or in front of the
    first (ONNX Slice-13): a backward slice that starts in front of the first element takes that.
    """
    start, end, step = part
    start, end = start + count * (start < 0), end + count * (end < 0)
    low, high = (0, count) if step > 0 else (-1, count - 1)
    return np.arange(min(max(start, 0), high), min(max(end, low), high), step)


# For each element along an axis the position of the one that it is, -1 for a constant zero.
Positions = np.ndarray[Any, Any]


def _picked(
    view: NodeView, change: Affine, axis: int, chosen: Positions, count: int, forward: bool
) -> Affine:
    """Take elements along an axis, or put them back where they came from."""
    if forward:
        return Affine.of(
            _taken(change.scale, 1.0, axis, chosen), _taken(change.shift, 0.0, axis, chosen)
        )
    back = Affine(
        _scattered(change.scale, 1.0, axis, chosen, count),
        _scattered(change.shift, 0.0, axis, chosen, count),
    )
    if _wide(change.shift, axis, len(chosen))[_along(axis, chosen < 0)].any():
        raise Refused(Reason.NO_SHIFT, view.label, "the zeros it adds cannot be shifted")
    kept = _along(axis, chosen >= 0)
    again = back.map(lambda a: _taken(a, 0.0, axis, chosen)[kept])
    if not again.agrees_with(change.map(lambda a: _wide(a, axis, len(chosen))[kept])):
        raise Refused(Reason.CONFLICT, view.label, "it reads one channel twice")
    return Affine.of(back.scale, back.shift)


def _along(axis: int, index: Any) -> tuple[Any, ...]:
    """Return what selects elements along an axis."""
    return (*(slice(None),) * axis, index)


def _wide(array: Float64, axis: int, count: int) -> Float64:
    """Return an array of ``count`` elements along an axis."""
    return array if array.shape[axis] == count else np.repeat(array, count, axis)


def _taken(array: Float64, rest: float, axis: int, chosen: Positions) -> Float64:
    """Take elements along an axis, and ``rest`` for the constants."""
    constant = chosen < 0
    if array.shape[axis] == 1 and not constant.any():
        return array
    taken = _wide(array, axis, max(chosen.max(initial=0) + 1, array.shape[axis]))
    taken = taken.take(chosen, axis)
    taken[_along(axis, constant)] = rest
    return taken


def _scattered(array: Float64, rest: float, axis: int, chosen: Positions, count: int) -> Float64:
    whole = np.full((*array.shape[:axis], count, *array.shape[axis + 1 :]), rest)
    kept = chosen >= 0
    whole[_along(axis, chosen[kept])] = _wide(array, axis, len(chosen))[_along(axis, kept)]
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
    taken = size(view, dims, axis)
    if not ((indices >= -taken) & (indices < taken)).all():
        raise Refused(
            Reason.INCONSISTENT_SHAPES, view.label, "an index is out of range; repair the model"
        )
    return _picked(view, change, axis, indices % taken, taken, forward)


# Moves whose way back leaves elements of the input undecided: they keep their values unless
# another reader says otherwise.
PARTIAL = (sliced, gathered, padded)
