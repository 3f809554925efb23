"""Compares outputs: quickly first, and where that leaves a doubt, with the help of float64.

An element is measured by the smallest of the slices it lies in, over all axes: an error that the
largest channel would hide does not hide in its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, TensorProto, helper

from .engine import Emulation, attempt, every_node, holds_type
from .floats import FLOATS, LARGEST, PERMITTED, TIMES_BROAD, TINY, UNIT
from .interpreter import Interpreter

_QUICK = 24  # units, of the smallest slice's largest value
_UNITS = 8  # units that any result may be off by
_DRAWS = 6
_KIND = {t: helper.np_dtype_to_tensor_dtype(t) for t in FLOATS}
_FEW = 6  # elements
_APART = "not finite in other places"
_GROSS = 100  # times the bound: no matter of rounding
# Behind these a channel may lie on the last axis; else it lies on axis 1, as a BN's does.
_MOVES_AXES = frozenset({"DepthToSpace", "Einsum", "Flatten", "Gemm", "MatMul", "Reshape"})
_MOVES_AXES |= {"SpaceToDepth", "Squeeze", "Transpose", "Unsqueeze"}


@dataclass(frozen=True)
class Doubt:
    """A difference that rounding does not explain."""

    kind: str
    output: int
    detail: str


def suspect(expected: np.ndarray, found: np.ndarray) -> bool:
    """Whether two results may differ by more than rounding."""
    if expected.dtype not in FLOATS:
        return not np.array_equal(expected, found)
    a, b = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return True
    with np.errstate(invalid="ignore"):
        off = np.where(finite, np.abs(a - b), 0)
    limit = _QUICK * (UNIT[expected.dtype] * yardstick(np.where(finite, a, 0)))
    return not bool((off <= limit + 2 * TINY[expected.dtype]).all())


def yardstick(values: np.ndarray, zeros: bool = False) -> np.ndarray:
    """Return for each element the smallest peak of the slices that it lies in.

    A slice of very few elements says little of its size (behind a Relu, nothing), and one of zeros
    as little (rows of padding): none of those, but `zeros` where it is errors that are measured.
    """
    size = np.abs(values)
    if size.size == 0:
        return size
    found = np.full(size.shape, size.max())
    for axis in range(size.ndim):
        if size.size >= _FEW * size.shape[axis]:
            others = tuple(i for i in range(size.ndim) if i != axis)
            peak = size.max(axis=others, keepdims=True)
            found = np.minimum(found, np.where((peak > 0) | zeros, peak, np.inf))
    return found


@dataclass
class _Truth:
    """What the outputs of a model should be, and how far rounding may carry them from that.

    Attributes:
        exact: in float64.
        held: in the model's own types, rounded after every node; None without float16, of which
            onnxruntime holds in float32 what overflows, as long as no kernel asks for float16.
        spread: of evaluations with the noise of each value; ``broad`` with that of its channel;
            ``far`` with all that a fold may add to each, by its own size and by its channel's.
        approximate: whether a node was, in part, computed in float32 after all.
        coarsest: unit of the coarsest type in the model.
    """

    exact: list[np.ndarray]
    held: list[np.ndarray] | None
    approximate: bool
    coarsest: float
    spread: list[list[np.ndarray]] = field(default_factory=list)
    broad: list[list[np.ndarray]] = field(default_factory=list)
    far: list[list[np.ndarray]] = field(default_factory=list)

    def of(self, output: int) -> "_Truth":
        """Return what it says of one output."""
        held = None if self.held is None else [self.held[output]]
        draws = ([[s[output]] for s in each] for each in (self.spread, self.broad, self.far))
        return _Truth([self.exact[output]], held, self.approximate, self.coarsest, *draws)

    @property
    def is_steady(self) -> np.ndarray:
        """Which elements are finite whatever the noise."""
        draws = (self.exact, *self.spread, *self.broad, *self.far)
        return np.all([np.isfinite(s) for (s,) in draws], axis=0)

    @property
    def is_infinite(self) -> np.ndarray:
        """Which elements are one and the same infinity whatever the noise of each value."""
        (exact,) = self.exact
        return np.isinf(exact) & np.all([s == exact for (s,) in self.spread], axis=0)

    @property
    def is_held(self) -> np.ndarray:
        """Which elements are finite in the model's own types, if that is known."""
        (exact,) = self.exact
        return np.isfinite((self.held or [np.zeros_like(exact)])[0].astype(np.float64))

    def noise(self, draws: Sequence[list[np.ndarray]]) -> np.ndarray | float:
        """Return the largest error of some draws, where they are finite."""
        if not draws:
            return 0.0
        (exact,) = self.exact
        errors = [np.abs(s - exact) for (s,) in draws]
        return np.max([np.where(np.isfinite(e), e, 0) for e in errors], axis=0, initial=0)


