"""Carry a change of a tensor to everything it reaches, until every branch absorbs it.

Nodes that leave no choice are settled first. Where a node leaves a choice (the shift of an Add's
output may come from any one operand) the alternatives are tried in turn, the last decision being
taken back first, within a limit on the work. They mostly differ in shifts alone: if the scales find
no place, whatever becomes of the shifts, the alternatives need not be tried. Nor need those be that
share the changes for which an outcome was refused. Of a search that may change few tensors, one of
the alternatives may end nearby, though others reach far; if none does, they go on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.operators.entries import Combines
from onnx_bnfold.operators.rules import MOST_BRANCHES, Step
from onnx_bnfold.options import Options
from onnx_bnfold.planning.branch import Branch
from onnx_bnfold.planning.carrying import Carrier, TooFar
from onnx_bnfold.planning.graph_state import GraphState, Key
from onnx_bnfold.reasons import Reason, Refusal, Refused

if TYPE_CHECKING:
    from onnx_bnfold.planning.dead_ends import DeadEnds

MOST_SETTLED_PER_NODE = 20  # nodes settled before a propagation is given up
MOST_SETTLED_NEARBY = 8  # for each tensor that may change, before a search goes on farther away

Judge = Callable[[dict[Key, Affine]], None]
Left = Callable[[int, Step], Step]


def propagate(
    state: GraphState, origin: int | None, seeds: Mapping[Key, Affine]
) -> dict[Key, Affine]:
    """Complete changes of some tensors, however many that are; see ``Search``.

    Args:
        state: the graph as it is by now; it is not changed.
        origin: index of a node to be removed, which is passed over, or None.
        seeds: the changes of its two sides, or of any tensors.
    """
    return Search(state, origin, seeds).run()


def look_for_dead_ends(state: GraphState, options: Options) -> None:
    """Look for dead ends if searches have taken longer in vain than that takes."""
    if options.clamps_everywhere or state.clamps:
        return  # there are none for good
    if 4 * state.in_vain > len(state.graph.nodes):
        from onnx_bnfold.planning.find_dead_ends import find_dead_ends  # few plans ask

        state.dead_ends, state.in_vain = find_dead_ends(state, state.dead_ends), 0


class _GivenUp(Refused):
    """The limit on the work is reached: nothing was proven."""


class Search(Carrier):
    """Completes changes of some tensors, such as those that turn a node into an identity.

    One that was to reach no farther can go on where it was cut.

    Args:
        state: the graph as it is by now; it is not changed.
        origin: index of a node to be removed, which is passed over, or None.
        seeds: the changes of its two sides, or of any tensors.
        judge: refuses an outcome, and the search goes on for another one.
        asked: gets the nodes whose rules were asked; as long as nothing changes at these, the
            outcome stays the same.
        met: gets the reasons of all refusals.
        left: returns what is left of the alternatives of a node.
        look: is called after each alternative that was refused; it may look for dead ends.
    """

    def __init__(
        self,
        state: GraphState,
        origin: int | None,
        seeds: Mapping[Key, Affine],
        judge: Judge | None = None,
        asked: set[int] | None = None,
        met: set[Reason] | None = None,
        left: Left | None = None,
        look: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(state, origin, set() if asked is None else asked)
        self._seeds = seeds
        self._judge = judge
        self._left = left
        self._look = look
        self.met = set[Reason]() if met is None else met
        self._answers: dict[tuple[int, ...], tuple[Mapping[int, Affine], Step | Refusal]] = {}
        self._begin(None)

    def _begin(self, dead_ends: DeadEnds | None) -> None:
        self.dead_ends = dead_ends
        self._is_begun = False
        self._stack: list[Branch] = []
        self._cut: list[Branch] = []  # branches that were left where they reached too far
        self._tried = 0
        self._first: tuple[tuple[int, ...], Refusal] | None = None  # with the path of its branch
        self._scales: Branch | None = None  # of the walk that looks whether these fit
        self._may_not_fit = False  # whether that is still to be looked at
        self.settled = 0
        self._in_vain = 0  # of these, those of branches that were refused
        self.scaled = 0  # nodes asked beside those, whether the scales fit
        self.known = 0  # of the settled, those whose answer was known

    def run(self, reach: int | None = None) -> dict[Key, Affine]:
        """Search, or go on where fewer tensors were allowed to change.

        Args:
            reach: how many tensors may change, but for one; None: any number.

        Returns:
            Every key that changes, with its change relative to now, but for tensors that nobody
            sees any more (``merged_tensors``).

        Raises:
            Refused: no way was found; the refusal is the first that was met, unless the search was
                given up.
            TooFar: more tensors would change before it is known whether there is a way.
        """
        state, nodes = self._state, len(self._state.graph.nodes)
        self.reach = reach
        self._is_near = reach is not None and reach < nodes
        self._most = MOST_SETTLED_PER_NODE * nodes + 1000
        if reach is not None and self._is_near:
            self._most = MOST_SETTLED_NEARBY * reach
        dead_ends = self._known_dead_ends()
        if not self._is_begun or dead_ends is not self.dead_ends:
            self._begin(dead_ends)
        settled, scaled, known, self._in_vain = self.settled, self.scaled, self.known, 0
        try:
            return self._run()
        except Refused as refused:
            self.met.add(refused.refusal.reason)
            self._note_in_vain(self.settled - settled)
            raise
        finally:
            known = self.known - known
            state.work.asked += self.settled - settled + self.scaled - scaled - known
            state.work.looked_at += known

    def _run(self) -> dict[Key, Affine]:
        if not self._is_begun:
            start = Branch()
            for key, change in self._seeds.items():
                self._assign(start, key, change)
            self._stack, self._is_begun = [start], True
        stack, is_cut = self._stack, False
        stack += reversed(self._cut)
        self._tried -= len(self._cut)
        self._cut = []
        self._require_scales_to_fit()
        while stack:
            branch = stack.pop()
            self._tried += 1
            if self._tried > MOST_BRANCHES or self.settled > self._most:
                raise self._given_up()
            before = self.settled
            try:
                further = self._settle(branch)
                if further is None:
                    return self._outcome(branch)
            except _GivenUp:
                raise
            except TooFar:
                if branch.cut is not None:
                    self._cut.append(branch)
                if not stack or self._scales_alone_reach(branch):
                    raise
                if not is_cut:
                    is_cut = True
                    self._scales_fit()  # if these reach too far, so does every branch
            except Refused as refused:
                self.met.add(refused.refusal.reason)
                self._note_in_vain(self._in_vain + self.settled - before)
                if refused.because:
                    because = [*map(self._root, refused.because)]
                    stack[:] = [each for each in stack if not each.shares(branch, because)]
                is_first = self._first is None
                if self._first is None or branch.path < self._first[0]:
                    self._first = branch.path, refused.refusal
                if is_first:
                    self._may_not_fit = bool(stack)
                    self._require_scales_to_fit()
                if stack and self._look is not None:
                    self._look()
                    self.dead_ends = self._known_dead_ends()
            else:
                stack.extend(reversed(further))
        if is_cut:
            raise TooFar
        assert self._first is not None  # a branch ends in an outcome, in others, or in a refusal
        raise Refused.again(self._first[1])

    def _note_in_vain(self, settled: int) -> None:
        """Note how many nodes were settled in vain by now."""
        self._state.in_vain += settled - self._in_vain
        self._in_vain = settled

    def _known_dead_ends(self) -> DeadEnds | None:
        state = self._state
        return None if self._origin is None or state.clamps else state.dead_ends

    def _require_scales_to_fit(self) -> None:
        """Refuse what the first branch was refused for, if the scales find no place in any."""
        if self._may_not_fit and self._first is not None:
            fit = self._scales_fit()
            self._may_not_fit = False
            if not fit:
                raise Refused.again(self._first[1])

    def _scales_alone_reach(self, branch: Branch) -> bool:
        """Whether as many tensors as were too many are scaled: then they are in every branch."""
        members, changes = self._state.groups.members, branch.changes.items()
        scaled = (key for key, change in changes if isinstance(key, str) and change.has_scale)
        return self.reach is not None and sum(len(members(key)) for key in scaled) > self.reach + 1

    def _scales_fit(self) -> bool:
        """Whether the scales may find a place: False only if every alternative is refused."""
        state, branch = self._state, self._scales or Branch()
        try:
            if self._scales is None:
                for key, change in self._seeds.items():
                    unshifted = change.with_shift(np.zeros((1,) * change.rank))
                    self._assign(branch, key, unshifted)
                self._scales = branch
            self._go_on(branch)
            for index, chosen in branch.nodes():
                self.scaled += 1
                self.asked.add(index)
                step = state.step(index, self._known(branch, index))
                if (step.certain or chosen) and len(step.alternatives) == 1:
                    self._take(branch, index, step.alternatives[0])
                elif not chosen and state.entries[index].combines is Combines.SUM:
                    branch.open[index] = None  # its choice is one of shifts; any other is left out
        except Refused as refused:
            self._scales = None
            self.met.add(refused.refusal.reason)
            return False
        return True

    def _outcome(self, branch: Branch) -> dict[Key, Affine]:
        """Return the changes of a branch that is complete, if they are not refused as a whole."""
        changes: dict[Key, Affine] = {}
        for key, change in branch.changes.items():
            merged = self._state.groups.seen(key) if isinstance(key, str) else (key,)
            changes.update(dict.fromkeys(merged, change))
        if self._judge is not None:
            self._state.work.looked_at += len(changes)
            self._judge(changes)
        return changes

    def _settle(self, branch: Branch) -> list[Branch] | None:
        """Settle what is forced, then make the next choice; None when nothing is left."""
        self._go_on(branch)
        ask = self._state.step if branch.decided is None else self._ask
        for index, chosen in branch.nodes():
            self.settled += 1
            if self.settled > self._most:
                raise self._given_up()
            self.asked.add(index)
            known = self._known(branch, index)
            step = ask(index, known, deciding=chosen)
            if self._left is not None and len(step.alternatives) > 1:
                step = self._left(index, step)
            if not step.certain and not chosen:
                branch.open[index] = None
            elif len(step.alternatives) == 1:
                self._take(branch, index, step.alternatives[0])
            elif not step.alternatives:
                raise Refused(
                    Reason.CONFLICT,
                    self._state.view(index).label,
                    "no change of its other tensors makes up for that of one",
                )
            else:
                assert chosen  # a rule with alternatives is not certain
                return branch.forks(index, step.alternatives)
        return None

    def _ask(self, index: int, known: Mapping[int, Affine], *, deciding: bool) -> Step:
        """Do what ``GraphState.step`` does, once for all branches that know the same of a node."""
        # The answer is kept with the changes, lest others get their ids.
        question = (index, deciding, *chain.from_iterable((p, id(c)) for p, c in known.items()))
        found = self._answers.get(question)
        if found is None:
            try:
                found = known, self._state.step(index, known, deciding=deciding)
            except Refused as refused:
                found = known, refused.refusal
            self._answers[question] = found
        else:
            self.known += 1
        answer = found[1]
        if isinstance(answer, Refusal):
            raise Refused.again(answer)
        return answer

    def _given_up(self) -> _GivenUp | TooFar:
        origin = self._origin
        if self._is_near:
            self._is_begun = False  # it is lost where the branch was
            return TooFar()
        return _GivenUp(
            Reason.SEARCH_LIMIT,
            "the graph" if origin is None else self._state.view(origin).label,
            "the search for a place for its scale and shift was given up after too many steps",
        )
