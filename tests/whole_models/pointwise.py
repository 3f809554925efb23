"""Rectifiers and the like, and operators no rule can know: the opaque neighbours."""

import numpy as np

from .builder import Builder
from .constants import constant


def relu(b: Builder, x: str) -> str:
    return b.one("Relu", [x])


def leaky_relu(b: Builder, x: str) -> str:
    alpha = b.draw.pick([None, 0.1, 0.3, 0.0, 1.0, -0.5, 2.0])
    return b.one("LeakyRelu", [x], alpha=alpha)


def p_relu(b: Builder, x: str) -> str:
    shape, d = b.shape(x), b.draw
    b.need(len(shape) > 1)
    per_channel = (shape[1], *[1] * (len(shape) - 2))
    form = d.pick([per_channel, per_channel, (1,), (1, *per_channel), shape[-1:]])
    slope = d.uniform(0.05, 0.5, *form)
    if d.chance(0.3):
        slope = slope * d.signs(*form) * d.pick([1, 3])
    return b.one("PRelu", [x, constant(b, slope, b.type(x), "slope")])


def clip(b: Builder, x: str) -> str:
    d = b.draw
    low = d.pick([None, 0.0, -1.0, -0.5])
    high = d.pick([None, None, 6.0, 1.0, 1e30])
    if b.opset < 11:
        return b.one("Clip", [x], min=low, max=high)
    with np.errstate(over="ignore"):
        bounds = [
            "" if v is None else b.initializer(np.array(v).astype(b.type(x))) for v in (low, high)
        ]
    while bounds and not bounds[-1]:
        bounds.pop()
    return b.one("Clip", [x, *bounds])


def sign_free(b: Builder, x: str) -> str:
    return b.one(b.draw.pick(["Abs", "Neg", "Neg"]), [x])


def bounded(b: Builder, x: str) -> str:
    """Max, Min or Clip by a constant per channel."""
    shape = b.shape(x)
    b.need(len(shape) > 1)
    form = b.draw.pick([(shape[1], *[1] * (len(shape) - 2)), (1,), ()])
    other = constant(b, b.draw.normal(*form), b.type(x), "bound")
    return b.one(b.draw.pick(["Max", "Min"]), b.draw.shuffled([x, other]))


RECTIFIERS = {relu: 6, leaky_relu: 3, p_relu: 3, clip: 2, sign_free: 2, bounded: 1.5}

_PLAIN = [
    "Sigmoid",
    "Tanh",
    "Erf",
    "Softplus",
    "Softsign",
    "HardSigmoid",
    "Elu",
    "Selu",
    "HardSwish",
    "Gelu",
    "Mish",
    "Sin",
    "Cos",
    "Softmax",
    "LogSoftmax",
    "ThresholdedRelu",
    "MeanVarianceNormalization",
    "LpNormalization",
    "Exp",
    "Swish",
    "Celu",
]


def plain(b: Builder, x: str) -> str:
    op = b.draw.pick(_PLAIN)
    b.need(op != "MeanVarianceNormalization" or b.rank(x) == 4)  # its axes are 0, 2 and 3
    return b.one(op, [x])


def normalization(b: Builder, x: str) -> str:
    """InstanceNormalization, GroupNormalization, LayerNormalization or LRN."""
    channels, d = b.channels(x), b.draw
    kind = d.pick(["InstanceNormalization", "LayerNormalization", "GroupNormalization", "LRN"])
    if kind == "LRN":
        return b.one("LRN", [x], size=3)
    width = b.shape(x)[-1] if kind == "LayerNormalization" else channels
    inputs = [constant(b, d.normal(width), b.type(x), "inner") for _ in range(2)]
    extra = {"num_groups": 1} if kind == "GroupNormalization" else {}
    return b.one(kind, [x, *inputs], **extra)


def norm(b: Builder, x: str) -> str:
    op = b.draw.pick(["ReduceL2", "ReduceL1", "ReduceSumSquare", "ReduceLogSumExp"])
    if b.opset < 18:
        return b.one(op, [x], axes=[b.rank(x) - 1])
    return b.one(op, [x, b.integers(b.rank(x) - 1)])


def arranged(b: Builder, x: str) -> str:
    """CumSum, Trilu, Einsum or a Gather of elements."""
    rank, d = b.rank(x), b.draw
    b.need(rank >= 2)
    kind = d.pick(["CumSum", "Trilu", "Einsum", "GatherElements"])
    if kind == "CumSum":
        axis = b.initializer(np.array(d.between(0, rank - 1), np.int64))
        return b.one("CumSum", [x, axis], reverse=d.pick([0, 1]))
    if kind == "Trilu":
        return b.one("Trilu", [x], upper=d.pick([0, 1]))
    if kind == "Einsum":
        weight = constant(b, d.normal(b.shape(x)[-1], 3), b.type(x))
        return b.one("Einsum", [x, weight], equation="...i,io->...o")
    indices = b.initializer(d.arrays.integers(0, b.shape(x)[-1], b.shape(x)))
    return b.one("GatherElements", [x, indices], axis=rank - 1)


def gated(b: Builder, x: str) -> str:
    """Multiply a tensor by a gate that it computes itself."""
    gate = x
    if b.rank(x) > 2 and b.draw.chance(0.5):
        gate = b.one("GlobalAveragePool", [x])
    gate = b.one(b.draw.pick(["Sigmoid", "HardSigmoid", "Tanh"]), [gate])
    return b.one("Mul", b.draw.shuffled([x, gate]))


def foreign(b: Builder, x: str) -> str:
    """Append an operator of another domain."""
    y = b.add("QuickGelu", [x], domain="com.microsoft")[0]
    b.scope.pool.append(y)
    return y


OPAQUE = {plain: 10, normalization: 3, norm: 1, arranged: 3, gated: 5, foreign: 0.3}
