"""The depth of a model: what homomorphic encryption pays for.

Under levelled homomorphic encryption (CKKS, BFV) a ciphertext supports a limited number of
multiplications one after another, those by plaintext constants included. ``ONE_LEVEL`` lists what
multiplies; it is counted along the longest path from an input to an output. What is no polynomial
(Relu, MaxPool, Softmax) has to be approximated or evaluated by other means; it is counted for
itself, along the path that has most of it.

Source of the levels: Cheon, Kim, Kim and Song, "Homomorphic Encryption for Arithmetic of
Approximate Numbers" (2017): every product is followed by a rescaling, which takes one level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from onnx_bnfold.view import NodeView

Depth = tuple[int, int]  # levels; operators that are no polynomials

# fmt: off
FREE = frozenset({
    "Add", "Cast", "CastLike", "Concat", "ConcatFromSequence", "CumSum", "DepthToSpace", "Dropout",
    "Expand", "Flatten", "Identity", "Neg", "Pad", "ReduceSum", "Reshape", "SequenceAt",
    "SequenceConstruct", "Slice", "SpaceToDepth", "Split", "SplitToSequence", "Squeeze", "Sub",
    "Sum", "Tile", "Transpose", "Unsqueeze",
})
ONE_LEVEL = frozenset({
    "AveragePool", "BatchNormalization", "Conv", "ConvInteger", "ConvTranspose",
    "DequantizeLinear", "Gemm", "GlobalAveragePool", "MatMul", "MatMulInteger", "Mean", "Mul",
    "QLinearConv", "QLinearMatMul", "ReduceMean", "ReduceSumSquare",
})
NON_POLYNOMIAL = frozenset({
    "Abs", "ArgMax", "ArgMin", "Ceil", "Celu", "Clip", "Cos", "Elu", "Equal", "Erf", "Exp",
    "Floor", "Gelu", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GroupNormalization",
    "HardSigmoid", "HardSwish", "Hardmax", "InstanceNormalization", "LRN", "LayerNormalization",
    "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "LpNormalization", "Max", "MaxPool",
    "Min", "Mish", "NonMaxSuppression", "NonZero", "PRelu", "QuantizeLinear", "RMSNormalization",
    "Reciprocal", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMin", "Relu", "Round", "Selu",
    "Sigmoid", "Sign", "Sin", "Softmax", "Softplus", "Softsign", "Sqrt", "Swish", "Tanh",
    "ThresholdedRelu", "TopK",
})
# fmt: on


class Unknown(Exception):
    """The cost of a node cannot be told; the sentence says why."""


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
    if view.op in _DEPTHS:
        return _DEPTHS[view.op](view, encrypted)
    if view.op in FREE:
        return 0, 0
    if view.op in ONE_LEVEL:
        return 1, 0
    if view.op in NON_POLYNOMIAL:
        return 0, 1
    raise Unknown(f"{view.label}: its multiplicative depth is not known")


def _division(view: NodeView, encrypted: set[str]) -> Depth:
    return (1, 1) if view.name_in(1) in encrypted else (1, 0)


def _lookup(view: NodeView, encrypted: set[str]) -> Depth:
    return (0, 1) if view.name_in(1) in encrypted else (0, 0)


def _selection(view: NodeView, encrypted: set[str]) -> Depth:
    return (1, 1) if view.name_in(0) in encrypted else (1, 0)


def _power(view: NodeView, encrypted: set[str]) -> Depth:
    exponent = None if view.name_in(1) in encrypted else view.value(1)
    if exponent is None or (exponent < 1).any() or (exponent % 1 != 0).any():
        return 0, 1
    return math.ceil(math.log2(exponent.max(initial=1))), 0


def _interpolation(view: NodeView, encrypted: set[str]) -> Depth:
    return (0, 0) if view.attribute("mode", "nearest") == "nearest" else (1, 0)


_DEPTHS: Mapping[str | None, Callable[[NodeView, set[str]], Depth]] = {
    "Div": _division,
    "Gather": _lookup,
    "GatherElements": _lookup,
    "GatherND": _lookup,
    "Pow": _power,
    "Resize": _interpolation,
    "Upsample": _interpolation,
    "Where": _selection,
}
