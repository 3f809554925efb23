"""Find the tensors that take no change, or none of a kind (``dead_ends``), by one walk for each.

It starts from those that are fixed, and goes over nodes that surely hand on what they get: behind a
Transpose something changes if and only if something changes in front. Where tensors are added up,
one is shifted only if another is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.operators.entries import OUT, Absorbing, Combines, HandsOn
from onnx_bnfold.operators.rules import Transparent
from onnx_bnfold.planning.dead_ends import DeadEnd, DeadEnds, Kind
from onnx_bnfold.planning.graph_state import GraphState, Key
from onnx_bnfold.reasons import Reason, Refusal, Refused

# What a node that rectifies is asked, of all its elements; and the reasons that hold for any other
# such change.
_ASKED = {
    Kind.SCALE: Affine(np.full(1, 2.0), np.zeros(1)),
    Kind.SHIFT: Affine(np.ones(1), np.ones(1)),
    Kind.NEGATIVE: Affine(-np.ones(1), np.zeros(1)),
}
_ALWAYS = frozenset((Reason.NO_SHIFT, Reason.OPAQUE, Reason.NEEDS_POSITIVE_SCALE))


def find_dead_ends(state: GraphState, before: DeadEnds | None) -> DeadEnds:
    """Return the dead ends of a graph.

    Args:
        state: the graph as it is by now.
        before: its dead ends when fewer nodes had gone, if they were looked for.
    """
    if before is not None and before.gone == len(state.removed):
        return before
    state.work.asked += len(state.graph.nodes)
    return _Walk(state).run(before)


class _Walk:
    """Walks over a graph as it is by now."""

    def __init__(self, state: GraphState) -> None:
        self._state = state
        self._carried: dict[int, frozenset[Key]] = {}
        self._near: dict[str, list[tuple[int, str]]] = {}  # for all kinds of change

    def run(self, before: DeadEnds | None) -> DeadEnds:
        """Return the dead ends; see ``find_dead_ends``."""
        begun = self._beginnings() if before is None else before.beginnings
        found = {kind: self._spread(kind, ends) for kind, ends in begun.items()}
        return DeadEnds(begun, found, len(self._state.removed))

    def _beginnings(self) -> dict[Kind, list[tuple[str, DeadEnd]]]:
        fixed = [*self._fixed()]
        found = {Kind.SCALE: [*fixed], Kind.SHIFT: [*fixed], Kind.NEGATIVE: []}
        for index, entry in enumerate(self._state.entries):
            for kind, change in _ASKED.items() if entry.rectifies else ():
                # Where slopes differ, what holds for all elements need not hold for some.
                if index not in self._state.removed and (kind is Kind.SHIFT or entry.bounds):
                    found[kind] += self._refused(index, change)
        found[Kind.SHIFT] += self._padded()  # told last, as it may be exported otherwise
        return found

    def _fixed(self) -> Iterator[tuple[str, DeadEnd]]:
        """Yield the tensors that take no change at all."""
        state = self._state
        for name in dict.fromkeys((*state.graph.readers, *state.graph.producer)):
            if state.constants.get(name) is None and not state.groups.is_lost(name):
                try:
                    state.neighbours(name)
                except Refused as refused:
                    yield name, DeadEnd(refused.refusal, ())

    def _padded(self) -> Iterator[tuple[str, DeadEnd]]:
        """Yield the tensors that a layer lets take no shift."""
        state = self._state
        for index, entry in enumerate(state.entries):
            if isinstance(entry, Absorbing) and index not in state.removed:
                layer = state.layer_or_none(index)
                if layer is not None and layer.shift_in is not None:
                    yield self._at(index, layer.data_slot, layer.shift_in)

    def _refused(self, index: int, change: Affine) -> Iterator[tuple[str, DeadEnd]]:
        """Yield the tensors of a node that it lets take no change of the kind of one."""
        for port in (0, OUT):
            try:
                self._state.step(index, {port: change})
            except Refused as refused:
                if refused.refusal.reason in _ALWAYS:
                    yield self._at(index, port, refused.refusal)

    def _at(self, index: int, port: int, refusal: Refusal) -> tuple[str, DeadEnd]:
        graph = self._state.graph
        name = graph.writes[index][0] if port == OUT else graph.reads[index][port]
        return name, DeadEnd(refusal, (index,))

    def _spread(self, kind: Kind, ends: Sequence[tuple[str, DeadEnd]]) -> dict[str, DeadEnd]:
        """Find all tensors a change of which surely changes one that takes none.

        Returns:
            Them, by name.
        """
        state, found = self._state, dict[str, DeadEnd]()
        for name, end in ends:
            root = state.groups.root(name)
            if root not in found:
                found[root] = end.by_way_of(state.groups.between(root))
        hands_on = self._hands_shift_on if kind is Kind.SHIFT else self._hands_scale_on
        todo, done, met = [*found], set[int](), Counter[int]()
        for root in todo:  # which grows
            if root not in self._near:
                self._near[root] = [*self._around(root)]
            for index, here in self._near[root]:
                met[index] += 1
                if index in done:
                    continue
                further: Iterable[tuple[str, DeadEnd]] = ()
                if hands_on(index, here):
                    done.add(index)
                    further = ((name, found[root]) for name in self._beside(index, here))
                elif kind is Kind.SHIFT:
                    further = self._last_of_sum(index, met[index], found)
                for name, end in further:
                    other = state.groups.root(name)
                    if other not in found:
                        found[other] = end.by_way_of(state.groups.between(other))
                        todo.append(other)
        return {name: end for root, end in found.items() for name in state.groups.seen(root)}

    def _beside(self, index: int, here: str) -> Iterator[str]:
        """Yield the other tensors of a node, but for those whose change may not matter."""
        for key in self._state.keys(index).values():
            if key != here and isinstance(key, str) and not self._may_be_empty(index, key):
                yield key

    def _last_of_sum(
        self, index: int, met: int, found: Mapping[str, DeadEnd]
    ) -> Iterator[tuple[str, DeadEnd]]:
        """Yield the tensor of a sum that takes no shift because all others take none.

        Args:
            index: a node.
            met: how many of its tensors take none.
            found: these, by the names that stand for them.
        """
        state, keys = self._state, [*self._state.keys(index).values()]
        if state.entries[index].combines is not Combines.SUM or met != len(keys) - 1:
            return
        names = [key for key in dict.fromkeys(keys) if isinstance(key, str)]
        left = [name for name in names if state.groups.root(name) not in found]
        if len(left) == 1 and len(names) == len(keys):  # else a tensor may be taken from itself
            ends = tuple(found[state.groups.root(name)] for name in names if name != left[0])
            yield left[0], DeadEnd(ends[0].refusal, (), ends)

    def _around(self, root: str) -> Iterator[tuple[int, str]]:
        """Yield the transparent nodes that stay around a group, each with its tensor there."""
        state, graph = self._state, self._state.graph
        for name in state.groups.seen(root):
            near = [index for index, _ in graph.readers.get(name, ())]
            if name in graph.producer:
                near.append(graph.producer[name])
            for index in dict.fromkeys(near):
                if index in state.removed or not isinstance(state.entries[index], Transparent):
                    continue
                try:
                    if name in self._carried_by(index):
                        yield index, name
                except Refused:
                    continue

    def _carried_by(self, index: int) -> frozenset[Key]:
        """Return what the data ports of a node carry."""
        found = self._carried.get(index)
        if found is None:
            found = self._carried[index] = frozenset(self._state.keys(index).values())
        return found

    def _hands_shift_on(self, index: int, after: str) -> bool:
        """Whether each shift of the other tensors of a node is, but for zeros, one of this."""
        entry, is_output = self._state.entries[index], after in self._state.graph.writes[index]
        assert isinstance(entry, Transparent)
        if entry.picks_maxima:
            return True
        if entry.hands_on is not HandsOn.ALL:
            return False
        if entry.symmetric:  # what becomes of the whole may be nothing for a part
            return is_output
        return not (entry.parted and is_output)

    def _hands_scale_on(self, index: int, after: str) -> bool:
        """Whether each scale of the other tensors of a node is one of this."""
        entry = self._state.entries[index]
        if entry.combines is Combines.SUM:  # with a constant it may be the node that goes
            return all(isinstance(key, str) for key in self._state.keys(index).values())
        if entry.rectifies and entry.bounds is not None:
            return True
        return self._hands_shift_on(index, after)

    def _may_be_empty(self, index: int, name: str) -> bool:
        """Whether a part of a whole may have no elements, so that its change does not matter."""
        entry = self._state.entries[index]
        assert isinstance(entry, Transparent)
        if entry.hands_on is not HandsOn.ALL or not (entry.symmetric or entry.parted):
            return False
        dims = self._state.shapes.dims(name)
        return dims is None or 0 in dims
