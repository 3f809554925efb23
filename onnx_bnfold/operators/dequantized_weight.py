"""Weights that DequantizeLinear computes from constants, and factors that go into them.

``w = (q - zero_point) * scale`` (ONNX DequantizeLinear-10 and later). The magnitude of a factor
goes into ``scale``, which may vary along one axis of the weight; a negative one also mirrors ``q``
at the zero point, if the results fit the integer type. The integers are not rounded again, so no
precision is lost. A scale along input channels would fit, too, but integer kernels know none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from onnx import TensorProto

from onnx_bnfold.arrays import Array
from onnx_bnfold.model.blocks import BlockIndex, block_indices, blocks_of, part_of
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
_AT_ONCE = 1 << 18  # integers that are mirrored at once: they are eight times as large for it


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight behind a DequantizeLinear node.

    Attributes:
        view: the DequantizeLinear node.
        integers: its constant input 0.
        scale: its constant input 1.
        zero_point: its constant input 2, None if it is left out.
        axes: the axes of the weight along which its output channels lie.
        grouped: the shape of the weight that factors broadcast against; its groups may be split off
            from the first axis.
    """

    view: NodeView
    integers: Constant
    scale: Constant
    zero_point: Constant | None
    axes: tuple[int, ...]
    grouped: tuple[int, ...]

    @property
    def is_shared(self) -> bool:
        """Whether others read the weight as it is; then a layer gets a copy of the node."""
        return not self.view.graph.only_reader(self.view.writes[0])

    @property
    def operands(self) -> tuple[Constant, ...]:
        """Its constants."""
        zero = () if self.zero_point is None else (self.zero_point,)
        return (self.integers, self.scale, *zero)

    @property
    def is_blocked(self) -> bool:
        """Whether there is a scale per block of elements (opset 21)."""
        return len(self.scale.dims) > 1

    def require(self, factor: Float64) -> None:
        """Refuse a factor that its scale cannot take.

        Raises:
            Refused: the scale would vary along two axes, or along one without output channels.
        """
        self._axis(self._own(factor))

    def _own(self, factor: Float64) -> Float64:
        """Write a factor with the axes of the integers, of size 1 where it does not vary."""
        if len(self.grouped) > len(self.integers.dims):
            whole = np.broadcast_to(factor, (*self.grouped[:2], *factor.shape[2:]))
            factor = whole.reshape(-1, *factor.shape[2:])
        for axis in range(factor.ndim):
            first = factor.take([0], axis)
            factor = first if (factor == first).all() else factor
        return factor

    def _axis(self, factor: Float64) -> int | None:
        """Return the axis along which the scale varies with a factor, None if as before."""
        varying = {axis for axis, size in enumerate(factor.shape) if size > 1}
        own = _axis(self.view, factor.ndim)
        if not varying <= {*self.axes}:
            raise _refused(self.view, "it has no scale per input channel")
        if self.is_blocked:
            if own in varying:
                raise _refused(self.view, "its blocks lie along its output channels")
            return None
        if not varying:
            return None
        if len(varying | ({own} if self.scale.size > 1 else set())) > 1:
            raise _refused(self.view, "its scale would have to vary along two axes")
        if self.view.opset < 13:
            raise _refused(self.view, "before opset 13 it has one scale for all channels")
        return varying.pop()

    def blocks(self, most: int) -> Iterator[tuple[BlockIndex, Array]]:
        """Yield where each block of the grouped weight belongs, and its elements.

        They are float64, without the rounding of their type; see ``blocks_of``.
        """
        constants = self.view.constants
        scale = self._grouped(self._spread(constants.value(self.scale.name).astype(np.float64)))
        zero = self._grouped(self._zero_points())
        integers = constants.stored(self.integers.name)
        for where, values in blocks_of(integers, self.grouped, most):
            exact = values.astype(np.float64) - part_of(zero, where)
            yield where, exact * part_of(scale, where)

    def _grouped(self, spread: Array) -> Array:
        """Write what broadcasts against the integers so that it does against ``grouped``."""
        if not spread.ndim or len(self.grouped) == spread.ndim:
            return spread.reshape(spread.shape or (1,) * len(self.grouped))
        first = self.grouped[:2] if spread.shape[0] > 1 else (1, 1)
        return spread.reshape(*first, *spread.shape[1:])

    def revised(self, factor: Float64) -> Iterator[Revised]:
        """Yield what becomes of its constants by a factor that ``require`` lets pass.

        Integers that a QuantizeLinear makes are stored, as its scale is no longer that of them.
        """
        factor = self._own(factor)
        view, axis = self.view, self._axis(factor)
        if (factor < 0).any() or self.integers.name in view.graph.producer:
            mirrored = Exact(partial(self.fold_integers, factor))
            integers = self.integers
            yield Revised(view, 0, "integers", integers.dims, integers.data_type, mirrored)
        dims = self.scale.dims if axis is None else (self.integers.dims[axis],)
        attributes = () if axis is None else (("axis", axis),)
        scale = Given(partial(self.fold_scale, factor, dims), ())
        yield Revised(view, 1, "scale", dims, self.scale.data_type, scale, attributes)
        zero = self.zero_point
        if zero is not None and zero.dims != dims:
            points = Exact(partial(self.fold_zero_point, dims))
            yield Revised(view, 2, "zero_point", dims, zero.data_type, points)

    def fold_scale(self, factor: Float64, dims: tuple[int, ...]) -> Float64:
        """Return the new scale: the old one times the magnitude of a factor.

        Args:
            factor: of the weight, an array of its rank.
            dims: of the new scale.
        """
        scale = self.view.constants.value(self.scale.name).astype(np.float64)
        magnitude = np.abs(factor) if self.is_blocked else np.abs(factor).reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):  # checked when it is rounded
            product = scale * magnitude
        return np.broadcast_to(product.reshape(dims) if product.size == 1 else product, dims)

    def fold_zero_point(self, dims: tuple[int, ...]) -> Array:
        """Return the zero point in the shape of the new scale."""
        assert self.zero_point is not None
        value = self.view.constants.value(self.zero_point.name)
        return np.broadcast_to(value if value.size > 1 else value.reshape(()), dims)

    def fold_integers(self, factor: Float64) -> Array:
        """Return the integers, mirrored at the zero point where the factor is negative.

        Args:
            factor: of the weight, an array of its rank.

        Raises:
            Refused: a mirrored value does not fit the integer type.
        """
        q = self.view.constants.value(self.integers.name)
        zero = self._zero_points()
        zero = zero.reshape(zero.shape or (1,) * q.ndim)
        mirrored = np.empty_like(q)
        for where in block_indices(q.shape, _AT_ONCE):
            wide = q[where].astype(np.int64)
            opposite = 2 * part_of(zero, where) - wide
            mirrored[where] = self._fitting(np.where(part_of(factor, where) < 0, opposite, wide))
        return mirrored

    def _fitting(self, integers: Array) -> Array:
        """Return integers if they fit the type of the weight.

        Raises:
            Refused: one of them does not.
        """
        low, high = _RANGES[self.integers.data_type]
        if integers.min(initial=0) < low or integers.max(initial=0) > high:
            raise Refused(
                Reason.QUANTIZED,
                self.view.label,
                "a negative factor would mirror an integer beyond the range of its type; fold "
                "before quantising",
            )
        return integers

    def _zero_points(self) -> Array:
        if self.zero_point is None:
            return np.zeros((), np.int64)
        return self._spread(self.view.constants.value(self.zero_point.name).astype(np.int64))

    def _spread(self, value: Array) -> Array:
        """Write a scale or a zero point so that it broadcasts against the integers."""
        if value.size == 1:
            return value.reshape(())
        if value.ndim > 1:
            return self._blocks(value)
        shape = [1] * len(self.integers.dims)
        shape[_axis(self.view, len(shape))] = -1
        return value.reshape(shape)

    def _blocks(self, value: Array) -> Array:
        """Return a value per block as one per element; the last block may be cut off."""
        axis, size = _axis(self.view, value.ndim), self.view.attribute("block_size", 0)
        return np.repeat(value, size, axis).take(range(self.integers.dims[axis]), axis)


