"""CenterCropPad: crops and pads with zeros on both sides of an axis, as a Pad does."""

from __future__ import annotations

from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.operators.data_movement import axis_of, size, varying
from onnx_bnfold.operators.entries import HandsOn
from onnx_bnfold.operators.picks import framed
from onnx_bnfold.operators.rules import Transparent, passes


def _centered(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Move a change; what it cuts off and the zeros that it adds are those of a Pad."""
    before, after = view.dims_in(0), view.dims_out(0)
    listed = view.attribute("axes", list(range(change.rank)))
    around = {}
    for axis in (axis_of(view, each, change.rank) for each in listed):
        is_same = before[axis] is not None and before[axis] == after[axis]
        if not is_same and (change.has_shift or axis in varying(change)):
            grows = size(view, after, axis) - size(view, before, axis)
            front = grows // 2 if grows > 0 else -(-grows // 2)
            around[axis] = (front, grows - front)
    grown = [axis for axis, sides in around.items() if sum(sides) > 0]
    return framed(view, change, around, grown, forward)


ENTRIES = {
    "CenterCropPad": Transparent(passes(_centered, drops=True), version=18, hands_on=HandsOn.SOME),
}
