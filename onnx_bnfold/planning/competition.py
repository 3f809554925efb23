"""Which of the BatchNormalizations that compete go.

One that stays absorbs any change, one that is gone absorbs none: what one BN went by may be what
another stays for. The planner decides on one after the other. Where few compete, this module
searches all choices among them for one by which more go; where many do, it says how many more
could go at most.

A set of BNs that cannot all go is a *clash*: so is every larger set, as nothing absorbs more with
fewer BNs. Clashes are known from the plan (a BN that stays, and those gone that it was refused at),
from ``claims``, and from the search itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import NamedTuple

from onnx_bnfold.planning.claims import Claims
from onnx_bnfold.planning.graph_state import GraphState

# BNs that compete with one another, up to which all choices are searched.
MOST_COMPETING = 12
# Removals that are tried for one graph before its search is given up; and the steps of work after
# which it is, and so many more for each node: each trial may look at the whole graph.
MOST_TRIALS = 128
MOST_STEPS, MOST_STEPS_PER_NODE = 10_000, 3

# Tries to remove a BN. Returns the nodes that take what it does if it goes, else those that were
# asked.
Attempt = Callable[[GraphState, int], Set[int]]
Clash = frozenset[int]


class Plan(NamedTuple):
    """What a plan has decided on the BNs of a graph, in the order in which they were tried.

    Attributes:
        gone: those that go.
        asked: for each that stays and met some that go, the nodes that were asked when it was
            refused.
        rivals: of those that go, the ones that may be in the way of others.
        passed: ReLUs and the like that a shift may pass.
    """

    gone: Sequence[int]
    asked: Mapping[int, Set[int]]
    rivals: Set[int]
    passed: Set[int] = frozenset()


class Choice(NamedTuple):
    """Which BNs should go.

    Attributes:
        first: those to be removed before all others; empty if the plan is as good.
        most: how many can go at most, whatever the choice.
    """

    first: frozenset[int]
    most: int


class Chooser:
    """Searches for a choice by which more BNs go than by a plan.

    Args:
        state: the graph, with nothing decided.
        plan: what was decided one after the other.
        attempt: tries a removal.

    Attributes:
        trials: how many removals were tried.
    """

    def __init__(self, state: GraphState, plan: Plan, attempt: Attempt) -> None:
        self._state = state
        self._plan = plan
        self._claims = Claims(state, plan.passed)
        self._attempt = attempt
        self._last_step = state.work.steps + MOST_STEPS
        self._last_step += MOST_STEPS_PER_NODE * len(state.graph.nodes)
        self.trials = 0

    def choose(self) -> Choice:
        """Return the choice."""
        plan = self._plan
        links: list[Set[int]] = [{i, *(nodes & plan.rivals)} for i, nodes in plan.asked.items()]
        while True:
            components = _joined(links)
            searches = [self._search(members) for members in components]
            if any(search.is_due for search in searches) and not self.is_exhausted:
                apart = set(plan.gone).difference(*components)
                wider = self._run(searches, self._without(apart), links)
                if wider is not None:
                    links.append(wider)
                    continue
            first = frozenset[int]().union(*(search.best for search in searches))
            return Choice(first, len(plan.gone) + sum(search.gain for search in searches))

    def _run(
        self, searches: Iterable[_Search], state: GraphState, links: Sequence[Set[int]]
    ) -> Set[int] | None:
        """Run searches until one has to be wider, if that is not too wide; return among whom."""
        for search in searches:
            if search.is_due:
                search.run(state)
                members = {*search.order, *search.met}
                [wider] = (each for each in _joined([*links, members]) if members <= each)
                if search.met and len(wider) <= MOST_COMPETING:
                    return members
        return None

    def _search(self, members: Set[int]) -> _Search:
        plan = self._plan
        order = [i for i in (*plan.gone, *plan.asked) if i in members]
        clashes = {frozenset((i, *(plan.asked[i] & members))) for i in order if i in plan.asked}
        clashes.update(self._claims.clashes(order))
        return _Search(self, order, clashes, plan.rivals)

    def _without(self, indices: Set[int]) -> GraphState:
        state = self._state.copy()
        for index in self._plan.gone:
            if index in indices:
                self._attempt(state, index)
        return state

    @property
    def is_exhausted(self) -> bool:
        """Whether as much was tried as may be."""
        return self.trials >= MOST_TRIALS or self._state.work.steps > self._last_step

    def tried(self, state: GraphState, index: int) -> tuple[GraphState, Set[int]]:
        """Return a copy of a graph without a BN if that may go, and what ``Attempt`` returns."""
        self.trials += 1
        further = state.copy()
        return further, self._attempt(further, index)


class _Search:
    """Goes through the choices among BNs that compete with one another.

    Args:
        chooser: tries removals.
        order: the BNs; those that go by the plan come first.
        clashes: sets of them of which one must stay.
        rivals: all BNs that go by the plan and may be in the way of others.

    Attributes:
        best: a choice by which more go than by the plan, if one was found.
        met: further BNs that compete with these.
    """

    def __init__(
        self, chooser: Chooser, order: Sequence[int], clashes: set[Clash], rivals: Set[int]
    ) -> None:
        self._chooser = chooser
        self.order = order
        self._clashes = clashes
        self._beyond = rivals - {*order}
        self._today = self._least = sum(index in rivals for index in order)
        self._most = _most(order, clashes)
        self._is_done = self._most <= self._least
        self.best: tuple[int, ...] = ()
        self.met: set[int] = set()

    @property
    def is_due(self) -> bool:
        """Whether there may be something to find, and few enough BNs to search it."""
        return not self._is_done and len(self.order) <= MOST_COMPETING

    @property
    def gain(self) -> int:
        """How many more can go at most than by the plan."""
        return (self._least if self._is_done else self._most) - self._today

    def run(self, state: GraphState) -> None:
        """Search; of choices of the same number, the one is found that keeps to the order.

        Args:
            state: without the BNs that go and do not compete.
        """
        self._go_on(state, (), self.order)
        self._is_done = not self._chooser.is_exhausted and not self.met

    def _go_on(self, state: GraphState, gone: tuple[int, ...], left: Sequence[int]) -> None:
        if len(gone) > self._least:
            self._least, self.best = len(gone), gone
        for position, index in enumerate(left):
            if self._bound(gone, left[position:]) <= self._least:
                return
            rest = left[position + 1 :]
            if self._bound((*gone, index), rest) <= self._least:
                continue
            if self._chooser.is_exhausted:
                return
            further, met = self._chooser.tried(state, index)
            self.met |= met & self._beyond
            if index in further.removed:
                self._go_on(further, (*gone, index), rest)
            else:
                self._clashes.add(frozenset((index, *(i for i in gone if i in met))))

    def _bound(self, gone: tuple[int, ...], left: Sequence[int]) -> int:
        """Return how many can go at most if some have gone and others are left to be tried."""
        clashes = {clash.difference(gone) for clash in self._clashes}
        return 0 if frozenset() in clashes else len(gone) + _most(left, clashes)


def _joined(links: Iterable[Set[int]]) -> list[set[int]]:
    """Join sets that have something in common; single BNs are left out."""
    joined: dict[int, set[int]] = {}  # by identity; the one that has grown last comes last
    set_of: dict[int, set[int]] = {}
    for link in links:
        near = {id(set_of[index]): set_of[index] for index in link if index in set_of}
        whole = max(near.values(), key=len, default=set[int]())  # which takes in the smaller ones
        more = set(link).union(*(each for each in near.values() if each is not whole))
        whole |= more
        set_of.update(dict.fromkeys(more, whole))
        for each in near:
            del joined[each]
        joined[id(whole)] = whole
    return [each for each in joined.values() if len(each) > 1]


def _most(members: Iterable[int], clashes: Set[Clash]) -> int:
    """Return how many BNs can go at most: one of each group in which any two clash."""
    rivals: dict[int, set[int]] = {}
    for clash in clashes:
        if len(clash) == 2:
            for index in clash:
                rivals.setdefault(index, set()).update(clash - {index})
    groups: list[list[int]] = []
    number_of: dict[int, int] = {}  # of its group
    for index in members:
        if frozenset((index,)) in clashes:
            continue
        near = rivals.get(index, set())
        numbers = sorted({number_of[other] for other in near if other in number_of})
        fitting = (number for number in numbers if near.issuperset(groups[number]))
        number_of[index] = number = next(fitting, len(groups))
        if number == len(groups):
            groups.append([])
        groups[number].append(index)
    return len(groups)
