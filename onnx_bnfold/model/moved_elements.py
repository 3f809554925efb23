"""Large constants that nodes make by moving the elements of an initializer, read from its file.

A weight behind a Transpose is read piece by piece, and never held as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from onnx_bnfold.arrays import Array
from onnx_bnfold.model.blocks import Stored
from onnx_bnfold.model.graph import Graph
from onnx_bnfold.model.numpy_nodes import COPYING, MOVING, by_numpy

_HELD = 1 << 20  # elements that a reader holds
_SHORTEST = 1 << 6  # elements that are worth a call of the system


def moved(
    graph: Graph,
    name: str,
    dims: tuple[int, ...],
    opened: Callable[[str], Stored | None],
    value: Callable[[str], Array],
) -> Stored | None:
    """Return a reader of a computed constant whose elements are those of an initializer in a file.

    Args:
        graph: that computes it.
        name, dims: of the constant.
        opened: returns a reader of an initializer, None if it is not in a file.
        value: returns the elements of a small constant.

    Returns:
        None if it is computed otherwise, or its elements lie too far apart.
    """
    indices: list[int] = []
    while name in graph.producer:
        indices.append(graph.producer[name])
        if graph.ops[indices[-1]] not in MOVING:
            return None
        name = graph.reads[indices[-1]][0]
    source = opened(name) if name in graph.initializers else None
    if source is None:
        return None
    places: Array | None = _in_order(graph.dims[name])
    for index in reversed(indices):
        if places is None or (graph.ops[index] in COPYING and not places.flags.c_contiguous):
            return None
        first, *others = graph.reads[index]
        feeds = {first: places, **{other: value(other) for other in others}}
        places = by_numpy(graph.nodes[index], graph.opset, feeds)
    if places is None or places.shape != dims:
        return None
    made = Moved(source, places.shape, places.strides)
    return made if made.longest >= _SHORTEST else None


def _in_order(dims: tuple[int, ...]) -> Array:
    """Return an array that has the places of elements of a byte, and no memory for them."""
    strides = [math.prod(dims[axis + 1 :]) for axis in range(len(dims))]
    return as_strided(np.zeros((), np.uint8), dims, strides, writeable=False)


class Moved:
    """The elements of another array in another order, as ``Stored``.

    Args:
        source: has them one after another.
        dims: of the array.
        strides: how many elements of the source lie between neighbours along each axis.
    """

    def __init__(self, source: Stored, dims: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self._source = source
        self._dims = dims
        self._strides = strides
        # The array is held by some rows of an axis at a time, for one index of those before it.
        sizes = [math.prod(dims[axis + 1 :]) for axis in range(len(dims))]
        self._axis = next(axis for axis, size in enumerate(sizes) if size <= _HELD)
        self._row = sizes[self._axis]
        self._rows = min(dims[self._axis], _HELD // self._row)
        self._held, self._start, self._end = np.empty(0, self.dtype), 0, 0

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return self._source.dtype

    @property
    def longest(self) -> int:
        """How many elements are read from the source at once."""
        return _together(self._in_memory(self._rows))[1]

    def read_into(self, start: int, out: Array) -> None:
        """See ``Stored``."""
        while len(out):
            if not self._start <= start < self._end:
                self._hold(start)
            count = min(len(out), self._end - start)
            _copy(self._held, start - self._start, out[:count])
            start, out = start + count, out[count:]

    def _hold(self, start: int) -> None:
        """Read the rows with an element."""
        dims, strides, axis = self._dims, self._strides, self._axis
        before, inside = divmod(start, dims[axis] * self._row)
        first = inside // self._row // self._rows * self._rows
        count = min(self._rows, dims[axis] - first)
        offset, left = first * strides[axis], before
        for size, stride in zip(reversed(dims[:axis]), reversed(strides[:axis]), strict=True):
            left, number = divmod(left, size)
            offset += number * stride
        self._start = before * dims[axis] * self._row + first * self._row
        self._end = self._start + count * self._row
        self._held = np.empty(0, self.dtype)  # before there are others
        self._held = self._read(offset, count)

    def _in_memory(self, count: int) -> list[tuple[int, int, int]]:
        """Return stride, size and number of each axis of some rows, as the source has them."""
        sizes = (count, *self._dims[self._axis + 1 :])
        strides = self._strides[self._axis :]
        return sorted(zip(strides, sizes, range(len(sizes)), strict=True), reverse=True)

    def _read(self, offset: int, count: int) -> Array:
        axes = self._in_memory(count)
        apart, run = _together(axes)
        starts = np.full((), offset)
        for stride, size, _ in axes[:apart]:
            starts = starts[..., None] + np.arange(size) * stride
        pieces = np.empty((starts.size, run), self.dtype)
        for piece, start in zip(pieces, starts.reshape(-1).tolist(), strict=True):
            self._source.read_into(start, piece)
        order = np.argsort([number for _, _, number in axes])
        return pieces.reshape([size for _, size, _ in axes]).transpose(order)


def _together(axes: list[tuple[int, int, int]]) -> tuple[int, int]:
    """Return how many elements follow one another in the source, and how many axes do not.

    Args:
        axes: see ``Moved._in_memory``.

    Returns:
        The number of axes, then that of elements.
    """
    apart, run = len(axes), 1
    for stride, size, _ in reversed(axes):
        if stride != run and size > 1:
            break
        apart, run = apart - 1, run * size
    return apart, run


def _copy(held: Array, start: int, out: Array) -> None:
    """Copy elements of an array, counted in its own order, whole rows at once."""
    row = held.size // len(held)
    if start % row == 0 and len(out) % row == 0:
        first, count = start // row, len(out) // row
        out.reshape(count, *held.shape[1:])[...] = held[first : first + count]
    else:
        out[:] = held.flat[start : start + len(out)]
