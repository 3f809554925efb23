"""Clamps that may be written with constants, so that any change passes them.

A Relu or Clip passes no shift. As a Max or Min with one constant per channel it passes any change
(``operators.clamps``). That costs a node that reads and writes its data, so it is asked for by
``Options.bn_free``; unasked it is done only where the clamp can go behind a pool of maxima, to far
fewer elements than the node has that goes by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from onnx_bnfold.arrays import dtype_of
from onnx_bnfold.model.node_view import accepts
from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.operators.clamps import (
    FIRST_FOR_NARROW,
    FIRST_OPSET,
    OPERATORS,
    Bounds,
    Constant,
    constants,
)
from onnx_bnfold.operators.entries import OUT
from onnx_bnfold.planning.candidates import elements
from onnx_bnfold.planning.graph_nodes import MALFORMED
from onnx_bnfold.planning.graph_state import GraphState, Key
from onnx_bnfold.planning.record import FormCost
from onnx_bnfold.reasons import Reason, Refused

# How many elements per example a clamp behind its pool has to read less than the node that goes by
# it. onnxruntime keeps a BatchNormalization in the blocked layout of the Convs around it and leaves
# that for a Max: chains of two blocks lose up to a tenth of their speed where tensors are small,
# and gain from about this number on (``tools.bench_forms``).
LEAST_SAVED = 2**15


class Cost(NamedTuple):
    """What clamps with constants cost.

    Attributes:
        elements: that they read, per example.
        nodes: their number.
    """

    elements: int
    nodes: int


class Clamps:
    """The clamps of a graph that may be written with constants.

    Args:
        state: the graph.
        nodes: those that may be removed.
        everywhere: whether they may be where no pool follows.
    """

    def __init__(self, state: GraphState, nodes: Iterable[int], *, everywhere: bool) -> None:
        self._state = state
        self._everywhere = everywhere
        self._between: dict[int, Set[int]] = {}
        may_go = frozenset(nodes)
        for index, entry in enumerate(state.entries):
            if entry.bounds is None:
                continue
            if not _is_movable(state, index):
                continue
            pool, between = _way_to_pool(state, index, may_go, None)
            if everywhere or pool is not None:
                self._between[index] = between

    def near(self, index: int, asked: Set[int]) -> frozenset[int]:
        """Return those that a change may pass when a node is removed.

        Args:
            index: the node.
            asked: the nodes that were asked when it was tried without.
        """
        gone = self._state.removed | {index}
        open_ = {c for c, between in self._between.items() if self._everywhere or between <= gone}
        met = asked & open_
        return self._in_a_row(met, open_) | self.written if met else frozenset()

    def _in_a_row(self, some: Set[int], open_: Set[int]) -> frozenset[int]:
        """Return some clamps and those that read one another, such as a Max behind a Min."""
        graph, found, new = self._state.graph, set[int](), [*some]
        while new:
            index = new.pop()
            if index not in found:
                found.add(index)
                near = {reader for reader, _ in graph.readers.get(graph.writes[index][0], ())}
                near |= {graph.producer.get(name, -1) for name in graph.reads[index]}
                new.extend(near & open_)
        return frozenset(found)

    @property
    def movable(self) -> Set[int]:
        """All of them."""
        return self._between.keys()

    @property
    def written(self) -> frozenset[int]:
        """Those that are written with constants by now."""
        return frozenset(index for index in self._between if written(self._state, index))

    def cost(self, origin: int, changes: Mapping[Key, Affine]) -> Cost:
        """Return what further changes make of clamps that had no constants before.

        Args:
            origin: the node that they remove.
            changes: of every key, relative to now.
        """
        state, total = self._state, Cost(0, 0)
        for index, more in self._more(changes):
            pool = pool_behind(state, index, origin, changes)
            read = more * elements(state, index if pool is None else pool)
            total = Cost(total.elements + read, total.nodes + more)
        return total

    def spent(self, origin: int, changes: Mapping[Key, Affine]) -> FormCost | None:
        """Return the same with the bytes of the constants; None if it is nothing."""
        cost = self.cost(origin, changes)
        if not cost.nodes:
            return None
        more = sum(self._bytes(index, changes) for index, _ in self._more(changes))
        return FormCost(cost.nodes, cost.elements, more)

    def _bytes(self, index: int, changes: Mapping[Key, Affine]) -> int:
        """Return the bytes of further constants that changes give a clamp."""
        state, bounds = self._state, bounds_of(self._state, index)
        own = max(np.size(bounds.low), np.size(bounds.high)) if bounds.own else 0
        before = sum(each.values.size for each in written(state, index)) or own
        more = sum(each.values.size for each in written(state, index, changes)) - before
        data = state.view(index).name_in(bounds.data)
        return more * dtype_of(state.type_of(data)).itemsize

    def new(self, changes: Mapping[Key, Affine]) -> tuple[int, ...]:
        """Return the clamps that get constants by further changes and had none."""
        state = self._state
        return tuple(index for index, _ in self._more(changes) if not written(state, index))

    def _more(self, changes: Mapping[Key, Affine]) -> Iterator[tuple[int, int]]:
        """Yield the clamps that get more constants by further changes, and how many more."""
        state = self._state
        for index in self._touched(changes):
            own = int(bounds_of(state, index).own)  # as many nodes as it is already
            now, before = written(state, index, changes), written(state, index)
            more = max(len(now), own) - max(len(before), own)
            if more:
                yield index, more

    def _touched(self, changes: Mapping[Key, Affine]) -> list[int]:
        """Return the clamps that changes meet and that may get constants by them."""
        state = self._state
        near = {i for key in changes if isinstance(key, str) for i in state.neighbours(key)}
        return sorted(near & state.clamps)

    def require_cheap(self, origin: int, changes: Mapping[Key, Affine]) -> None:
        """Refuse clamps that may cost more than the node that goes by them, unless asked for.

        They may if they stay in front of their pool, or read hardly less than the node.

        Args:
            origin, changes: see ``cost``.
        """
        state = self._state
        if self._everywhere or not state.clamps:
            return
        in_front = any(
            written(state, index, changes) and pool_behind(state, index, origin, changes) is None
            for index in self._touched(changes)
        )
        cost = self.cost(origin, changes)
        saved = elements(state, origin) - cost.elements
        if in_front or saved < LEAST_SAVED * cost.nodes:
            raise Refused(
                Reason.NOT_SMALLER,
                state.view(origin).label,
                "the Max and Min that would hold its shift cost more than it does; --bn-free "
                "takes them all the same",
            )


def written(
    state: GraphState, index: int, changes: Mapping[Key, Affine] | None = None
) -> tuple[Constant, ...]:
    """Return what a clamp is to be written with; nothing if it stays what it is.

    Args:
        state: the graph.
        index: the clamp.
        changes: on top of those decided so far.
    """
    totals = {port: state.total_of(key, changes or {}) for port, key in state.keys(index).items()}
    found = next((each for each in totals.values() if each is not None), None)
    if found is None:
        return ()
    return constants(bounds_of(state, index), totals[OUT] or Affine.identity(found.rank))


def bounds_of(state: GraphState, index: int) -> Bounds:
    """Return the original bounds of a clamp.

    Raises:
        Refused: see the functions of ``operators.clamps`` that read them.
    """
    bounds = state.entries[index].bounds
    assert bounds is not None
    return bounds(state.view(index))


def pool_behind(
    state: GraphState,
    index: int,
    origin: int | None = None,
    changes: Mapping[Key, Affine] | None = None,
) -> int | None:
    """Return the pool of maxima that alone reads what a clamp writes, if there is one.

    Args:
        state: the graph.
        index: the clamp.
        origin: a node to be removed.
        changes: on top of those decided so far.
    """
    gone = state.removed if origin is None else state.removed | {origin}
    return _way_to_pool(state, index, gone, _total(state, index, changes))[0]


def _total(state: GraphState, index: int, changes: Mapping[Key, Affine] | None) -> Affine | None:
    key = state.key(index, OUT)
    return None if key is None else state.total_of(key, changes or {})


def _way_to_pool(
    state: GraphState, index: int, may_go: Set[int], change: Affine | None
) -> tuple[int | None, frozenset[int]]:
    """Return the pool that a clamp may go behind, and the nodes that have to go before.

    Args:
        state: the graph.
        index: the clamp.
        may_go: the nodes that may lie between.
        change: of the clamp's output; None if that is as it was.
    """
    graph, between, name = state.graph, set[int](), state.graph.writes[index][0]
    while graph.only_reader(name) and name in graph.readers:
        [(reader, slot)] = graph.readers[name]
        if state.entries[reader].picks_maxima and slot == 0:
            passes = _passes(state, reader, bounds_of(state, index), change)
            return (reader if passes else None), frozenset(between)
        if reader not in may_go:
            break
        between.add(reader)
        name = graph.writes[reader][0]
    return None, frozenset(between)


def _passes(state: GraphState, pool: int, bounds: Bounds, change: Affine | None) -> bool:
    """Whether a clamp passes a pool: not where indices, or padding, or a picture may be seen.

    The sign of a scale is none of the pool's business: it picks maxima of what is there now.
    """
    try:
        rank = len(state.view(pool).dims_in(0))
        asked = [Affine.identity(rank) if change is None else change.map(np.abs)]
        for bound in (bounds.low, bounds.high):
            if np.ndim(bound):
                asked.append(Affine.of(np.ones((1,) * rank), np.nan_to_num(bound)))
        for each in asked:
            state.step(pool, {0: each})
    except Refused:
        return False
    return True


def _is_movable(state: GraphState, index: int) -> bool:
    view, entry = state.view(index), state.entries[index]
    if view.opset < FIRST_OPSET:
        return False
    try:
        view.require_version(entry.version)
        data = bounds_of(state, index).data
    except (Refused, *MALFORMED):
        return False
    kind = state.type_of(view.name_in(data))
    if kind not in (TensorProto.FLOAT, TensorProto.DOUBLE) and view.opset < FIRST_FOR_NARROW:
        return False
    return all(accepts(operator, view.opset, kind) for operator in OPERATORS)
