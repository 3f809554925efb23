"""Find out which axes of a tensor a Reshape regroups."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from onnx_bnfold.model.graph import Dims
from onnx_bnfold.operators.affine import Float64


def completed(source: Dims, target: Dims) -> tuple[Dims, Dims]:
    """Return both shapes with the one size filled in that the others determine.

    It is the only unknown size of a shape behind the leading axes that are equal in both, as in
    ``x.view(N, -1)``.
    """
    equal = 0
    while equal < min(len(source), len(target)) and _same_dim(source[equal], target[equal]):
        equal += 1
    return (
        (*source[:equal], *_filled(source[equal:], target[equal:])),
        (*target[:equal], *_filled(target[equal:], source[equal:])),
    )


def _filled(dims: Dims, other: Dims) -> Dims:
    """Replace the only unknown size so that there are as many elements as in ``other``."""
    total = math.prod(d if isinstance(d, int) else 0 for d in other)
    rest = math.prod(d for d in dims if isinstance(d, int))
    unknown = [d for d in dims if not isinstance(d, int)]
    if len(unknown) != 1 or total <= 0 or rest <= 0:
        return dims
    return tuple(d if isinstance(d, int) else total // rest for d in dims)


def reshape_block(
    array: Float64, source: Dims, target: Dims, start: int, stop: int, first: int, last: int
) -> Float64:
    """Return an array for the input of a Reshape as one for its output.

    Args:
        array: varies along the axes ``start`` to ``stop`` at most.
        source: shape of the input.
        target: shape of the output.
        start, stop, first, last: the blocks, see ``matching_blocks``.
    """
    if array.size == 1:
        return array.reshape((1,) * len(target))
    block: Any = source[start:stop]
    wide = np.broadcast_to(array, (1,) * start + block + (1,) * (len(source) - stop))
    inner: Any = target[first:last]
    return wide.reshape((1,) * first + inner + (1,) * (len(target) - last))


def matching_blocks(
    source: Dims, target: Dims, low: int, high: int
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Find blocks of axes of both shapes that hold the same elements in the same order.

    A reshape keeps the number of elements, so that the axes before the blocks, and those behind
    them, have as many elements in both shapes.

    Args:
        source: shape of the input.
        target: shape of the output.
        low, high: first and last axis that the source's block has to cover.

    Returns:
        ``(start, stop)`` of the source's block and ``(first, last)`` of the target's; the second
        of each is behind the block. None if the known sizes do not suffice.
    """
    left = 0
    while left < low and left < len(target) and _same_dim(source[left], target[left]):
        left += 1
    right = 0
    room = min(len(source) - 1 - high, len(target) - left)
    while right < room and _same_dim(source[~right], target[~right]):
        right += 1
    end_s, end_t = len(source) - right, len(target) - right
    for stop in range(high + 1, end_s + 1):  # a block that begins at the equal front
        for last in range(left + 1, end_t + 1):
            if _same_size(source[left:stop], target[left:last]):
                return (left, stop), (left, last)
    for start in range(low, left - 1, -1):  # a block that ends at the equal back
        for first in range(end_t - 1, left - 1, -1):
            if _same_size(source[start:end_s], target[first:end_t]):
                return (start, end_s), (first, end_t)
    return None


def _same_dim(a: int | str | None, b: int | str | None) -> bool:
    return a is not None and a == b


def _same_size(a: Dims, b: Dims) -> bool:
    static = all(isinstance(d, int) and d > 0 for d in (*a, *b))
    return static and math.prod(a) == math.prod(b)  # type: ignore[arg-type]
