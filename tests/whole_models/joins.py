"""Several tensors that meet: residuals, Concats, sums, gates."""

import numpy as np

from .builder import Builder
from .constants import constant
from .draw import Unfit
from .norms import affine, batch_normalization
from .pointwise import relu


def _same_layer(b: Builder, x: str) -> str:
    """Append a layer that keeps the shape."""
    d, shape = b.draw, b.shape(x)
    kind, channels = b.type(x), shape[1] if len(shape) > 1 else 1
    if len(shape) >= 3:
        k = d.pick([1, 1, 3])
        kernel = [k] * (len(shape) - 2)
        weight = constant(b, d.normal(channels, channels, *kernel) / channels, kind, "weight")
        inputs = [x, weight]
        if d.chance(0.5):
            inputs.append(constant(b, d.normal(channels), kind, "bias"))
        return b.one("Conv", inputs, pads=[k // 2] * (2 * len(kernel)))
    b.need(bool(shape))
    width = shape[-1]
    weight = constant(b, d.normal(width, width) / width, kind, "weight")
    return b.one(
        d.pick(["MatMul", "Gemm"]) if len(shape) == 2 and b.opset >= 11 else "MatMul", [x, weight]
    )


def _branch(b: Builder, x: str) -> str:
    """Append a short branch that keeps the shape."""
    d, y = b.draw, x
    for _ in range(d.between(1, 2)):
        for part in d.pick(
            [
                [_same_layer, batch_normalization],
                [_same_layer],
                [batch_normalization],
                [_same_layer, batch_normalization, relu],
                [batch_normalization, relu, _same_layer],
                [affine],
            ]
        ):
            y = part(b, y)
    return y


def residual(b: Builder, x: str) -> str:
    y = _branch(b, x)
    op = b.draw.weighted({"Add": 6, "Sub": 1, "Sum": 1})
    return b.one(op, b.draw.shuffled([x, y]))


def parallel(b: Builder, x: str) -> str:
    """Append branches of one shape that are added or joined."""
    d = b.draw
    branches = [_branch(b, x) for _ in range(d.between(2, 3))]
    if d.chance(0.2):
        branches.append(x)
    if d.chance(0.5):
        axis = 1 if d.chance(0.8) else d.between(0, b.rank(x) - 1)
        return b.one("Concat", d.shuffled(branches), axis=b.axis(b.rank(x), axis))
    if d.chance(0.4):
        return b.one("Sum", branches)
    y = branches[0]
    for other in branches[1:]:
        y = b.one("Add", d.shuffled([y, other]))
    return y


def _partner(b: Builder, x: str, fits) -> str:
    """Return another tensor of the same type that fits."""
    pool = [t for t in b.scope.pool if b.type(t) == b.type(x) and fits(b.shape(t))]
    others = [t for t in pool if t != x] or pool
    if not others:
        raise Unfit("no partner")
    return b.draw.pick(others)


def _broadcasts(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    try:
        return bool(np.prod(np.broadcast_shapes(one, other)) < 2000)
    except ValueError:
        return False


def binary(b: Builder, x: str) -> str:
    """Combine two computed tensors, which may broadcast."""
    d = b.draw
    y = x if d.chance(0.06) else _partner(b, x, lambda s: _broadcasts(s, b.shape(x)))
    op = d.weighted({"Add": 6, "Sub": 3, "Mul": 2, "Max": 1.5, "Min": 1.5, "Sum": 1.5, "Mean": 1.5})
    pair = d.shuffled([x, y])
    if op in ("Max", "Min", "Sum", "Mean"):
        number = d.pick([1, 2, 2, 3])
        pair = [*pair, d.pick([x, y])][:number]
    return b.one(op, pair)


def concat(b: Builder, x: str) -> str:
    """Join tensors that agree on all axes but one, sometimes the same one twice."""
    d, rank = b.draw, b.rank(x)
    b.need(rank >= 1)
    axis = 1 if rank > 1 and d.chance(0.7) else d.between(0, rank - 1)

    def rest(shape):
        return (*shape[:axis], *shape[axis + 1 :])

    parts = [x]
    for _ in range(d.between(1, 3)):
        parts.append(_partner(b, x, lambda s: len(s) == rank and rest(s) == rest(b.shape(x))))
    if d.chance(0.15):
        shape = [d.between(1, 2) if i == axis else n for i, n in enumerate(b.shape(x))]
        parts.append(constant(b, d.normal(*shape), b.type(x), "joined"))
    return b.one("Concat", d.shuffled(parts), axis=b.axis(rank, axis))


def product(b: Builder, x: str) -> str:
    """Multiply two computed matrices."""
    rank = b.rank(x)
    b.need(rank >= 2)
    y = _partner(b, x, lambda s: len(s) == rank)
    order = [*range(rank - 2), rank - 1, rank - 2]
    return b.one("MatMul", [x, b.one("Transpose", [y], perm=order)])


def chosen(b: Builder, x: str) -> str:
    y = _partner(b, x, lambda s: s == b.shape(x))
    mask = b.initializer(b.draw.arrays.integers(0, 2, b.shape(x)).astype(bool))
    return b.one("Where", [mask, x, y])


def with_constant(b: Builder, x: str) -> str:
    """Add a BatchNormalization, or a layer, of what depends on constants alone."""
    b.need(b.rank(x) >= 2)
    start = constant(b, b.draw.normal(*b.shape(x)), b.type(x))
    y = batch_normalization(b, b.one("Identity", [start]))
    return b.one(b.draw.pick(["Add", "Mul"]), [x, y])


JOINS = {
    residual: 6,
    parallel: 5,
    binary: 6,
    concat: 5,
    product: 0.7,
    chosen: 0.5,
    with_constant: 0.4,
}
