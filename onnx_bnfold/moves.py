"""How operators that move data move a change along with it.

Each function takes the node, a change, and the direction: from input 0 to output 0 (``True``) or
back. It returns the change on the other side, or raises ``Refused`` where the change cannot follow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from onnx import TensorProto

from onnx_bnfold.affine import Affine, Float64
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
        raise view.unknown_shape(
            f"the size of axis {axis} is not static; export the model with a fixed size there"
        )
    return bounded(view, dim)


def cut(array: Float64, axis: int, part: slice) -> Float64:
    """Slice an array along an axis, unless it is constant along it."""
    if array.shape[axis] == 1:
        return array
    return array[(slice(None),) * axis + (part,)]


def refuse_axis(view: NodeView, axis: int) -> Refused:
    """Return the refusal of a node that mixes elements between which a change differs."""
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
            raise refuse_axis(view, axis)
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
            raise refuse_axis(view, axis)
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
            raise refuse_axis(view, axis)
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


def _with_axes(change: Affine, axes: Iterable[int], *, added: bool) -> Affine:
    axes = tuple(dict.fromkeys(axes))  # a Squeeze may name one twice
    if added:
        return change.map(lambda a: np.expand_dims(a, axes))
    return change.map(lambda a: np.squeeze(a, axes))


def reduced(view: NodeView, change: Affine, forward: bool) -> Affine:
    """ReduceMean, ReduceMax and the like, over axes on which the change does not vary."""
    axes, dims = _reduced_axes(view), view.dims_in(0)
    if any(dims[axis] == 0 for axis in axes):  # 0 or not a number, the lowest number or infinite
        raise Refused(Reason.OPAQUE, view.label, "it reduces an axis without elements")
    keep = bool(view.attribute("keepdims", 1))
    wide = change if forward or keep else _with_axes(change, axes, added=True)
    for axis in varying(wide):
        if axis in axes:
            raise refuse_axis(view, axis)
    return _with_axes(change, axes, added=False) if forward and not keep else wide


def summed(view: NodeView, change: Affine, forward: bool) -> Affine:
    """ReduceSum: a shift comes as often as there are elements in a sum."""
    moved = reduced(view, change, forward)
    if not change.has_shift:
        return moved
    dims = view.dims_in(0)
    count = math.prod(size(view, dims, axis) for axis in _reduced_axes(view))
    return moved.with_shift(moved.shift * count if forward else moved.shift / count)


def _reduced_axes(view: NodeView) -> set[int]:
    rank = len(view.dims_in(0))
    axes = _listed_axes(view, rank)
    if axes:
        return set(axes)
    return set() if view.attribute("noop_with_empty_axes", 0) else set(range(rank))


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
        raise view.unknown_shape(
            "the sizes around the channel axis are not static, or it merges channels with the "
            "batch; export the model with fixed sizes there"
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
            raise refuse_axis(view, axis)
    if not narrow:
        return change.map(lambda a: _repeated(a, block, interleaved))
    narrowed = change.map(lambda a: _first_of(a, block, interleaved))
    again = narrowed.map(lambda a: _repeated(a, block, interleaved))
    if not again.agrees_with(change):
        raise refuse_axis(view, 1)
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