def quantized_weight(view: NodeView, layout: str, grouped: tuple[int, ...]) -> QuantizedWeight:
    """Read the DequantizeLinear node of a weight.

    Args:
        view: the DequantizeLinear node.
        layout, grouped: of the weight, see ``LinearLayer``.

    Raises:
        Refused: it is not made of constants.
    """
    view.require_version(VERSION)
    integers, scale = view.constant(0), view.constant(1)
    if integers is None or scale is None or (view.name_in(2) and view.constant(2) is None):
        raise _refused(view, "its operands are computed at run time")
    if integers.data_type not in _RANGES:
        raise _refused(view, "its weight is of another type")
    if view.attribute("output_dtype", 0) not in (0, scale.data_type):
        raise _refused(view, "its weight is of another type than its scale")
    axes = _output_axes(layout, grouped, len(integers.dims))
    if not _fit(view, integers, scale):
        raise Refused(
            Reason.INCONSISTENT_SHAPES,
            view.label,
            "the shapes of its weight, scale and zero point do not agree; repair the model",
        )
    return QuantizedWeight(view, integers, scale, view.constant(2), axes, grouped)


def _output_axes(layout: str, grouped: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Return the axes of a weight along which its output channels lie."""
    split = len(grouped) - rank
    found = {
        max(axis - split, 0)
        for axis, letter in enumerate(layout)
        if letter == "o" or (letter == "g" and grouped[axis] > 1)
    }
    return tuple(sorted(found))


def _axis(view: NodeView, rank: int) -> int:
    return view.attribute("axis", 1) % max(rank, 1)


def _fit(view: NodeView, integers: Constant, scale: Constant) -> bool:
    zero, rank = view.constant(2), len(integers.dims)
    if not scale.size:
        return False
    if zero is not None and zero.dims != scale.dims and not zero.size == scale.size == 1:
        return False
    if len(scale.dims) > 1:
        axis, size = _axis(view, rank), view.attribute("block_size", 0)
        blocks = (-(-d // size) if i == axis else d for i, d in enumerate(integers.dims))
        return size > 0 and scale.dims == tuple(blocks)
    return scale.size in (1, integers.dims[_axis(view, rank)] if rank else 1)


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
