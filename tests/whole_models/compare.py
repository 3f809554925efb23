"""Compares outputs: quickly first, and where that leaves a doubt, with the help of float64.

An element is measured by the smallest of the slices it lies in, over all axes: an error that the
largest channel would hide does not hide in its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, helper

from .engine import holds_type
from .floats import FLOATS, LARGEST, TINY, UNIT
from .interpreter import Interpreter

_QUICK = 24  # units, of the smallest slice's largest value
_UNITS = 8  # units that any result may be off by
# Times the rounding error that the original itself has. Of float32 and float64 the package lets a
# shift cost four bits, and two more go where the data are narrower than the statistics say.
_TIMES = {t: 4 if UNIT[t] > UNIT[np.dtype(np.float32)] else 64 for t in FLOATS}
_DRAWS = 6
_KIND = {t: helper.np_dtype_to_tensor_dtype(t) for t in FLOATS}
_FEW = 6  # elements
_GROSS = 100  # times the bound: no matter of rounding


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
    limit = _QUICK * (UNIT[expected.dtype] * _yardstick(np.where(finite, a, 0)))
    return not bool((off <= limit + 2 * TINY[expected.dtype]).all())


def _yardstick(values: np.ndarray, zeros: bool = False) -> np.ndarray:
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


def difference(
    original: ModelProto,
    folded: ModelProto,
    feed: Mapping[str, np.ndarray],
    expected: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
) -> Doubt | None:
    """Return what is wrong with the folded model's outputs, judged by float64, or None."""
    exact, approximate = _evaluated(original, feed, None)
    coarsest = max((UNIT[t] for t in FLOATS if holds_type(original, _KIND[t])), default=0.0)
    spread: list[list[np.ndarray]] = []
    for draw in range(_DRAWS):  # the bound only grows with them, so the first that explains will do
        spread.append(_evaluated(original, feed, np.random.default_rng(draw))[0])
        worst = _worst(expected, found, exact, spread, approximate, coarsest)
        if worst is None:
            return None
    if worst.kind == "precision" and not _close(original, folded, feed, worst.output):
        return Doubt("wrong", worst.output, worst.detail)
    return worst


def _worst(expected, found, exact, spread, approximate: bool, coarsest: float) -> Doubt | None:
    worst: tuple[float, Doubt] | None = None
    for i, (a, b, true) in enumerate(zip(expected, found, exact, strict=True)):
        drawn = [s[i] for s in spread]
        if a.dtype not in FLOATS:
            if not np.array_equal(a, b) and all(np.array_equal(true, s) for s in drawn):
                return Doubt("wrong", i, "what is no float differs")
            continue
        doubt = _of_one(i, a, b, true, drawn, approximate, coarsest)
        if doubt is not None and (worst is None or doubt[0] > worst[0]):
            worst = doubt
    return None if worst is None else worst[1]


def _of_one(i, a, b, true, spread, approximate, coarsest) -> tuple[float, Doubt] | None:
    rough = approximate and a.dtype == np.float64  # a node was computed in float32 after all
    x, y = a.astype(np.float64), b.astype(np.float64)
    steady = np.isfinite(true) & np.all([np.isfinite(s) for s in spread], axis=0)
    with np.errstate(invalid="ignore"):
        usable = steady & np.isfinite(x) & np.isfinite(y)
        zeros = np.zeros_like(true)
        error = np.where(usable, np.abs(y - true), zeros)
        judged = steady & np.isfinite(x)
        own = np.where(judged, np.abs(x - true), zeros)
        drawn = np.max([np.where(judged, np.abs(s - true), zeros) for s in spread], axis=0)
        size = _yardstick(np.where(usable, true, zeros))
    noise = np.maximum(_yardstick(own, zeros=True), _yardstick(drawn, zeros=True))
    # A narrower type in front of a Cast holds constants that were of the output's type.
    unit = max(UNIT[a.dtype], coarsest)
    limit = _TIMES[a.dtype] * noise + _UNITS * unit * size + 4 * TINY[a.dtype]
    if rough:
        limit = limit + 1e-3 * size
    apart = _apart(x, y, true, steady, limit, a.dtype)
    if apart.any():
        at = tuple(int(k) for k in np.argwhere(apart)[0])
        return np.inf, Doubt("not finite in other places", i, f"at {at}: {x[at]} became {y[at]}")
    ratio = error / limit
    if not ratio.size or ratio.max() <= 1:
        return None
    at = np.unravel_index(int(ratio.argmax()), ratio.shape)
    detail = (
        f"at {tuple(int(k) for k in at)}: {x[at]:.9g} became {y[at]:.9g}, float64 says "
        f"{true[at]:.9g}; error {error[at]:.3g}, {ratio[at]:.3g} times the bound; the original's "
        f"own error is {own[at]:.3g}, the largest of {len(spread)} draws {drawn[at]:.3g}, the "
        f"slice's peak {size[at]:.3g}"
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
    """Whether both models are nearly the same function in float64, so that it is rounding."""
    one = _evaluated(original, feed, None)[0][output]
    other = _evaluated(folded, feed, None)[0][output]
    peak = np.abs(one[np.isfinite(one)]).max(initial=0)
    with np.errstate(invalid="ignore"):
        return bool(np.nanmax(np.abs(one - other), initial=0) <= 0.05 * peak)


def _evaluated(
    model: ModelProto, feed: Mapping[str, np.ndarray], noise: np.random.Generator | None
) -> tuple[list[np.ndarray], bool]:
    opset = next(i.version for i in model.opset_import if not i.domain)
    interpreter = Interpreter(opset, model.functions, double=True, noise=noise)
    with np.errstate(all="ignore"):
        found = interpreter.model(model, feed)
    return [t.array for t in found], interpreter.approximate
