"""The linear layers and their weight layouts: the only place that knows them.

Every layer computes ``y[o] = alpha * sum_i,k W[o, i, k] * x[i, k] + beta * c[o]``. With its input
re-parametrised as ``x' = s_i * x + h_i`` and its output as ``y' = s_o * y + h_o`` it stays exact
with (Ibarrondo & Önen 2018 for the output side; the input side is its mirror image)

    W' = W * s_o / s_i
    c' = s_o * (beta * c - alpha * sum_i,k W[o, i, k] * h_i / s_i) + h_o        and beta' = 1

A layout is a string with a letter per axis of the (grouped) weight: ``g`` group, ``o`` output
channel, ``i`` input channel, ``k`` kernel position, ``b`` batch of weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onnx_bnfold.affine import Affine, Float64
from onnx_bnfold.constants import Constant
from onnx_bnfold.reasons import Reason, Refusal, Refused
from onnx_bnfold.view import FLOATS, NodeView

if TYPE_CHECKING:
    from onnx_bnfold.quantized import QuantizedWeight

Array = np.ndarray[Any, Any]


class LinearLayer(NamedTuple):
    """A linear layer with constant weights, seen through its layout.

    Attributes:
        layout: letter per axis of ``grouped``, see the module's text.
        grouped: shape of the weight with the group split off, e.g. ``(g, C_out/g, C_in/g, *k)``.
        data_slot, weight_slot, bias_slot: indices of the node's inputs; no bias slot for MatMul.
        in_axis, out_axis: the channel axes of the data tensor and of the output.
        in_rank, out_rank: ranks of the data tensor and of the output.
        shift_in: why a shift of the input cannot be absorbed, or None if it can.
        quantized: the DequantizeLinear that makes the weight, if one does.
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

    @property
    def channels_out(self) -> int:
        """Number of output channels."""
        return _channels(self.layout, self.grouped, "go")

    @property
    def channels_in(self) -> int:
        """Number of input channels."""
        return _channels(self.layout, self.grouped, "gi")

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
        return _axes(self.layout, letters)

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
        if self.quantized is not None:
            raise Refused(
                Reason.QUANTIZED,
                self.view.label,
                "its quantised weight has no scale per input channel; fold before quantising",
            )
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
        return vector.reshape(_broadcast(self.layout, self.grouped, "g" + channel))

    def weight_factor(self, into: Affine | None, out: Affine | None) -> Float64:
        """Return what the weight is multiplied by to compensate the scales of both sides.

        Args:
            into: change of the data tensor, or None.
            out: change of the output, or None.

        Returns:
            Float64 that broadcasts against the weight of shape ``grouped``.
        """
        if out is None:
            factor: Float64 = np.ones((1,) * len(self.grouped))
        else:
            factor = self._laid(self.output_vectors(out)[0], "o")
        if into is not None and into.has_scale:
            factor = factor / self._laid(self.input_vectors(into)[0], "i")
        return factor

    def fold_bias(
        self, bias: Array | None, weight: Array | None, into: Affine | None, out: Affine | None
    ) -> Float64:
        """Return the bias, in float64, that compensates the shifts of both sides.

        Args:
            bias: Conv's bias or Gemm's C in any of its shapes, or None.
            weight: the original weight; needed only where ``into`` has a shift.
            into: change of the data tensor, or None.
            out: change of the output, or None.

        Returns:
            The new bias: ``(C_out,)``, or Gemm's C broadcast with it; ``beta`` has become 1.
        """
        if bias is None and out is not None and (into is None or not into.has_shift):
            return self.output_vectors(out)[1]
        c = np.zeros(()) if bias is None else bias.astype(np.float64) * self.beta
        with np.errstate(over="ignore", invalid="ignore"):  # it is judged when it is rounded
            if into is not None and into.has_shift:
                assert weight is not None
                scale, shift = self.input_vectors(into)
                grouped = weight.astype(np.float64).reshape(self.grouped)
                c = c - self.alpha * self._summed(grouped * self._laid(shift / scale, "i"))
            if out is not None:
                scale, shift = self.output_vectors(out)
                c = c * scale + shift
        return c

    def bias_size(self, weight: Array | None, into: Affine | None, out: Affine | None) -> Float64:
        """Return the sum of the magnitudes of what ``fold_bias`` adds up for a MatMul.

        A bias that is much smaller is the rounding of its terms, which cancel.
        """
        size: Float64 = np.zeros(())
        if into is not None and into.has_shift:
            assert weight is not None
            scale, shift = self.input_vectors(into)
            grouped = np.abs(weight.astype(np.float64)).reshape(self.grouped)
            ratio = self._laid(np.abs(shift / scale), "i")
            size = self._summed(grouped * ratio)
        if out is not None:
            scale, shift = self.output_vectors(out)
            size = size * np.abs(scale) + np.abs(shift)
        return size

    def _summed(self, product: Float64) -> Float64:
        return np.asarray(product.sum(axis=self.summed_axes).reshape(-1))


