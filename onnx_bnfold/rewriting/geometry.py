"""How convolutions walk over their input, and the smallest one in which several can be embedded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Geometry:
    """How a convolution walks over its input, one entry per spatial axis.

    Attributes:
        kernel, strides, dilations: as in Conv.
        before, after: the two halves of ``pads``.
    """

    group: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


class _Axis(NamedTuple):
    """How far kernels reach along an axis that can be embedded in one.

    Kernels of ``k`` elements, padded by ``b`` in front and ``a`` behind, can if all that are longer
    than one element have the same dilation ``d``, if ``k * d - b - a`` is the same for all, and if
    the ``b`` differ by multiples of ``d``.

    Attributes:
        before, after: the most that one is padded by.
        apart: the greatest common divisor of the differences between what they have in front.
        dilation: of those that are longer than one element; 0 if there are none.
        points: ``b + a`` of those of one element; None if there are none.
        longer: ``k * d - b - a`` of the others; None if there are none.
    """

    before: int
    after: int
    apart: int
    dilation: int
    points: int | None
    longer: int | None

    @classmethod
    def of(cls, kernel: int, dilation: int, before: int, after: int) -> _Axis:
        """Make it of one kernel."""
        if kernel == 1:
            return cls(before, after, 0, 0, before + after, None)
        return cls(before, after, 0, dilation, None, kernel * dilation - before - after)

    def joined(self, other: _Axis) -> _Axis | None:
        """Return what both are embedded in; None if they cannot be."""
        pairs = (self.points, other.points), (self.longer, other.longer)
        if any(None not in (one, two) and one != two for one, two in pairs):
            return None
        if self.dilation and other.dilation and self.dilation != other.dilation:
            return None
        points, longer = (two if one is None else one for one, two in pairs)
        whole = _Axis(
            max(self.before, other.before),
            max(self.after, other.after),
            math.gcd(self.apart, other.apart, self.before - other.before),
            max(self.dilation, other.dilation),
            points,
            longer,
        )
        return whole if whole._is_one_kernel else None

    @property
    def _is_one_kernel(self) -> bool:
        if self.apart % self.step:
            return False
        return self.points is None or self.longer is None or self.step - self.points == self.longer

    @property
    def step(self) -> int:
        """The dilation of the kernel in which all are embedded."""
        return self.dilation or 1

    @property
    def kernel(self) -> int:
        """The number of its elements."""
        longer = self.longer
        if longer is None:
            assert self.points is not None
            longer = self.step - self.points
        return (longer + self.before + self.after) // self.step


@dataclass(frozen=True)
class Extent:
    """What the kernels of parallel convolutions are embedded in; see ``_Axis``."""

    group: int
    strides: tuple[int, ...]
    axes: tuple[_Axis, ...]

    @classmethod
    def of(cls, part: Geometry) -> Extent:
        """Make it of one convolution."""
        axes = zip(part.kernel, part.dilations, part.before, part.after, strict=True)
        return cls(part.group, part.strides, tuple(_Axis.of(*each) for each in axes))

    def joined(self, other: Extent) -> Extent | None:
        """Return what both are embedded in; None if they cannot be."""
        if (self.group, self.strides) != (other.group, other.strides):
            return None
        axes = []
        for one, two in zip(self.axes, other.axes, strict=True):
            both = one.joined(two)
            if both is None:
                return None
            axes.append(both)
        return Extent(self.group, self.strides, tuple(axes))

    @property
    def geometry(self) -> Geometry:
        """The one convolution."""
        return Geometry(
            self.group,
            tuple(axis.kernel for axis in self.axes),
            self.strides,
            tuple(axis.step for axis in self.axes),
            tuple(axis.before for axis in self.axes),
            tuple(axis.after for axis in self.axes),
        )
