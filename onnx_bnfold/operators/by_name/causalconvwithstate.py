"""CausalConvWithState: a depthwise Conv along one axis, over what is in front of each position."""

from __future__ import annotations

from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators import costs
from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.operators.entries import OUT
from onnx_bnfold.operators.layouts import linear, weight_of
from onnx_bnfold.operators.linear import LinearLayer
from onnx_bnfold.reasons import Reason, Refusal, Refused

_BIAS, _PAST_STATE = 2, 3  # inputs


class CausalConvolution(LinearLayer):
    """One without an activation. Its state holds data from run to run, which stay as they are."""

    def require(self, port: int, change: Affine) -> None:
        """Refuse a change of the data where they are in a state, too.

        Raises:
            Refused: they are, or see ``LinearLayer.require``.
        """
        if port != OUT and not change.is_identity and _has_state(self.view):
            sentence = "its data are also in its state, which keeps its values from run to run"
            raise Refused(Reason.OPAQUE, self.view.label, sentence)
        super().require(port, change)


def _causal_convolution(view: NodeView) -> LinearLayer:
    """Read one; its weight is ``(C, 1, k)``.

    Raises:
        Refused: it has an activation, or its shapes do not fit.
    """
    if view.attribute("activation", "none") != "none":
        raise Refused(Reason.OPAQUE, view.label, "its activation bends the sums that it makes")
    weight = weight_of(view, 1)
    channels, one, taps = weight.dims
    if one != 1:
        raise ValueError
    shift_in = None
    if taps > 1:
        sentence = "zeros stand in front of its data, and a shift would not hold there"
        shift_in = Refusal(Reason.PADDING, view.label, sentence)
    return CausalConvolution(
        view,
        "goik",
        (channels, 1, 1, taps),
        weight,
        view.bias(_BIAS, weight, (channels,)),
        *(0, 1, _BIAS, 1, 1, 3, 3),
        shift_in=shift_in,
    )


def _has_state(view: NodeView) -> bool:
    """Whether a state comes in, or the one that goes out is read."""
    is_read = len(view.writes) > 1 and view.graph.is_read(view.writes[1])
    return is_read or bool(view.name_in(_PAST_STATE))


ENTRIES = {
    "CausalConvWithState": linear(_causal_convolution, 27, costs.convolution(1), (1, 2)),
}