def difference(
    original: ModelProto,
    folded: ModelProto,
    feed: Mapping[str, np.ndarray],
    expected: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
    *,
    most_stages: int | None = None,
) -> Doubt | None:
    """Return what is wrong with the folded model's outputs, judged by float64, or None.

    Args:
        original, folded: the models.
        feed, expected, found: what they are fed, and what they made of it.
        most_stages: how many kinds of noise may explain it; all, unless it is the judge itself that
            is measured.
    """
    exact, interpreter = evaluated(original, feed, {})
    if interpreter.undefined:
        return None
    coarsest = max((UNIT[t] for t in FLOATS if holds_type(original, _KIND[t])), default=0.0)
    held = attempt(Emulation(original), feed) if holds_type(original, TensorProto.FLOAT16) else None
    truth = _Truth(exact, held, interpreter.approximate, coarsest)
    axes = (1, -1) if any(n.op_type in _MOVES_AXES for n in every_node(original)) else (1,)
    # The bound only grows with the draws, so the first that explains will do.
    stages: list[tuple[list[list[np.ndarray]], dict]] = [
        (truth.spread, {}),
        (truth.broad, {"channel_axes": axes}),
        (truth.far, {"far": True}),
        (truth.far, {"far": True, "channel_axes": axes}),
    ]
    for draws, how in stages[:most_stages]:
        for draw in range(_DRAWS):
            how |= {"noise": np.random.default_rng(draw), "divisors": interpreter.divisors}
            draws.append(evaluated(original, feed, how)[0])
            worst = _worst(expected, found, truth)
            if worst is None:
                return None
    close = _close(original, folded, feed, worst.output)
    kind = {("precision", False): "wrong", (_APART, True): "overflow"}.get((worst.kind, close))
    return worst if kind is None else Doubt(kind, worst.output, worst.detail)


def _worst(expected, found, truth: _Truth) -> Doubt | None:
    worst: tuple[float, Doubt] | None = None
    for i, (a, b) in enumerate(zip(expected, found, strict=True)):
        of_one = truth.of(i)
        if a.dtype not in FLOATS:
            steady = all(np.array_equal(s, truth.exact[i]) for (s,) in of_one.spread)
            if steady and not np.array_equal(a, b):
                return Doubt("wrong", i, "what is no float differs")
            continue
        doubt = _of_one(i, a, b, of_one)
        if doubt is not None and (worst is None or doubt[0] > worst[0]):
            worst = doubt
    return None if worst is None else worst[1]


def _of_one(i: int, a, b, truth: _Truth) -> tuple[float, Doubt] | None:
    rough = truth.approximate and a.dtype == np.float64
    x, y = a.astype(np.float64), b.astype(np.float64)
    (true,), steady = truth.exact, truth.is_steady
    with np.errstate(invalid="ignore"):
        usable = steady & np.isfinite(x) & np.isfinite(y)
        error = np.where(usable, np.abs(y - true), 0)
        judged = steady & np.isfinite(x)
        own, drawn, drawn_broadly, drawn_far = (
            np.where(judged, each, 0)
            for each in (
                np.abs(x - true),
                *map(truth.noise, (truth.spread, truth.broad, truth.far)),
            )
        )
        size = yardstick(np.where(usable, true, 0))
    noise = np.maximum(yardstick(own, zeros=True), yardstick(drawn, zeros=True))
    noise = np.maximum(
        PERMITTED[a.dtype] * noise, TIMES_BROAD[a.dtype] * yardstick(drawn_broadly, zeros=True)
    )
    noise = np.maximum(noise, yardstick(drawn_far, zeros=True))
    # A narrower type in front of a Cast holds constants that were of the output's type.
    limit = noise + _UNITS * max(UNIT[a.dtype], truth.coarsest) * size + 4 * TINY[a.dtype]
    if rough:
        limit = limit + 1e-3 * size
    apart = _apart(x, y, true, steady & truth.is_held, limit, a.dtype)
    apart |= truth.is_infinite & (x == true) & (x != y)
    if apart.any():
        at = tuple(int(k) for k in np.argwhere(apart)[0])
        return np.inf, Doubt(_APART, i, f"at {at}: {x[at]} became {y[at]}")
    ratio = error / limit
    if not ratio.size or ratio.max() <= 1:
        return None
    at = np.unravel_index(int(ratio.argmax()), ratio.shape)
    detail = (
        f"at {tuple(int(k) for k in at)}: {x[at]:.9g} became {y[at]:.9g}, float64 says "
        f"{true[at]:.9g}; error {error[at]:.3g}, {ratio[at]:.3g} times the bound; the original's "
        f"own error is {own[at]:.3g}, the largest of {len(truth.spread)} draws {drawn[at]:.3g}, "
        f"the slice's peak {size[at]:.3g}"
    )
    return float(ratio[at]), Doubt("precision" if ratio[at] < _GROSS else "wrong", i, detail)


def _apart(x, y, true, steady, limit, dtype) -> np.ndarray:
    """Return where one result is finite and the other is not, or another infinity."""
    with np.errstate(invalid="ignore"):
        alike = (np.isfinite(x) & np.isfinite(y)) | (x == y) | (np.isnan(x) & np.isnan(y))
        # Where the original overflows and float64 does not, its inf is nothing to be kept, nor is a
        # number that the permitted error alone may carry beyond the end of its type.
        firm = np.isfinite(x) == np.isfinite(true)
        ends = np.isfinite(true) & (np.abs(true) + limit > LARGEST[dtype])
    return firm & steady & ~alike & ~ends


def _close(original, folded, feed, output: int) -> bool:
    """Whether both models are nearly the same function in float64: it is for their types."""
    one, other = (evaluated(model, feed, {})[0][output] for model in (original, folded))
    finite = np.isfinite(one)
    peak = np.abs(one[finite]).max(initial=0)
    return bool((np.abs(one[finite] - other[finite]) <= 0.05 * peak).all())


def evaluated(
    model: ModelProto, feed: Mapping[str, np.ndarray], how: Mapping
) -> tuple[list[np.ndarray], Interpreter]:
    opset = next(i.version for i in model.opset_import if not i.domain)
    interpreter = Interpreter(opset, model.functions, double=True, **how)
    with np.errstate(all="ignore"):
        found = interpreter.model(model, feed)
    return [t.array for t in found], interpreter
