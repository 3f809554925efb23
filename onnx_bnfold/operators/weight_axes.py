"""What the letters of a layout say of the axes of a weight.

A layout is a string with a letter per axis of the (grouped) weight: ``g`` group, ``o`` output
channel, ``i`` input channel, ``k`` kernel position, ``b`` batch of weights.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache


@cache
def axes_of(layout: str, letters: str) -> tuple[int, ...]:
    """Return the axes that some letters of a layout stand for."""
    return tuple(axis for axis, letter in enumerate(layout) if letter in letters)


# The layers of a model are of few shapes.
@lru_cache(maxsize=1024)
def channels_of(layout: str, grouped: tuple[int, ...], letters: str) -> int:
    """Return the number of channels that some letters of a layout stand for together."""
    return math.prod(broadcast_shape(layout, grouped, letters))


@lru_cache(maxsize=1024)
def broadcast_shape(layout: str, grouped: tuple[int, ...], letters: str) -> tuple[int, ...]:
    """Return a weight's shape with the axes that are not among some letters reduced to 1."""
    return tuple(n if a in letters else 1 for n, a in zip(grouped, layout, strict=True))
