"""Large constants that nodes compute, made a part at a time and never held as a whole.

``box_rules`` says which parts of its inputs a node needs for a part of its output. Initializers are
read from their file; what is small, or computed otherwise, is computed once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from onnx_bnfold.arrays import Array
from onnx_bnfold.model.blocks import Box, Held
from onnx_bnfold.model.box_rules import (
    ALIGNED,
    RULES,
    Node,
    Part,
    all_of,
    leading_axis,
    sizes_of,
)
from onnx_bnfold.model.determinism import DESCRIBED
from onnx_bnfold.model.graph import Graph
from onnx_bnfold.model.messages import value_of
from onnx_bnfold.model.moved_elements import Moved
from onnx_bnfold.storage.tensors import element

_SMALL = 1 << 16  # elements that are computed once
# Bytes that the parts of all tensors take together if so few rows can be made; twice as many if
# what is read from a file would lie too far apart.
_HELD = 1 << 22
_MOST = 1 << 26  # bytes that they may take at all
_LONGEST = 64  # nodes that are computed anew for each part


class Constant(Protocol):
    """What is known of a constant, as ``constants`` has it."""

    @property
    def dims(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def data_type(self) -> int:
        """Type of its elements."""

    @property
    def size(self) -> int:
        """Number of its elements."""


class Constants(Protocol):
    """The constants of a graph, as ``constants`` has them."""

    @property
    def graph(self) -> Graph:
        """The graph."""

    def get(self, name: str, /) -> Constant | None:
        """Return what is known of a constant, None if it is none."""

    def value(self, name: str, /) -> Array:
        """Return all elements of a constant."""

    def moved(self, name: str, /) -> Moved | None:
        """Return a reader of a constant's elements if a file has them."""

    def feed(self, index: int, slot: int, name: str, /) -> Array:
        """Return what a node is given for one of its inputs."""

    def run(
        self, index: int, feeds: Mapping[str, Array], dims: tuple[int, ...], /
    ) -> dict[str, Array]:
        """Return output name → values of a part of a node's outputs, of a shape."""


def evaluated(constants: Constants, name: str) -> Held | None:
    """Return a reader of a constant that nodes compute, None if they need it as a whole."""
    info = constants.get(name)
    if info is None or not info.dims or not info.size:
        return None
    dims, boxes, axis = info.dims, _Boxes(constants), leading_axis(info.dims)
    count = boxes.rows_at_once(name, dims, axis)
    if count is None:
        return None

    def read(first: int, count: int) -> Array:
        return boxes.read(name, _rows(dims, axis, first, count), {})

    return _Rows(read, dims, axis, count, element(info.data_type)[0])


def _rows(dims: tuple[int, ...], axis: int, first: int, count: int) -> Box:
    """Return the box of some rows of an axis."""
    stop = min(first + count, dims[axis])
    return (*all_of(dims[:axis]), (first, stop), *all_of(dims[axis + 1 :]))


class _Rows(Held):
    """An array of which some rows at a time are computed, as ``Stored``.

    Args:
        read: computes the rows from one on.
        dims: of the array.
        axis: along which rows lie; those before it have size 1.
        rows: how many are computed at once.
        dtype: of the elements.
    """

    def __init__(
        self,
        read: Callable[[int, int], Array],
        dims: tuple[int, ...],
        axis: int,
        rows: int,
        dtype: np.dtype[Any],
    ) -> None:
        super().__init__(dtype)
        self._read = read
        self._rows = rows
        self._inner = dims[axis + 1 :]
        self._row = math.prod(self._inner)

    def hold(self, start: int) -> tuple[int, Array]:
        """See ``Held``."""
        first = start // self._row // self._rows * self._rows
        return first * self._row, self._read(first, self._rows).reshape(-1, *self._inner)


