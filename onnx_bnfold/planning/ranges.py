"""The range of a tensor per channel, and what a change makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from onnx_bnfold.operators.affine import Affine, Float64

REACH = 4.0  # one value in 16,000 of a normal distribution is farther out


@dataclass(frozen=True, eq=False)
class Range:
    """The values of a tensor with its channels on axis 1, ``(C,)`` float64 each.

    Attributes:
        low, high: smallest and largest value.
        power: mean of the squares.
        rank: of the tensor.
    """

    low: Float64
    high: Float64
    power: Float64
    rank: int

    @classmethod
    def of(cls, mean: Float64, deviation: Float64, rank: int) -> Range:
        """Return the range of a distribution."""
        reach = REACH * deviation
        return cls(mean - reach, mean + reach, mean**2 + deviation**2, rank)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.low)

    @property
    def peak(self) -> Float64:
        """Largest magnitude per channel."""
        return np.asarray(np.maximum(-self.low, self.high))

    @property
    def deviation(self) -> Float64:
        """Standard deviation per channel, of values that reach ``REACH`` of it from the middle."""
        return np.asarray((self.high - self.low) / (2 * REACH))

    def changed(self, change: Affine) -> Range | None:
        """Return the range of a re-parametrised tensor; None if it is not per channel."""
        vectors = change.vector(1, self.channels) if change.rank == self.rank else None
        if vectors is None:
            return None
        scale, shift = vectors
        ends = scale * self.low + shift, scale * self.high + shift
        middle = (self.low + self.high) / 2
        power = scale**2 * self.power + 2 * scale * shift * middle + shift**2
        return Range(np.minimum(*ends), np.maximum(*ends), np.maximum(power, 0), self.rank)


Ranges = Mapping[str, Range]


class KnownRanges(NamedTuple):
    """What is known of the original tensors of a graph.

    Attributes:
        ranges: by name, each with its noise.
        noise: of all together.
    """

    ranges: Mapping[str, tuple[Range, float]]
    noise: float
