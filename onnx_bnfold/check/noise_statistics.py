"""Statistics that compare one evaluation of a tensor with its rounding noise; see ``compare``."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnx_bnfold.check.sessions import Array

_MIN_SLICE = 64  # elements; fewer give a ratio that scatters too much
_QUIET_SLICE = 0.01  # least noise power of a slice, as a part of the median slice's
_DEAD_SLICE = 1e-12  # slices with less, as a part of the loudest's, do not count for the median
_MARGIN = 1.25  # for the error of the estimated scatter
_EULER = 0.5772156649015329
ALL, PEAK = "rms over all elements", "largest element"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """What the statistics need of an evaluation.

    Attributes:
        powers: name of a statistic → mean squares of the difference: ``(1,)`` over all elements,
            ``(n,)`` over the slices along an axis.
        peak: largest magnitude of the difference.
        mismatched: number of elements that differ in kind, or in value if they are not floats.
    """

    powers: Mapping[str, Floats]
    peak: float
    mismatched: int


def evaluation(d: Floats, mismatched: int) -> Evaluation:
    """Return what the statistics need of an evaluation with the difference ``d``."""
    squares = d * d
    powers = {ALL: squares.mean(keepdims=True).reshape(1) if d.size else np.zeros(1)}
    for axis, length in enumerate(d.shape):
        if length > 1 and d.size // length >= _MIN_SLICE:
            others = tuple(i for i in range(d.ndim) if i != axis)
            powers[f"axis {axis}"] = squares.mean(axis=others)
    return Evaluation(powers, peak_of(d), mismatched)


def statistics_of(
    tested: Evaluation, draws: Sequence[Evaluation], floor: Evaluation, only: str = ""
) -> dict[str, tuple[float, str]]:
    """Return name → (value, description) of the statistics of an evaluation among draws.

    Args:
        tested: the evaluation.
        draws: the other evaluations, which have the noise.
        floor: an evaluation that differs by half a unit in the last place everywhere.
        only: name of a single statistic to compute; all by default.
    """
    if tested.peak == 0:
        return dict.fromkeys([PEAK, *tested.powers], (0.0, ""))
    loudest = max(floor.peak, *(draw.peak for draw in draws))
    statistics = {PEAK: (tested.peak / loudest, PEAK)}
    for name in (only,) if only in tested.powers else tested.powers:
        noise = np.mean([draw.powers[name] for draw in draws], axis=0) + floor.powers[name]
        if name == ALL:
            statistics[name] = float(np.sqrt(tested.powers[name][0] / noise[0])), name
            continue
        median = np.median(noise[noise > _DEAD_SLICE * noise.max()])
        ratios = tested.powers[name] / np.maximum(noise, _QUIET_SLICE * median)
        worst = int(ratios.argmax())
        statistics[name] = float(np.sqrt(ratios[worst])), f"rms over index {worst} of {name}"
    return statistics


def exceeded_once(values: Sequence[float], rate: float) -> float:
    """Return the value that a Gumbel variable exceeds at a rate, with a margin.

    Args:
        values: samples of the variable, of which mean and deviation are taken; without any the
            result is 0.
        rate: probability of exceeding the value.
    """
    if not values:
        return 0.0
    deviation = float(np.std(values, ddof=1))
    reach = deviation * math.sqrt(6) / math.pi * (-math.log(rate) - _EULER)
    return _MARGIN * (float(np.mean(values)) + reach)


def peak_of(values: Array) -> float:
    """Return the largest magnitude, 0 of an empty array."""
    return float(np.abs(values).max()) if values.size else 0.0
