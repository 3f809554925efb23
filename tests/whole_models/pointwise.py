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


def absolute(b: Builder, x: str) -> str:
    return b.one(b.draw.pick(["Abs", "Sign"]), [x])


def root(b: Builder, x: str) -> str:
    """Append a Sqrt, most often of what is not negative."""
    if b.draw.chance(0.8):
        x = b.one(b.draw.pick(["Relu", "Abs"]), [x])
    return b.one("Sqrt", [x])


def reciprocal(b: Builder, x: str) -> str:
    """Append a Reciprocal, of nothing that is nearly 0."""
    if b.draw.chance(0.4):
        x = b.one("Exp" if b.draw.chance(0.3) else "Abs", [x])
    size = np.abs(b.array(x)).astype(np.float64)
    b.need(size.size > 0 and size.min() > 1e-3 * size.max())
    return b.one("Reciprocal", [x])


def power(b: Builder, x: str) -> str:
    """Append a Pow by a constant, whose type may be another from opset 12 on."""
    d, shape = b.draw, b.shape(x)
    kind = b.type(x)
    if b.opset >= 12 and d.chance(0.4):
        kind = np.dtype(d.pick([np.int64, np.int32, np.float32, np.float64]))
    exponents = [2, 2, 3, 1, 0, -1, -2] + ([0.5, -0.5, 1.5] if kind.kind != "i" else [])
    if d.chance(0.2):
        form = [n if d.chance(0.5) else 1 for n in shape][d.between(0, len(shape)) :]
        values = d.arrays.choice([1, 2, 2, 3], form)
    else:
        values = np.full(d.pick([(), (), (1,)]), d.pick(exponents))
    if values.size and values.ravel()[0] != round(values.ravel()[0]):
        x = b.one(d.pick(["Relu", "Abs"]), [x])
    exponent = b.initializer(np.asarray(values, kind))
    if d.chance(0.05) and b.type(exponent) == b.type(x):
        return b.one("Pow", [exponent, x])
    return b.one("Pow", [x, exponent])


POWERS = {absolute: 2, root: 2, reciprocal: 2, power: 3}


def soft(b: Builder, x: str) -> str:
    """Append Softmax, LogSoftmax or Hardmax; some of an axis that is shifted as a whole."""
    d, rank = b.draw, b.rank(x)
    b.need(rank >= 1)
    axis = rank - 1 if d.chance(0.5) else d.between(0, rank - 1)
    if d.chance(0.3):
        form = [1 if i >= axis or d.chance(0.4) else n for i, n in enumerate(b.shape(x))]
        x = b.one("Add", d.shuffled([x, constant(b, d.normal(*form), b.type(x), "logits")]))
    op = d.weighted({"Softmax": 3, "LogSoftmax": 2, "Hardmax": 2})
    default = rank - 1 if b.opset >= 13 else 1
    extra = {} if axis == default and d.chance(0.5) else {"axis": b.axis(rank, axis)}
    return b.one(op, [x], **extra)


SOFT = {soft: 1}

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
    "ThresholdedRelu",
    "Exp",
    "Swish",
    "Celu",
]


def plain(b: Builder, x: str) -> str:
    op = b.draw.pick(_PLAIN)
    return b.one(op, [x])


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


OPAQUE = {plain: 10, gated: 5, foreign: 0.3}
