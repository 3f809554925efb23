"""The way to remove a node that disturbs least.

A change may reach far one way and end at once another way. So all ways are followed a little at
first: whoever reaches farther costs more than an outcome that is near and costs nothing else. And
of BatchNormalizations in a row one takes the other without a look at what is beyond.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.operators.rules import Step
from onnx_bnfold.planning import outcomes, propagation
from onnx_bnfold.planning.carrying import TooFar
from onnx_bnfold.planning.graph_state import GraphState, Key
from onnx_bnfold.planning.totals import Totals
from onnx_bnfold.planning.ways import Way
from onnx_bnfold.reasons import Reason, Refusal, Refused

_NEAR = 8  # tensors that a way may disturb at first; and how many times as many the next time


class Outcome(NamedTuple):
    """A way to remove a node.

    Attributes:
        cost: of it; the tensors that it disturbs and the number of the way come last.
        way: how it is called.
        changes: of every key, relative to now.
        totals: with these on top.
    """

    cost: tuple[int, ...]
    way: Way
    changes: dict[Key, Affine]
    totals: Totals


class Cheapest:
    """Looks for the cheapest outcome.

    Args:
        state: the graph.
        index: the node.
        judge: refuses an outcome or returns its totals; adds to the nodes that were asked.
        left: returns what is left of the alternatives of a node if an outcome has been refused.
        cost: of an outcome.
        least: whether no outcome costs less than a cost; None: the first outcome is taken.
        prepare: is called before the ways are followed a little, or farther, and after each
            alternative that was refused.
        by_count: whether no cost but the number of tensors may be less than nothing.

    Attributes:
        asked: the nodes whose rules were asked.
        met: the reasons of all refusals.
        is_put_off: whether ``run`` has left the ways that reach far to a later time.
    """

    def __init__(
        self,
        state: GraphState,
        index: int,
        judge: Callable[[set[int], dict[Key, Affine]], Totals],
        left: propagation.Left,
        cost: Callable[[Way, dict[Key, Affine], Totals], tuple[int, ...]],
        least: Callable[[tuple[int, ...]], bool] | None,
        prepare: Callable[[], None],
        *,
        by_count: bool,
    ) -> None:
        self._state = state
        self._index = index
        self._judge = judge
        self._left = left
        self._cost = cost
        self._least = least
        self._prepare = prepare
        self._by_count = by_count
        self.asked = {index}
        self.met: set[Reason] = set()
        self._refused: dict[int, tuple[str, Refusal]] = {}
        self._doubts: dict[int, Refusal] = {}
        self._searches: dict[int, propagation.Search] = {}
        self._totals: dict[int, Totals] = {}  # of the outcomes that were not refused
        self._failed_next_door = self.is_put_off = False

    def run(self, *, may_put_off: bool = False) -> Outcome | None:
        """Return the outcome, None if every way is refused.

        Args:
            may_put_off: whether a BatchNormalization of a row that the one next door does not take
                may wait for those behind it, which may not have to go as far as it would.
        """
        left: Iterable[tuple[int, tuple[Way, dict[Key, Affine]]]]
        left = enumerate(outcomes.ways(self._state, self._index))
        reach, best = _NEAR if self._by_count else None, None
        try:
            while left:
                farther = []
                self._prepare()
                for number, (way, seeds) in left:
                    try:
                        found = self._follow(number, way, seeds, reach)
                    except TooFar:
                        farther.append((number, (way, seeds)))
                        continue
                    if found is None:
                        continue
                    if best is None or found.cost < best.cost:
                        best = found
                    if self._is_least(found.cost):
                        return best
                if best is not None and self._is_near(best, reach):
                    return best
                if may_put_off and best is None and farther and self._failed_next_door:
                    self.is_put_off = True
                    return None
                left, reach = farther, None if reach is None else _NEAR * reach
        except Refused as refused:
            self._refused[-1] = "", refused.refusal
        finally:
            self._searches.clear()  # they refer to this object
        return best

    @property
    def tried(self) -> list[tuple[str, Refusal]]:
        """Why each way was refused, in order."""
        return [self._refused[number] for number in sorted(self._refused)]

    @property
    def doubt(self) -> Refusal | None:
        """Why the outcome of the first way that had one was not allowed, if any had."""
        return self._doubts[min(self._doubts)] if self._doubts else None

    def _follow(
        self, number: int, way: Way, seeds: dict[Key, Affine], reach: int | None
    ) -> Outcome | None:
        """Carry one way through the graph; None if it is refused."""
        search = self._searches.get(number)
        if search is None or number in self._doubts:  # by which fewer alternatives are left
            search = self._searches[number] = self._search(number, seeds)
        try:
            changes = search.run(reach)
        except Refused as refused:
            self._refused[number] = way, refused.refusal
            return None
        totals = self._totals[number]
        return Outcome((*self._cost(way, changes, totals), number), way, changes, totals)

    def _search(self, number: int, seeds: dict[Key, Affine]) -> propagation.Search:
        def judge(changes: dict[Key, Affine]) -> None:
            try:
                self._totals[number] = self._judge(self.asked, changes)
            except Refused as refused:
                self._doubts.setdefault(number, refused.refusal)
                self._failed_next_door |= self._is_next_door(changes)
                raise

        def left(node: int, step: Step) -> Step:
            return self._left(node, step) if number in self._doubts else step

        return propagation.Search(
            self._state,
            self._index,
            seeds,
            judge,
            self.asked,
            self.met,
            left,
            self._prepare,
        )

    def _is_least(self, cost: tuple[int, ...]) -> bool:
        return self._least is None or not any(cost[:-1]) or self._least(cost)

    def _is_near(self, outcome: Outcome, reach: int | None) -> bool:
        """Whether what reaches farther costs more, or is not worth looking for."""
        *others, count, _ = outcome.cost
        if reach is None or count > reach:
            return False
        return not any(others) or self._is_next_door(outcome.changes)

    def _is_next_door(self, changes: Mapping[Key, Affine]) -> bool:
        """Whether a BatchNormalization alone takes it: two in a row become one."""
        takers = {index for index, _ in outcomes.absorbing(self._state, self._index, changes)}
        return len(takers) == 1 and all(map(self._state.is_bn, takers))
