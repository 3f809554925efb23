"""Einsum: of data and a constant, a linear layer in other letters."""

from __future__ import annotations

import math

from onnx_bnfold.model.einsum_equation import terms_of
from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators import costs
from onnx_bnfold.operators.layouts import constant_operand, linear, require
from onnx_bnfold.operators.linear import LinearLayer
from onnx_bnfold.reasons import Reason, Refusal, Refused


def _einsum(view: NodeView) -> LinearLayer:
    """Read an Einsum of data and a constant.

    A letter of the constant stands for input channels if the data has it and the output does not,
    for output channels if the output has it and the data does not, and for both if all have it and
    no other does either. Of several, the first does: one axis of each side may change.
    """
    terms, out = terms_of(view.attribute("equation", ""))
    if len(terms) != 2:
        raise Refused(Reason.OPAQUE, view.label, "it is not a product of two operands")
    slot, weight = constant_operand(view)
    dims = view.dims_in(1 - slot)
    data, own, out = _axes_of(view, terms[1 - slot], terms[slot], out, len(dims))
    require(view, len(own) == len(weight.dims))
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
    require(view, len(data) == rank and {*out} <= {*data, *own})
    if any(len({*letters}) < len(letters) for letters in (data, own, out)):
        raise Refused(Reason.AXES, view.label, "a letter of its equation stands for a diagonal")
    return data, own, out


def _count(view: NodeView) -> int:
    """Count for an Einsum of two operands: an element for each letter that is summed."""
    terms, out = terms_of(view.attribute("equation", ""))
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


def _depth(view: NodeView, encrypted: set[str]) -> costs.Depth:
    return len(view.reads) - 1, 0


ENTRIES = {
    "Einsum": linear(_einsum, 28, _count, (1,), (0,), depth=_depth),
}
