"""``Affine``: the change ``t' = scale * t + shift`` of a tensor, in float64.

The arrays broadcast against the tensor: they have its rank, and every axis has size 1 (the change
is the same along it) or the tensor's own size. A BatchNormalization on axis 1 of a rank-4 tensor is
two arrays of shape ``(1, C, 1, 1)``. This module does not depend on ONNX.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

# Two changes that reach a tensor on two paths agree if they differ by no more than the float64
# rounding of a few operations. The bound is relative to each element, since channels of one tensor
# may be 300 orders of magnitude apart.
AGREEMENT = 1e-12
# A sum below this share of its largest term consists of rounding errors: the terms have cancelled.
# So does what is between two results that differ by less.
CANCELLED = 2.0**-50

# Smallest scale to divide by; for smaller ones 1 / scale or scale * weight is not a normal float.
SMALLEST_SCALE = 2.0**-100
# Used instead of a scale of zero where it has to be inverted: 1 / VANISHING is finite, and a weight
# times VANISHING is zero in every type, in float64 by ``divided``. A channel whose scale is
# 1 / VANISHING was constant; its new values do not matter, since the weights that read them become
# zero.
VANISHING = 2.0**-500
# Scales from here on are of that kind, whatever they were multiplied by on the way.
VANISHED = 2.0**400


def divided(factor: Float64, scale: Float64) -> Float64:
    """Return factor / scale, and zero for channels that were constant: see ``VANISHING``."""
    return np.where(np.abs(scale) >= VANISHED, 0.0, factor / scale)


def _compressed(array: Float64, neutral: float, slack: float = 0.0) -> Float64:
    """Return an array whose axes have size 1 where all values along them are equal.

    For a tensor without elements any change is correct. It becomes a single ``neutral`` value, so
    that a tensor with elements never gets a change without any.

    Args:
        array: the values.
        neutral: see above.
        slack: share of a value by which another may differ and still be equal.
    """
    if not array.size:
        return np.full((1,) * array.ndim, neutral)
    for axis, size in enumerate(array.shape):
        if size > 1:
            if size == array.size and not _equal(array.item(0), array.item(size - 1), slack):
                break  # a vector whose ends differ: no other axis can go, nothing to compare
            first = array[(slice(None),) * axis + (slice(1),)]
            if (array == first).all() or (
                slack and (np.abs(array - first) <= slack * np.abs(first)).all()
            ):
                array = first
    return array


def _equal(one: float, other: float, slack: float) -> bool:
    return one == other or abs(one - other) <= slack * abs(one)


class _Once:
    """A property that is computed once; faster than ``cached_property``, which takes a lock."""

    def __init__(self, find: Callable[[Affine], bool]) -> None:
        self._find = find
        self.__doc__ = find.__doc__

    def __set_name__(self, _: type, name: str) -> None:
        self._name = name

    def __get__(self, change: Affine, _: type | None = None) -> bool:
        fact = vars(change)[self._name] = self._find(change)
        return fact


class Affine:
    """A per-element map ``t' = scale * t + shift``, constant along most axes.

    Attributes:
        scale: has the rank of the tensor; each axis has size 1 or the tensor's size; not empty.
        shift: like ``scale``; other axes than those of ``scale`` may have size 1.
    """

    def __init__(self, scale: Float64, shift: Float64) -> None:
        self.scale = scale
        self.shift = shift
        self._vectors: dict[tuple[int, int], tuple[Float64, Float64] | None] = {}

    @classmethod
    def of(cls, scale: Float64, shift: Float64) -> Affine:
        """Return a change whose axes have size 1 wherever nothing varies along them."""
        return cls(_compressed(scale, 1.0), _compressed(shift, 0.0))

    @classmethod
    def composed(cls, scale: Float64, shift: Float64) -> Affine:
        """Return a change that was computed from others, without what rounding added.

        Scales that came out of a multiplication and its inverse would vary along an axis on which
        the rounded constants do not, or differ from 1, and then another fold would find more to do.
        """
        with np.errstate(invalid="ignore"):
            is_one = np.abs(scale - 1) <= CANCELLED
            scale = np.where(is_one, 1.0, scale) if is_one.any() else scale
            return cls(_compressed(scale, 1.0, CANCELLED), _compressed(shift, 0.0, CANCELLED))

    @classmethod
    def identity(cls, rank: int) -> Affine:
        """Return the identity for a tensor of ``rank`` axes."""
        return _identity(rank)

    @property
    def rank(self) -> int:
        """Rank of the tensor."""
        return self.scale.ndim

    @property
    def shape(self) -> tuple[int, ...]:
        """Common shape of scale and shift; the change varies along the axes larger than 1."""
        scale, shift = self.scale.shape, self.shift.shape
        return scale if scale == shift else np.broadcast_shapes(scale, shift)

    @_Once
    def has_scale(self) -> bool:
        """Whether any scale differs from 1."""
        return bool((self.scale != 1).any())

    @_Once
    def has_negative_scale(self) -> bool:
        """Whether any scale is negative."""
        return bool((self.scale < 0).any())

    @_Once
    def has_shift(self) -> bool:
        """Whether any shift differs from 0."""
        return bool(self.shift.any())

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes."""
        return not self.has_scale and not self.has_shift

    @_Once
    def is_finite(self) -> bool:
        """Whether every value is finite."""
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())

    @_Once
    def is_invertible(self) -> bool:
        """Whether the scale can be divided by without losing precision."""
        magnitude = np.abs(self.scale)
        ordinary = (magnitude >= SMALLEST_SCALE) & (magnitude <= 1 / SMALLEST_SCALE)
        return bool((ordinary | (magnitude >= VANISHED)).all())

    @_Once
    def is_ordinary(self) -> bool:
        """Whether no scale and no shift is too large for a constant."""
        return bool(
            (np.abs(self.scale) <= 1 / SMALLEST_SCALE).all()
            and (np.abs(self.shift) <= 1 / SMALLEST_SCALE).all()
        )

    def then(self, after: Affine) -> Affine:
        """Return ``after ∘ self``: first this change, then ``after``."""
        with np.errstate(over="ignore", invalid="ignore"):
            scale = after.scale * self.scale
            shift = summed(after.scale * self.shift, after.shift)
            if (np.abs(scale) >= VANISHED).any():
                # Keep shift / scale, the former constant of the channel.
                size = np.where(np.abs(scale) >= VANISHED, np.abs(scale) * VANISHING, 1.0)
                scale, shift = scale / size, shift / size
        return Affine.composed(scale, shift)

    def inverse(self) -> Affine:
        """Return the inverse; only valid if ``is_invertible``."""
        return Affine.of(1 / self.scale, -self.shift / self.scale)

    def with_shift(self, shift: Float64) -> Affine:
        """Return the same scale with another shift."""
        return Affine.of(self.scale, shift)

    def map(self, function: Callable[[Float64], Float64]) -> Affine:
        """Return the change with ``function``, which moves axes or elements, applied to both."""
        return Affine.of(function(self.scale), function(self.shift))

    def agrees_with(self, other: Affine) -> bool:
        """Return whether the two are the same change up to float64 rounding, in every element."""
        if self is other:
            return True
        return close(self.shift, other.shift) and close(self.scale, other.scale)

    def vector(self, axis: int, size: int) -> tuple[Float64, Float64] | None:
        """Return scale and shift as vectors along ``axis``.

        Args:
            axis: along which the change may vary.
            size: of the tensor along that axis.

        Returns:
            Two arrays ``(size,)``; None if the change varies along another axis, or ``axis`` does
            not exist or has another size.
        """
        try:  # cached: a layer needs it for its check, its weight and its bias
            return self._vectors[axis, size]
        except KeyError:
            vectors = self._vectors[axis, size] = self._vector(axis, size)
            return vectors

    def _vector(self, axis: int, size: int) -> tuple[Float64, Float64] | None:
        shape = self.shape
        if axis >= len(shape):
            return None
        others = shape[:axis] + shape[axis + 1 :]
        if max(others, default=1) > 1 or shape[axis] not in (1, size):
            return None
        return _stretched(self.scale, size), _stretched(self.shift, size)


