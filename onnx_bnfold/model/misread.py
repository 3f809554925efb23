"""Nodes that onnx's shape inference misreads: it infers other sizes than the kernels produce.

Measured with onnx 1.23 and onnxruntime 1.32 on the nodes of the conformance tests. Nothing is
folded behind such a node. Some attributes are misread whatever the sizes; others only with certain
sizes, which have to be inferred first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from onnx import AttributeProto, NodeProto

from onnx_bnfold.model.einsum_equation import terms_of
from onnx_bnfold.model.graph import Dims, operator
from onnx_bnfold.model.messages import value_of

# Ends of a backward Slice that onnxruntime takes as "before the first element". Inference takes
# them as an end behind the last one, so that nothing is left.
ENDLESS = (2**31 - 1, 2**63 - 1)
NEGATIVE_AXES = 11  # the first opset in which axes may be negative
FIRST_STEPS = 10  # the opset in which inference lets a Slice keep symbolic sizes
UNITED = 11  # the first opset in which inference compares the sizes of an If's branches


class Settings:
    """The attributes of a node, and its inputs that are lists of integers.

    Args:
        node: the node.
        opset: version of its operator set.
        values: returns the integers of a constant by its name; None if they are not known.
    """

    def __init__(
        self, node: NodeProto, opset: int, values: Callable[[str], list[int] | None]
    ) -> None:
        self.node = node
        self.opset = opset
        self._values = values
        self._given = {item.name: item for item in node.attribute}

    def get(self, name: str, default: Any) -> Any:
        """Return an attribute's value; ``default`` if it refers to a parameter of a function."""
        attribute = self._given.get(name)
        return default if attribute is None else _value(attribute, default)

    @property
    def is_open(self) -> bool:
        """Whether an attribute is a parameter of a local function."""
        return any(item.ref_attr_name for item in self.node.attribute)

    def listed(self, name: str, slot: int) -> list[int] | None:
        """Return a list that is an attribute in old opsets and an input in new ones."""
        if name in self._given:
            value = self.get(name, [])
            return value if isinstance(value, list) else None  # of another type in a broken model
        read = self.node.input
        return self._values(read[slot]) if slot < len(read) and read[slot] else None


def _value(attribute: AttributeProto, default: Any) -> Any:
    if attribute.ref_attr_name:
        return default
    return value_of(attribute)


def _squeeze(node: Settings) -> bool:
    """Return whether the axes do not ascend (opset < 11), or are an empty list.

    onnxruntime takes an empty list for all axes of size 1.
    """
    axes = node.listed("axes", 1)
    unsorted = axes is not None and node.opset < NEGATIVE_AXES and axes != sorted(axes)
    return axes == [] or unsorted or _unsqueeze(node)


def _unsqueeze(node: Settings) -> bool:
    """Return whether axes are negative in an opset that does not allow it."""
    axes = node.listed("axes", 1) or []
    return node.opset < NEGATIVE_AXES and any(axis < 0 for axis in axes)


def _slice(node: Settings) -> bool:
    ends, steps = node.listed("ends", 2) or [], node.listed("steps", 4) or []
    return any(runs_to_the_front(*each) for each in zip(ends, steps, strict=False))


def runs_to_the_front(end: int, step: int) -> bool:
    """Return whether onnxruntime takes the end of a Slice as "before the first element"."""
    return step < 0 and end in ENDLESS


def _resize(node: Settings) -> bool:
    """Return whether axes are negative where the aspect ratio is kept."""
    keeps = node.get("keep_aspect_ratio_policy", "stretch") != "stretch"
    return keeps and any(axis < 0 for axis in node.get("axes", []))


def _is_short(node: Settings) -> bool:
    """Return whether an STFT leaves out its frame_length beside a window, or ``onesided``.

    Inference takes the length of the signal, and 0, for these.
    """
    window, length = [*node.node.input, "", "", "", ""][2:4]
    return node.get("onesided", None) is None or (bool(window) and not length)


def _is_same(node: Settings) -> bool:
    return str(node.get("auto_pad", "NOTSET")).startswith("SAME")


def _pool(node: Settings) -> bool:
    return _is_same(node) and any(d > 1 for d in node.get("dilations", []))


def _transposed(node: Settings) -> bool:
    return _is_same(node) and any(node.get("output_padding", []))


def _last_window_is_outside(node: Settings, before: Dims, after: Dims) -> bool:
    """Return whether inference counts a window that begins behind the image; kernels do not."""
    spatial = len(node.get("kernel_shape", []))
    strides, pads = node.get("strides", [1] * spatial), node.get("pads", [0] * 2 * spatial)
    return any(
        isinstance(n, int) and isinstance(m, int) and (m - 1) * stride >= n + front
        for n, m, stride, front in zip(before[2:], after[2:], strides, pads, strict=False)
    )


