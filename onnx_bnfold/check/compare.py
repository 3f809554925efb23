"""Compares the outputs of two models, in units of the original's own rounding noise.

With r the original's output, f the folded model's, and p_k the output of the original with its
weights rounded anew for the k-th time (see `noise`), K times in all:

    d = f - r                                            the difference
    v = mean_k (p_k - r)² + (ulp(r)/2)²                  the noise power of each element

`times_noise` is the largest of these ratios, all of which are about 1 for a right fold:

    sqrt(mean d² / mean v)            over all elements: a small error everywhere
    the same over each slice          along any axis whose slices have at least 64 elements: an
                                      error in one channel, hidden under the noise of others
    max |d| / max (|p_k - r|, ulp/2)  over elements and draws: an error in one element

A slice's noise power counts as at least 1 % of the median slice's, since a slice that is zero
behind a Relu shows no noise at all. The output holds when `times_noise` is at most `factor` = 4.

Why 4. The noise is itself an estimate, from at least 16 values: for an output of two independent
numbers the square of the ratio follows F(2, 16), which exceeds 16 once in 6,000 models. Measured on
20 networks (torchvision's, ArcFace, RepVGG, NASNet cells), folded here or by PyTorch's exporter,
gamma of one sign or mixed, float32 or float16, 167 checks in all: right folds reach 1.82 at most.

What it sees, of faults put into folds of ResNet-18/50, MobileNetV2 and EfficientNet-B0 with
statistics as after training, in float32, into each of 12 to 15 layers: two channels swapped,
always; epsilon (1e-5) left out of every BN, always (not tried on EfficientNet), of one BN, 17 to
87 %; the largest weight of a layer changed by 1 %, 83 to 100 %; a weight drawn at random, 33 to
80 %. The rest moves the output by less than rounding does, and no check of the outputs can see it.
In float16 (ResNet-18) 1 % of one weight, and an epsilon of 1e-5, are below the rounding of the
weights; swapped channels are seen (9 times the noise or more).

Values that are not finite must agree in place and kind; integers, booleans and strings must be
equal. Both may differ in as many elements as `factor` times the noisiest draw does; of at least
a thousand integers one in a thousand may differ, because a tie between two classes is rarely
seen in four draws. An output whose shape changes under rounding alone (NonMaxSuppression) cannot
be compared and is reported as such.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnx_bnfold.check.options import CheckOptions
from onnx_bnfold.check.results import Difference
from onnx_bnfold.check.sessions import Array

_MIN_SLICE = 64  # elements; fewer give a ratio that scatters too much
_QUIET_SLICE = 0.01  # of the median slice's noise power
_DEAD_SLICE = 1e-12  # of the loudest slice's noise power; such slices are left out of the median
_TINY = 1e-140  # its square is still a normal float64
_FREE_MISMATCHES = 1000  # one in so many integers may differ


def compare(
    name: str, original: Array, folded: Array, draws: Sequence[Array], options: CheckOptions
) -> Difference:
    """Judges one tensor.

    Args:
        name: the tensor's name.
        original: its value in the original model.
        folded: its value in the folded model.
        draws: its values in noisy evaluations of the original.
        options: `factor`, or `rtol` and `atol`.
    """
    base = Difference(name=name, dtype=str(original.dtype), shape=original.shape)
    if any(draw.shape != original.shape for draw in draws):
        return replace(base, reason="rounding alone changes its shape; it cannot be compared")
    if folded.shape != original.shape or folded.dtype != original.dtype:
        was, now = (f"{a.dtype} {list(a.shape)}" for a in (original, folded))
        return replace(base, holds=False, reason=f"it is {now} instead of {was}")
    if original.dtype.kind != "f":
        return _compare_exactly(base, original, folded, draws, options)
    return _compare_floats(base, original, folded, draws, options)


def _compare_exactly(
    base: Difference,
    original: Array,
    folded: Array,
    draws: Sequence[Array],
    options: CheckOptions,
) -> Difference:
    mismatched = int(np.count_nonzero(original != folded))
    noise = max(int(np.count_nonzero(original != draw)) for draw in draws)
    allowed = max(int(options.factor * noise), original.size // _FREE_MISMATCHES)
    return replace(
        base,
        mismatched=mismatched,
        noise_mismatched=noise,
        allowed_mismatches=allowed,
        holds=mismatched <= allowed,
        reason="" if mismatched <= allowed else f"{mismatched} of {original.size} elements differ",
    )


def _compare_floats(
    base: Difference,
    original: Array,
    folded: Array,
    draws: Sequence[Array],
    options: CheckOptions,
) -> Difference:
    with np.errstate(invalid="ignore", over="ignore"):
        half_ulp = np.spacing(np.abs(original)).astype(np.float64) / 2
        r, f = original.astype(np.float64), folded.astype(np.float64)
        p = [draw.astype(np.float64) for draw in draws]
        # An element that is not finite on one side is counted, not measured.
        d = _finite(f - r)
        noise = [_finite(draw - r) for draw in p]
    r, half_ulp = _finite(r), np.maximum(_finite(half_ulp), _TINY)
    power = sum((n * n for n in noise), np.zeros_like(r)) / len(noise) + half_ulp**2
    loudest = max([_peak(n) for n in noise] + [_peak(half_ulp)])
    times, statistic = max(_ratios(d, power, loudest), default=(0.0, ""))
    flips = max(_mismatches(original, draw) for draw in draws)
    measured = replace(
        _measured(base, r, d, noise),
        times_noise=times,
        statistic=statistic,
        noise_max=loudest,
        mismatched=_mismatches(original, folded),
        noise_mismatched=flips,
        allowed_mismatches=int(options.factor * flips),
        top1_agreement=_top1_agreement(original, folded),
    )
    return _judge(measured, r, d, options)


def _measured(base: Difference, r: Array, d: Array, noise: Sequence[Array]) -> Difference:
    peak, max_abs = _peak(r), _peak(d)
    noise_rms = _rms(np.stack(noise))
    worst = np.unravel_index(int(np.abs(d).argmax()), d.shape) if max_abs > 0 else None
    return replace(
        base,
        peak=peak,
        max_abs=max_abs,
        relative_to_peak=max_abs / peak if peak > 0 else None,
        rms=_rms(d),
        snr_db=_decibels(_rms(r), _rms(d)),
        noise_rms=noise_rms,
        noise_snr_db=_decibels(_rms(r), noise_rms),
        worst_index=None if worst is None else tuple(int(i) for i in worst),
        worst_original=None if worst is None else float(r[worst]),
        worst_folded=None if worst is None else float(r[worst] + d[worst]),
    )


def _judge(found: Difference, r: Array, d: Array, options: CheckOptions) -> Difference:
    reasons = []
    if found.mismatched > found.allowed_mismatches:
        reasons.append(f"{found.mismatched} of {r.size} elements differ in being finite")
    if options.rtol is None and options.atol is None:
        found = replace(found, limit=options.factor)
        if found.times_noise > options.factor:
            reasons.append(
                f"it differs by {found.times_noise:.3g} times the rounding noise "
                f"({found.statistic}; the limit is {options.factor:g})"
            )
    else:
        atol, rtol = options.atol or 0.0, options.rtol or 0.0
        outside = int(np.count_nonzero(np.abs(d) > atol + rtol * np.abs(r)))
        found = replace(found, outside_tolerance=outside)
        if outside:
            reasons.append(
                f"{outside} of {r.size} elements are outside atol {atol:g} + rtol {rtol:g}, "
                f"the largest difference is {found.max_abs:.3g}"
            )
    return replace(found, holds=not reasons, reason="; ".join(reasons))


def _ratios(
    d: NDArray[np.float64], power: NDArray[np.float64], loudest: float
) -> Iterator[tuple[float, str]]:
    if d.size == 0 or not np.any(d):
        return
    squares = d * d
    yield float(np.sqrt(squares.mean() / power.mean())), "rms over all elements"
    yield _peak(d) / loudest, "largest element"
    for axis, length in enumerate(d.shape):
        if length == 1 or d.size // length < _MIN_SLICE:
            continue
        others = tuple(i for i in range(d.ndim) if i != axis)
        slices = power.mean(axis=others)
        median = np.median(slices[slices > _DEAD_SLICE * slices.max()])
        slices = np.maximum(slices, _QUIET_SLICE * median)
        ratios = squares.mean(axis=others) / slices
        worst = int(ratios.argmax())
        yield float(np.sqrt(ratios[worst])), f"rms over index {worst} of axis {axis}"


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


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)


def _peak(values: Array) -> float:
    return float(np.abs(values).max()) if values.size else 0.0


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0


def _decibels(signal: float, noise: float) -> float | None:
    return 20 * float(np.log10(signal / noise)) if signal > 0 and noise > 0 else None
