"""DeformConv: a Conv whose samples are moved and weighed."""

from __future__ import annotations

from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators import costs
from onnx_bnfold.operators.layouts import convolution, linear
from onnx_bnfold.operators.linear import LinearLayer
from onnx_bnfold.reasons import Reason, Refusal


def _deform_conv(view: NodeView) -> LinearLayer:
    """Read a Conv whose samples are moved and weighed; if neither is done, a shift may pass."""
    layer = convolution(view, bias_slot=3)
    offset, mask = (view.value(slot) if view.constant(slot) else None for slot in (2, 4))
    if offset is None or offset.any():
        sentence = "its samples may lie outside of its input, among zeros that do not shift along"
    elif view.name_in(4) and (mask is None or (mask != 1).any()):
        sentence = "its mask weighs the samples, and a shift would differ between positions"
    else:
        return layer
    return layer._replace(shift_in=Refusal(Reason.PADDING, view.label, sentence))


def _depth(view: NodeView, encrypted: set[str]) -> costs.Depth:
    offset, mask = (view.name_in(slot) in encrypted for slot in (2, 4))
    return 1 + offset + mask, int(offset)  # to find samples at encrypted places is no polynomial


ENTRIES = {
    "DeformConv": linear(_deform_conv, 22, costs.convolution(1), (1, 3), depth=_depth),
}
