"""The depth of a model: what homomorphic encryption pays for.

Under levelled homomorphic encryption (CKKS, BFV) a ciphertext supports a limited number of
multiplications one after another, those by plaintext constants included. They are counted along the
longest path from an input to an output. What is no polynomial
(Relu, MaxPool, Softmax) has to be approximated or evaluated by other means; it is counted for
itself, along the path that has most of it.

Source of the levels: Cheon, Kim, Kim and Song, "Homomorphic Encryption for Arithmetic of
Approximate Numbers" (2017): every product is followed by a rescaling, which takes one level.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators import costs
from onnx_bnfold.operators.costs import Depth, DepthOf, Unknown
from onnx_bnfold.operators.entries import UNKNOWN
from onnx_bnfold.operators.table import entry_of

# Operators that have no entry in the table; an entry says it itself.
# fmt: off
FREE = frozenset({
    "ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SplitToSequence",
})
ONE_LEVEL = frozenset({
    "ConvInteger", "DequantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul",
})
NON_POLYNOMIAL = frozenset({
    "Ceil", "Celu", "Cos", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu",
    "Greater", "GreaterOrEqual", "HardSwish",
    "LRN", "Less", "LessOrEqual", "Log",
    "LpNormalization", "Mish", "NonMaxSuppression", "NonZero", "QuantizeLinear",
    "Round", "Selu", "Sigmoid",
    "Sin", "Softplus", "Softsign", "Swish", "Tanh", "ThresholdedRelu",
})
# fmt: on


def depth_of(active: Sequence[NodeView], encrypted: set[str], outputs: Collection[str]) -> Depth:
    """Count levels, and operators that are no polynomials, each on its longest path.

    Args:
        active: the nodes that compute with encrypted data, in order.
        encrypted: names of the tensors that hold such data.
        outputs: names of the tensors at which paths end.

    Raises:
        Unknown: an operator is not known.
    """
    reached: dict[str, Depth] = {}
    for view in active:
        added = _step(view, encrypted)
        deepest = _deepest(reached.get(name, (0, 0)) for name in view.node.input)
        depth = deepest[0] + added[0], deepest[1] + added[1]
        reached.update(dict.fromkeys(view.node.output, depth))
    return _deepest(reached.get(name, (0, 0)) for name in outputs)


def _deepest(depths: Iterable[Depth]) -> Depth:
    levels, others = zip((0, 0), *depths, strict=True)
    return max(levels), max(others)


def _step(view: NodeView, encrypted: set[str]) -> Depth:
    entry = entry_of(view.op)
    depth = _DEPTHS.get(view.op) if entry is UNKNOWN else entry.depth
    if depth is None:
        raise Unknown(f"{view.label}: its multiplicative depth is not known")
    return depth if isinstance(depth, tuple) else depth(view, encrypted)


_DEPTHS: Mapping[str | None, Depth | DepthOf] = {
    **dict.fromkeys(FREE, costs.FREE),
    **dict.fromkeys(ONE_LEVEL, costs.ONE_LEVEL),
    **dict.fromkeys(NON_POLYNOMIAL, costs.NO_POLYNOMIAL),
}
