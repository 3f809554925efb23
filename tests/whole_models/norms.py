"""BatchNormalizations, and the Mul, Add, Sub and Div by constants that say the same."""

import numpy as np

from .builder import Builder
from .constants import constant
from .floats import BFLOAT16

_HALVES = (np.dtype(np.float16), BFLOAT16)


def batch_normalization(b: Builder, x: str) -> str:
    """Append a BatchNormalization of every kind."""
    d, channels, dtype = b.draw, b.channels(x), b.type(x)
    epsilon = d.weighted({None: 5, 1e-3: 3, 1e-5: 1, 0.0: 0.4, 1e-12: 0.5, 0.7: 0.5, 1.0: 0.3})
    b.need(b.array(x).size > 0)
    dead = d.chance(0.12)
    if dead and not d.chance(0.1):  # without an epsilon nothing but rounding would come out
        epsilon = d.pick([None, 1e-3])
    mean, var = _statistics(b, x, channels, dead)
    gamma = _gamma(b, channels)
    beta = d.weighted({"normal": 6, "zero": 3, "far": 0.6, "clean": 3})
    shift = {
        "normal": lambda: d.normal(channels),
        "zero": lambda: np.zeros(channels),
        "far": lambda: d.normal(channels) * 50,
        "clean": lambda: gamma * mean / np.sqrt(var + (1e-5 if epsilon is None else epsilon)),
    }[beta]
    with np.errstate(all="ignore"):
        roles = {"scale": gamma, "B": shift(), "mean": mean, "var": var}
    if beta == "clean" and d.chance(0.7):
        roles["mean"], roles["B"] = np.zeros(channels), np.zeros(channels)
    kinds = _types(b, dtype)
    inputs = [constant(b, v, kinds[r], f"norm {r}") for r, v in roles.items()]
    if d.chance(0.008) and b.scope is b.main:
        inputs[-1] = b.input(b.fresh("v"), d.uniform(0.5, 2, channels).astype(kinds["var"]))
    attributes = {"epsilon": epsilon}
    if b.opset < 9 and d.chance(0.5):
        attributes["spatial"] = 1
    if d.chance(0.3):
        attributes["momentum"] = d.pick([0.9, 0.1, 0.99])
    if b.opset >= 14 and d.chance(0.2):
        attributes["training_mode"] = 0
    return b.one("BatchNormalization", [x, *inputs], **attributes)


def odd_norm(b: Builder, x: str) -> str:
    """Append a BatchNormalization that nobody may fold: it is no map per channel, or broken."""
    d, dtype, channels = b.draw, b.type(x), b.channels(x)
    kind = d.pick(["training", "outputs", "spatial", "variance", "scale"])
    shape, outputs, extra = (channels,), 1, {}
    if kind == "training":
        b.need(b.opset >= 14)
        outputs, extra = 3, {"training_mode": 1}
    if kind == "outputs":
        b.need(b.opset < 14)
        outputs = 5
    if kind == "spatial":
        b.need(b.opset < 9)
        shape, extra = b.shape(x)[1:], {"spatial": 0}
    values = [d.normal(*shape), d.normal(*shape), d.normal(*shape), d.uniform(0.5, 2, *shape)]
    if kind == "variance":
        values[3] = values[3] * d.signs(channels)
    if kind == "scale":
        values[0] = np.where(d.arrays.random(channels) < 0.3, np.inf, values[0])
    inputs = [constant(b, v, dtype) for v in values]
    y = b.add("BatchNormalization", [x, *inputs], outputs=outputs, **extra)[0]
    b.scope.pool.append(y)
    return y


def equal_norms(b: Builder, x: str) -> str:
    """Append two BatchNormalizations of the same parameters, on one tensor or in a row."""
    y = batch_normalization(b, x)
    node = b.scope.nodes[-1]
    b.need(node.op_type == "BatchNormalization")
    over = tuple(i for i in range(b.rank(y)) if i != 1)
    fits = (b.array(y).astype(np.float64).var(over) >= 0.05 * b.array(node.input[4])).all()
    second = b.draw.pick([x, y]) if fits else x
    attributes = {a.name: a.f if a.type == 1 else a.i for a in node.attribute}
    b.one("BatchNormalization", [second, *node.input[1:]], **attributes)
    return b.scope.pool[-1]


