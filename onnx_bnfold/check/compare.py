"""Compares the outputs of two models, in units of the original's own rounding noise.

With r the original's output, f the folded model's, and p_k the output of the k-th evaluation of the
original that rounds otherwise (see `noise`), K in all, every evaluation e has

    d(e) = e - r                                         its difference
    v    = mean_k d(p_k)² + (ulp(r)/2)²                  the noise power of each element

and these statistics, all of which are about 1 for a right fold:

    sqrt(mean d² / mean v)            over all elements: a small error everywhere
    the same over each slice          along any axis whose slices have at least 64 elements, the
                                      worst of them: an error in one channel, hidden under the
                                      noise of others
    max |d| / max (|d(p_k)|, ulp/2)   over elements and draws: an error in one element

A slice's noise power counts as at least 1 % of the median slice's, since a slice that is zero
behind a Relu shows no noise at all.

The limit of each statistic is `factor` = 4, or more where the original itself scatters more: the
errors within a slice of a softmax or sigmoid are correlated, so that a slice of a thousand elements
may say as little as one number, and the worst of hundreds of slices exceeds 4. How much, the draws
say themselves. If the fold is right it is one more evaluation that rounds otherwise: given r, then,
f and the p_k are exchangeable, and the statistic of f among all p_k is distributed like that of one
p_k among the others. From these K values T_k the limit is extrapolated to what is exceeded once in
a thousand checks, divided by the number of statistics of all outputs (Bonferroni). T is the largest
of many values, or nearly normal, so a Gumbel distribution with the mean and the standard deviation
of the T_k does not fall off too fast for it (Gumbel, Statistics of Extremes, 1958, chapter 5):

    limit = max(factor, 1.25 · (mean T_k + sd T_k · (sqrt 6/pi) · (-ln p - 0.5772)))

The quarter covers what the deviation of 64 such values is itself off by (its standard error: 13 %).

The draws come in stages: an output that holds after the first few is not drawn for again, one that
does not is judged after 16 and after 64. `factor` stays the least limit because folds are only
nearly exchangeable: they may round once more or once less than the original does.

How often it errs (`tools.check_calibration`): of 1,500 small networks of Convs and as many of Gemms
with BNs (float32 and float16) no right fold failed, nor did the original against itself; rounded
otherwise it failed once, before the limit had its margin. The largest statistic of a fold was 0.91
of its limit. Nor did nine networks trained on MNIST fail with real inputs, a trained text detector,
a recogniser and a classifier.

What it sees (`tools.check_sensitivity`, a ResNet-18 and a MobileNetV2 with random weights at 64x64,
each fault in one of 12 layers): two channels swapped, 12 and 2 of 12; the largest weight of a layer
changed by 1 %, 10 and 1; a weight drawn at random, 7 and 1; epsilon (1e-5) left out of every BN,
always; of one BN, 1 and 1. The rest moves the output by less than rounding does, and no check of
the outputs can see it.

Values that are not finite must agree in place and kind; integers, booleans and strings must be
equal. Both may differ in as many elements as `factor` times the noisiest draw does; of at least
a thousand integers one in a thousand may differ, because few draws see a tie between two classes.
An output whose shape changes under rounding alone (NonMaxSuppression) cannot be compared and is
reported as such.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnx_bnfold.check.options import CheckOptions
from onnx_bnfold.check.results import Difference
from onnx_bnfold.check.sessions import Array, is_float

_MIN_SLICE = 64  # elements; fewer give a ratio that scatters too much
_QUIET_SLICE = 0.01  # of the median slice's noise power
_DEAD_SLICE = 1e-12  # of the loudest slice's noise power; such slices are left out of the median
_TINY = 1e-140  # its square is still a normal float64
_FREE_MISMATCHES = 1000  # one in so many integers may differ
_FALSE_ALARMS = 1e-3  # of all checks of right folds
_MARGIN = 1.25  # for what is not known of the scatter
_ENOUGH = 8  # draws from which the scatter of a statistic is estimated
_EULER = 0.5772156649015329
_BFLOAT16_DIGITS, _BFLOAT16_LEAST = 8, -125  # frexp's exponent of the smallest normal number
_ALL, _PEAK = "rms over all elements", "largest element"

Floats = NDArray[np.float64]


class Comparison:
    """One tensor in the original, in the folded model, and in more and more draws.

    Args:
        name: the tensor's name.
        original: its value in the original model.
        folded: its value in the folded model.

    Attributes:
        name: the tensor's name.
        original: its value in the original model.
        alike: whether both models give it the same shape and type.
        size: how many elements can be measured.
    """

    def __init__(self, name: str, original: Array, folded: Array) -> None:
        self.name = name
        self._base = Difference(name=name, dtype=str(original.dtype), shape=original.shape)
        self.original = original
        self._folded = folded
        self.alike = folded.shape == original.shape and folded.dtype == original.dtype
        self._unstable = False  # whether a draw has another shape
        self._float = is_float(original.dtype)
        self.size = original.size if self._float else 0
        self._draws: list[_Evaluation] = []
        if self._float:
            with np.errstate(invalid="ignore", over="ignore"):
                half_ulp = np.maximum(_finite(_half_ulp(original)), _TINY)
            self._floor = _evaluation(half_ulp, 0)
            if self.alike:
                self._fold = self._evaluate(folded)

    @property
    def statistics(self) -> int:
        """How many statistics can fail."""
        return len(self._floor.powers) + 1 if self._float else 1

    def add(self, draw: Array) -> None:
        """Takes the tensor's value in one more noisy evaluation of the original."""
        if draw.shape != self.original.shape:
            self._unstable = True
        elif self._float:
            self._draws.append(self._evaluate(draw))
        else:
            self._draws.append(_Evaluation({}, 0.0, int(np.count_nonzero(self.original != draw))))

    def judge(self, options: CheckOptions, statistics: int = 1) -> Difference:
        """The verdict after the draws so far.

        Args:
            options: `factor`, or `rtol` and `atol`.
            statistics: how many statistics of all outputs there are.
        """
        if self._unstable:
            reason = "rounding alone changes its shape; it cannot be compared"
            return replace(self._base, reason=reason)
        if not self.alike:
            was, now = (f"{a.dtype} {list(a.shape)}" for a in (self.original, self._folded))
            return replace(self._base, holds=False, reason=f"it is {now} instead of {was}")
        if not self._float:
            return self._judge_exactly(options)
        return self._judge_floats(options, _FALSE_ALARMS / statistics)

    def _evaluate(self, other: Array) -> "_Evaluation":
        return _evaluation(self._difference(other), _mismatches(self.original, other))

    def _judge_exactly(self, options: CheckOptions) -> Difference:
        mismatched = int(np.count_nonzero(self.original != self._folded))
        noise = max(draw.mismatched for draw in self._draws)
        size = self.original.size
        allowed = max(int(options.factor * noise), size // _FREE_MISMATCHES)
        return replace(
            self._base,
            mismatched=mismatched,
            noise_mismatched=noise,
            allowed_mismatches=allowed,
            holds=mismatched <= allowed,
            reason="" if mismatched <= allowed else f"{mismatched} of {size} elements differ",
        )

    def _judge_floats(self, options: CheckOptions, rate: float) -> Difference:
        flips = max(draw.mismatched for draw in self._draws)
        found = replace(
            self._measured(),
            mismatched=self._fold.mismatched,
            noise_mismatched=flips,
            allowed_mismatches=int(options.factor * flips),
            top1_agreement=_top1_agreement(self.original, self._folded),
        )
        reasons = []
        if found.mismatched > found.allowed_mismatches:
            size = self.original.size
            reasons.append(f"{found.mismatched} of {size} elements differ in being finite")
        times, limit, statistic = self._worst(options, rate)
        found = replace(found, times_noise=times, statistic=statistic)
        if options.rtol is None and options.atol is None:
            found = replace(found, limit=limit)
            if times > limit:
                reasons.append(
                    f"it differs by {times:.3g} times the rounding noise "
                    f"({statistic}; the limit is {limit:.3g})"
                )
        else:
            outside = self._outside(options)
            found = replace(found, outside_tolerance=outside)
            if outside:
                reasons.append(
                    f"{outside} of {self.original.size} elements are outside atol "
                    f"{options.atol or 0:g} + rtol {options.rtol or 0:g}, "
                    f"the largest difference is {found.max_abs:.3g}"
                )
        return replace(found, holds=not reasons, reason="; ".join(reasons))

    def _outside(self, options: CheckOptions) -> int:
        r = _finite(self.original.astype(np.float64))
        d = self._difference(self._folded)
        allowed = (options.atol or 0.0) + (options.rtol or 0.0) * np.abs(r)
        return int(np.count_nonzero(np.abs(d) > allowed))

    def _difference(self, other: Array) -> Floats:
        """The difference to the original; 0 where one is not finite: that is counted."""
        with np.errstate(invalid="ignore", over="ignore"):
            return _finite(other.astype(np.float64) - self.original.astype(np.float64))

    def _measured(self) -> Difference:
        r, d = _finite(self.original.astype(np.float64)), self._difference(self._folded)
        peak, max_abs = _peak(r), _peak(d)
        noise_rms = float(np.sqrt(np.mean([draw.powers[_ALL][0] for draw in self._draws])))
        worst = np.unravel_index(int(np.abs(d).argmax()), d.shape) if max_abs > 0 else None
        return replace(
            self._base,
            peak=peak,
            max_abs=max_abs,
            relative_to_peak=max_abs / peak if peak > 0 else None,
            rms=_rms(d),
            snr_db=_decibels(_rms(r), _rms(d)),
            noise_max=max(self._floor.peak, *(draw.peak for draw in self._draws)),
            noise_rms=noise_rms,
            noise_snr_db=_decibels(_rms(r), noise_rms),
            worst_index=None if worst is None else tuple(int(i) for i in worst),
            worst_original=None if worst is None else float(r[worst]),
            worst_folded=None if worst is None else float(r[worst] + d[worst]),
        )

    def _worst(self, options: CheckOptions, rate: float) -> tuple[float, float, str]:
        """The statistic that is the largest part of its limit, that limit, and what it is."""
        found = (0.0, options.factor, "")
        for name, (times, where) in _statistics(self._fold, self._draws, self._floor).items():
            limit = options.factor
            if times > limit:
                limit = max(limit, _exceeded_once(self._scatter(name), rate))
            if times * found[1] > found[0] * limit:
                found = times, limit, where
        return found

    def _scatter(self, name: str) -> list[float]:
        """A statistic of each draw among the others; nothing from too few draws."""
        if len(self._draws) < _ENOUGH:
            return []
        return [
            _statistics(draw, self._draws[:k] + self._draws[k + 1 :], self._floor, name)[name][0]
            for k, draw in enumerate(self._draws)
        ]


@dataclass(frozen=True)
class _Evaluation:
    """What the statistics need of an evaluation.

    Attributes:
        powers: the mean square of its difference, shape (1,), under the name of the statistic over
            all elements, and those of the slices along an axis, shape (n,), under theirs.
        peak: the largest magnitude of the difference.
        mismatched: elements that differ in kind, or in value if they are no floats.
    """

    powers: Mapping[str, Floats]
    peak: float
    mismatched: int


def _evaluation(d: Floats, mismatched: int) -> _Evaluation:
    squares = d * d
    powers = {_ALL: squares.mean(keepdims=True).reshape(1) if d.size else np.zeros(1)}
    for axis, length in enumerate(d.shape):
        if length > 1 and d.size // length >= _MIN_SLICE:
            others = tuple(i for i in range(d.ndim) if i != axis)
            powers[f"axis {axis}"] = squares.mean(axis=others)
    return _Evaluation(powers, _peak(d), mismatched)


def _statistics(
    tested: _Evaluation, draws: Sequence[_Evaluation], floor: _Evaluation, only: str = ""
) -> dict[str, tuple[float, str]]:
    """The statistics of an evaluation among draws by name, each with words that say what it is.

    Args:
        tested: the evaluation.
        draws: the others, which give the noise.
        floor: of half a unit in the last place everywhere.
        only: the name of the one that is wanted.
    """
    if tested.peak == 0:
        return dict.fromkeys([_PEAK, *tested.powers], (0.0, ""))
    loudest = max(floor.peak, *(draw.peak for draw in draws))
    found = {_PEAK: (tested.peak / loudest, _PEAK)}
    for name in (only,) if only in tested.powers else tested.powers:
        noise = np.mean([draw.powers[name] for draw in draws], axis=0) + floor.powers[name]
        if name == _ALL:
            found[name] = float(np.sqrt(tested.powers[name][0] / noise[0])), name
            continue
        median = np.median(noise[noise > _DEAD_SLICE * noise.max()])
        ratios = tested.powers[name] / np.maximum(noise, _QUIET_SLICE * median)
        worst = int(ratios.argmax())
        found[name] = float(np.sqrt(ratios[worst])), f"rms over index {worst} of {name}"
    return found


def _exceeded_once(values: Sequence[float], rate: float) -> float:
    """What a Gumbel variable with the moments of `values` exceeds at a rate, and a margin.

    Zero without values.
    """
    if not values:
        return 0.0
    deviation = float(np.std(values, ddof=1))
    reach = deviation * math.sqrt(6) / math.pi * (-math.log(rate) - _EULER)
    return _MARGIN * (float(np.mean(values)) + reach)


def has_values(array: Array) -> bool:
    """Whether there is anything in a tensor that two models could differ in."""
    return bool(array.size and (not is_float(array.dtype) or np.isfinite(array).any()))


def _half_ulp(array: Array) -> Floats:
    """Half a unit in the last place of every element."""
    if array.dtype.kind == "f":
        return np.asarray(np.spacing(np.abs(array)).astype(np.float64) / 2)
    _, exponent = np.frexp(array.astype(np.float64))
    return np.asarray(np.ldexp(0.5, np.maximum(exponent, _BFLOAT16_LEAST) - _BFLOAT16_DIGITS))


def _mismatches(original: Array, other: Array) -> int:
    """Elements where only one is NaN, only one infinite, or the signs of the infinities differ."""
    both = np.isfinite(original) & np.isfinite(other)
    same = both | (original == other) | (np.isnan(original) & np.isnan(other))
    return int(np.count_nonzero(~same))


def _top1_agreement(original: Array, folded: Array) -> float | None:
    """The fraction of rows with the same largest element, for a matrix of class scores."""
    if original.ndim != 2 or original.shape[0] == 0 or original.shape[1] < 2:
        return None
    return float(np.mean(original.argmax(axis=1) == folded.argmax(axis=1)))


def _finite(values: Array) -> Floats:
    return np.asarray(np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0), np.float64)


def _peak(values: Array) -> float:
    return float(np.abs(values).max()) if values.size else 0.0


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0


def _decibels(signal: float, noise: float) -> float | None:
    return 20 * float(np.log10(signal / noise)) if signal > 0 and noise > 0 else None
