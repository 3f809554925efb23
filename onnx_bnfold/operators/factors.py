"""Factors of large arrays that are computed for one block after another."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from onnx_bnfold.model.blocks import BlockIndex, part_of
from onnx_bnfold.operators.affine import Float64, divided


class Quotient(NamedTuple):
    """``divided`` of two arrays that vary along different axes: as a whole it has all elements.

    Attributes:
        dividend, divisor: of one rank; they broadcast against the array that is multiplied.
    """

    dividend: Float64
    divisor: Float64

    def part(self, where: BlockIndex) -> Float64:
        """Return the part that broadcasts against a block; see ``part_of``."""
        return divided(part_of(self.dividend, where), part_of(self.divisor, where))


Factor = Float64 | Quotient


def quotient(dividend: Float64, divisor: Float64) -> Factor:
    """Return ``divided``, in parts if the whole is larger than both."""
    shape = np.broadcast_shapes(dividend.shape, divisor.shape)
    if math.prod(shape) > max(dividend.size, divisor.size):
        return Quotient(dividend, divisor)
    return divided(dividend, divisor)


def whole(factor: Factor) -> Float64:
    """Return a factor as one array."""
    return factor.part(()) if isinstance(factor, Quotient) else factor
