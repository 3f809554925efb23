"""Compare the outputs of two models, in units of the original's own rounding noise.

Let r be the original's output, f the folded model's, and p_k (k = 1 … K) that of the k-th
evaluation of the original with other rounding (a draw, see ``noise``). For an evaluation e let

    d(e) = e - r                                         be its difference
    v    = mean_k d(p_k)² + (ulp(r)/2)²                  the noise power of each element

The statistics are these; each is about 1 for a correct fold:

    sqrt(mean d² / mean v)            over all elements: shows a small error everywhere
    the same over each slice          along any axis whose slices have at least 64 elements, the
                                      worst of them: shows an error in one channel, which the noise
                                      of other channels would hide
    max |d| / max (|d(p_k)|, ulp/2)   over elements and draws: shows an error in one element

The noise power of a slice counts as at least 1 % of the median slice's, since a slice that is zero
behind a Relu has no noise at all.

The limit of each statistic is ``factor`` = 2.25, or more where the original itself scatters more.
The errors within a slice of a softmax or sigmoid are correlated, so that a slice of a thousand
elements may carry as little information as one number, and the worst of hundreds of slices exceeds
4. How much, is estimated from the draws. A correct fold is one more evaluation with other rounding,
so given r, f and the p_k are exchangeable, and the statistic of f among all p_k is distributed like
that of one p_k among the others. From these K values T_k the limit is extrapolated to the value
that is exceeded once in a thousand checks, divided by the number of statistics of all outputs
(Bonferroni). T is the largest of many values, or nearly normal, so a Gumbel distribution with the
mean and the standard deviation of the T_k does not underestimate its tail (Gumbel, Statistics of
Extremes, 1958, chapter 5):

    limit = max(factor, 1.25 · (mean T_k + sd T_k · (sqrt 6/pi) · (-ln p - 0.5772)))

The factor 1.25 allows for the error of a standard deviation of 64 values (13 %).

Draws are made in stages: an output that holds after the first few needs no more, one that does not
is judged again after 16 and after 64. ``factor`` is the least limit since folds are only nearly
exchangeable: they may round once more or once less than the original does. Right folds of 21
exports of 11 public architectures score 0.6 to 1.1, with the options that add or merge nodes 1.6 at
most. A unit in the last place that no draw shows is 2.

False alarms (``tools.check_calibration``, seeds from 51000, float32 and float16 in turn): of 1,500
small networks of Convs with BNs and 1,500 of Gemms no right fold failed, nor did the original
against itself; nor would they with any least limit from 2 to 4. 1.2 % and 0.9 % of the folds needed
more than four draws, of which they took 0.74 of their limit at most. The original with its weights
moved at random, which is noisier than a fold, failed once, with any such limit. Of 1,200 networks
with extreme statistics (``tests/hardening/test_stress.py``, seeds from 7000) no fold failed; nor in
6 to 12 checks each, with real inputs, of seven networks trained on MNIST (``tools.trained_zoo``).

Faults found (``tools.check_sensitivity``, networks with random weights at 64x64, each fault in one
of 12 layers), and in brackets with draws that only move the weights and a limit of 4:

    fault                              ResNet-18       MobileNetV2     MobileNetV2, mixed gammas
    two channels swapped               12 (12)         5 (5)           6 (6)
    the largest weight by 1 %           7 (7)          0 (0)           1 (1)
    a random weight by 1 %              6 (5)          1 (1)           1 (1)
    epsilon (1e-5) left out of one BN  12 (12)         1 (1)           1 (1)
    epsilon left out of every BN        1 (1) of 1     1 (1) of 1      1 (1) of 1

Draws that round sums anew have a noise 1.25 times (ResNet-18) and 1.75 times (MobileNetV2) as
large; with them a limit of 4 finds 10 of the 12 in the fourth line and 4 of the 6 swaps at the
right. Nearly all other faults change the output by less than rounding does, so that no check of it
can find them.

Values that are not finite must agree in position and kind; integers, booleans and strings must be
equal. The number of elements that differ may be twice ``factor`` times that of the noisiest draw;
of at least a thousand integers one in a thousand may differ, since few draws show a tie between two
classes. An output whose shape changes by rounding alone (NonMaxSuppression) cannot be compared and
is reported as such.
"""

from dataclasses import replace

import numpy as np

from onnx_bnfold.check.noise_statistics import (
    ALL,
    Evaluation,
    Floats,
    evaluation,
    exceeded_once,
    peak_of,
    statistics_of,
)
from onnx_bnfold.check.options import CheckOptions
from onnx_bnfold.check.results import Difference
from onnx_bnfold.check.sessions import Array, is_float

_TINY = 1e-140  # its square is still a normal float64
_FREE_MISMATCHES = 1000  # one in so many integers may differ
_COUNTS = 2  # times ``factor``: few counts scatter more than sizes do
_FALSE_ALARMS = 1e-3  # of all checks of right folds
_ENOUGH = 8  # draws from which the scatter of a statistic is estimated
_BFLOAT16_DIGITS, _BFLOAT16_LEAST = 8, -125  # frexp's exponent of the smallest normal number