@cache
def _axes(layout: str, letters: str) -> tuple[int, ...]:
    """Return the axes that some letters of a layout stand for."""
    return tuple(axis for axis, letter in enumerate(layout) if letter in letters)


# The layers of a model are of few shapes.
@lru_cache(maxsize=1024)
def _channels(layout: str, grouped: tuple[int, ...], letters: str) -> int:
    """Return the number of channels that some letters of a layout stand for together."""
    return math.prod(_broadcast(layout, grouped, letters))


@lru_cache(maxsize=1024)
def _broadcast(layout: str, grouped: tuple[int, ...], letters: str) -> tuple[int, ...]:
    """Return a weight's shape with the axes that are not among some letters reduced to 1."""
    return tuple(n if a in letters else 1 for n, a in zip(grouped, layout, strict=True))


def _no_shift(view: NodeView, reason: Reason, sentence: str) -> Refusal:
    return Refusal(reason, view.label, sentence)


def _dequantizer(view: NodeView, slot: int) -> NodeView | None:
    from onnx_bnfold.quantized import dequantizer  # most weights are constants

    return dequantizer(view, slot)


def _weight(view: NodeView, slot: int) -> Constant:
    """Return a weight's shape and type; for a quantised one those it has in real numbers."""
    info = view.constant(slot)
    if info is not None:
        return info
    source = _dequantizer(view, slot)
    if source is None or source.constant(0) is None or source.constant(1) is None:
        return view.weight(slot)  # which says why it is none
    integers, scale = source.weight(0), source.weight(1)
    return Constant(view.name_in(slot), integers.dims, scale.data_type)


def _kernel(weight: Constant) -> tuple[int, ...]:
    return tuple(weight.dims[2:])


def _padding(view: NodeView, weight: Constant) -> Refusal | None:
    """Say why a convolution's input cannot be shifted: zeros at the border do not shift along."""
    auto_pad = view.attribute("auto_pad", "NOTSET")
    if auto_pad == "NOTSET":
        pads_zeros = any(view.attribute("pads", []))
    else:
        pads_zeros = str(auto_pad).startswith("SAME") and any(k != 1 for k in _kernel(weight))
    if pads_zeros:
        return _no_shift(
            view,
            Reason.PADDING,
            "it pads its input with zeros, and a shift would not hold at the border",
        )
    return None


