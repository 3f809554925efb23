"""How operators that mix elements along some axes, and pick them there, move a change.

It must not vary along these axes, so where the elements go does not matter. The functions have the
signature of those in ``data_movement``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators.affine import Affine, Float64
from onnx_bnfold.operators.data_movement import axis_of, refuse_axis, size, varying
from onnx_bnfold.operators.entries import OUT
from onnx_bnfold.operators.rules import Known, Mover, Rule, Step, passes, require, require_ordinary
from onnx_bnfold.reasons import Reason, Refused

# From a node and the rank of its input to the axes along which it mixes or compares elements.
Axes = Callable[[NodeView, int], Collection[int]]


def require_constant_along(view: NodeView, change: Affine, axes: Collection[int]) -> None:
    """Refuse a change that varies along an axis on which the node mixes elements."""
    for axis in varying(change):
        if axis in axes:
            raise refuse_axis(view, axis)


def along(axes: Axes) -> Mover:
    """Make what moves a change through an operator that keeps all other axes as they are."""

    def move(view: NodeView, change: Affine, forward: bool) -> Affine:
        if varying(change):  # else it does not matter which axes these are
            require_constant_along(view, change, axes(view, change.rank))
        return change

    return move


def axis_by(name: str, default: int) -> Axes:
    """Return what reads an axis from an attribute."""
    return lambda view, rank: [axis_of(view, view.attribute(name, default), rank)]


def summed_axis(view: NodeView, rank: int) -> Collection[int]:
    """Return the axis of a CumSum."""
    listed = view.integers(1, None) or []
    return [axis_of(view, axis, rank) for axis in listed]


def compressed(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Compress, which makes one axis of all if none is named."""
    rank = len(view.dims_in(0))
    axis = view.attribute("axis", None)
    if axis is not None:
        require_constant_along(view, change, [axis_of(view, axis, rank)])
        return change
    require_constant_along(view, change, range(rank))
    return change.map(lambda a: a.reshape((1,) * (1 if forward else rank)))


def picked_elements(view: NodeView, change: Affine, forward: bool) -> Affine:
    """GatherElements, which takes elements along one axis, and the updates of a ScatterElements."""
    own = axis_of(view, view.attribute("axis", 0), change.rank)
    data, indices = view.dims_in(0), view.dims_in(1)
    for axis in varying(change):
        # Of an axis that the indices do not cover, the first elements are taken.
        if axis == own or size(view, data, axis) != size(view, indices, axis):
            raise refuse_axis(view, axis)
    return change


def picked_slices(view: NodeView, change: Affine, forward: bool) -> Affine:
    """GatherND, whose indices name the first axes behind the batch, and a ScatterND's updates."""
    batch = view.attribute("batch_dims", 0)
    data, indices = view.dims_in(0), view.dims_in(1)
    named = size(view, indices, len(indices) - 1)
    if len(data) < batch + named or len(indices) <= batch:
        raise ValueError
    before, after = range(batch, batch + named), range(batch, len(indices) - 1)
    lost, new = (before, after) if forward else (after, before)
    require_constant_along(view, change, lost)

    def moved(array: Float64) -> Float64:
        return np.expand_dims(np.squeeze(array, tuple(lost)), tuple(new))

    return change.map(moved)


_ORDERING = frozenset(("max", "min"))


def scattered(move: Mover) -> Rule:
    """Make the rule of an operator that writes updates into its data, which change alike.

    Args:
        move: moves a change from the data to the updates, or back.
    """

    def rule(view: NodeView, known: Known) -> Step:
        reduction = view.attribute("reduction", "none")
        if reduction not in ("none", "add", *_ORDERING):
            raise Refused(Reason.OPAQUE, view.label, f"its reduction is {reduction!r}")
        change = known.changes.get(0) or known.changes.get(OUT)
        if change is None:
            change = move(view, known.changes[2], False)
        require(view, change, positive=reduction in _ORDERING, shift=reduction != "add")
        if view.constant(0) is not None or view.constant(2) is not None:
            require_ordinary(view, change)
        return Step(({0: change, 2: move(view, change, True), OUT: change},))

    return rule


# What the table asks of these.
summed_up = along(summed_axis)
reversed_in_time = along(axis_by("time_axis", 0))
scattered_elements = scattered(picked_elements)
scattered_slices = scattered(picked_slices)


def pooled_regions(view: NodeView, known: Known) -> Step:
    """Complete a RoiAlign: a scale per channel passes, a positive one where it takes maxima.

    A shift does not: what a region has outside of the image is zero, and regions are told at run
    time. An entry of the output's first axis is a region, whichever image it is of.
    """
    positive = view.attribute("mode", "avg") != "avg"
    return passes(along(all_but_channels), positive=positive, shift=False)(view, known)


def all_but_channels(view: NodeView, rank: int) -> Collection[int]:
    """Return the axes that pooling by regions mixes: a region says of which image it is."""
    return [axis for axis in range(rank) if axis != 1]
