"""Changes on top of those decided so far."""

from __future__ import annotations

from collections.abc import Mapping

from onnx_bnfold.operators import batchnorm
from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.planning.graph_state import GraphState, Key


class Totals:
    """Changes of keys from the original on, with further ones on top; each is composed once.

    A change that many tensors have in common stays one object, and is judged once.

    Args:
        state: the graph before the further changes.
        changes: of every key, relative to now.

    Attributes:
        changes: the same.
    """

    def __init__(self, state: GraphState, changes: Mapping[Key, Affine]) -> None:
        self.changes = changes
        self._state = state
        self._found: dict[Key, Affine | None] = {}
        self._composed: dict[tuple[int, int], Affine] = {}

    def of(self, key: Key) -> Affine | None:
        """Return the change of a key, None if it has none."""
        if key not in self._found:
            self._found[key] = self._find(key)
        return self._found[key]

    def _find(self, key: Key) -> Affine | None:
        before, more = self._state.total.get(key), self.changes.get(key)
        if before is None or more is None:
            return self._state.total_of(key, self.changes)
        both = id(before), id(more)  # of objects that are held by others
        found = self._composed.get(both)
        if found is None:
            found = self._composed[both] = before.then(more)
        return found


def commit(state: GraphState, changes: Mapping[Key, Affine], totals: Totals | None = None) -> None:
    """Make changes on top of those decided so far.

    Args:
        state: the graph.
        changes: of every key, relative to now.
        totals: with the same on top, if they have been looked at: those composed are used again.
    """
    for key, change in changes.items():
        before = state.total.get(key)
        after: Affine | None = change
        if before is not None:
            after = before.then(change) if totals is None else totals.of(key)
        if after is None or after.is_identity:
            state.total.pop(key, None)
        else:
            state.total[key] = after
    if state.groups.has_lost:
        groups = {state.groups.root(key): key for key in changes if isinstance(key, str)}
        for key in groups.values():
            state.groups.change(key, changes[key])


def complete(state: GraphState) -> None:
    """Write down what has become of the tensors that nobody sees any more."""
    for name, change in state.groups.all_lost():
        if change is None or change.is_identity:
            state.total.pop(name, None)
        else:
            state.total[name] = change


def require_totals(state: GraphState, origin: int | None, totals: Totals) -> None:
    """Refuse what a node takes as a further change, but not on top of those it has taken.

    Args:
        state: the graph before the changes.
        origin: a node to be removed, or None.
        totals: with the changes on top.
    """
    for key in totals.changes:
        for index in state.neighbours(key) if key in state.total else ():
            if index == origin or index in state.removed or not state.absorbs(index, key):
                continue
            total = totals.of(key)
            assert total is not None
            ports = (p for p in state.ports(index) if state.key(index, p) == key)
            state.step(index, dict.fromkeys(ports, total))


def shifts_norms(state: GraphState) -> bool:
    """Whether a BatchNormalization that stays reads a shift, or one that goes leaves one behind."""
    graph, removed = state.graph, state.removed
    for key, change in state.total.items():
        if not isinstance(key, str) or not change.has_shift:
            continue
        producer = graph.producer.get(key)
        is_left = producer in removed and graph.ops[producer or 0] == batchnorm.OPERATOR
        for index, _ in graph.readers.get(key, ()):
            if index not in removed and (is_left or graph.ops[index] == batchnorm.OPERATOR):
                return True
    return False
