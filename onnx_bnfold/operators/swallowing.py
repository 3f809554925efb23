"""Rules of operators that swallow a change: it alters nothing of what they answer.

The largest of some elements is the same one when all are shifted or scaled alike, and Softmax
divides by a sum in which every shift cancels. What comes out stays as it is, and so takes no change
of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.operators.data_movement import axis_of, refuse_axis, varying
from onnx_bnfold.operators.rules import Known, Rule, Step, require_order
from onnx_bnfold.reasons import Reason, Refused

# From a node and the rank of its input to the axes along which it compares or adds up elements.
Axes = Callable[[NodeView, int], Collection[int]]


def compared_axis(view: NodeView, rank: int) -> Collection[int]:
    """Return the axis of an ArgMax or ArgMin."""
    return [axis_of(view, view.attribute("axis", 0), rank)]


def normalised_axes(view: NodeView, rank: int) -> Collection[int]:
    """Return the axes that a Softmax or Hardmax makes one of: before opset 13, several."""
    if view.opset >= 13:
        return [axis_of(view, view.attribute("axis", -1), rank)]
    return range(axis_of(view, view.attribute("axis", 1), rank), rank)


def order(axes: Axes) -> Rule:
    """Make the rule of an operator that finds the largest of elements, which change alike."""

    def rule(view: NodeView, known: Known) -> Step:
        change = known.changes[0]
        _require_alike(view, change, axes(view, change.rank))
        require_order(view, change)
        return Step(({0: change},))

    return rule


def softmax(view: NodeView, known: Known) -> Step:
    """Complete a Softmax or LogSoftmax, whose elements may be shifted together."""
    change = known.changes[0]
    if change.has_scale:
        raise Refused(Reason.OPAQUE, view.label, "it takes a shift away, but no scale passes it")
    _require_alike(view, change, normalised_axes(view, change.rank))
    return Step(({0: change},))


def _require_alike(view: NodeView, change: Affine, axes: Collection[int]) -> None:
    for axis in varying(change):
        if axis in axes:
            raise refuse_axis(view, axis)
