"""Carry the changes of a branch of a search on: from a node to tensors, and to their nodes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING

from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.operators.rules import Variant
from onnx_bnfold.planning.branch import Branch
from onnx_bnfold.planning.graph_state import GraphState, Key
from onnx_bnfold.reasons import Reason, Refused

if TYPE_CHECKING:
    from onnx_bnfold.planning.dead_ends import DeadEnds

_WIDE = 16  # ports of a node from which on it pays to ask which of them change


class TooFar(Exception):
    """More tensors change than may: nothing was proven."""


class Carrier:
    """Carries the changes of branches on.

    Args:
        state: the graph as it is by now; it is not changed.
        origin: index of a node to be removed, which is passed over, or None.
        asked: gets the nodes that an answer depends on.

    Attributes:
        reach: how many tensors may change, but for one; None: any number.
        dead_ends: tensors that take no change of some kind, if any are known.
    """

    def __init__(self, state: GraphState, origin: int | None, asked: set[int]) -> None:
        self._state = state
        self._origin = origin
        self.asked = asked
        self.reach: int | None = None
        self.dead_ends: DeadEnds | None = None

    def _known(self, branch: Branch, index: int) -> dict[int, Affine]:
        keys = self._state.keys(index)
        if len(keys) > max(_WIDE, len(branch.changes) + len(branch.held)):
            return self._known_of_wide(branch, index)
        decided = ((port, branch.of(self._root(key))) for port, key in keys.items())
        return {port: change for port, change in decided if change is not None}

    def _known_of_wide(self, branch: Branch, index: int) -> dict[int, Affine]:
        known, carried = {}, self._state.groups.carried(index, self._state.keys(index))
        ports = carried.ports
        for key, change in chain(branch.held.items(), branch.changes.items()):
            known.update(dict.fromkeys(ports.get(key, ()), change))
        return {port: known[port] for port in sorted(known, key=carried.place)}

    def _go_on(self, branch: Branch) -> None:
        """Carry out what was decided for a branch, or what is left of it where it was cut."""
        if branch.cut is not None:
            if self._is_beyond(branch.disturbed):
                raise TooFar
            cut, branch.cut = branch.cut, None
            self._spread(branch, *cut)
        if branch.decided is not None:
            self._take(branch, *branch.decided)

    def _take(self, branch: Branch, index: int, alternative: Mapping[int, Affine]) -> None:
        keys, changes = self._state.keys(index), alternative
        if isinstance(changes, Variant) and changes.still and len(keys) > _WIDE:
            self._hold(branch, index, changes)
            changes = changes.own
        for port, change in changes.items():
            key = keys.get(port) or self._state.key(index, port)
            # What is known of a wide Concat comes back with each of its steps.
            if key is not None and branch.of(self._root(key)) is not change:
                try:
                    self._assign(branch, key, change, settled=index)
                except TooFar:
                    branch.decided = index, alternative
                    raise

    def _hold(self, branch: Branch, index: int, changes: Variant) -> None:
        """Hold the ports of a node fixed that an alternative leaves as they are."""
        keys, still = self._state.keys(index), next(iter(changes.base.values()))
        held = dict.fromkeys(self._state.groups.carried(index, keys).ports, still)
        for port in changes.own.keys() & keys:
            held.pop(self._root(keys[port]), None)
        branch.held.update(held)

    def _assign(self, branch: Branch, key: Key, change: Affine, settled: int | None = None) -> None:
        groups = self._state.groups
        root = self._root(key)
        before = branch.of(root)
        if before is not None:
            if not before.agrees_with(change):
                raise Refused(
                    Reason.CONFLICT,
                    self._name(key),
                    "two of the nodes around it need it changed in different ways",
                )
            return
        if not change.is_finite:
            raise Refused(Reason.OVERFLOW, self._name(key), "its change would overflow")
        if change.is_identity:
            branch.held[root] = change
            return
        branch.changes[root] = change
        if isinstance(key, str):
            self.asked.update(groups.between(key))
            branch.disturbed += len(groups.members(key))
            if self._is_beyond(branch.disturbed):
                branch.cut = key, change, settled
                raise TooFar
        self._spread(branch, key, change, settled)

    def _spread(self, branch: Branch, key: Key, change: Affine, settled: int | None) -> None:
        if self.dead_ends is not None and isinstance(key, str):
            self.dead_ends.require_none(self._state.groups.seen(key), change, self.asked)
        branch.forced.put(self._state.around(key), self._origin, settled)

    def _is_beyond(self, count: int) -> bool:
        """Whether more tensors change than may."""
        return self.reach is not None and count > self.reach + 1

    def _root(self, key: Key) -> Key:
        """Return the key that stands for one and all that have become one with it."""
        return self._state.groups.root(key) if isinstance(key, str) else key

    def _name(self, key: Key) -> str:
        return repr(key if isinstance(key, str) else self._state.graph.reads[key[0]][key[1]])
