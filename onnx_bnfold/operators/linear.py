"""Linear layers: what becomes of their weights and biases; ``layouts`` reads them.

Every layer computes ``y[o] = alpha * sum_i,k W[o, i, k] * x[i, k] + beta * c[o]``. With its input
re-parametrised as ``x' = s_i * x + h_i`` and its output as ``y' = s_o * y + h_o`` it stays exact
with (Ibarrondo & Önen 2018 for the output side; the input side is its mirror image)

    W' = W * s_o / s_i
    c' = s_o * (beta * c - alpha * sum_i,k W[o, i, k] * h_i / s_i) + h_o        and beta' = 1
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from onnx_bnfold.arrays import Array
from onnx_bnfold.model.blocks import BlockIndex, blocks_of, combined
from onnx_bnfold.model.constants import Constant
from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators.affine import AGREEMENT, Affine, Float64, along
from onnx_bnfold.operators.entries import OUT, BiasPlace, Given, Multiplied, Read, Revised, Sides
from onnx_bnfold.operators.factors import Factor, quotient, whole
from onnx_bnfold.operators.weight_axes import axes_of, broadcast_shape, channels_of
from onnx_bnfold.reasons import Reason, Refusal, Refused

if TYPE_CHECKING:
    from onnx_bnfold.operators.dequantized_weight import QuantizedWeight

_BLOCK = 1 << 18  # elements of a weight that are read at once: 2 MiB of float64


class LinearLayer(NamedTuple):
    """A linear layer with constant weights, seen through its layout.

    Attributes:
        layout: letter per axis of ``grouped``, see ``weight_axes``.
        grouped: shape of the weight with the group split off, e.g. ``(g, C_out/g, C_in/g, *k)``.
        data_slot, weight_slot, bias_slot: indices of the node's inputs; the last is None for a
            layer that has no input for a bias.
        in_axis, out_axis: the channel axes of the data tensor and of the output.
        in_rank, out_rank: ranks of the data tensor and of the output.
        shift_in: why a shift of the input cannot be absorbed, or None if it can.
        quantized: the DequantizeLinear that makes the weight, if one does.
        becomes_gemm: whether a layer without an input for a bias gets one as a Gemm.
        voided: attributes that a new bias takes away, as ``Revised.attributes``.
        also: the same node with others of its axes as those of channels, for changes that vary
            along these. They take no shift of the input.
    """

    view: NodeView
    layout: str
    grouped: tuple[int, ...]
    weight: Constant
    bias: Constant | None
    data_slot: int
    weight_slot: int
    bias_slot: int | None
    in_axis: int
    out_axis: int
    in_rank: int
    out_rank: int
    alpha: float = 1.0
    beta: float = 1.0
    shift_in: Refusal | None = None
    quantized: QuantizedWeight | None = None
    becomes_gemm: bool = False
    voided: tuple[tuple[str, None], ...] = ()
    also: tuple[LinearLayer, ...] = ()

    @property
    def channels_out(self) -> int:
        """Number of output channels."""
        return channels_of(self.layout, self.grouped, "go")

    @property
    def channels_in(self) -> int:
        """Number of input channels."""
        return channels_of(self.layout, self.grouped, "gi")

    @property
    def group(self) -> int:
        """Number of groups, each of which reads channels of its own."""
        return self.grouped[self.layout.index("g")] if "g" in self.layout else 1

    @property
    def summed_axes(self) -> tuple[int, ...]:
        """Axes of the grouped weight over which one output element sums."""
        return self.axes("ik")

    def axes(self, letters: str) -> tuple[int, ...]:
        """Axes of the grouped weight that some letters of the layout stand for."""
        return axes_of(self.layout, letters)

    @property
    def factor_slot(self) -> int | None:
        """The input that multiplies; None if it is quantised."""
        return None if self.quantized is not None else self.weight_slot

    @property
    def bias_place(self) -> BiasPlace:
        """Where a bias goes."""
        if self.bias_slot is not None:
            return BiasPlace.INPUT
        return BiasPlace.GEMM if self.becomes_gemm else BiasPlace.ADD

    def require(self, port: int, change: Affine) -> None:
        """Refuse a change of the data or the output that weights and bias do not take.

        Raises:
            Refused: see ``input_vectors`` and ``output_vectors``.
        """
        if port == OUT:
            self._behind(change).output_vectors(change)
        else:
            self._in_front(change).input_vectors(change)
        if self.quantized is not None and change.has_scale:
            sides = (None, change) if port == OUT else (change, None)
            self.quantized.require(whole(self.weight_factor(*sides)))

    def passed_on(self, into: Affine, sides: Sides) -> Affine | None:
        """Return the shift that the output gets if the weights do not compensate one.

        A layer without a bias need not take the shift of its data: an Add behind it may be there to
        do so.
        """
        if self.bias_slot is not None:
            return None
        shift = -self.fold_bias(None, into, None, self.weight_factor(*sides))
        return Affine.identity(self.out_rank).with_shift(along(shift, self.out_axis, self.out_rank))

    def altered(self, sides: Sides) -> Iterator[Read]:
        """Yield the constants that get new values by changes of the two sides."""
        into, out = sides
        if sides.have_scale:
            quantized = self.quantized
            yield (
                (self.view.index, self.weight_slot)
                if quantized is None or quantized.is_shared
                else (quantized.view.index, 1)
            )
        shifted = (into is not None and into.has_shift) or out is not None
        if shifted and self.bias is not None and self.bias_slot is not None:
            yield self.view.index, self.bias_slot

    def needs_bias(self, sides: Sides) -> bool:
        """Whether the bias changes, or one has to be made, by changes of the two sides."""
        into, out = sides
        shifted = into is not None and into.has_shift
        if not shifted and (out is None or not out.has_shift):
            return self.bias is not None and out is not None and out.has_scale
        if self.bias_slot is not None:
            return True
        bias, size = self.fold_bias(None, into, out), self.bias_size(into, out)
        return bool((np.abs(bias) > AGREEMENT * size).any())

    def revised(self, sides: Sides) -> Iterator[Revised]:
        """Return what becomes of the weight and the bias by changes of the two sides."""
        found = self.revised_weight(sides)
        if self.needs_bias(sides):
            found.append(self._revised_bias(sides))
        return iter(found)

    def revised_weight(self, sides: Sides) -> list[Revised]:
        """Return what becomes of the weight."""
        if not sides.have_scale:
            return []
        if self.quantized is not None:
            return [*self.quantized.revised(whole(self.weight_factor(*sides)))]
        dims, data_type = self.weight.dims, self.weight.data_type
        factor = partial(self.weight_factor, *sides)
        values = Multiplied(self.weight.name, self.grouped, self.summed_axes, factor)
        return [Revised(self.view, self.weight_slot, "weight", dims, data_type, values)]

    def _revised_bias(self, sides: Sides) -> Revised:
        layer = self if sides.out is None else self._behind(sides.out)
        dims: tuple[int, ...] = (layer.channels_out,)
        if self.bias is not None:
            dims = np.broadcast_shapes(self.bias.dims, dims)
        elif self.bias_slot is None and self.view.opset >= 7:
            # A new Add broadcasts from the right; before opset 7 its attributes say where.
            dims += (1,) * (layer.out_rank - 1 - layer.out_axis)
        return Revised(
            self.view,
            len(self.view.reads) if self.bias_slot is None else self.bias_slot,
            "bias",
            dims,
            self.weight.data_type,
            Given(partial(self._new_bias, sides, dims)),
            self.voided,
            self.bias_place,
        )

    def _new_bias(self, sides: Sides, dims: tuple[int, ...]) -> Float64:
        old = None if self.bias is None else self.view.constants.value(self.bias.name)
        folded = self.fold_bias(old, *sides)
        if self.bias_slot is None:
            folded = folded.reshape(dims)
        return folded if folded.shape == dims else np.broadcast_to(folded, dims)

    def combined(
        self,
        combine: np.ufunc,
        axes: tuple[int, ...],
        *factors: Factor,
        of: np.ufunc = np.positive,
    ) -> Float64:
        """Return what the elements of the grouped weight are together; see ``blocks.combined``."""
        return combined(self.blocks(), self.grouped, combine, axes, factors, of)

    def blocks(self) -> Iterator[tuple[BlockIndex, Array]]:
        """Yield where each block of the grouped weight belongs, and its elements."""
        if self.quantized is not None:
            return self.quantized.blocks(_BLOCK)
        return blocks_of(self.view.constants.stored(self.weight.name), self.grouped, _BLOCK)

    def peaks(self, magnitude: Array) -> Array:
        """Return the largest magnitude of the weight per output channel."""
        return np.asarray(magnitude.reshape(self.grouped).max(axis=self.axes("ikb")))

    def _behind(self, change: Affine) -> LinearLayer:
        """Return the layer whose output channels a change varies along, this one by default."""
        if not self.also or change.vector(self.out_axis, self.channels_out) is not None:
            return self
        also = (e for e in self.also if change.vector(e.out_axis, e.channels_out) is not None)
        return next(also, self)

    def _in_front(self, change: Affine) -> LinearLayer:
        """Return the layer whose input channels a change varies along, this one by default."""
        if not self.also or change.vector(self.in_axis, self.channels_in) is not None:
            return self
        also = (e for e in self.also if change.vector(e.in_axis, e.channels_in) is not None)
        return next(also, self)

    def output_vectors(self, change: Affine) -> tuple[Float64, Float64]:
        """Return the output's change as ``(C_out,)`` vectors.

        Raises:
            Refused: it is not per output channel, or beyond what weights can hold.
        """
        if not change.is_ordinary:
            raise Refused(
                Reason.PRECISION,
                self.view.label,
                "a scale in front of it is zero or so small that it cannot be divided by",
            )
        vectors = change.vector(self.out_axis, self.channels_out)
        if vectors is None:
            raise self._not_per_channel("output", self.out_axis)
        return vectors

    def input_vectors(self, change: Affine) -> tuple[Float64, Float64]:
        """Return the input's change as ``(C_in,)`` vectors.

        Raises:
            Refused: it is not per input channel, cannot be divided by, or shifts a padded border.
        """
        if change.has_shift and self.shift_in is not None:
            raise Refused.again(self.shift_in)
        if not change.is_invertible:
            raise Refused(
                Reason.PRECISION,
                self.view.label,
                "the scale is zero or so small in a channel that the weights behind cannot be "
                "divided by it",
            )
        vectors = change.vector(self.in_axis, self.channels_in)
        if vectors is None:
            raise self._not_per_channel("input", self.in_axis)
        return vectors

    def _not_per_channel(self, side: str, axis: int) -> Refused:
        return Refused(
            Reason.AXES,
            self.view.label,
            f"the change of its {side} is not one value per channel on axis {axis}",
        )

    def _laid(self, vector: Float64, channel: str) -> Float64:
        """Shape a vector over channels to broadcast against the grouped weight."""
        return vector.reshape(broadcast_shape(self.layout, self.grouped, "g" + channel))

    def weight_factor(self, into: Affine | None, out: Affine | None) -> Factor:
        """Return what the weight is multiplied by to compensate the scales of both sides.

        Args:
            into, out: changes of the data tensor and of the output, or None.

        Returns:
            What broadcasts against the weight of shape ``grouped``.
        """
        if out is None:
            factor: Float64 = np.ones((1,) * len(self.grouped))
        else:
            layer = self._behind(out)
            factor = layer._laid(layer.output_vectors(out)[0], "o")
        if into is not None and into.has_scale:
            layer = self._in_front(into)
            return quotient(factor, layer._laid(layer.input_vectors(into)[0], "i"))
        return factor

    def fold_bias(
        self, bias: Array | None, into: Affine | None, out: Affine | None, *factors: Factor
    ) -> Float64:
        """Return the bias, in float64, that compensates the shifts of both sides.

        Args:
            bias: Conv's bias or Gemm's C in any of its shapes, or None.
            into: change of the data tensor, or None.
            out: change of the output, or None.
            factors: that the weight gets.

        Returns:
            The new bias: ``(C_out,)``, or Gemm's C broadcast with it; ``beta`` has become 1.
        """
        if bias is None and out is not None and (into is None or not into.has_shift):
            return self._behind(out).output_vectors(out)[1]
        c = np.zeros(()) if bias is None else bias.astype(np.float64) * self.beta
        with np.errstate(over="ignore", invalid="ignore"):  # it is judged when it is rounded
            if into is not None and into.has_shift:
                c = c - self.alpha * self._summed(*factors, self._ratio(into))
            if out is not None:
                scale, shift = self.output_vectors(out)
                c = c * scale + shift
        return c

    def bias_size(self, into: Affine | None, out: Affine | None) -> Float64:
        """Return the sum of the magnitudes of what ``fold_bias`` adds up without an old bias.

        A bias that is much smaller is the rounding of its terms, which cancel.
        """
        size: Float64 = np.zeros(())
        if into is not None and into.has_shift:
            size = self._summed(self._ratio(into), of=np.absolute)
        if out is not None:
            scale, shift = self._behind(out).output_vectors(out)
            size = size * np.abs(scale) + np.abs(shift)
        return size

    def _ratio(self, into: Affine) -> Float64:
        """Return the shift in units of the data as they were, to multiply the grouped weight."""
        scale, shift = self.input_vectors(into)
        return self._laid(shift / scale, "i")

    def _summed(self, *factors: Factor, of: np.ufunc = np.positive) -> Float64:
        return self.combined(np.add, self.summed_axes, *factors, of=of).reshape(-1)