def _transposed_shift(view: NodeView, weight: Constant) -> Refusal | None:
    strides: list[int] = view.attribute("strides", [])
    output_padding: list[int] = view.attribute("output_padding", [])
    plain = (
        all(n == 1 for n in (*_kernel(weight), *strides))
        and not any(output_padding)
        and view.attribute("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    )
    if plain:
        return None
    return _no_shift(
        view,
        Reason.PADDING,
        "its output positions get different numbers of taps, and a shift would differ between them",
    )


def _convolution(view: NodeView, *, transposed: bool) -> LinearLayer:
    """Read Conv, ``(C_out, C_in/group, *k)``, or ConvTranspose, ``(C_in, C_out/group, *k)``."""
    weight = _weight(view, 1)
    group = view.attribute("group", 1)
    rank = len(weight.dims)
    _require(view, rank >= 3 and group > 0 and weight.dims[0] % group == 0)
    first, second = weight.dims[0], weight.dims[1]
    return LinearLayer(
        view,
        ("gio" if transposed else "goi") + "k" * (rank - 2),
        (group, first // group, *weight.dims[1:]),
        weight,
        view.bias(2, weight, (second * group if transposed else first,)),
        *(0, 1, 2, 1, 1, rank, rank),
        shift_in=_transposed_shift(view, weight) if transposed else _padding(view, weight),
    )


def _gemm(view: NodeView) -> LinearLayer:
    weight = _weight(view, 1)
    _require(view, len(weight.dims) == 2)
    transposed = bool(view.attribute("transB", 0))
    columns = weight.dims[0 if transposed else 1]
    bias = view.bias(2, weight, None)
    if bias is not None:
        _require(view, len(bias.dims) <= 2 and (bias.dims or (1,))[-1] in (1, columns))
    return LinearLayer(
        view,
        "oi" if transposed else "io",
        weight.dims,
        weight,
        bias,
        *(0, 1, 2, 0 if view.attribute("transA", 0) else 1, 1, 2, 2),
        alpha=float(view.attribute("alpha", 1.0)),
        beta=float(view.attribute("beta", 1.0)),
    )


def _matmul(view: NodeView) -> LinearLayer:
    right = view.constant(1) is not None or _dequantizer(view, 1) is not None
    weight_slot = 1 if right else 0
    weight = _weight(view, weight_slot)
    data_slot = 1 - weight_slot
    rank, depth = len(view.dims_in(data_slot)), len(weight.dims)
    if depth < 2 or depth > rank:
        raise Refused(
            Reason.AXES, view.label, "its constant operand has fewer than two or too many axes"
        )
    axis = rank - 1 if weight_slot == 1 else rank - 2
    shift_in = None
    if depth > 2:
        shift_in = _no_shift(view, Reason.AXES, "it has a weight matrix per batch entry")
    return LinearLayer(
        view,
        "b" * (depth - 2) + ("io" if weight_slot == 1 else "oi"),
        weight.dims,
        weight,
        None,
        *(data_slot, weight_slot, None, axis, axis, rank, rank),
        shift_in=shift_in,
    )


def _require(view: NodeView, holds: bool) -> None:
    if not holds:
        raise Refused(
            Reason.INCONSISTENT_SHAPES,
            view.label,
            "the shapes of its weight, bias and attributes do not agree; repair the model",
        )


class Layout(NamedTuple):
    """How to read a layer, and the newest version of its operator for which that is right."""

    read: Callable[[NodeView], LinearLayer]
    version: int


LAYOUTS: Mapping[str, Layout] = {
    "Conv": Layout(partial(_convolution, transposed=False), 22),
    "ConvTranspose": Layout(partial(_convolution, transposed=True), 22),
    "Gemm": Layout(_gemm, 13),
    "MatMul": Layout(_matmul, 13),
}


def linear_layer(view: NodeView) -> LinearLayer:
    """Return the linear layer a node is.

    Raises:
        Refused: its weight or bias is not constant, not a float, or of disagreeing shape, or its
            operator is of an unknown version.
    """
    assert view.op is not None
    read, version = LAYOUTS[view.op]
    view.require_version(version)
    layer = read(view)
    if layer.weight.data_type not in FLOATS:
        raise Refused(Reason.UNSUPPORTED_TYPE, view.label, "its weight is not of a float type")
    if 0 in layer.weight.dims:
        raise Refused(Reason.INCONSISTENT_SHAPES, view.label, "its weight has no elements")
    if view.constants.get(layer.weight.name) is not None:
        return layer
    source = _dequantizer(view, layer.weight_slot)
    if source is None:
        return layer
    if "g" in layer.layout and layer.layout.index("o") != 1 and layer.grouped[0] > 1:
        raise Refused(
            Reason.QUANTIZED, view.label, "its output channels are spread over groups and an axis"
        )
    plain = layer.layout.replace("g", "")
    from onnx_bnfold.quantized import quantized_weight

    return layer._replace(quantized=quantized_weight(source, plain.index("o")))
