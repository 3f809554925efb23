"""Rules of PRelu and LeakyRelu: a negative scale inverts the slope.

With ``x' = s * x`` and a negative ``s`` the two branches change places: with the slope inverted the
output is ``s / slope`` times what it was. A PRelu has a slope per channel, a LeakyRelu one for all.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators.affine import Affine, Float64
from onnx_bnfold.operators.broadcasting import lower
from onnx_bnfold.operators.entries import OUT
from onnx_bnfold.operators.rules import Attributes, Known, Step, require
from onnx_bnfold.reasons import Reason, Refused

DEFAULT_SLOPE = float(np.float32(0.01))
# Types whose numbers have no more digits than an attribute.
_SINGLE = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def sloped(view: NodeView, known: Known) -> Step:
    """Complete a PRelu: a scale passes, a negative one if its slope is a constant."""
    source = next((port for port in (0, OUT) if port in known.changes), None)
    if source is None:
        raise Refused(Reason.CONFLICT, view.label, "only the change of its slope is known")
    change = known.changes[source]
    constant = view.constant(1) is not None and view.opset >= 7
    require(view, change, positive=not constant, shift=False)
    if not _turns(change):
        return Step(({source: change, ~source: change},))
    slope = known.constant(1)
    slope = slope.reshape((1,) * (change.rank - slope.ndim) + slope.shape)
    gain = _gain(view, change, slope, source)
    inverted = lower(view, 1, Affine.of(1 / gain**2, np.zeros((1,) * change.rank)))
    return Step(({source: change, ~source: _other(change, gain, source), 1: inverted},))


def leaky(view: NodeView, known: Known) -> Step:
    """Complete a LeakyRelu: a scale passes, a negative one if those of all channels are."""
    source = 0 if 0 in known.changes else OUT
    change, before = known.changes[source], known.before()
    require(view, change, positive=False, shift=False)
    if not _turns(change):
        return Step(({source: change, ~source: change},))
    if (change.scale > 0).any():
        raise Refused(
            Reason.NEEDS_POSITIVE_SCALE,
            view.label,
            "scales of one sign pass, as it has one slope for all channels, and gamma is of both",
        )
    gain = _gain(view, change, np.full((1,) * change.rank, _slope(view)), source)
    if _turns(before):
        gain = 1 / gain
    elif not _holds_inverse(view):
        raise Refused(
            Reason.PRECISION,
            view.label,
            "its slope is a float32 number, to which the inverse would be rounded",
        )
    return Step(({source: change, ~source: _other(change, gain, source)},))


def leaky_attributes(view: NodeView, before: Affine) -> Attributes:
    """Return the attributes that a LeakyRelu gets by a change of its data."""
    return (("alpha", 1 / _slope(view)),) if _turns(before) else ()


def _gain(view: NodeView, change: Affine, slope: Float64, source: int) -> Float64:
    """Return what the scale of the data is divided by to be that of the output."""
    flipped = change.scale < 0
    gain = np.where(flipped, slope, 1.0)
    if not Affine(gain, np.zeros((1,) * change.rank)).is_invertible:
        raise Refused(
            Reason.NEEDS_POSITIVE_SCALE,
            view.label,
            "only a positive scale passes where its slope is zero or very small",
        )
    if source == OUT and (flipped & (slope < 0)).any():
        raise Refused(
            Reason.NEEDS_POSITIVE_SCALE,
            view.label,
            "only a positive scale passes where its slope is negative",
        )
    return gain


def _other(change: Affine, gain: Float64, source: int) -> Affine:
    """Return the change of the other side of a node."""
    scale = change.scale / gain if source == 0 else change.scale * gain
    return Affine.of(scale, np.zeros((1,) * change.rank))


def _turns(change: Affine | None) -> bool:
    return change is not None and bool((change.scale < 0).any())


def _slope(view: NodeView) -> float:
    return float(view.attribute("alpha", DEFAULT_SLOPE))


def _holds_inverse(view: NodeView) -> bool:
    """Whether an attribute, a float32 number, holds the inverse of a slope as the data would."""
    inverse = 1 / _slope(view)
    return float(np.float32(inverse)) == inverse or view.type_of(view.name_in(0)) in _SINGLE
