"""Weights that DequantizeLinear computes from constants, and factors that go into them.

``w = (q - zero_point) * scale`` (ONNX DequantizeLinear-10 and later). A positive factor per output
channel goes into ``scale``. A negative one also mirrors ``q`` at the zero point, if the results fit
the integer type. The integers are not rounded again, so no precision is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from onnx import TensorProto

from onnx_bnfold.arrays import Array
from onnx_bnfold.model.constants import Constant
from onnx_bnfold.model.graph import STANDARD_DOMAINS
from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators.affine import Float64
from onnx_bnfold.operators.entries import Exact, Given, Revised
from onnx_bnfold.reasons import Reason, Refused

OPERATOR = "DequantizeLinear"
VERSION = 28  # the newest version of the operator that is known here

_RANGES: dict[int, tuple[int, int]] = {
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT8: (0, 255),
    TensorProto.INT16: (-(2**15), 2**15 - 1),
    TensorProto.UINT16: (0, 2**16 - 1),
}


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight behind a DequantizeLinear node.

    Attributes:
        view: the DequantizeLinear node.
        integers: its constant input 0.
        scale: its constant input 1.
        zero_point: its constant input 2, None if it is left out.
        out_axis: the axis of the weight that holds the output channels.
    """

    view: NodeView
    integers: Constant
    scale: Constant
    zero_point: Constant | None
    out_axis: int

    @property
    def is_blocked(self) -> bool:
        """Whether there is a scale per block of elements (opset 21)."""
        return len(self.scale.dims) > 1

    @property
    def scale_dims(self) -> tuple[int, ...]:
        """Shape of the scale after a change per output channel."""
        if self.is_blocked:
            return self.scale.dims
        return (self.integers.dims[self.out_axis],)

    def revised(self, factor: Float64) -> Iterator[Revised]:
        """Yield what becomes of its constants by a factor per output channel."""
        view, dims = self.view, self.scale_dims
        if (factor < 0).any():
            mirrored = Exact(partial(self.fold_integers, factor))
            integers = self.integers
            yield Revised(view, 0, "integers", integers.dims, integers.data_type, mirrored)
        axis = () if self.is_blocked else (("axis", self.out_axis),)
        scale = Given(partial(self.fold_scale, factor), ())
        yield Revised(view, 1, "scale", dims, self.scale.data_type, scale, axis)
        zero = self.zero_point
        if zero is not None and zero.dims != dims:
            points = Exact(self.fold_zero_point)
            yield Revised(view, 2, "zero_point", dims, zero.data_type, points)

    def fold_scale(self, factor: Float64) -> Float64:
        """Return the new scale: the old one times the magnitude of a factor.

        Args:
            factor: per output channel, ``(C_out,)``.

        Returns:
            float64, of shape ``scale_dims``.
        """
        scale = self.view.constants.value(self.scale.name).astype(np.float64)
        shape = [-1]
        if self.is_blocked:
            shape = [1] * scale.ndim
            shape[self.out_axis] = -1
        with np.errstate(over="ignore", invalid="ignore"):  # checked when it is rounded
            product = scale * np.abs(factor).reshape(shape)
        return np.broadcast_to(product, self.scale_dims)

    def fold_zero_point(self) -> Array:
        """Return the zero point in the shape ``scale_dims``."""
        assert self.zero_point is not None
        value = self.view.constants.value(self.zero_point.name)
        return np.broadcast_to(value, self.scale_dims)

    def fold_integers(self, factor: Float64) -> Array:
        """Return the integers, mirrored at the zero point where the factor is negative.

        Args:
            factor: per output channel, ``(C_out,)``.

        Raises:
            Refused: a mirrored value does not fit the integer type.
        """
        q = self.view.constants.value(self.integers.name)
        wide = q.astype(np.int64)
        shape = [1] * q.ndim
        shape[self.out_axis] = -1
        mirrored = np.where(factor.reshape(shape) < 0, 2 * self._zero_points() - wide, wide)
        low, high = _RANGES[self.integers.data_type]
        if mirrored.min(initial=0) < low or mirrored.max(initial=0) > high:
            raise Refused(
                Reason.QUANTIZED,
                self.view.label,
                "a negative factor would mirror an integer beyond the range of its type; fold "
                "before quantising",
            )
        return mirrored.astype(q.dtype)

    def _zero_points(self) -> Array:
        if self.zero_point is None:
            return np.zeros((), np.int64)
        value = self.view.constants.value(self.zero_point.name).astype(np.int64)
        if value.ndim == 1 and value.size > 1:
            shape = [1] * len(self.integers.dims)
            shape[self.out_axis] = -1
            return value.reshape(shape)
        return value.reshape(()) if value.size == 1 else self._blocks(value)

    def _blocks(self, value: Array) -> Array:
        """Return a value per block as one per element; the last block may be cut off."""
        axis, size = _axis(self.view, value.ndim), self.view.attribute("block_size", 0)
        return np.repeat(value, size, axis).take(range(self.integers.dims[axis]), axis)


