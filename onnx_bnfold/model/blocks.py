"""Large arrays in blocks that caches hold, wherever their elements are."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnx_bnfold.arrays import Array
from onnx_bnfold.pages import PAGE

BlockIndex = tuple[slice, ...]  # selects a block of an array: slices of its leading axes

Box = tuple[tuple[int, int], ...]  # a part of an array: start and stop along each axis


class Stored(Protocol):
    """The elements of a tensor, one after another, each as large as ``dtype`` has it."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""

    def read_into(self, start: int, out: Array, /) -> None:
        """Fill ``out``, of shape ``(n,)``, with the ``n`` elements from number ``start`` on.

        Raises:
            ModelError: they cannot be read.
        """


class InMemory:
    """An array as ``Stored``."""

    def __init__(self, values: Array) -> None:
        self._flat = values.reshape(-1)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        dtype: np.dtype[Any] = self._flat.dtype
        return dtype

    def read_into(self, start: int, out: Array) -> None:
        """See ``Stored``."""
        out[:] = self._flat[start : start + len(out)]


class Held(ABC):
    """An array of which some elements that follow one another are in memory, as ``Stored``.

    Args:
        dtype: of the elements.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self._start, self._values = 0, np.empty(0, dtype)

    @abstractmethod
    def hold(self, start: int) -> tuple[int, Array]:
        """Return elements in memory, an element among them, and the number of the first."""

    def read_into(self, start: int, out: Array) -> None:
        """See ``Stored``."""
        while len(out):
            if not self._start <= start < self._start + self._values.size:
                self._values = np.empty(0, self.dtype)  # before there are others
                self._start, self._values = self.hold(start)
            held, skipped = self._values, start - self._start
            count = min(len(out), held.size - skipped)
            _copy(held, skipped, out[:count])
            start, out = start + count, out[count:]


def _copy(held: Array, start: int, out: Array) -> None:
    """Copy elements of an array, counted in its own order, whole rows at once."""
    row = held.size // len(held)
    if start % row == 0 and len(out) % row == 0:
        first, count = start // row, len(out) // row
        out.reshape(count, *held.shape[1:])[...] = held[first : first + count]
    else:
        out[:] = held.flat[start : start + len(out)]


class Parted(Protocol):
    """An array that is computed for one block after another."""

    def part(self, where: BlockIndex, /) -> NDArray[np.float64]:
        """Return the part that broadcasts against a block; see ``part_of``."""


class Elements(Protocol):
    """The elements of an initializer that are computed when they are asked for."""

    def __call__(self) -> Array:
        """Return all of them in the shape of the initializer, float64 if they are not rounded."""

    def stored(self) -> Stored:
        """Return a reader that computes them in blocks, where they are many."""


class Whole:
    """Elements that a function returns at once, as ``Elements``."""

    def __init__(self, function: Callable[[], Array]) -> None:
        self._function = function

    def __call__(self) -> Array:
        """Return what the function returns."""
        return self._function()

    def stored(self) -> InMemory:
        """Return a reader of that."""
        return InMemory(self())


class Streamed:
    """Elements that are made one block after another, as ``Stored``.

    They are read from the first to the last, one after another, as often as is wanted.

    Args:
        make: returns all of them in blocks, each of which is there until the next is asked for.
        size: number of elements.
        dtype: of the elements.
    """

    def __init__(
        self, make: Callable[[], Iterable[Array]], size: int, dtype: np.dtype[Any]
    ) -> None:
        self.dtype = dtype
        self._make = make
        self._size = size

    def read_into(self, start: int, out: Array) -> None:
        """See ``Stored``."""
        if start == 0:
            self._blocks = iter(self._make())
            self._left = np.empty(0, self.dtype)
        end = start + len(out)
        while len(out):
            if not len(self._left):
                self._left = next(self._blocks).reshape(-1)
            taken = min(len(out), len(self._left))
            out[:taken] = self._left[:taken]
            out, self._left = out[taken:], self._left[taken:]
        if end == self._size:  # what follows the last block may be a judgement
            for _ in self._blocks:
                pass


def blocks_of(
    stored: Stored, shape: tuple[int, ...], most: int
) -> Iterator[tuple[BlockIndex, Array]]:
    """Yield where each block of a C-ordered array belongs, and its elements.

    Args:
        stored: the elements.
        shape: of the array.
        most: elements that a block has.

    Yields:
        The same memory again and again; what is in it may be replaced.
    """
    buffer = _on_a_page(min(most, math.prod(shape)), stored.dtype)
    start = 0
    for where in block_indices(shape, most):
        block = tuple(s.stop - s.start for s in where) + shape[len(where) :]
        values = buffer[: math.prod(block)]
        stored.read_into(start, values)
        start += len(values)
        yield where, values.reshape(block)


def combined(
    blocks: Iterable[tuple[BlockIndex, Array]],
    shape: tuple[int, ...],
    combine: np.ufunc,
    axes: tuple[int, ...],
    factors: Sequence[NDArray[np.float64] | Parted] = (),
    of: np.ufunc = np.positive,
) -> NDArray[np.float64]:
    """Return what the elements of an array are together along some axes, in float64.

    Args:
        blocks: of the array; each is dropped before the next is asked for.
        shape: of the array.
        combine: ``np.add``, or ``np.maximum`` of magnitudes.
        axes: along which elements are combined; they get the size 1.
        factors: by which the elements are multiplied, one after another.
        of: what of each product is combined.
    """
    total = np.full(
        [1 if axis in axes else n for axis, n in enumerate(shape)], -0.0
    )  # -0.0 + x = x
    for where, values in blocks:
        block = values.astype(np.float64)
        for factor in factors:
            np.multiply(block, part_of(factor, where), out=block)
        part = part_of(total, where)
        combine(part, combine.reduce(of(block, out=block), axis=axes, keepdims=True), out=part)
        del block  # before there is another
    return total


def block_indices(shape: tuple[int, ...], most: int) -> Iterator[BlockIndex]:
    """Divide a C-ordered array into runs of up to ``most`` elements."""
    if not shape:
        yield ()
        return
    axis = next(i for i in range(len(shape)) if math.prod(shape[i + 1 :]) <= most)
    rows = most // max(1, math.prod(shape[axis + 1 :]))
    for lead in np.ndindex(*shape[:axis]):
        fixed = tuple(slice(i, i + 1) for i in lead)
        for start in range(0, shape[axis], rows):
            yield (*fixed, slice(start, min(start + rows, shape[axis])))


def part_of(array: Array | Parted, where: BlockIndex) -> Array:
    """Return the part of an array that broadcasts against a block."""
    if not isinstance(array, np.ndarray):
        return array.part(where)
    for axis, part in enumerate(where):
        if array.shape[axis] > 1:
            array = array[(slice(None),) * axis + (part,)]
    return array


def _on_a_page(count: int, dtype: np.dtype[Any]) -> Array:
    """Allocate an array of ``count`` elements that begins on a page; see ``onnx_bnfold.pages``."""
    raw = np.empty(count * dtype.itemsize + PAGE, np.uint8)
    start = -raw.__array_interface__["data"][0] % PAGE
    return raw[start : start + count * dtype.itemsize].view(dtype)
