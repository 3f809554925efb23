"""What rounding weights to int8 costs where a layer takes the change of a tensor that it reads.

A weight has one scale per output channel. Its input channels may come to differ far more in size
than they did, while the tensor's differ the other way: a small weight of a large channel is lost.
So a BatchNormalization that goes may cost more than its output, which nobody rounds any more, cost:

    sum_c energy_c · tensor_c + sum_oc min(step_o² / 12, W_oc²) · power_c

is what rounding a tensor and the weight of its reader adds, ``tensor_c`` being what it adds to a
channel (``int8_noise``), ``energy_c`` the sum of its weights' squares, and ``step_o`` the largest
weight of an output channel over 127. No rounding adds more than what a weight or a channel holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from onnx_bnfold.model.blocks import part_of
from onnx_bnfold.operators import batchnorm
from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.operators.linear import LinearLayer
from onnx_bnfold.operators.weight_axes import broadcast_shape
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.planning.int8_noise import is_uneven, known_range, rounding
from onnx_bnfold.planning.ranges import Range
from onnx_bnfold.planning.totals import Totals
from onnx_bnfold.reasons import Reason, Refused

_WEIGHT_LEVELS = 127
# Of the noise of both: the tensor in front of the BatchNormalization is rounded all the same.
_MOST = 1.12  # half a dB


def require_gain(state: GraphState, origin: int, totals: Totals) -> None:
    """Refuse to remove a node if weights that take its scales lose more than that spares.

    Args:
        state: the graph before the changes.
        origin: the node to be removed.
        totals: with the changes on top.

    Raises:
        Refused: they would.
    """
    for name in (key for key in totals.changes if isinstance(key, str)):
        change = totals.of(name)
        if change is None or not is_uneven(change):
            continue
        span = known_range(state, name)
        now = None if span is None else span.changed(change)
        if span is None or now is None:
            continue
        for layer in _readers(state, origin, name, span):
            before, after = _noise(layer, span, None), _noise(layer, now, change)
            if after.tensor + after.weight > _MOST * (after.tensor + before.tensor + before.weight):
                raise Refused(
                    Reason.PRECISION,
                    layer.view.label,
                    "its weights would take scales so different that rounding them to int8 costs "
                    "more than one node less spares; --profile float folds it all the same",
                )


class _Noise(NamedTuple):
    """What rounding a tensor and the weight of a layer that reads it adds to its output."""

    tensor: float
    weight: float


def _readers(state: GraphState, origin: int, name: str, span: Range) -> Iterator[LinearLayer]:
    """Yield the layers that stay and sum over the channels of a tensor."""
    axis = batchnorm.channel_axis(span.rank)
    for index, slot in state.graph.readers.get(name, ()):
        layer = None if index == origin else state.layer_or_none(index)
        reads = None if layer is None else (layer.data_slot, layer.in_axis, layer.channels_in)
        if layer is not None and reads == (slot, axis, span.channels):
            yield layer


def _noise(layer: LinearLayer, span: Range, change: Affine | None) -> _Noise:
    """Return what rounding adds where the data of a layer have a range, and a change made it."""
    channels = broadcast_shape(layer.layout, layer.grouped, "gi")
    factor = layer.weight_factor(change, None)
    energy = layer.combined(np.add, layer.axes("okb"), factor, of=np.square)
    tensor = float((energy * rounding(span).reshape(channels)).sum())
    steps = layer.combined(np.maximum, layer.axes("ikb"), factor, of=np.abs) / _WEIGHT_LEVELS
    power, weight = span.power.reshape(channels), 0.0
    for where, values in layer.blocks():
        lost = np.square(values * part_of(factor, where), dtype=np.float64)
        np.minimum(lost, np.square(part_of(steps, where)) / 12, out=lost)
        weight += float((lost * part_of(power, where)).sum())
    return _Noise(tensor, weight)