class Comparison:
    """One tensor in the original, in the folded model, and in a growing number of draws.

    Args:
        name: the tensor's name.
        original: its value in the original model.
        folded: its value in the folded model.

    Attributes:
        name: the tensor's name.
        original: its value in the original model.
        alike: whether it has the same shape and type in both models.
        size: number of elements that can be measured; 0 if it is not a float tensor.
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
        self._draws: list[Evaluation] = []
        if self._float:
            with np.errstate(invalid="ignore", over="ignore"):
                half_ulp = np.maximum(_finite(_half_ulp(original)), _TINY)
            self._floor = evaluation(half_ulp, 0)
            if self.alike:
                self._fold = self._evaluate(folded)

    @property
    def statistics(self) -> int:
        """Number of statistics that can fail."""
        return len(self._floor.powers) + 1 if self._float else 1

    def add(self, draw: Array) -> None:
        """Take the tensor's value in one more noisy evaluation of the original."""
        if draw.shape != self.original.shape:
            self._unstable = True
        elif self._float:
            self._draws.append(self._evaluate(draw))
        else:
            self._draws.append(Evaluation({}, 0.0, int(np.count_nonzero(self.original != draw))))

    def judge(self, options: CheckOptions, statistics: int = 1) -> Difference:
        """Return the verdict after the draws so far.

        Args:
            options: ``factor``, or ``rtol`` and ``atol``.
            statistics: number of statistics of all outputs.
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

    def _evaluate(self, other: Array) -> "Evaluation":
        return evaluation(self._difference(other), _mismatches(self.original, other))

    def _judge_exactly(self, options: CheckOptions) -> Difference:
        mismatched = int(np.count_nonzero(self.original != self._folded))
        noise = max(draw.mismatched for draw in self._draws)
        size = self.original.size
        allowed = max(_allowed(noise, options), size // _FREE_MISMATCHES)
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
        difference = replace(
            self._measured(),
            mismatched=self._fold.mismatched,
            noise_mismatched=flips,
            allowed_mismatches=_allowed(flips, options),
            top1_agreement=_top1_agreement(self.original, self._folded),
        )
        reasons = []
        if difference.mismatched > difference.allowed_mismatches:
            size = self.original.size
            reasons.append(f"{difference.mismatched} of {size} elements differ in being finite")
        times, limit, statistic = self._worst(options, rate)
        difference = replace(difference, times_noise=times, statistic=statistic)
        if options.rtol is None and options.atol is None:
            difference = replace(difference, limit=limit)
            if times > limit:
                reasons.append(
                    f"it differs by {times:.3g} times the rounding noise "
                    f"({statistic}; the limit is {limit:.3g})"
                )
        else:
            outside = self._outside(options)
            difference = replace(difference, outside_tolerance=outside)
            if outside:
                reasons.append(
                    f"{outside} of {self.original.size} elements are outside atol "
                    f"{options.atol or 0:g} + rtol {options.rtol or 0:g}, "
                    f"the largest difference is {difference.max_abs:.3g}"
                )
        return replace(difference, holds=not reasons, reason="; ".join(reasons))

    def _outside(self, options: CheckOptions) -> int:
        r = _finite(self.original.astype(np.float64))
        d = self._difference(self._folded)
        allowed = (options.atol or 0.0) + (options.rtol or 0.0) * np.abs(r)
        return int(np.count_nonzero(np.abs(d) > allowed))

    def _difference(self, other: Array) -> Floats:
        """Return the difference to the original, 0 where one is not finite (a mismatch)."""
        with np.errstate(invalid="ignore", over="ignore"):
            return _finite(other.astype(np.float64) - self.original.astype(np.float64))

    def _measured(self) -> Difference:
        r, d = _finite(self.original.astype(np.float64)), self._difference(self._folded)
        peak, max_abs = peak_of(r), peak_of(d)
        noise_rms = float(np.sqrt(np.mean([draw.powers[ALL][0] for draw in self._draws])))
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
        """Return the statistic that is the largest part of its limit, the limit and its name."""
        worst = (0.0, options.factor, "")
        for name, (times, where) in statistics_of(self._fold, self._draws, self._floor).items():
            limit = options.factor
            if times > limit:
                limit = max(limit, exceeded_once(self._scatter(name), rate))
            if times * worst[1] > worst[0] * limit:
                worst = times, limit, where
        return worst

    def _scatter(self, name: str) -> list[float]:
        """Return a statistic of each draw among the others; empty if there are too few draws."""
        if len(self._draws) < _ENOUGH:
            return []
        return [
            statistics_of(draw, self._draws[:k] + self._draws[k + 1 :], self._floor, name)[name][0]
            for k, draw in enumerate(self._draws)
        ]


def has_values(array: Array) -> bool:
    """Return whether a tensor has any element that can be compared."""
    return bool(array.size and (not is_float(array.dtype) or np.isfinite(array).any()))


def _allowed(noise: int, options: CheckOptions) -> int:
    """Return how many elements may differ, by the number that differ in the noisiest draw."""
    return int(_COUNTS * options.factor * noise)


def _half_ulp(array: Array) -> Floats:
    """Return half a unit in the last place of every element."""
    if array.dtype.kind == "f":
        return np.asarray(np.spacing(np.abs(array)).astype(np.float64) / 2)
    _, exponent = np.frexp(array.astype(np.float64))
    return np.asarray(np.ldexp(0.5, np.maximum(exponent, _BFLOAT16_LEAST) - _BFLOAT16_DIGITS))


def _mismatches(original: Array, other: Array) -> int:
    """Return the number of elements that are not finite in one or both, and not the same."""
    both = np.isfinite(original) & np.isfinite(other)
    same = both | (original == other) | (np.isnan(original) & np.isnan(other))
    return int(np.count_nonzero(~same))


def _top1_agreement(original: Array, folded: Array) -> float | None:
    """Return the fraction of rows with the same largest element; None if not class scores."""
    if original.ndim != 2 or original.shape[0] == 0 or original.shape[1] < 2:
        return None
    return float(np.mean(original.argmax(axis=1) == folded.argmax(axis=1)))


def _finite(values: Array) -> Floats:
    return np.asarray(np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0), np.float64)


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0


def _decibels(signal: float, noise: float) -> float | None:
    return 20 * float(np.log10(signal / noise)) if signal > 0 and noise > 0 else None
