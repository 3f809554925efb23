"""DFT: sums of the elements along one axis, weighted by the roots of one."""

from __future__ import annotations

from collections.abc import Collection

from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators import costs
from onnx_bnfold.operators.data_movement import axis_of
from onnx_bnfold.operators.positions import along
from onnx_bnfold.operators.rules import Transparent, passes


def _mixed(view: NodeView, rank: int) -> Collection[int]:
    """Return the axis of the signal, and the last one, of real and imaginary parts."""
    if view.opset < 20:
        axis = view.attribute("axis", 1)
    else:
        [axis] = view.integers(2, None) or [-2]
    return [axis_of(view, axis, rank), rank - 1]


ENTRIES = {
    # A shift would come out as a picture: all of it is in the element of frequency zero.
    "DFT": Transparent(passes(along(_mixed), shift=False), version=20, depth=costs.ONE_LEVEL),
}
