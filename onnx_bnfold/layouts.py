"""The linear layers and the layouts of their weights: the only place that knows them.

To support another one, write what reads a node and add an entry to ``LAYOUTS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from onnx_bnfold import costs
from onnx_bnfold.constants import Constant
from onnx_bnfold.entries import Absorbing
from onnx_bnfold.layers import LinearLayer
from onnx_bnfold.quantized import dequantizer, quantized_weight
from onnx_bnfold.reasons import Reason, Refusal, Refused
from onnx_bnfold.view import FLOATS, NodeView


def _no_shift(view: NodeView, reason: Reason, sentence: str) -> Refusal:
    return Refusal(reason, view.label, sentence)


def _weight(view: NodeView, slot: int) -> Constant:
    """Return a weight's shape and type; for a quantised one those it has in real numbers."""
    info = view.constant(slot)
    if info is not None:
        return info
    source = dequantizer(view, slot)
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
        voided=("beta",),
    )


def _matmul(view: NodeView) -> LinearLayer:
    right = view.constant(1) is not None or dequantizer(view, 1) is not None
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
        becomes_gemm=rank == 2 and weight_slot == 1,
    )


def _require(view: NodeView, holds: bool) -> None:
    if not holds:
        raise Refused(
            Reason.INCONSISTENT_SHAPES,
            view.label,
            "the shapes of its weight, bias and attributes do not agree; repair the model",
        )


def linear_layer(view: NodeView, layout: Callable[[NodeView], LinearLayer]) -> LinearLayer:
    """Return the linear layer a node is.

    Args:
        view: the node.
        layout: reads the layout of its weight.

    Raises:
        Refused: its weight or bias is not constant, not a float, or of disagreeing shape.
    """
    layer = layout(view)
    if layer.weight.data_type not in FLOATS:
        raise Refused(Reason.UNSUPPORTED_TYPE, view.label, "its weight is not of a float type")
    if 0 in layer.weight.dims:
        raise Refused(Reason.INCONSISTENT_SHAPES, view.label, "its weight has no elements")
    if view.constant(layer.weight_slot) is not None:
        return layer
    source = dequantizer(view, layer.weight_slot)
    if source is None:
        return layer
    if "g" in layer.layout and layer.layout.index("o") != 1 and layer.grouped[0] > 1:
        raise Refused(
            Reason.QUANTIZED, view.label, "its output channels are spread over groups and an axis"
        )
    plain = layer.layout.replace("g", "")
    return layer._replace(quantized=quantized_weight(source, plain.index("o")))


def _entry(
    layout: Callable[[NodeView], LinearLayer],
    version: int,
    multiply_adds: costs.Count,
    *linear_in: tuple[int, ...],
) -> Absorbing:
    """Make the entry of a linear layer: how it is read, up to which version, and what it costs."""
    return Absorbing(
        partial(linear_layer, layout=layout),
        linear_in,
        version=version,
        multiply_adds=multiply_adds,
        depth=costs.ONE_LEVEL,
    )


_conv = partial(_convolution, transposed=False)
_conv_transpose = partial(_convolution, transposed=True)

LAYOUTS: Mapping[str, Absorbing] = {
    "Conv": _entry(_conv, 22, costs.convolution(1), (1, 2)),
    "ConvTranspose": _entry(_conv_transpose, 22, costs.transposed_convolution, (1, 2)),
    "Gemm": _entry(_gemm, 13, costs.gemm, (1, 2), (0, 2)),
    "MatMul": _entry(_matmul, 13, costs.matmul, (1,), (0,)),
}