@cache
def _identity(rank: int) -> Affine:
    return Affine(np.ones((1,) * rank), np.zeros((1,) * rank))


def _stretched(array: Float64, size: int) -> Float64:
    """Return an array of one or ``size`` values as ``(size,)``."""
    vector = array.reshape(-1)
    return vector if len(vector) == size else np.broadcast_to(vector, (size,))


def along(vector: Float64, axis: int, rank: int) -> Float64:
    """Return a vector as an array that varies along one axis.

    Args:
        vector: ``(C,)``.
        axis: that gets the size ``C``; the others have size 1.
        rank: number of axes.
    """
    return vector.reshape((1,) * axis + (-1,) + (1,) * (rank - axis - 1))


def all_along(maps: Sequence[Float64], axis: int, ranks: Sequence[int]) -> list[Affine]:
    """Return changes that vary along one axis: ``Affine.of`` of scale and shift ``along`` it.

    A model may have thousands of short changes. A few numpy calls compress all those of one size
    and compute their cached properties, instead of a dozen calls for each. The result is that of
    the plain version, ``Affine.of`` change by change.

    Args:
        maps: scale and shift of each change, ``(2, C)``.
        axis: along which they vary.
        ranks: of the tensors.
    """
    alike: dict[tuple[int, int], list[int]] = {}
    for index, (each, rank) in enumerate(zip(maps, ranks, strict=True)):
        alike.setdefault((each.shape[1], rank), []).append(index)
    changes: dict[int, Affine] = {}
    for (_, rank), indices in alike.items():
        block = np.array([maps[index] for index in indices])
        changes.update(zip(indices, _all_along(block, axis, rank), strict=True))
    return [changes[index] for index in range(len(maps))]


