"""LSTM, GRU and RNN: the weights that multiply their data take changes of the data.

Each gate computes ``W x + Wb + R h + Rb`` before anything else happens to the data. With
``x' = s * x + h`` it stays the same, at every step and in both directions, with

    W' = W / s
    Wb' = Wb - W * h / s

whatever clips, peepholes and initial states there are. What comes out has been through the gates
and goes back into them: no change passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from onnx_bnfold.arrays import Array
from onnx_bnfold.model.constants import Constant
from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators.affine import Affine, Float64
from onnx_bnfold.operators.entries import OUT, Given, Read, Revised, Sides
from onnx_bnfold.operators.layouts import linear_layer, weight_of
from onnx_bnfold.operators.linear import LinearLayer
from onnx_bnfold.reasons import Reason, Refused

_DATA, _WEIGHT, _BIAS = 0, 1, 3  # inputs
_CHANNELS = 2  # axis of the data, whose other two are steps and batch, in either order


class Recurrent(NamedTuple):
    """A recurrent layer with constant input weights.

    Attributes:
        gates: what they make of the data, a linear layer from channels to directions and gates.
        bias: the constant ``B``, Wb and behind it Rb for each direction, or None.
    """

    gates: LinearLayer
    bias: Constant | None
    data_slot: int = _DATA
    factor_slot: int = _WEIGHT

    def require(self, port: int, change: Affine) -> None:
        """Refuse all but a change of the data that its weights take.

        Raises:
            Refused: it is one of the output, or see ``LinearLayer.require``.
        """
        if port != OUT:
            self.gates.require(port, change)
        elif not change.is_identity:
            raise Refused(
                Reason.OPAQUE,
                self.gates.view.label,
                "what it writes is bent by its gates and goes back into them, so no scale or "
                "shift passes",
            )

    def passed_on(self, into: Affine, sides: Sides) -> None:
        """Return None: the bias takes a shift of the data."""

    def altered(self, sides: Sides) -> Iterator[Read]:
        """Yield the constants that get new values by a change of the data."""
        yield from self.gates.altered(sides)

    def revised(self, sides: Sides) -> Iterator[Revised]:
        """Yield what becomes of W and B by a change of the data."""
        into, gates = sides.into, self.gates
        if into is None:
            return
        yield from gates.revised_weight(sides)
        if into.has_shift:
            dims = _bias_dims(gates.weight)
            bias = Given(partial(self._new_bias, into))
            yield Revised(gates.view, _BIAS, "bias", dims, gates.weight.data_type, bias)

    def _new_bias(self, into: Affine) -> Float64:
        gates, constants = self.gates, self.gates.view.constants
        old: Array = np.zeros(_bias_dims(gates.weight))
        if self.bias is not None:
            old = constants.value(self.bias.name).astype(np.float64)
        of_data, of_state = np.split(old, 2, axis=1)
        folded = gates.fold_bias(of_data.reshape(-1), into, None)
        return np.concatenate((folded.reshape(of_data.shape), of_state), axis=1)

    def peaks(self, magnitude: Array) -> Array:
        """Return the largest magnitude of W per direction and gate."""
        return self.gates.peaks(magnitude)


def _bias_dims(weight: Constant) -> tuple[int, int]:
    directions, gates, _ = weight.dims
    return directions, 2 * gates


def recurrent_layer(view: NodeView) -> Recurrent:
    """Read an LSTM, a GRU or an RNN."""
    gates = linear_layer(view, _gates)
    return Recurrent(gates, gates.bias)


def _gates(view: NodeView) -> LinearLayer:
    """Read W, ``(directions, gates * hidden, channels)``."""
    weight = weight_of(view, _WEIGHT)
    bias = view.bias(_BIAS, weight, _bias_dims(weight))  # ValueError where W has other axes
    axes = (_CHANNELS, _CHANNELS, 3, 3)
    return LinearLayer(view, "ooi", weight.dims, weight, bias, _DATA, _WEIGHT, _BIAS, *axes)
