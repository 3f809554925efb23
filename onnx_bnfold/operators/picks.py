"""How operators that pick elements along an axis move a change: Slice, Gather, Pad, Tile, ….

The functions have the signature of those in ``data_movement``. Most have one form: for each
position along an axis of the output, the position in the input that it comes from.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from onnx_bnfold.arrays import Array
from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators.affine import Affine, Float64, close
from onnx_bnfold.operators.concatenation import joined
from onnx_bnfold.operators.data_movement import axis_of, bounded, cut, refuse_axis, size, varying
from onnx_bnfold.reasons import Reason, Refused

# For each position along an axis of the output its position in the input, -1 for a constant zero.
Positions = Array


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
    """Refuse a node that names an axis twice; the specification does not say what that means."""
    if len(set(axes)) < len(axes):
        raise Refused(
            Reason.INCONSISTENT_SHAPES, view.label, "it names an axis twice; repair the model"
        )


def padded(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Pad; zeros let every scale pass, but a shift only along the one axis that is padded."""
    pads = _pads(view)
    rank = change.rank
    around = {axis: (pads[axis], pads[axis + rank]) for axis in range(rank)}
    grown = [axis for axis, sides in around.items() if max(sides) > 0]
    if view.attribute("mode", "constant") != "constant":
        for axis in varying(change):
            if axis in grown:
                raise refuse_axis(view, axis)
        grown = []  # every element of the output is one of the input
    elif grown:
        _require_zeros(view)
    return framed(view, change, around, grown, forward)


def framed(
    view: NodeView,
    change: Affine,
    around: Mapping[int, tuple[int, int]],
    grown: Collection[int],
    forward: bool,
) -> Affine:
    """Move a change through what adds or, where a number is negative, cuts off elements.

    Args:
        view, change, forward: as everywhere here.
        around: axis → how many elements in front and behind.
        grown: the axes that get zeros.

    Raises:
        Refused: zeros on several axes would have to be shifted.
    """
    if change.has_shift and len(grown) > 1:
        raise Refused(Reason.NO_SHIFT, view.label, "a scale passes it but a shift does not")
    for axis, (front, back) in around.items():
        is_affected = axis in varying(change) or (axis in grown and change.has_shift)
        if is_affected and (front or back):
            count = size(view, view.dims_in(0), axis)
            bounded(view, max(front, 0) + count + max(back, 0))
            positions = np.arange(-front, count + back)
            chosen = np.where((positions >= 0) & (positions < count), positions, -1)
            change = _picked(view, change, axis, chosen, count, forward)
    return change


def _require_zeros(view: NodeView) -> None:
    fill: Any = view.value(2) if view.opset >= 11 else view.attribute("value", 0.0)
    if fill is not None and np.any(np.asarray(fill) != 0):
        raise Refused(Reason.OPAQUE, view.label, "it pads with a constant that is not zero")