def quantized_weight(view: NodeView, out_axis: int) -> QuantizedWeight:
    """Read the DequantizeLinear node of a weight.

    Args:
        view: the DequantizeLinear node.
        out_axis: the axis of the weight that holds the output channels.

    Raises:
        Refused: it varies along another axis, has other readers, or is not made of constants.
    """
    view.require_version(VERSION)
    integers, scale = view.constant(0), view.constant(1)
    if integers is None or scale is None or (view.name_in(2) and view.constant(2) is None):
        raise _refused(view, "its operands are computed at run time")
    if integers.data_type not in _RANGES or not view.graph.only_reader(view.writes[0]):
        raise _refused(view, "its weight is of another type, or read by several nodes")
    if view.attribute("output_dtype", 0) not in (0, scale.data_type):
        raise _refused(view, "its weight is of another type than its scale")
    axis = _axis(view, len(integers.dims))
    per_axis = len(scale.dims) == 1 and scale.size > 1
    blocked = len(scale.dims) > 1
    if (per_axis and axis != out_axis) or (blocked and axis == out_axis):
        raise _refused(view, "its scale varies along another axis than the output channels")
    if not _fit(view, integers, scale, out_axis):
        raise Refused(
            Reason.INCONSISTENT_SHAPES,
            view.label,
            "the shapes of its weight, scale and zero point do not agree; repair the model",
        )
    if view.opset < 13 and not blocked:
        raise _refused(view, "before opset 13 it has one scale for all channels")
    return QuantizedWeight(view, integers, scale, view.constant(2), out_axis)


def output_axis(view: NodeView, layout: str, grouped: tuple[int, ...]) -> int:
    """Return the axis of a weight that holds the output channels.

    Args:
        view: the layer.
        layout, grouped: of its weight, see ``LinearLayer``; the groups are not an axis of it.

    Raises:
        Refused: there is none, or they are spread over two.
    """
    if "o" in layout and "g" in layout and layout.index("o") != 1 and grouped[0] > 1:
        raise Refused(
            Reason.QUANTIZED,
            view.label,
            "its output channels are spread over groups and an axis",
        )
    if "o" in layout:
        return layout.replace("g", "").index("o")
    if "g" not in layout:
        raise Refused(
            Reason.QUANTIZED,
            view.label,
            "its quantised weight has no axis of output channels; fold before quantising",
        )
    return layout.index("g")


def _axis(view: NodeView, rank: int) -> int:
    return view.attribute("axis", 1) % max(rank, 1)


def _fit(view: NodeView, integers: Constant, scale: Constant, out_axis: int) -> bool:
    zero, rank = view.constant(2), len(integers.dims)
    if not scale.size or out_axis >= rank:
        return False
    if zero is not None and zero.dims != scale.dims and not zero.size == scale.size == 1:
        return False
    if len(scale.dims) > 1:
        axis, size = _axis(view, rank), view.attribute("block_size", 0)
        blocks = (-(-d // size) if i == axis else d for i, d in enumerate(integers.dims))
        return size > 0 and scale.dims == tuple(blocks)
    return scale.size in (1, integers.dims[out_axis])


def dequantizer(view: NodeView, slot: int) -> NodeView | None:
    """Return the DequantizeLinear node that makes an input, if one does."""
    index = view.graph.producer.get(view.name_in(slot))
    if index is None:
        return None
    node = view.graph.nodes[index]
    if node.op_type != OPERATOR or node.domain not in STANDARD_DOMAINS:
        return None
    return view.at(index)


def _refused(view: NodeView, what: str) -> Refused:
    return Refused(Reason.QUANTIZED, view.label, f"{what}; fold before quantising")
