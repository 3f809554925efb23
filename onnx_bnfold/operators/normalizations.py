"""Normalisations by statistics of the data: their own scale and bias take changes of the output.

They compute ``y = scale * n + B`` with ``n`` normalised by mean and variance of the input at run
time, so ``y' = s * y + h`` has the scale ``s * scale`` and the bias ``s * B + h``. A change of the
input would change the statistics, and is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from onnx_bnfold.arrays import Array
from onnx_bnfold.model.constants import Constant
from onnx_bnfold.model.node_view import FLOATS, NodeView
from onnx_bnfold.operators import costs
from onnx_bnfold.operators.affine import Affine, Float64
from onnx_bnfold.operators.entries import OUT, Absorbing, Given, Read, Revised, Sides
from onnx_bnfold.reasons import Reason, Refused


class Normalization(NamedTuple):
    """A normalisation with a constant scale and bias.

    Attributes:
        axes: the axes of the output along which scale and bias may vary, in their order.
        scale, bias: the constants; a bias may be left out.
    """

    view: NodeView
    axes: tuple[int, ...]
    scale: Constant
    bias: Constant | None
    data_slot: int = 0
    factor_slot: int = 1

    def require(self, port: int, change: Affine) -> None:
        """Refuse all but a change of the output that varies like the scale.

        Raises:
            Refused: it is one of the input, varies along other axes, or is too large.
        """
        if port != OUT:
            raise Refused(
                Reason.OPAQUE,
                self.view.label,
                "it normalises its input by mean and variance of the data, which a scale or shift "
                "in front of it would change",
            )
        if not change.is_ordinary:
            raise Refused(
                Reason.PRECISION,
                self.view.label,
                "a scale behind it is so large that its constants cannot hold it",
            )
        if any(n > 1 and axis not in self.axes for axis, n in enumerate(change.shape)):
            raise Refused(
                Reason.AXES,
                self.view.label,
                f"the change of its output varies along other axes than its scale, {[*self.axes]}",
            )

    def passed_on(self, into: Affine, sides: Sides) -> None:
        """Return None: no shift of the data is taken."""

    def altered(self, sides: Sides) -> Iterator[Read]:
        """Yield the constants that get new values by a change of the output."""
        if sides.have_scale:
            yield self.view.index, 1
        if sides.out is not None and self.bias is not None:
            yield self.view.index, 2

    def revised(self, sides: Sides) -> Iterator[Revised]:
        """Yield what becomes of scale and bias by a change of the output."""
        change, data_type = sides.out, self.scale.data_type
        if change is None:
            return
        s, h = self._laid(change.scale), self._laid(change.shift)
        if change.has_scale:
            dims = np.broadcast_shapes(self.scale.dims, s.shape)
            values = Given(partial(self._new_scale, s, dims), ())
            yield Revised(self.view, 1, "scale", dims, data_type, values)
        if change.has_shift or (change.has_scale and self.bias is not None):
            like = self.scale if self.bias is None else self.bias
            dims = np.broadcast_shapes(like.dims, s.shape, h.shape)
            bias = Given(partial(self._new_bias, s, h, dims))
            yield Revised(self.view, 2, "bias", dims, data_type, bias)

    def _laid(self, values: Float64) -> Float64:
        """Write scales or shifts of the output with the axes that the constants have."""
        shape = tuple(values.shape[axis] for axis in self.axes)
        while shape[:1] == (1,):  # a constant of fewer axes keeps them
            shape = shape[1:]
        return values.reshape(shape)

    def _new_scale(self, s: Float64, dims: tuple[int, ...]) -> Float64:
        return np.broadcast_to(self._value(self.scale) * s, dims)

    def _new_bias(self, s: Float64, h: Float64, dims: tuple[int, ...]) -> Float64:
        return np.broadcast_to(self._value(self.bias) * s + h, dims)

    def _value(self, constant: Constant | None) -> Float64:
        if constant is None:
            return np.zeros(())
        return self.view.constants.value(constant.name).astype(np.float64)

    def peaks(self, magnitude: Array) -> Array:
        """Return the largest magnitude of the scale per element: its own."""
        return magnitude


def _instance(view: NodeView) -> Normalization:
    scale = _scale(view)
    bias = view.bias(2, scale, scale.dims)
    if len(scale.dims) != 1 or bias is None:
        raise _disagree(view)
    return Normalization(view, (1,), scale, bias)


def _layer(view: NodeView) -> Normalization:
    """Read a LayerNormalization, whose mean and deviation, outputs too, do not change along."""
    scale, dims = _scale(view), view.dims_in(0)
    bias = view.bias(2, scale, None)
    axis = view.attribute("axis", -1)
    if not -len(dims) <= axis < len(dims):
        raise _disagree(view)
    axes = tuple(range(axis % len(dims), len(dims)))
    for constant in (scale, bias):
        own = () if constant is None else constant.dims
        if len(own) > len(axes):
            raise Refused(
                Reason.AXES,
                view.label,
                "its scale or bias varies along axes that it does not normalise",
            )
        for n, size in zip(own[::-1], dims[::-1], strict=False):
            if n != 1 and isinstance(size, int) and n != size:
                raise _disagree(view)
    return Normalization(view, axes, scale, bias)


def _scale(view: NodeView) -> Constant:
    scale = view.weight(1)
    if scale.data_type not in FLOATS:
        raise Refused(Reason.UNSUPPORTED_TYPE, view.label, "its scale is not of a float type")
    return scale


def _disagree(view: NodeView) -> Refused:
    return Refused(
        Reason.INCONSISTENT_SHAPES,
        view.label,
        "its scale and bias do not have the shape of what it normalises; repair the model",
    )


NORMALIZATIONS: Mapping[str, Absorbing] = {
    "LayerNormalization": Absorbing(_layer, ((1, 2),), version=17, depth=costs.NO_POLYNOMIAL),
    "InstanceNormalization": Absorbing(_instance, ((1, 2),), version=22, depth=costs.NO_POLYNOMIAL),
}
