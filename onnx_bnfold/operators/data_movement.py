"""How operators that move data move a change along with it.

Each of these functions takes the node, a change, and the direction: ``forward`` is True from input
0 to output 0, and False back. It returns the change on the other side, or raises ``Refused`` where
the change cannot follow. The first line of its docstring names the operators.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from onnx import TensorProto

from onnx_bnfold.model.graph import Dims
from onnx_bnfold.model.node_view import FLOATS, NodeView
from onnx_bnfold.operators.affine import Affine, Float64
from onnx_bnfold.reasons import Reason, Refused


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


# Most elements of a change along an axis; a broken model may have any number in a shape.
LONGEST = 2**24


def bounded(view: NodeView, elements: int) -> int:
    """Return a number of elements that a change may have along an axis.

    Raises:
        Refused: it is more than ``LONGEST``.
    """
    if elements > LONGEST:
        raise Refused(
            Reason.SEARCH_LIMIT,
            view.label,
            f"an axis, or the product of axes that it merges, exceeds {LONGEST:,} elements",
        )
    return elements


def size(view: NodeView, dims: Dims, axis: int) -> int:
    """Return the size of an axis, which has to be static.

    Raises:
        Refused: it is not static, or is more than ``LONGEST``.
    """
    dim = dims[axis]
    if not isinstance(dim, int):
        raise view.unknown_shape(
            f"the size of axis {axis} is not static; export the model with a fixed size there"
        )
    return bounded(view, dim)


def cut(array: Float64, axis: int, part: slice) -> Float64:
    """Slice an array along an axis, unless the axis has size 1."""
    if array.shape[axis] == 1:
        return array
    return array[(slice(None),) * axis + (part,)]


def refuse_axis(view: NodeView, axis: int) -> Refused:
    """Return the refusal of a node that mixes elements for which the change differs."""
    return Refused(
        Reason.AXES, view.label, f"it mixes elements along axis {axis}, on which the change varies"
    )


def unmoved(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Elementwise operators."""
    return change