def _loses_axes(node: Settings, before: Dims, after: Dims) -> bool:
    """Return whether inference gave up because ``output_shape`` is smaller than the image."""
    return len(before) != len(after)


def _keeps_symbols(node: Settings, before: Dims, after: Dims) -> bool:
    """Return whether inference keeps a symbolic size that is sliced."""
    rank = len(after)
    axes = node.listed("axes", 3) or range(rank)
    return any(isinstance(after[axis], str) for axis in axes if -rank <= axis < rank)


def _shares_letters(node: Settings) -> bool:
    """Return whether operands share a letter of the output: kernels broadcast a size of 1."""
    terms, out = _terms(node)
    return any(sum(letter in term for term in terms) > 1 for letter in out)


def _stretches(node: Settings, before: Dims, after: Dims) -> bool:
    """Return whether a letter may be of size 1 in the first operand that has it, and larger later.

    Inference takes the size in the first. Only those of operand 0 are known here.
    """
    (first, *others), out = _terms(node)
    if any(sum(letter in term for term in others) > 1 for letter in out - {*first}):
        return True
    ahead, _, behind = first.partition("...")
    sizes = [*zip(ahead, before, strict=False), *zip(behind[::-1], before[::-1], strict=False)]
    shared = out & {*"".join(others)}
    return any(size == 1 and letter in shared for letter, size in sizes)


def _terms(node: Settings) -> tuple[list[str], set[str]]:
    """Return the terms of an Einsum's operands, and the letters that its output names."""
    terms, out = terms_of(node.get("equation", ""))
    return terms, {*out} - {"."}


class Misreading(NamedTuple):
    """When inference misreads an operator.

    Attributes:
        what: is misread, and what the user can do; completes "a node of <operator> …".
        settings: returns whether the node is misread whatever the sizes.
        may: returns whether the node is misread with some sizes.
        sizes: returns whether it is misread with these sizes of input 0 and output 0.
        by_values: whether ``settings`` depends on inputs of the node.
        by_bodies: whether what counts are the sizes that the outputs of its subgraphs have.
    """

    what: str
    settings: Callable[[Settings], bool] = lambda node: False
    may: Callable[[Settings], bool] = lambda node: False
    sizes: Callable[[Settings, Dims, Dims], bool] = lambda node, before, after: False
    by_values: bool = False
    by_bodies: bool = False


_AXES = (
    "with axes that onnx's shape inference misreads; convert the model to opset 13 or later, and "
    "leave out empty lists of axes"
)
_POOLING = Misreading(
    "whose windows onnx's shape inference misreads; write its padding as pads that fit",
    _pool,
    lambda node: bool(node.get("ceil_mode", 0)),
    _last_window_is_outside,
)

MISREAD: Mapping[str, Misreading] = {
    "AveragePool": _POOLING,
    "ConvTranspose": Misreading(
        "whose output onnx's shape inference misreads; write its padding as pads",
        _transposed,
        lambda node: bool(node.get("output_shape", [])),
        _loses_axes,
    ),
    "Einsum": Misreading(
        "whose first operand is broadcast along a letter, which onnx's shape inference misreads; "
        "expand it",
        may=_shares_letters,
        sizes=_stretches,
    ),
    "If": Misreading(
        "whose branches differ in size, of which onnx's shape inference takes one; "
        f"convert the model to opset {UNITED} or later",
        may=lambda node: node.opset < UNITED,
        by_bodies=True,
    ),
    "LpPool": _POOLING,
    "MaxPool": _POOLING,
    "Resize": Misreading(
        "whose negative axes onnx's shape inference misreads; count them from the front",
        _resize,
    ),
    "Slice": Misreading(
        "whose bounds onnx's shape inference misreads; convert the model to opset 11 or later, and "
        f"write an end that means the front as {-(2**31)}",
        _slice,
        lambda node: node.opset == FIRST_STEPS,
        _keeps_symbols,
        by_values=True,
    ),
    "STFT": Misreading(
        "whose frames onnx's shape inference misreads; give it a frame_length and onesided",
        _is_short,
    ),
    "Squeeze": Misreading(_AXES, _squeeze, by_values=True),
    "Unsqueeze": Misreading(_AXES, _unsqueeze, by_values=True),
}


def is_misread(node: NodeProto, opset: int, values: Callable[[str], list[int] | None]) -> bool:
    """Return whether inference misreads a node whatever the sizes.

    Args:
        node: the node.
        opset: version of its operator set.
        values: see ``Settings``.
    """
    misreading = MISREAD.get(operator(node))
    return misreading is not None and misreading.settings(Settings(node, opset, values))
