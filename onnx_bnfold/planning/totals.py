"""Changes on top of those decided so far."""

from __future__ import annotations

from collections.abc import Mapping

from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.planning.graph_state import GraphState, Key


def commit(state: GraphState, changes: Mapping[Key, Affine]) -> None:
    """Make changes on top of those decided so far."""
    for key, change in changes.items():
        before = state.total.get(key)
        after = change if before is None else before.then(change)
        if after.is_identity:
            state.total.pop(key, None)
        else:
            state.total[key] = after


def require_totals(state: GraphState, origin: int | None, changes: Mapping[Key, Affine]) -> None:
    """Refuse what a node takes as a further change, but not on top of those it has taken.

    Args:
        state: the graph before the changes.
        origin: a node to be removed, or None.
        changes: of every key, relative to now.
    """
    for key, change in changes.items():
        before = state.total.get(key)
        if before is None:
            continue
        total = before.then(change)
        for index in state.neighbours(key):
            if index == origin or index in state.removed or not state.absorbs(index, key):
                continue
            ports = (p for p in state.ports(index) if state.key(index, p) == key)
            state.step(index, dict.fromkeys(ports, total))
