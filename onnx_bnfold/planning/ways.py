"""The ways to divide what a node does between its two sides."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnx_bnfold.operators.affine import VANISHING, Affine

UPSTREAM = "upstream"


def splits(present: Affine) -> Iterator[tuple[str, Affine, Affine]]:
    """Yield the ways to divide an affine map between its two sides.

    With ``y = a * x + b`` each way is a pair of changes ``x' = p * x + q`` and ``y' = r * y + u``
    with ``x' = y'``, that is ``p = r * a`` and ``q = r * b + u``.
    """
    one, zero = np.ones((1,) * present.rank), np.zeros((1,) * present.rank)
    same = Affine.identity(present.rank)
    a, b = present.scale, present.shift
    yield UPSTREAM, present, same
    divisor = np.where(a == 0, VANISHING, a)
    shifted, size = present.has_shift, np.abs(divisor)
    yield "downstream", same, Affine.of(1 / divisor, -b / divisor)
    if not present.has_scale:
        return
    if shifted:
        way = "shift upstream, scale downstream"
        yield way, Affine.of(one, b / divisor), Affine.of(1 / divisor, zero)
        yield "scale upstream, shift downstream", Affine(a, zero), Affine.of(one, -b)
    if (a < 0).any() and (size != 1).any():
        sign = np.sign(divisor)
        if shifted:
            way = "shift and sign upstream, magnitude downstream"
            yield way, Affine.of(sign, b / size), Affine.of(1 / size, zero)
        way = "sign upstream, shift and magnitude downstream"
        yield way, Affine.of(sign, zero), Affine.of(1 / size, -b / size)
