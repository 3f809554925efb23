"""STFT: spectra of the parts of a signal, each multiplied by the same window."""

from __future__ import annotations

from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators import costs
from onnx_bnfold.operators.layouts import linear, require, weight_of
from onnx_bnfold.operators.linear import LinearLayer
from onnx_bnfold.reasons import Reason, Refusal

_WINDOW = 2  # input


def _spectra(view: NodeView) -> LinearLayer:
    """Read one. All its channels are one: the window, ``(n,)``, is summed over.

    Raises:
        Refused: it has no window, or one that is not constant.
    """
    window = weight_of(view, _WINDOW)
    require(view, len(window.dims) == 1)
    sentence = "a shift of a signal comes out at frequency zero alone"
    axes = (2, 3, 3, 4)  # channels of signal and output, of which both have one; ranks
    return LinearLayer(
        *(view, "k", window.dims, window, None, 0, _WINDOW, None, *axes),
        shift_in=Refusal(Reason.NO_SHIFT, view.label, sentence),
    )


def _count(view: NodeView) -> int:
    """Count a product for each sample of a frame, of which each frequency is a sum."""
    parts = costs.size(view, view.name_in(0), slice(-1, None))
    return costs.per_element(view) * costs.size(view, view.name_in(_WINDOW)) * parts


ENTRIES = {"STFT": linear(_spectra, 17, _count, (_WINDOW,), (0,))}
