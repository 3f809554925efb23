"""The ways to divide what a node does between its two sides."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

import numpy as np

from onnx_bnfold.operators.affine import VANISHING, Affine


class Way(str, Enum):
    """How a node went: what of it went upstream, what downstream, or what else became of it.

    A member is the text that reports have.
    """

    UPSTREAM = "upstream"
    DOWNSTREAM = "downstream"
    SHIFT_UPSTREAM = "shift upstream, scale downstream"
    SCALE_UPSTREAM = "scale upstream, shift downstream"
    SHIFT_AND_SIGN_UPSTREAM = "shift and sign upstream, magnitude downstream"
    SIGN_UPSTREAM = "sign upstream, shift and magnitude downstream"
    MERGED = "merged"  # its whole branch went into a Conv
    CONSTANT = "constant"  # it computed one, which is written in its place
    NEVER_RUN = "never run"  # its branch was that of an If whose condition is a constant

    __str__ = str.__str__


def splits(present: Affine) -> Iterator[tuple[Way, Affine, Affine]]:
    """Yield the ways to divide an affine map between its two sides.

    With ``y = a * x + b`` each way is a pair of changes ``x' = p * x + q`` and ``y' = r * y + u``
    with ``x' = y'``, that is ``p = r * a`` and ``q = r * b + u``.
    """
    one, zero = np.ones((1,) * present.rank), np.zeros((1,) * present.rank)
    same = Affine.identity(present.rank)
    a, b = present.scale, present.shift
    yield Way.UPSTREAM, present, same
    divisor = np.where(a == 0, VANISHING, a)
    shifted, size = present.has_shift, np.abs(divisor)
    yield Way.DOWNSTREAM, same, Affine.of(1 / divisor, -b / divisor)
    if not present.has_scale:
        return
    if shifted:
        yield Way.SHIFT_UPSTREAM, Affine.of(one, b / divisor), Affine.of(1 / divisor, zero)
        yield Way.SCALE_UPSTREAM, Affine(a, zero), Affine.of(one, -b)
    if (a < 0).any() and (size != 1).any():
        sign = np.sign(divisor)
        if shifted:
            way = Way.SHIFT_AND_SIGN_UPSTREAM
            yield way, Affine.of(sign, b / size), Affine.of(1 / size, zero)
        yield Way.SIGN_UPSTREAM, Affine.of(sign, zero), Affine.of(1 / size, -b / size)
