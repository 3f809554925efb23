"""Large constants that nodes make by moving the elements of an initializer, read from its file.

A weight behind a Transpose is read piece by piece, and never held as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import as_strided
from onnx import TensorProto

from onnx_bnfold.arrays import Array
from onnx_bnfold.model.blocks import Box, Held, Stored
from onnx_bnfold.model.graph import Graph
from onnx_bnfold.model.numpy_nodes import COPYING, MOVING, by_numpy

_HELD = 1 << 20  # elements that a reader holds
_SHORTEST = 1 << 6  # elements that are worth a call of the system


def in_file(
    graph: Graph,
    name: str,
    dims: tuple[int, ...],
    opened: Callable[[TensorProto], Stored | None],
    value: Callable[[str], Array],
) -> Moved | None:
    """Return a reader of a constant whose elements are those of an initializer in a file.

    Args:
        graph: that has it.
        name, dims: of the constant.
        opened: returns a reader of an initializer, None if it is not in a file.
        value: returns the elements of a small constant.

    Returns:
        None if it is computed otherwise.
    """
    indices: list[int] = []
    while name in graph.producer:
        indices.append(graph.producer[name])
        if graph.ops[indices[-1]] not in MOVING:
            return None
        name = graph.reads[indices[-1]][0]
    source = opened(graph.initializers[name]) if name in graph.initializers else None
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
    return Moved(source, places.shape, places.strides)


def _in_order(dims: tuple[int, ...]) -> Array:
    """Return an array that has the places of elements of a byte, and no memory for them."""
    strides = [math.prod(dims[axis + 1 :]) for axis in range(len(dims))]
    return as_strided(np.zeros((), np.uint8), dims, strides, writeable=False)


class Moved(Held):
    """The elements of another array in another order.

    Args:
        source: has them one after another.
        dims: of the array.
        strides: how many elements of the source lie between neighbours along each axis.
    """

    def __init__(self, source: Stored, dims: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__(source.dtype)
        self._source = source
        self._dims = dims
        self._strides = strides
        # The array is held by some rows of an axis at a time, for one index of those before it.
        sizes = [math.prod(dims[axis + 1 :]) for axis in range(len(dims))]
        self._axis = next(axis for axis, size in enumerate(sizes) if size <= _HELD)
        self._row = sizes[self._axis]
        self._rows = min(dims[self._axis], _HELD // self._row)

    @property
    def longest(self) -> int:
        """How many elements are read from the source at once."""
        before = ((0, 1),) * self._axis
        behind = tuple((0, size) for size in self._dims[self._axis + 1 :])
        return self._run((*before, (0, self._rows), *behind))

    def is_quick(self, box: Box | None = None) -> bool:
        """Whether the elements of a box, or those held at once, do not lie too far apart."""
        return (self.longest if box is None else self._run(box)) >= _SHORTEST

    def hold(self, start: int) -> tuple[int, Array]:
        """See ``Held``; return the rows with an element."""
        dims, axis = self._dims, self._axis
        before, inside = divmod(start, dims[axis] * self._row)
        first = inside // self._row // self._rows * self._rows
        stop = min(first + self._rows, dims[axis])
        lead = np.unravel_index(before, dims[:axis]) if axis else ()
        ends = ((int(number), int(number) + 1) for number in lead)
        values = self.box((*ends, (first, stop), *((0, size) for size in dims[axis + 1 :])))
        place = before * dims[axis] * self._row + first * self._row
        return place, values.reshape(values.shape[axis:])

    def box(self, box: Box) -> Array:
        """Return a part of the array."""
        offset = sum(start * step for (start, _), step in zip(box, self._strides, strict=True))
        axes = self._in_source(box)
        apart, run = _together(axes)
        starts = np.full((), offset)
        for stride, size, _ in axes[:apart]:
            starts = starts[..., None] + np.arange(size) * stride
        pieces = np.empty((starts.size, run), self.dtype)
        for piece, start in zip(pieces, starts.reshape(-1).tolist(), strict=True):
            self._source.read_into(start, piece)
        order = np.argsort([number for _, _, number in axes])
        return pieces.reshape([size for _, size, _ in axes]).transpose(order)

    def _run(self, box: Box) -> int:
        return _together(self._in_source(box))[1]

    def _in_source(self, box: Box) -> list[tuple[int, int, int]]:
        """Return stride, size and number of each axis of a box, as the source has them."""
        sizes = (stop - start for start, stop in box)
        return sorted(zip(self._strides, sizes, range(len(box)), strict=True), reverse=True)


def _together(axes: list[tuple[int, int, int]]) -> tuple[int, int]:
    """Return how many elements follow one another in the source, and how many axes do not.

    Args:
        axes: see ``Moved._in_source``.

    Returns:
        The number of axes, then that of elements.
    """
    apart, run = len(axes), 1
    for stride, size, _ in reversed(axes):
        if stride != run and size > 1:
            break
        apart, run = apart - 1, run * size
    return apart, run
