"""What the removal of a BatchNormalization asks of the tensors in front of it, whatever else goes.

With a ReLU behind it, its shift can go upstream alone, and through a Concat to every part of that.
Two BNs that ask for different shifts of one tensor cannot both go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from itertools import combinations

import numpy as np

from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.operators.entries import HandsOn
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.reasons import Reason, Refused


class Claims:
    """The shifts that removals ask for.

    Args:
        state: the graph, with nothing decided.
        clamps: ReLUs and the like that pass a shift all the same.
    """

    def __init__(self, state: GraphState, clamps: Set[int] = frozenset()) -> None:
        self._state = state
        self._clamps = clamps

    def clashes(self, indices: Sequence[int]) -> Iterator[frozenset[int]]:
        """Yield pairs of BNs that cannot both go."""
        claims = {index: claims for index in indices if (claims := self._claims(index))}
        for one, other in combinations(claims, 2):
            common = claims[one].keys() & claims[other].keys()
            if any(not claims[one][name].agrees_with(claims[other][name]) for name in common):
                yield frozenset((one, other))

    def _claims(self, index: int) -> dict[str, Affine]:
        """Return the shift that each tensor needs, in units of its scale, for a BN to go."""
        state = self._state
        x, y = state.sides(index)
        present = state.original_map(index)
        one = np.ones((1,) * present.rank)
        if not present.is_invertible or not self._is_cut_off(y, Affine.of(one, one)):
            return {}
        shift = Affine.of(one, present.shift / present.scale)
        found, left = {x: shift}, [x]
        while left:
            name = left.pop()
            for other, change in self._in_front(name, found[name]):
                if other not in found:
                    found[other] = change
                    left.append(other)
        return found

    def _is_cut_off(self, name: str, shift: Affine) -> bool:
        """Whether a reader of a tensor, which cuts off some elements, lets no shift pass."""
        state = self._state
        for reader, slot in state.graph.readers.get(name, ()):
            if state.entries[reader].rectifies and reader not in self._clamps:
                try:
                    state.step(reader, {slot: shift})
                except Refused as refused:
                    if refused.refusal.reason is Reason.NO_SHIFT:
                        return True
        return False

    def _in_front(self, name: str, change: Affine) -> Iterator[tuple[str, Affine]]:
        """Yield the tensors that a node hands on as this one, each with its part of a change."""
        state, index = self._state, self._state.graph.producer.get(name)
        if index is None or state.entries[index].hands_on is not HandsOn.ALL:
            return
        try:
            step = state.step(index, {~state.graph.writes[index].index(name): change})
        except Refused:
            return
        if step.certain and len(step.alternatives) == 1:
            for port, part in step.alternatives[0].items():
                key = state.key(index, port) if port >= 0 else None
                if isinstance(key, str):
                    yield key, part