def _all_along(block: Float64, axis: int, rank: int) -> Iterator[Affine]:
    """Yield the changes of maps of one size, ``(maps, 2, C)``, of tensors of one rank."""
    count, _, size = block.shape
    if not size:  # no channels
        yield from (Affine.identity(rank) for _ in range(count))
        return
    extremes = _Extremes(block.min(axis=2), block.max(axis=2))
    same = (extremes.least == extremes.most).tolist()
    laid = block.reshape(count, 2, *(1,) * axis, size, *(1,) * (rank - axis - 1))
    first = (slice(None),) * axis + (slice(1),)
    for (a, b), (scale, shift), (same_scale, same_shift), facts in zip(
        block, laid, same, extremes.facts(), strict=True
    ):
        change = object.__new__(Affine)  # and all attributes at once, where ``_Once`` keeps its own
        facts["scale"] = scale[first] if same_scale else scale
        facts["shift"] = shift[first] if same_shift else shift
        facts["_vectors"] = {} if same_scale or same_shift else {(axis, size): (a, b)}
        change.__dict__ = facts
        yield change


class _Extremes(NamedTuple):
    """Minima and maxima of scales and shifts, ``(maps, 2)``; NaN if a value is NaN."""

    least: Float64
    most: Float64

    def facts(self) -> Iterator[dict[str, Any]]:
        """Yield name → value of the ``_Once`` properties of each change."""
        largest, ordinary = np.finfo(np.float64).max, 1 / SMALLEST_SCALE
        differs = (self.least != (1, 0)) | (self.most != (1, 0))
        columns = {
            "has_scale": differs[:, 0],
            "has_shift": differs[:, 1],
            "is_finite": self._within(largest),
            "is_ordinary": self._within(ordinary),
        }
        for row in zip(*(column.tolist() for column in columns.values()), strict=True):
            yield dict(zip(columns, row, strict=True))

    def _within(self, bound: float) -> NDArray[np.bool_]:
        """Return for each map whether no magnitude exceeds a bound, ``(maps,)``."""
        within = (self.least >= -bound) & (self.most <= bound)
        both: NDArray[np.bool_] = within[:, 0] & within[:, 1]
        return both


def close(a: Float64, b: Float64) -> bool:
    """Return whether two arrays agree up to float64 rounding, relative to each element."""
    if a.size and b.size:
        one, other = a.item(0), b.item(0)
        if one != other and not abs(one - other) <= AGREEMENT * max(abs(one), abs(other)):
            return False  # as most that do not agree differ in the first element
    if a.shape == b.shape and (a == b).all():
        return True
    try:
        difference = np.abs(a - b)
    except ValueError:
        return False
    return bool((difference <= AGREEMENT * np.maximum(np.abs(a), np.abs(b))).all())


def summed(*terms: Float64) -> Float64:
    """Return the sum of arrays, with zeros where terms cancel except for rounding errors.

    A shift of 1e-17 instead of 0 would not agree with 0, and could not pass a ReLU.
    """
    total = sum(terms[1:], terms[0])
    if len([term for term in terms if term.any()]) < 2:
        return total
    size = sum(map(np.abs, terms[1:]), np.abs(terms[0]))
    return np.where(np.abs(total) <= CANCELLED * size, 0.0, total)
