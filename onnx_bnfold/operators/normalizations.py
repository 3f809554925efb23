"""Normalisations by statistics of the data: their own scale and bias take changes of the output.

They compute ``y = scale * n + B`` with ``n = (x - mean) / sqrt(variance + epsilon)``, by mean and
variance of the elements that are normalised together, at run time. So ``y' = s * y + h`` has the
scale ``s * scale`` and the bias ``s * B + h``.

With ``x' = s * x + h``, shift and scale being the same for all elements that are normalised
together, ``n`` is ``sign(s) * n`` of before if epsilon becomes ``s * s * epsilon``. There is one
epsilon, so the size of ``s`` is the same everywhere; the sign goes into the scale.

An RMSNormalization subtracts no mean and has no ``B``, so ``h`` is zero on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from onnx_bnfold.arrays import Array
from onnx_bnfold.model.constants import Constant
from onnx_bnfold.model.node_view import FLOATS, NodeView
from onnx_bnfold.operators.affine import Affine, Float64, close
from onnx_bnfold.operators.batchnorm_parameters import DEFAULT_EPSILON
from onnx_bnfold.operators.entries import OUT, Given, Read, Revised, Sides
from onnx_bnfold.reasons import Reason, Refused

_LEAST_EPSILON = 2.0**-126  # the least that float32 holds to all digits


class Normalization(NamedTuple):
    """A normalisation with a constant scale and bias.

    Attributes:
        axes: the axes of the output along which scale and bias may vary, in their order.
        over: the axes of the data whose elements are normalised together.
        scale, bias: the constants; a bias may be left out.
        groups: into how many groups the channels on axis 1 are divided, each of which is normalised
            together, too; 0 for none.
        by_group: whether scale and bias have an element per group.
        takes_shift: whether it subtracts a mean and adds a bias.
    """

    view: NodeView
    axes: tuple[int, ...]
    over: tuple[int, ...]
    scale: Constant
    bias: Constant | None
    groups: int = 0
    by_group: bool = False
    takes_shift: bool = True
    data_slot: int = 0
    factor_slot: int = 1

    def require(self, port: int, change: Affine) -> None:
        """Refuse a change that varies along other axes than it may, or is too large.

        Raises:
            Refused: it does, or it is one of the data and statistics of them are read.
        """
        if change.has_shift and not self.takes_shift:
            raise Refused(
                Reason.NO_SHIFT,
                self.view.label,
                "it takes a scale but no shift: it subtracts no mean and adds no bias",
            )
        if port == OUT:
            self._require_out(change)
        elif not change.is_identity:
            self._require_in(change)

    def _require_out(self, change: Affine) -> None:
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
        if self.by_group and not (
            self._is_grouped(change.scale) and self._is_grouped(change.shift)
        ):
            raise Refused(
                Reason.AXES,
                self.view.label,
                "it has a scale per group, and the change of its output varies within one",
            )

    def _require_in(self, change: Affine) -> None:
        if any(name and self.view.graph.is_read(name) for name in self.view.writes[1:]):
            raise Refused(
                Reason.OPAQUE,
                self.view.label,
                "mean or deviation of its data, which a change in front would alter, are read too",
            )
        if not change.is_invertible:
            raise Refused(
                Reason.PRECISION, self.view.label, "a scale in front of it is zero or very small"
            )
        if not (self._is_alike(change.scale) and self._is_alike(change.shift)):
            raise Refused(
                Reason.AXES,
                self.view.label,
                "the change of its data varies over what it normalises together by its mean and "
                "variance",
            )
        self._epsilon(change)

    def _is_alike(self, values: Float64) -> bool:
        """Whether all elements that are normalised together get the same value."""
        return all(values.shape[axis] == 1 for axis in self.over) and self._is_grouped(values)

    def _is_grouped(self, values: Float64) -> bool:
        """Whether all channels of each group have the same value."""
        if not self.groups or values.shape[1] == 1:
            return True
        groups = _split(values, self.groups)
        return close(groups, groups[:, :, :1])

    def _epsilon(self, into: Affine) -> float | None:
        """Return the epsilon that makes up for the scale of the data, None if it stays.

        Raises:
            Refused: there is none.
        """
        size = np.abs(into.scale)
        sign = np.sign(into.scale)
        if any(n > 1 and axis not in self.axes for axis, n in enumerate(sign.shape)) or not close(
            size, size.reshape(-1)[:1].reshape((1,) * size.ndim)
        ):
            raise Refused(
                Reason.AXES,
                self.view.label,
                "its one epsilon would have to be scaled along with its data, whose scale varies",
            )
        old, factor = float(self.view.attribute("epsilon", DEFAULT_EPSILON)), size.item(0) ** 2
        if old == 0 or factor == 1:
            return None
        new = np.float32(old * factor)
        if self.scale.data_type != TensorProto.FLOAT or not _LEAST_EPSILON <= new < np.inf:
            raise Refused(
                Reason.PRECISION,
                self.view.label,
                "its epsilon, a float32 number, would not hold what scales along with its data",
            )
        return float(new)

    def passed_on(self, into: Affine, sides: Sides) -> None:
        """Return None: no shift of the data is taken."""

    def altered(self, sides: Sides) -> Iterator[Read]:
        """Yield the constants that get new values by changes of the two sides."""
        if sides.have_scale:
            yield self.view.index, 1
        if sides.out is not None and self.bias is not None:
            yield self.view.index, 2

    def revised(self, sides: Sides) -> Iterator[Revised]:
        """Yield what becomes of scale and bias by changes of the two sides."""
        into, change = sides
        attributes: tuple[tuple[str, float], ...] = ()
        sign = s = np.ones(())
        h, data_type = np.zeros(()), self.scale.data_type
        if into is not None:
            epsilon = self._epsilon(into)
            attributes = () if epsilon is None else (("epsilon", epsilon),)
            sign = self._laid(np.sign(into.scale))
        if change is not None:
            s, h = self._laid(change.scale), self._laid(change.shift)
        if sides.have_scale:
            dims = np.broadcast_shapes(self.scale.dims, s.shape, sign.shape)
            values = Given(partial(self._new_scale, s * sign, dims), ())
            yield Revised(self.view, 1, "scale", dims, data_type, values, attributes)
        if change is None:
            return
        if change.has_shift or (change.has_scale and self.bias is not None):
            like = self.scale if self.bias is None else self.bias
            dims = np.broadcast_shapes(like.dims, s.shape, h.shape)
            bias = Given(partial(self._new_bias, s, h, dims))
            yield Revised(self.view, 2, "bias", dims, data_type, bias)

    def _laid(self, values: Float64) -> Float64:
        """Write scales or shifts of a tensor with the axes that the constants have."""
        if self.by_group and values.shape[1] > 1:
            values = _split(values, self.groups)[:, :, 0]
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


def _split(values: Float64, groups: int) -> Float64:
    """Write values per channel, on axis 1, as ``(N, groups, channels of one, ...)``."""
    return values.reshape(values.shape[0], groups, -1, *values.shape[2:])


def instance_normalization(view: NodeView) -> Normalization:
    """Read an InstanceNormalization."""
    return Normalization(view, (1,), _positions(view), *_vectors(view))


def group_normalization(view: NodeView) -> Normalization:
    """Read a GroupNormalization, whose scale had an element per group in its first version."""
    scale, bias = _vectors(view)
    groups, by_group = int(view.attribute("num_groups", 0)), view.opset < 21
    if groups < 1 or (scale.size != groups if by_group else scale.size % groups):
        raise _disagree(view)
    return Normalization(view, (1,), _positions(view), scale, bias, groups, by_group)


def _vectors(view: NodeView) -> tuple[Constant, Constant]:
    scale = _scale(view)
    bias = view.bias(2, scale, scale.dims)
    if len(scale.dims) != 1 or bias is None:
        raise _disagree(view)
    return scale, bias


def _positions(view: NodeView) -> tuple[int, ...]:
    """Return the axes behind the channels."""
    return tuple(range(2, len(view.dims_in(0))))


def layer_normalization(view: NodeView) -> Normalization:
    """Read a LayerNormalization, whose mean and deviation, outputs too, do not change along."""
    return _of_last_axes(view, view.bias(2, _scale(view), None))


def rms_normalization(view: NodeView) -> Normalization:
    """Read an RMSNormalization, whose mean square does not change along."""
    return _of_last_axes(view, None)._replace(takes_shift=False)


def _of_last_axes(view: NodeView, bias: Constant | None) -> Normalization:
    """Read a node that normalises the axes from its ``axis`` on."""
    scale, dims = _scale(view), view.dims_in(0)
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
    return Normalization(view, axes, axes, scale, bias)


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