class _Boxes:
    """Boxes of the constants of a graph.

    Args:
        constants: of the graph.
    """

    def __init__(self, constants: Constants) -> None:
        self._constants = constants
        self._graph = constants.graph
        self._in_file: dict[str, Moved | None] = {}
        self._whole: dict[str, Array] = {}
        self._nodes: dict[int, Node] = {}

    def rows_at_once(self, name: str, dims: tuple[int, ...], axis: int) -> int | None:
        """Return how many rows of a constant are computed at once, None if all of them are."""
        for least in (ALIGNED, 1) if dims[axis] > ALIGNED else (1,):
            # The first rows may be computed where others are not.
            first = least if dims[axis] > least else 0
            needed = self._needed(name, _rows(dims, axis, first, least))
            if needed is None or needed > _MOST:
                continue
            for held in (_HELD, 2 * _HELD):
                count = max(1, held // needed) * least
                if self._are_quick(name, _rows(dims, axis, 0, count)):
                    return count
        return None

    def _needed(self, name: str, box: Box) -> int | None:
        """Return how many bytes are in memory while a box is computed, None if it needs all."""
        seen = self._made_of(name, box)
        return None if seen is None else sum(_bytes(self._constants.get(n), b) for n, b in seen)

    def _are_quick(self, name: str, box: Box) -> bool:
        """Whether what is read from files for a box does not lie too far apart."""
        found = ((self._stored(n), b) for n, b in self._made_of(name, box) or ())
        return all(stored is None or stored.is_quick(b) for stored, b in found)

    def _made_of(self, name: str, box: Box) -> set[tuple[str, Box]] | None:
        """Return a box of a computed tensor and those that it is made of, None if it needs all."""
        seen, left = set[tuple[str, Box]](), [(name, box)]
        while left:
            name, box = left.pop()
            seen.add((name, box))
            if len(seen) > 1 and self._stored(name) is not None:
                continue
            needs = self._needs(name, box)
            if needs is None or len(seen) > _LONGEST:
                return None
            boxes = [(other, part) for other, part in needs if isinstance(part, tuple)]
            left += [each for each in boxes if each not in seen and not self._is_once(*each)]
        return seen

    def read(self, name: str, box: Box, made: dict[tuple[str, Box], Array]) -> Array:
        """Compute a box of a computed tensor.

        Args:
            name, box: of the tensor.
            made: boxes that are there already, to which those are added that are made for it.
        """
        index, needs = self._graph.producer[name], self._needs(name, box)
        assert needs is not None
        feeds = {other: self._input(other, part, made) for other, part in needs}
        for slot, other in enumerate(self._graph.reads[index]):
            if other and other not in feeds:
                feeds[other] = self._constants.feed(index, slot, other)
        result = self._constants.run(index, feeds, sizes_of(box))[name]
        made[name, box] = result
        return result

    def _input(self, name: str, part: Part, made: dict[tuple[str, Box], Array]) -> Array:
        if not isinstance(part, tuple):
            return part
        if (name, part) in made:
            return made[name, part]
        if self._is_once(name, part):
            if name not in self._whole:
                self._whole[name] = self._constants.value(name)
            return self._whole[name][tuple(slice(*ends) for ends in part)]
        stored = self._stored(name)
        if stored is None:
            return self.read(name, part, made)
        made[name, part] = stored.box(part)
        return made[name, part]

    def _is_once(self, name: str, box: Box) -> bool:
        """Whether a constant is computed once, as it is small, or needed as a whole anyway."""
        info = self._constants.get(name)
        if info is None or info.size <= _SMALL:
            return True
        return self._stored(name) is None and self._needs(name, box) is None

    def _stored(self, name: str) -> Moved | None:
        if name not in self._in_file:
            self._in_file[name] = self._constants.moved(name)
        return self._in_file[name]

    def _needs(self, name: str, box: Box) -> list[tuple[str, Part]] | None:
        """Return the inputs of what makes a tensor, and what each gives to a box of it."""
        graph, index = self._graph, self._graph.producer.get(name)
        rule = None if index is None else RULES.get(graph.ops[index] or "")
        if index is None or rule is None or graph.writes[index] != (name,):
            return None
        parts = rule(self._seen_by_rules(index, name), box)
        if parts is None:
            return None
        reads = graph.reads[index]
        found = [
            (other, part)
            for slot, (other, part) in enumerate(zip(reads, parts, strict=True))
            if other and (graph.ops[index], slot) not in DESCRIBED
        ]
        return found if _agree(found) else None

    def _seen_by_rules(self, index: int, name: str) -> Node:
        if index not in self._nodes:
            graph, constants = self._graph, self._constants
            reads, held = graph.reads[index], graph.attributes.get(index, {})
            self._nodes[index] = Node(
                _dims(constants.get(name)),
                [_dims(constants.get(other) if other else None) for other in reads],
                {key: value_of(item) for key, item in held.items()},
                graph.opset,
                lambda slot: constants.value(reads[slot]),
            )
        return self._nodes[index]


def _agree(needs: list[tuple[str, Part]]) -> bool:
    """Whether an input that a node reads twice gives the same both times."""
    boxes: dict[str, Part] = {}
    return all(np.array_equal(boxes.setdefault(name, part), part) for name, part in needs)


def _dims(info: Constant | None) -> tuple[int, ...]:
    return () if info is None else info.dims


def _bytes(info: Constant | None, box: Box) -> int:
    return 0 if info is None else math.prod(sizes_of(box)) * element(info.data_type)[0].itemsize