def tiled(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Tile; a change that varies along a repeated axis is repeated with it."""
    before, after = view.dims_in(0), view.dims_out(0)
    for axis in varying(change):
        inner, outer = size(view, before, axis), size(view, after, axis)
        if not outer:
            raise refuse_axis(view, axis)
        repeats = outer // inner
        starts = range(0, (repeats + 1) * inner, inner)
        if forward:
            change = joined(dict.fromkeys(range(repeats), change), axis, starts)
            continue
        once = _cut_change(change, axis, inner)
        if not joined(dict.fromkeys(range(repeats), once), axis, starts).agrees_with(change):
            raise refuse_axis(view, axis)
        change = once
    return change


def _cut_change(change: Affine, axis: int, stop: int) -> Affine:
    return change.map(lambda a: cut(a, axis, slice(stop)))


def sliced(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Slice; on the way back, elements that it leaves out are not changed.

    Its bounds matter on axes alone along which the change varies.
    """
    dims = view.dims_in(0)
    parts = _slices(view, len(dims))
    for axis in varying(change):
        part = parts.get(axis)
        if isinstance(part, Refused):
            raise part
        if part is not None:
            count = size(view, dims, axis)
            change = _picked(view, change, axis, _sliced(part, count), count, forward)
    return change


def _slices(view: NodeView, rank: int) -> Mapping[int, tuple[int, int, int] | Refused]:
    """Return axis → (start, end, step), as the node has them, or why they are not known."""
    try:
        starts, ends = _bounds(view)
    except Refused as computed:
        axes, steps = _axes_and_steps(view, rank, None)
        if min(steps, default=1) < 1:  # it may run to the front
            raise
        return dict.fromkeys(axes, computed)
    axes, steps = _axes_and_steps(view, rank, len(starts))
    from onnx_bnfold.model.misread import runs_to_the_front

    if any(runs_to_the_front(*each) for each in zip(ends, steps, strict=True)):
        raise Refused(
            Reason.OPAQUE,
            view.label,
            "it runs backwards to an end behind its input, for which onnxruntime returns elements "
            f"and the specification none; write that end as {-(2**31)}",
        )
    return dict(zip(axes, zip(starts, ends, steps, strict=True), strict=True))


def _bounds(view: NodeView) -> tuple[list[int], list[int]]:
    starts = view.integers(1, view.attribute("starts", None))
    ends = view.integers(2, view.attribute("ends", None))
    if starts is None or ends is None:
        raise Refused(Reason.PARAMETERS_NOT_CONSTANT, view.label, "its bounds are not constant")
    return starts, ends


def _axes_and_steps(view: NodeView, rank: int, count: int | None) -> tuple[list[int], list[int]]:
    """Return the axes that a Slice has bounds of, and its steps.

    Args:
        view: the node.
        rank: of its input.
        count: number of its bounds, None if these are computed.
    """
    axes = view.integers(3, view.attribute("axes", None))
    if not axes:
        axes = [*range(size(view, view.dims_in(1), 0) if count is None else count)]
    steps = view.integers(4, None) if view.opset >= 10 else None
    placed = [axis_of(view, axis, rank) for axis in axes]
    _require_distinct(view, placed)
    return placed, steps or [1] * len(placed)


def _sliced(part: tuple[int, int, int], count: int) -> Positions:
    """Return the positions that a Slice takes of an axis of ``count`` elements.

    The start is clamped to the nearest element, the end to the position behind the last or before
    the first element (ONNX Slice-13). So a backward Slice that starts before the first element
    takes that element.
    """
    start, end, step = part
    start, end = start + count * (start < 0), end + count * (end < 0)
    low, high = (0, count) if step > 0 else (-1, count - 1)
    return np.arange(min(max(start, 0), high), min(max(end, low), high), step)


def _picked(
    view: NodeView, change: Affine, axis: int, chosen: Positions, count: int, forward: bool
) -> Affine:
    """Move a change to the elements that are picked along an axis, or back.

    Args:
        view: the node.
        change: on one side of the node.
        axis: along which elements are picked.
        chosen: the positions in the input.
        count: size of the axis in the input.
        forward: from the input to the output, or back.

    Raises:
        Refused: a constant zero would have to be shifted, or two changes of one element differ.
    """
    if forward:
        return Affine.of(
            _taken(change.scale, 1.0, axis, chosen), _taken(change.shift, 0.0, axis, chosen)
        )
    back = Affine(
        _scattered(change.scale, 1.0, axis, chosen, count),
        _scattered(change.shift, 0.0, axis, chosen, count),
    )
    if _wide(change.shift, axis, len(chosen))[_along(axis, chosen < 0)].any():
        raise Refused(Reason.NO_SHIFT, view.label, "the zeros that it adds cannot be shifted")
    kept, count = _along(axis, chosen >= 0), len(chosen)
    for before, after in ((change.scale, back.scale), (change.shift, back.shift)):
        again = _wide(_taken(after, 0.0, axis, chosen), axis, count)
        if not close(again[kept], _wide(before, axis, count)[kept]):
            raise Refused(
                Reason.CONFLICT,
                view.label,
                "it reads a channel twice, and the changes of the two differ",
            )
    return Affine.of(back.scale, back.shift)


def _along(axis: int, index: Any) -> tuple[Any, ...]:
    """Return an index that selects elements along an axis."""
    return (*(slice(None),) * axis, index)


def _wide(array: Float64, axis: int, count: int) -> Float64:
    """Return an array repeated to ``count`` elements along an axis, unless it has them."""
    return array if array.shape[axis] == count else np.repeat(array, count, axis)


def _taken(array: Float64, rest: float, axis: int, chosen: Positions) -> Float64:
    """Take elements along an axis, and ``rest`` where the output is constant."""
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
    """Gather; if the change varies along its axis, the indices must be constant."""
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
    if indices is None:
        raise refuse_axis(view, axis)
    taken = size(view, dims, axis)
    if not ((indices >= -taken) & (indices < taken)).all():
        raise Refused(
            Reason.INCONSISTENT_SHAPES, view.label, "an index is out of range; repair the model"
        )
    shape, flat = indices.shape, indices.reshape(-1) % taken
    bounded(view, len(flat))
    if not forward:
        change = change.map(lambda a: _flattened(a, axis, shape))
        return _picked(view, change, axis, flat, taken, forward)
    picked = _picked(view, change, axis, flat, taken, forward)
    return picked.map(lambda a: _unflattened(a, axis, shape))


def _flattened(array: Float64, axis: int, shape: tuple[int, ...]) -> Float64:
    """Merge the axes that the indices of a Gather, of shape ``shape``, have made of ``axis``."""
    before, behind = array.shape[:axis], array.shape[axis + len(shape) :]
    wide = np.broadcast_to(array, (*before, *shape, *behind))
    return wide.reshape((*before, math.prod(shape), *behind))


def _unflattened(array: Float64, axis: int, shape: tuple[int, ...]) -> Float64:
    """Undo ``_flattened``."""
    if array.shape[axis] == 1:
        shape = (1,) * len(shape)
    return array.reshape((*array.shape[:axis], *shape, *array.shape[axis + 1 :]))
