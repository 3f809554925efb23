"""Random choices, all from one integer."""

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Unfit(Exception):
    """What was drawn cannot be built here."""


class Draw:
    """A source of choices and arrays that is the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._choices = random.Random(seed)
        self.arrays = np.random.default_rng(seed)

    def chance(self, probability: float) -> bool:
        return self._choices.random() < probability

    def pick(self, options: Sequence[T]) -> T:
        if not options:
            raise Unfit("nothing to pick from")
        return self._choices.choice(options)

    def weighted(self, weights: Mapping[T, float]) -> T:
        return self._choices.choices(list(weights), list(weights.values()))[0]

    def between(self, low: int, high: int) -> int:
        """Return an integer, both ends included."""
        if low > high:
            raise Unfit(f"nothing between {low} and {high}")
        return self._choices.randint(low, high)

    def some(self, options: Sequence[T], number: int) -> list[T]:
        """Return different options, in random order."""
        return self._choices.sample(list(options), min(number, len(options)))

    def shuffled(self, options: Sequence[T]) -> list[T]:
        return self.some(options, len(options))

    def split(self, total: int, parts: int) -> list[int]:
        """Return positive numbers that add up to `total`."""
        cuts = sorted(self.some(range(1, total), parts - 1))
        return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]

    def normal(self, *shape: int) -> np.ndarray:
        return self.arrays.standard_normal(shape)

    def uniform(self, low: float, high: float, *shape: int) -> np.ndarray:
        return self.arrays.uniform(low, high, shape)

    def signs(self, *shape: int) -> np.ndarray:
        return self.arrays.choice([-1.0, 1.0], shape)
