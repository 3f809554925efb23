"""The linear layers and the layouts of their weights: the only place that knows them.

To support another one, write what reads a node and add an entry to ``LINEAR_LAYERS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

from onnx_bnfold.model.constants import Constant
from onnx_bnfold.model.node_view import FLOATS, NodeView
from onnx_bnfold.operators import costs
from onnx_bnfold.operators.entries import Absorbing
from onnx_bnfold.operators.late import late
from onnx_bnfold.operators.linear import LinearLayer
from onnx_bnfold.reasons import Reason, Refusal, Refused


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


def _convolution(view: NodeView, *, transposed: bool = False, bias_slot: int = 2) -> LinearLayer:
    """Read Conv, ``(C_out, C_in/group, *k)``, or ConvTranspose, ``(C_in, C_out/group, *k)``."""
    if transposed and view.attribute("output_shape", []):
        view.require_no_misreading()
    weight = weight_of(view, 1)
    group = view.attribute("group", 1)
    rank = len(weight.dims)
    _require(view, rank >= 3 and group > 0 and weight.dims[0] % group == 0)
    first, second = weight.dims[0], weight.dims[1]
    return LinearLayer(
        view,
        ("gio" if transposed else "goi") + "k" * (rank - 2),
        (group, first // group, *weight.dims[1:]),
        weight,
        view.bias(bias_slot, weight, (second * group if transposed else first,)),
        *(0, 1, bias_slot, 1, 1, rank, rank),
        shift_in=_transposed_shift(view, weight) if transposed else _padding(view, weight),
    )


def _deform_conv(view: NodeView) -> LinearLayer:
    """Read a Conv whose samples are moved and weighed; if neither is done, a shift may pass."""
    layer = _convolution(view, bias_slot=3)
    offset, mask = (view.value(slot) if view.constant(slot) else None for slot in (2, 4))
    if offset is None or offset.any():
        sentence = "its samples may lie outside of its input, among zeros that do not shift along"
    elif view.name_in(4) and (mask is None or (mask != 1).any()):
        sentence = "its mask weighs the samples, and a shift would differ between positions"
    else:
        return layer
    return layer._replace(shift_in=Refusal(Reason.PADDING, view.label, sentence))


def _deform_depth(view: NodeView, encrypted: set[str]) -> costs.Depth:
    offset, mask = (view.name_in(slot) in encrypted for slot in (2, 4))
    return 1 + offset + mask, int(offset)  # to find samples at encrypted places is no polynomial


def _gemm(view: NodeView) -> LinearLayer:
    weight = weight_of(view, 1)
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
        voided=(("beta", None),),
    )


def _constant_operand(view: NodeView) -> tuple[int, Constant]:
    """Return which of two operands is the weight, and the weight."""
    right = view.constant(1) is not None or _dequantizer(view, 1) is not None
    slot = 1 if right else 0
    return slot, weight_of(view, slot)


def _matmul(view: NodeView) -> LinearLayer:
    weight_slot, weight = _constant_operand(view)
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


def _einsum(view: NodeView) -> LinearLayer:
    """Read an Einsum of data and a constant.

    A letter of the constant stands for input channels if the data has it and the output does not,
    for output channels if the output has it and the data does not, and for both if all have it and
    no other does either. Of several, the first does: one axis of each side may change.
    """
    terms, out = _equation(view)
    if len(terms) != 2:
        raise Refused(Reason.OPAQUE, view.label, "it is not a product of two operands")
    slot, weight = _constant_operand(view)
    dims = view.dims_in(1 - slot)
    data, own, out = _axes_of(view, terms[1 - slot], terms[slot], out, len(dims))
    _require(view, len(own) == len(weight.dims))
    summed = [letter for letter in data if letter in own and letter not in out]
    made = [letter for letter in out if letter in own and letter not in data]
    shared = [letter for letter in out if letter in own and letter in data]
    before, behind = summed[:1], (made or shared)[:1]
    roles = {**dict.fromkeys(own, "k"), **dict.fromkeys((*made, *shared), "b")}
    roles |= dict.fromkeys(behind, "o") | dict.fromkeys(before, "i")
    if not summed and not made and shared:
        before, roles[behind[0]] = behind, "g"
    sizes = dict(zip(own, weight.dims, strict=True))
    # Positions of the data that are added up without weights of their own, each with its shift.
    counted = [
        size
        for letter, size in zip(data, dims, strict=True)
        if letter not in out and sizes.get(letter, 1) == 1
    ]
    known = [size for size in counted if isinstance(size, int)]
    shift_in = None
    if len(known) < len(counted):
        sentence = "it adds up positions of its data, a shift of each, and it is not known how many"
        shift_in = Refusal(Reason.UNKNOWN_SHAPE, view.label, sentence)
    elif any(role == "b" and sizes[letter] > 1 for letter, role in roles.items()):
        sentence = "a shift would need a bias that varies along several axes of its output"
        shift_in = Refusal(Reason.AXES, view.label, sentence)
    return LinearLayer(
        view,
        "".join(roles[letter] for letter in own),
        weight.dims,
        weight,
        None,
        *(1 - slot, slot, None),
        data.index(before[0]) if before else 0,  # without a channel any axis will do
        out.index(behind[0]) if behind else 0,
        *(len(data), len(out)),
        alpha=math.prod(known),
        shift_in=shift_in,
    )


def _axes_of(view: NodeView, data: str, own: str, out: str, rank: int) -> tuple[str, str, str]:
    """Return the terms of data, constant and output with a character for each axis.

    Args:
        view: the Einsum.
        data, own, out: the terms as they are written.
        rank: of the data.

    Raises:
        Refused: they do not fit, or the constant has axes of no letter or a diagonal is taken.
    """
    if "..." in own:
        raise Refused(Reason.AXES, view.label, "some axes of its constant have no letter")
    unnamed = "".join(map(chr, range(rank - len(data.replace("...", "")))))  # these are no letters
    data, out = data.replace("...", unnamed), out.replace("...", unnamed)
    _require(view, len(data) == rank and {*out} <= {*data, *own})
    if any(len({*letters}) < len(letters) for letters in (data, own, out)):
        raise Refused(Reason.AXES, view.label, "a letter of its equation stands for a diagonal")
    return data, own, out


def _equation(view: NodeView) -> tuple[list[str], str]:
    from onnx_bnfold.model.einsum_equation import terms_of  # few models have one

    return terms_of(view.attribute("equation", ""))


def _einsum_count(view: NodeView) -> int:
    """Count for an Einsum of two operands: an element for each letter that is summed."""
    terms, out = _equation(view)
    if len(terms) > 2:
        raise costs.Unknown(f"{view.label}: its multiply-adds are not known")
    sizes: dict[str, int] = {}
    for slot, term in enumerate(terms):
        for letter in {*term} - {*out, "."}:
            ahead, _, behind = term.partition(letter)
            axis = -1 - len(behind) if "..." in ahead else len(ahead)
            size = costs.size(view, view.name_in(slot), slice(axis, axis + 1 or None))
            sizes[letter] = max(size, sizes.get(letter, 1))
    return costs.per_element(view) * math.prod(sizes.values()) if len(terms) > 1 else 0


def _einsum_depth(view: NodeView, encrypted: set[str]) -> costs.Depth:
    return len(view.reads) - 1, 0


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
    source = _dequantizer(view, layer.weight_slot)
    if source is None:
        return layer
    from onnx_bnfold.operators.dequantized_weight import quantized_weight

    return layer._replace(quantized=quantized_weight(source, layer.layout, layer.grouped), also=())


def _entry(
    layout: Callable[[NodeView], LinearLayer],
    version: int,
    multiply_adds: costs.Count,
    *linear_in: tuple[int, ...],
    depth: costs.Depth | costs.DepthOf = costs.ONE_LEVEL,
) -> Absorbing:
    """Make the entry of a linear layer: how it is read, up to which version, and what it costs."""
    return Absorbing(
        partial(linear_layer, layout=layout),
        linear_in,
        version=version,
        multiply_adds=multiply_adds,
        depth=depth,
    )


LINEAR_LAYERS: Mapping[str, Absorbing] = {
    "CausalConvWithState": _entry(
        late("causal_convolution", "causal_convolution"), 27, costs.convolution(1), (1, 2)
    ),
    "Conv": _entry(_convolution, 22, costs.convolution(1), (1, 2)),
    "ConvTranspose": _entry(
        partial(_convolution, transposed=True), 22, costs.transposed_convolution, (1, 2)
    ),
    "DeformConv": _entry(_deform_conv, 22, costs.convolution(1), (1, 3), depth=_deform_depth),
    "Einsum": _entry(_einsum, 28, _einsum_count, (1,), (0,), depth=_einsum_depth),
    "Gemm": _entry(_gemm, 13, costs.gemm, (1, 2), (0, 2)),
    "MatMul": _entry(_matmul, 13, costs.matmul, (1,), (0,)),
}