def cast(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Cast between float types."""
    return _cast(view, change, view.attribute("to", TensorProto.UNDEFINED))


def cast_like(view: NodeView, change: Affine, forward: bool) -> Affine:
    """CastLike, to the type of another tensor."""
    return _cast(view, change, view.type_of(view.name_in(1)))


def _cast(view: NodeView, change: Affine, target: int) -> Affine:
    source = view.type_of(view.name_in(0))
    if source not in FLOATS or target not in FLOATS:
        raise Refused(Reason.UNSUPPORTED_TYPE, view.label, "it casts from or to a non-float type")
    return change


def windowed(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Pooling over the axes from 2 on."""
    for axis in varying(change):
        if axis >= 2:
            raise refuse_axis(view, axis)
    return change


def resized(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Resize and Upsample, if they keep the axes along which the change varies.

    The interpolation weights sum to 1 at every position, for the cubic filter as well, unless
    positions outside the input have a constant value.
    """
    mode = view.attribute("coordinate_transformation_mode", "half_pixel")
    if mode == "tf_crop_and_resize":
        raise Refused(Reason.OPAQUE, view.label, "it crops and may fill with a constant")
    for axis in varying(change):
        # tf_half_pixel_for_nn reads half an element further on even if the scale is 1.
        if mode == "tf_half_pixel_for_nn" or not _keeps_axis(view, axis, change.rank):
            raise refuse_axis(view, axis)
    return change


def _keeps_axis(view: NodeView, axis: int, rank: int) -> bool:
    """Return whether a Resize scales an axis by exactly 1; an equal size does not suffice."""
    listed = view.attribute("axes", list(range(rank)))
    axes = [axis_of(view, each, rank) for each in listed]
    if axis not in axes:
        return True
    scales = _scales(view)
    if scales:
        return len(scales) == len(axes) and scales[axes.index(axis)] == 1
    # Given sizes, a policy for the aspect ratio may choose another scale that gives the same size.
    return view.attribute("keep_aspect_ratio_policy", "stretch") == "stretch" and size(
        view, view.dims_in(0), axis
    ) == size(view, view.dims_out(0), axis)


def _scales(view: NodeView) -> list[float]:
    """Return the scales of a Resize or Upsample; none if it has sizes, or unknown scales."""
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
    """Expand, which adds leading axes and repeats along axes of size 1."""
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
            Reason.INCONSISTENT_SHAPES,
            view.label,
            "its perm does not fit its input; repair the model",
        )
    return change.map(lambda a: a.transpose(order))


def _listed_axes(view: NodeView, rank: int) -> tuple[int, ...] | None:
    listed = view.integers(1, view.attribute("axes", None))
    return None if listed is None else tuple(sorted(axis_of(view, a, rank) for a in listed))


def squeezed(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Squeeze."""
    dims = view.dims_in(0)
    axes = _listed_axes(view, len(dims))
    if axes == ():  # onnxruntime takes this for all axes of size 1, onnx for none
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
    axes = tuple(dict.fromkeys(axes))  # a Squeeze may name an axis twice
    if added:
        return change.map(lambda a: np.expand_dims(a, axes))
    return change.map(lambda a: np.squeeze(a, axes))


def reduced(view: NodeView, change: Affine, forward: bool) -> Affine:
    """ReduceMean, ReduceMax and ReduceMin, over axes along which the change does not vary."""
    axes, dims = reduced_axes(view), view.dims_in(0)
    if any(dims[axis] == 0 for axis in axes):  # the result is a constant, NaN or infinite
        raise Refused(Reason.OPAQUE, view.label, "it reduces an axis without elements")
    keep = bool(view.attribute("keepdims", 1))
    wide = change if forward or keep else _with_axes(change, axes, added=True)
    for axis in varying(wide):
        if axis in axes:
            raise refuse_axis(view, axis)
    return _with_axes(change, axes, added=False) if forward and not keep else wide


def summed(view: NodeView, change: Affine, forward: bool) -> Affine:
    """ReduceSum, which multiplies a shift by the number of elements that it sums."""
    moved = reduced(view, change, forward)
    if not change.has_shift:
        return moved
    dims = view.dims_in(0)
    count = math.prod(size(view, dims, axis) for axis in reduced_axes(view))
    return moved.with_shift(moved.shift * count if forward else moved.shift / count)


def reduced_axes(view: NodeView) -> set[int]:
    """Return the axes that a ReduceMean, ReduceMax, ReduceMin or ReduceSum reduces."""
    rank = len(view.dims_in(0))
    axes = _listed_axes(view, rank)
    if axes:
        return set(axes)
    return set() if view.attribute("noop_with_empty_axes", 0) else set(range(rank))


def reshaped(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Reshape and Flatten; only sizes around the axes along which the change varies matter."""
    # Many models reshape nothing.
    from onnx_bnfold.operators.reshape_axes import completed, matching_blocks, reshape_block

    source, target = view.dims_in(0), view.dims_out(0)
    if not forward:
        source, target = target, source
    source, target = completed(source, target)
    axes = varying(change)
    if not axes:
        return change.map(lambda a: a.reshape((1,) * len(target)))
    blocks = matching_blocks(source, target, axes[0], axes[-1])
    if blocks is None:
        raise view.unknown_shape(
            "sizes around the channel axis are not static, or it merges channels with the batch; "
            "export the model with fixed sizes there"
        )
    (start, stop), (first, last) = blocks
    bounded(view, math.prod(d for d in source[start:stop] if isinstance(d, int)))
    return change.map(lambda a: reshape_block(a, source, target, start, stop, first, last))


def depth_to_space(view: NodeView, change: Affine, forward: bool) -> Affine:
    """DepthToSpace, which moves blocks of channels to blocks of positions."""
    block = view.attribute("blocksize", 1) ** 2
    interleaved = view.attribute("mode", "DCR") == "CRD"
    return _depth(view, change, block, interleaved, narrow=forward)


def space_to_depth(view: NodeView, change: Affine, forward: bool) -> Affine:
    """SpaceToDepth, which moves blocks of positions to blocks of channels."""
    block = view.attribute("blocksize", 1) ** 2
    interleaved = view.attribute("mode", "DCR") == "CRD"
    return _depth(view, change, block, interleaved, narrow=not forward)


def _depth(
    view: NodeView, change: Affine, block: int, interleaved: bool, *, narrow: bool
) -> Affine:
    """Turn a change of C * block channels into one of C channels (``narrow``), or back."""
    for axis in varying(change):
        if axis > 1:
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
