"""Tensors that hold, when a node has been removed, values that the original model has.

A removal makes the tensors on both sides of a node one. Where one of them is as it was, the other
holds its values, and so do tensors that are copies of it but for a movement: what a Conv writes, if
a Transpose stands between it and a BatchNormalization that goes, are the values of the
BatchNormalization's output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import chain, filterfalse
from typing import NamedTuple

from onnx_bnfold.model.determinism import DESCRIBED
from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.operators.entries import HandsOn
from onnx_bnfold.operators.rules import Transparent
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.planning.totals import Totals
from onnx_bnfold.reasons import Reason, Refused


class _Link(NamedTuple):
    """A node that hands values on."""

    how: HandsOn
    before: tuple[str, ...]
    after: tuple[str, ...]


class Copies:
    """The copies of a tensor that is as it was, when a node has been removed.

    Attributes:
        original: that tensor; None if both sides of the node get new values.
        merged: the tensors that have become one with it, if somebody sees it.
        how: of all copies, ``merged`` among them: what was handed on, at the least, from the copy
            to the original or from the original to the copy.

    Args:
        state: the graph before the changes.
        origin: the node to be removed.
        totals: with the changes on top.
    """

    def __init__(self, state: GraphState, origin: int, totals: Totals) -> None:
        self._state = state
        self._origin = origin
        self._changes = totals.changes
        self._links: dict[int, _Link | None] = {}
        front, behind = (state.groups.seen(side) for side in state.sides(origin))
        self._front = front
        both = self._both = (*front, *behind)
        # One that does not change now needs no composing.
        unchanged = chain(
            filterfalse(self._changes.__contains__, both), filter(self._changes.__contains__, both)
        )
        self._unchanged = _first_unchanged((name, totals.of(name)) for name in unchanged)
        self.merged = frozenset[str]() if self._unchanged is None else frozenset(both)

    @cached_property
    def original(self) -> str | None:
        """See the class; one that nobody sees any more is looked for if no other is as it was."""
        if self._unchanged is not None:
            return self._unchanged
        lost = map(self._lost, self._state.sides(self._origin))
        return _first_unchanged(chain.from_iterable(lost))

    def _lost(self, side: str) -> Iterator[tuple[str, Affine | None]]:
        """Return the tensors on a side that nobody sees, none if none of them is as it was."""
        groups = self._state.groups
        if not groups.may_be_unchanged(side, self._changes.get(groups.seen(side)[0])):
            return iter(())
        return self._state.lost(side, self._changes)

    @property
    def how(self) -> Mapping[str, HandsOn]:
        """See the class; they are looked for when they are asked for, as most are not."""
        return self._found[0]

    @cached_property
    def _found(self) -> tuple[dict[str, HandsOn], list[str]]:
        """The copies, and those that the tensor in front of the node is made of, with itself."""
        merged = () if self.original is None else self._both
        how, in_front = dict.fromkeys(merged, HandsOn.ALL), [*self._front]
        if how:
            self._go_back(how, in_front)
            self._go_on(how)
        return how, in_front

    def holds(self, name: str) -> bool:
        """Whether all values of a tensor that somebody sees are those of the original."""
        how = self.how.get(name)
        if how is HandsOn.SOME:  # what reads the others, too, is judged by its own output
            return all(self._link(index) is not None for index in self._readers(name))
        return how is HandsOn.ALL

    def require_no_new_range(self, names: Iterable[str]) -> None:
        """Refuse changes that give a tensor values of its own, or a node other data.

        Args:
            names: of the tensors that change.

        Raises:
            Refused: they do.
        """
        new = next((name for name in names if name not in self.how), None)
        if new is not None:
            raise Refused(
                Reason.RANGE,
                repr(new),
                "it would get ranges that no tensor had; --profile float folds it all the same",
            )
        other = self._other_reader()
        if other is not None:
            raise Refused(
                Reason.RANGE,
                self._state.view(other).label,
                "it reads what stands in front and would get ranges other than those it had; "
                "--profile float folds it all the same",
            )

    def _other_reader(self) -> int | None:
        """Return a node that reads what stands in front of the node, not for it; None if none."""
        _, in_front = self._found
        front = set(in_front)
        for name in in_front:
            for index in self._readers(name):
                link = self._link(index)
                if link is None or not front.issuperset(link.after):
                    return index
        return None

    def _go_back(self, how: dict[str, HandsOn], in_front: list[str]) -> None:
        """Find the tensors that the copies so far are made of."""
        for name in in_front:  # which grows
            index = self._state.graph.producer.get(name)
            link = None if index is None or index == self._origin else self._link(index)
            for source in () if link is None else link.before:
                if link is not None and source in self._changes and source not in how:
                    merged = self._state.groups.seen(source)
                    how.update(dict.fromkeys(merged, max(link.how, how[name])))
                    in_front += merged

    def _go_on(self, how: dict[str, HandsOn]) -> None:
        """Find the tensors that are made of copies whose values are all known."""
        known = [name for name, handed in how.items() if handed is HandsOn.ALL]
        for name in known:  # which grows
            for index in self._readers(name):
                link = self._link(index)
                for result in () if link is None else link.after:
                    if result in self._changes and result not in how:
                        merged = self._state.groups.seen(result)
                        how.update(dict.fromkeys(merged, HandsOn.ALL))
                        known += merged

    def _readers(self, name: str) -> Iterator[int]:
        """Yield the nodes that read the values of a tensor when the one to be removed has gone."""
        graph, gone = self._state.graph, self._state.removed
        for index, slot in graph.readers.get(name, ()):
            if index == self._origin or index in gone or (graph.ops[index], slot) in DESCRIBED:
                continue
            yield index

    def _link(self, index: int) -> _Link | None:
        """Return what a node hands on, None if it makes values of its own."""
        if index not in self._links:  # a Concat is asked for each of its inputs
            self._links[index] = self._find_link(index)
        return self._links[index]

    def _find_link(self, index: int) -> _Link | None:
        state = self._state
        entry = state.entries[index]
        if index in state.removed or not isinstance(entry, Transparent) or entry.hands_on is None:
            return None
        view = state.view(index)
        before, after = state.graph.reads[index], state.graph.writes[index]
        return _Link(
            entry.hands_on,
            tuple(before[slot] for slot in entry.data_slots(view)),
            tuple(after[slot] for slot in entry.data_outputs(view)),
        )


def _first_unchanged(present: Iterable[tuple[str, Affine | None]]) -> str | None:
    return next((name for name, total in present if not total or total.is_identity), None)
