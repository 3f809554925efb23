"""The usual linear layers and the layouts of their weights; ``by_name`` has others.

``linear`` makes an entry of what reads a node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from onnx_bnfold.model.constants import Constant
from onnx_bnfold.model.node_view import FLOATS, NodeView
from onnx_bnfold.operators import costs
from onnx_bnfold.operators.entries import Absorber, Absorbing, Rank
from onnx_bnfold.operators.linear import LinearLayer
from onnx_bnfold.reasons import Reason, Refusal, Refused

# What may be wrong with a weight, and not with the bias beside it.
_OF_WEIGHTS = frozenset({Reason.WEIGHT_NOT_CONSTANT, Reason.OVERRIDABLE_INITIALIZER})


def _dequantizer(view: NodeView, slot: int) -> NodeView | None:
    if view.name_in(slot) not in view.graph.producer:
        return None
    from onnx_bnfold.operators.dequantized_weight import dequantizer  # most weights are constants

    return dequantizer(view, slot)


def weight_of(view: NodeView, slot: int) -> Constant:
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
        return Refusal(
            Reason.PADDING,
            view.label,
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
    if not plain:
        sentence = (
            "its output positions get different numbers of taps, and a shift would differ between "
            "them"
        )
    elif view.attribute("output_shape", []):
        sentence = "its output_shape may ask for positions beyond its input, where no shift arrives"
    else:
        return None
    return Refusal(Reason.PADDING, view.label, sentence)


def convolution(view: NodeView, *, transposed: bool = False, bias_slot: int = 2) -> LinearLayer:
    """Read Conv, ``(C_out, C_in/group, *k)``, or ConvTranspose, ``(C_in, C_out/group, *k)``."""
    if transposed and view.attribute("output_shape", []):
        view.require_no_misreading()
    weight = weight_of(view, 1)
    group = view.attribute("group", 1)
    rank = len(weight.dims)
    require(view, rank >= 3 and group > 0 and weight.dims[0] % group == 0)
    first, second = weight.dims[0], weight.dims[1]
    return LinearLayer(
        view,
        ("gio" if transposed else "goi") + "k" * (rank - 2),
        (group, first // group, *weight.dims[1:]),
        weight,
        view.bias(bias_slot, weight, (second * group if transposed else first,)),
        *(0, 1, bias_slot, 1, 1, rank, rank, 1.0, 1.0),
        _transposed_shift(view, weight) if transposed else _padding(view, weight),
    )


def _gemm(view: NodeView) -> LinearLayer:
    weight = weight_of(view, 1)
    require(view, len(weight.dims) == 2)
    transposed = bool(view.attribute("transB", 0))
    columns = weight.dims[0 if transposed else 1]
    bias = view.bias(2, weight, None)
    if bias is not None:
        require(view, len(bias.dims) <= 2 and (bias.dims or (1,))[-1] in (1, columns))
    return LinearLayer(
        view,
        "oi" if transposed else "io",
        weight.dims,
        weight,
        bias,
        *(0, 1, 2, 0 if view.attribute("transA", 0) else 1, 1, 2, 2),
        alpha=float(view.attribute("alpha", 1.0)),
        beta=float(view.attribute("beta", 1.0)),
        voided=(("beta", None),),
    )


def constant_operand(view: NodeView) -> tuple[int, Constant]:
    """Return which of two operands is the weight, and the weight."""
    right = view.constant(1) is not None or _dequantizer(view, 1) is not None
    slot = 1 if right else 0
    return slot, weight_of(view, slot)


def _matmul(view: NodeView) -> LinearLayer:
    weight_slot, weight = constant_operand(view)
    data_slot = 1 - weight_slot
    rank, depth = len(view.dims_in(data_slot)), len(weight.dims)
    axis = rank - 1 if weight_slot == 1 else rank - 2
    if depth == 1 and rank > 1:  # it makes one channel of all
        axes = (axis, rank - 2, rank, rank - 1)
        own = (weight.dims, weight, None, data_slot, weight_slot, None)
        return LinearLayer(view, "i", *own, *axes)
    if depth < 2 or depth > rank:
        raise Refused(Reason.AXES, view.label, "its constant operand has too few or too many axes")
    shift_in = None
    if depth > 2:
        shift_in = Refusal(Reason.AXES, view.label, "it has a weight matrix per batch entry")
    columns = LinearLayer(
        view,
        "b" * (depth - 2) + ("io" if weight_slot == 1 else "oi"),
        weight.dims,
        weight,
        None,
        *(data_slot, weight_slot, None, axis, axis, rank, rank),
        shift_in=shift_in,
        becomes_gemm=rank == 2 and weight_slot == 1,
    )
    batches = range(depth - 2 if view.opset >= 7 else 0)
    if not batches:
        return columns
    return columns._replace(also=tuple(_batch(columns, axis) for axis in batches))


def _batch(columns: LinearLayer, axis: int) -> LinearLayer:
    """Return a product by a matrix per batch entry, with the entries of an axis as its channels."""
    rows = columns.layout.replace("i", "k").replace("o", "b")
    channels = columns.in_rank - len(rows) + axis
    return columns._replace(
        layout=rows[:axis] + "g" + rows[axis + 1 :], in_axis=channels, out_axis=channels
    )


def require(view: NodeView, holds: bool) -> None:
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
    if layer.weight.name in view.graph.initializers:
        return layer  # most weights are
    source = _dequantizer(view, layer.weight_slot)
    if source is None:
        return layer
    from onnx_bnfold.operators.dequantized_weight import quantized_weight

    return layer._replace(quantized=quantized_weight(source, layer.layout, layer.grouped), also=())


def _read(view: NodeView, layout: Callable[[NodeView], LinearLayer]) -> Absorber:
    """Return a linear layer, or what the bias of one takes whose weight is no constant."""
    try:
        return linear_layer(view, layout)
    except Refused as refused:
        refusal = refused.refusal
    from onnx_bnfold.operators.computed_weight import bias_alone  # most weights are constants

    found = bias_alone(view, layout, refusal) if refusal.reason in _OF_WEIGHTS else None
    if found is None:
        raise Refused.again(refusal)
    return found


def linear(
    layout: Callable[[NodeView], LinearLayer],
    version: int,
    multiply_adds: costs.Count,
    *linear_in: tuple[int, ...],
    depth: costs.Depth | costs.DepthOf = costs.ONE_LEVEL,
    rank: Rank | None = None,
) -> Absorbing:
    """Make the entry of a linear layer: how it is read, up to which version, and what it costs."""
    return Absorbing(
        partial(_read, layout=layout),
        linear_in,
        version=version,
        multiply_adds=multiply_adds,
        depth=depth,
        is_linear=True,
        rank=rank,
    )


LINEAR_LAYERS: Mapping[str, Absorbing] = {
    "Conv": linear(convolution, 22, costs.convolution(1), (1, 2), rank=Rank.WEIGHT),
    "ConvTranspose": linear(
        partial(convolution, transposed=True),
        22,
        costs.transposed_convolution,
        (1, 2),
        rank=Rank.WEIGHT,
    ),
    "Gemm": linear(_gemm, 13, costs.gemm, (1, 2), (0, 2)),
    "MatMul": linear(_matmul, 13, costs.matmul, (1,), (0,), rank=Rank.MATRICES),
}
