"""Rules of operators that swallow a change: it alters nothing of what they answer.

The largest of some elements is the same one when all are shifted or scaled alike, and Softmax
divides by a sum in which every shift cancels. What comes out stays as it is, and so takes no change
of its own.
"""

from __future__ import annotations

from collections.abc import Collection

from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators.data_movement import axis_of
from onnx_bnfold.operators.entries import OUT
from onnx_bnfold.operators.positions import Axes, axis_by, require_constant_along
from onnx_bnfold.operators.rules import Known, Rule, Step, require_order
from onnx_bnfold.reasons import Reason, Refused


def normalised_axes(view: NodeView, rank: int) -> Collection[int]:
    """Return the axes that a Softmax or Hardmax makes one of: before opset 13, several."""
    if view.opset >= 13:
        return [axis_of(view, view.attribute("axis", -1), rank)]
    return range(axis_of(view, view.attribute("axis", 1), rank), rank)


def order(axes: Axes) -> Rule:
    """Make the rule of an operator that finds the largest of elements, which change alike."""

    def rule(view: NodeView, known: Known) -> Step:
        change = known.changes[0]
        require_constant_along(view, change, axes(view, change.rank))
        require_order(view, change)
        return Step(({0: change},))

    return rule


def softmax(view: NodeView, known: Known) -> Step:
    """Complete a Softmax or LogSoftmax, whose elements may be shifted together."""
    change = known.changes[0]
    if change.has_scale:
        raise Refused(Reason.OPAQUE, view.label, "it takes a shift away, but no scale passes it")
    require_constant_along(view, change, normalised_axes(view, change.rank))
    return Step(({0: change},))


def topk(view: NodeView, known: Known) -> Step:
    """Complete a TopK: its values change as its data does, and its indices stay as they are."""
    source = 0 if 0 in known.changes else OUT
    change = known.changes[source]
    require_constant_along(view, change, axis_by("axis", -1)(view, change.rank))
    require_order(view, change)
    if change.has_shift and len(view.writes) > 1 and view.graph.is_read(view.writes[1]):
        raise Refused(
            Reason.NO_SHIFT,
            view.label,
            "a shift may cost its elements the digits by which its indices order them",
        )
    return Step(({source: change, ~source: change},))


# The rules of the table.
argmax = order(axis_by("axis", 0))
hardmax = order(normalised_axes)