def _gamma(b: Builder, channels: int) -> np.ndarray:
    d = b.draw
    size = d.uniform(0.5, 2, channels)
    kind = d.weighted(
        {"positive": 9, "mixed": 5, "negative": 1, "zeros": 1.5, "ones": 2, "wide": 1}
    )
    if kind == "mixed":
        return size * d.signs(channels)
    if kind == "negative":
        return -size
    if kind == "zeros":
        return size * d.arrays.integers(0, 2, channels)
    if kind == "ones":
        return np.ones(channels)
    if kind == "wide":
        return size * 10.0 ** d.arrays.integers(-4, 3, channels)
    return size


def _statistics(b: Builder, x: str, channels: int, dead: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance: those that the tensor really has, or odd ones.

    Even these do not say of a channel that it is far wider than it is: the package believes it.
    """
    d = b.draw
    data = b.array(x).astype(np.float64)
    over = tuple(i for i in range(data.ndim) if i != 1)
    with np.errstate(all="ignore"):
        true_mean, true_var = data.mean(over), data.var(over)
        floor = np.maximum(1e-6, 1e-4 * true_mean**2)
    kind = d.weighted({"true": 10, "odd": 6, "far": 0.6, "plain": 1.5})
    if kind == "true":
        b.need(bool(np.isfinite(true_mean).all() and np.isfinite(true_var).all()))
        return true_mean, np.maximum(true_var, 1e-36 if dead else floor)
    mean, var = d.normal(channels), d.uniform(0.1, 3, channels)
    if kind == "far":
        mean = mean * 10.0 ** d.between(2, 5)
    if kind == "plain":
        mean, var = np.zeros(channels), np.ones(channels)
    with np.errstate(invalid="ignore"):
        var = np.where(true_var < 0.05 * var, floor, var)
    if dead:
        var = np.where(d.arrays.random(channels) < 0.3, 1e-36, var)
    if b.type(x) in _HALVES:
        var = np.maximum(var, 1e-3)
    return mean, var


def _types(b: Builder, dtype: np.dtype) -> dict[str, np.dtype]:
    """Return the type of each parameter; from opset 15 on they may differ from the data's."""
    wide = np.dtype(np.float32)
    kinds = dict.fromkeys(("scale", "B", "mean", "var"), dtype)
    if dtype in _HALVES and b.opset >= 14 and b.draw.chance(0.4):
        kinds["mean"] = kinds["var"] = wide
        if b.opset >= 15 and b.draw.chance(0.5):
            kinds["scale"] = kinds["B"] = wide
    return kinds


def _parameter(b: Builder, x: str, shape) -> str:
    return constant(b, b.draw.normal(*shape), b.type(x), "inner")


def _settings(b: Builder, stash: bool) -> dict:
    """Return an epsilon, and the type in which the statistics are computed."""
    extra: dict = {"epsilon": b.draw.pick([1e-5, 1e-3, 0.1])} if b.draw.chance(0.5) else {}
    if stash and b.draw.chance(0.2):
        extra["stash_type"] = 1
    return extra


def instance_normalization(b: Builder, x: str) -> str:
    shape = (b.channels(x),)
    inputs = [x, _parameter(b, x, shape), _parameter(b, x, shape)]
    return b.one("InstanceNormalization", inputs, **_settings(b, stash=False))


def group_normalization(b: Builder, x: str) -> str:
    """Append a GroupNormalization, whose parameters are of the groups below opset 21."""
    channels = b.channels(x)
    b.need(b.opset >= 18)
    groups = b.draw.pick([g for g in range(1, channels + 1) if channels % g == 0])
    shape = (groups if b.opset < 21 else channels,)
    inputs = [x, _parameter(b, x, shape), _parameter(b, x, shape)]
    extra = _settings(b, stash=b.opset >= 21)
    return b.one("GroupNormalization", inputs, num_groups=groups, **extra)


def last_axes_normalization(b: Builder, x: str) -> str:
    """Append a LayerNormalization or an RMSNormalization."""
    d, rank = b.draw, b.rank(x)
    newer = b.opset >= 23 and d.chance(0.7)
    op = "RMSNormalization" if newer else "LayerNormalization"
    axis = rank - 1 if d.chance(0.6) else d.between(0, rank - 1)
    shape = b.shape(x)[axis:]
    if d.chance(0.2):
        shape = [n if d.chance(0.5) else 1 for n in shape]
    extra = _settings(b, stash=True)
    if axis != rank - 1 or d.chance(0.4):
        extra["axis"] = axis - rank if d.chance(0.5) else axis
    inputs = [x, _parameter(b, x, shape)]
    outputs = 1
    if op == "LayerNormalization":
        if d.chance(0.7):
            inputs.append(_parameter(b, x, shape))
        outputs = d.pick([1, 1, 1, 2, 3])
    y, *others = b.add(op, inputs, outputs=outputs, **extra)
    if d.chance(0.3):
        b.scope.pool += others
    b.scope.pool.append(y)
    return y


def other_normalization(b: Builder, x: str) -> str:
    """Append an LRN, a MeanVarianceNormalization or an LpNormalization."""
    d, rank = b.draw, b.rank(x)
    kind = d.pick(["LRN", "MeanVarianceNormalization", "LpNormalization"])
    if kind == "LRN":
        return b.one("LRN", [x], size=3)
    if kind == "LpNormalization":
        return b.one(kind, [x], axis=d.between(0, rank - 1), p=d.pick([1, 2]))
    axes = d.some(range(rank), d.between(1, rank)) if b.opset >= 9 and d.chance(0.5) else None
    b.need(axes is not None or rank == 4)  # those that it has by itself are 0, 2 and 3
    return b.one(kind, [x], axes=axes)


NORMALIZATIONS = {
    instance_normalization: 2,
    group_normalization: 4,
    last_axes_normalization: 4,
    other_normalization: 1.5,
}


def operand_shape(b: Builder, x: str) -> tuple[int, ...]:
    """Return a shape that broadcasts against a tensor without changing its shape."""
    shape, d = b.shape(x), b.draw
    kind = d.weighted(
        {"channel": 8, "full channel": 5, "one": 2, "scalar": 2, "some": 3, "all": 0.7}
    )
    if kind == "scalar":
        return ()
    if kind == "one":
        return (1,) * d.between(1, len(shape))
    if kind == "all":
        return shape
    if kind == "some":
        kept = [n if d.chance(0.4) else 1 for n in shape]
        return tuple(kept[d.between(0, len(kept)) :])
    b.need(len(shape) > 1)
    per_channel = (shape[1], *[1] * (len(shape) - 2))
    return per_channel if kind == "channel" else (1, *per_channel)


def affine(b: Builder, x: str) -> str:
    """Append one Mul, Add, Sub or Div by a constant."""
    d = b.draw
    op = d.weighted({"Mul": 4, "Add": 4, "Sub": 2, "Div": 2})
    shape = operand_shape(b, x)
    if b.strange and d.chance(0.1):
        shape = (0,)
    values = d.uniform(0.3, 2, *shape)
    kind = d.weighted({"positive": 5, "mixed": 4, "zeros": 0.5, "neutral": 0.7, "far": 0.4})
    if kind != "positive":
        values = values * d.signs(*shape)
    if kind == "zeros":
        values = values * d.arrays.integers(0, 2, shape)
    if kind == "neutral":
        values = np.full(shape, 1.0 if op in ("Mul", "Div") else 0.0)
    if kind == "far" and op in ("Add", "Sub"):
        values = values * 10.0 ** d.between(1, 4)
    other = constant(b, values, b.type(x), "operand")
    left = d.chance(0.35) if op != "Div" else d.chance(0.08)
    return b.one(op, [other, x] if left else [x, other])


def decomposed(b: Builder, x: str) -> str:
    """Append a whole BatchNormalization as Sub, Div, Mul and Add, some with dead channels."""
    b.need(b.array(x).size > 0)
    shape, d = operand_shape(b, x), b.draw
    data = b.array(x).astype(np.float64)
    wide = (1,) * (data.ndim - len(shape)) + shape
    over = tuple(i for i, n in enumerate(wide) if n == 1)
    mean, var = data.mean(over).reshape(shape), data.var(over).reshape(shape)
    gamma, epsilon = d.uniform(0.5, 1.5, *shape), d.pick([1e-5, 1e-3, 0.1])
    if d.chance(0.2):
        dead = d.arrays.random(shape) < 0.4
        var = np.where(dead, 1e-36, var)
        gamma = np.where(dead, d.pick([0.0, 1e-3, 1e-30]), gamma)
    values = {
        "Sub": mean,
        "Div": np.sqrt(var + epsilon),
        "Mul": gamma,
        "Add": d.normal(*shape),
    }
    at_run_time = d.chance(0.15)
    for op in d.pick([["Sub", "Div", "Mul", "Add"], ["Sub", "Mul", "Add"], ["Mul", "Add"]]):
        if op == "Div" and at_run_time:
            var_name, small = (constant(b, v, b.type(x)) for v in (var, epsilon))
            (other,) = b.add("Sqrt", b.add("Add", [var_name, small]))
        else:
            other = constant(b, values[op], b.type(x))
        x = b.one(op, [x, other])
    return x
