"""Carry a change of a tensor to everything it reaches, until every branch absorbs it.

Nodes that leave no choice are settled first. Where a node leaves a choice (the shift of an Add's
output may come from any one operand) the alternatives are tried in turn, the last decision being
taken back first, within a limit on the work. They mostly differ in shifts alone: if the scales find
no place, whatever becomes of the shifts, the alternatives need not be tried. Nor need those be that
share the changes for which an outcome was refused. Of a search that may change few tensors, one of
the alternatives may end nearby, though others reach far.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain

import numpy as np

from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.operators.entries import Combines
from onnx_bnfold.operators.rules import MOST_BRANCHES, Step, Variant
from onnx_bnfold.planning.branch import Branch
from onnx_bnfold.planning.graph_state import GraphState, Key
from onnx_bnfold.reasons import Reason, Refusal, Refused

MOST_SETTLED_PER_NODE = 20  # nodes settled before a propagation is given up
MOST_SETTLED_NEARBY = 8  # for each tensor that may change, before a search goes on farther away
_WIDE = 16  # ports of a node from which on it pays to ask which of them change


Judge = Callable[[dict[Key, Affine]], None]
Left = Callable[[int, Step], Step]


def propagate(
    state: GraphState,
    origin: int | None,
    seeds: Mapping[Key, Affine],
    judge: Judge | None = None,
    asked: set[int] | None = None,
    met: set[Reason] | None = None,
    reach: int | None = None,
    left: Left | None = None,
) -> dict[Key, Affine]:
    """Complete changes of some tensors, such as those that turn a node into an identity.

    Args:
        state: the graph as it is by now; it is not changed.
        origin: index of a node to be removed, which is passed over, or None.
        seeds: the changes of its two sides, or of any tensors.
        judge: refuses an outcome, and the search goes on for another one.
        asked: gets the nodes whose rules were asked; as long as nothing changes at these, the
            outcome stays the same.
        met: gets the reasons of all refusals.
        reach: how many tensors may change, but for one; None: any number.
        left: returns what is left of the alternatives of a node.

    Returns:
        Every key that changes, with its change relative to now, but for tensors that nobody sees
        any more (``merged_tensors``).

    Raises:
        Refused: no way was found; the refusal is the first that was met, unless the search was
            given up.
        TooFar: more tensors would change before it is known whether there is a way.
    """
    search = _Search(state, origin, judge, set() if asked is None else asked, reach, left)
    try:
        return search.run(seeds)
    except Refused as refused:
        search.met.add(refused.refusal.reason)
        search.in_vain = search.settled
        raise
    finally:
        state.in_vain += search.in_vain
        state.work.asked += search.settled + search.scaled - search.known
        state.work.looked_at += search.known
        if met is not None:
            met |= search.met


def look_for_dead_ends(state: GraphState) -> None:
    """Look for dead ends if searches have taken longer in vain than that takes."""
    if 4 * state.in_vain > len(state.graph.nodes) and not state.clamps:
        from onnx_bnfold.planning.find_dead_ends import find_dead_ends  # few plans ask

        state.dead_ends, state.in_vain = find_dead_ends(state, state.dead_ends), 0


class TooFar(Exception):
    """More tensors change than may: nothing was proven."""


class _GivenUp(Refused):
    """The limit on the work is reached: nothing was proven."""


class _Search:
    def __init__(
        self,
        state: GraphState,
        origin: int | None,
        judge: Judge | None,
        asked: set[int],
        reach: int | None = None,
        left: Left | None = None,
    ) -> None:
        self._reach = reach
        self._left = left
        self._is_near = reach is not None and reach < len(state.graph.nodes)
        self._is_cut = False  # whether a branch was left where it reached too far
        self._state = state
        self._origin = origin
        self._judge = judge
        self.asked = asked
        self.settled = 0
        self.in_vain = 0  # of these, those of branches that were refused
        self.scaled = 0  # nodes asked beside those, whether the scales fit
        self.known = 0  # of the settled, those whose answer was known
        self._dead_ends = None if origin is None or state.clamps else state.dead_ends
        self.met: set[Reason] = set()
        self._most = MOST_SETTLED_PER_NODE * len(state.graph.nodes) + 1000
        if reach is not None and self._is_near:
            self._most = MOST_SETTLED_NEARBY * reach
        self._answers: dict[tuple[int, ...], tuple[Mapping[int, Affine], Step | Refusal]] = {}

    def run(self, seeds: Mapping[Key, Affine]) -> dict[Key, Affine]:
        start = Branch()
        for key, change in seeds.items():
            self._assign(start, key, change)
        first: Refusal | None = None
        stack, tried = [start], 0
        while stack:
            branch = stack.pop()
            tried += 1
            if tried > MOST_BRANCHES or self.settled > self._most:
                raise self._given_up()
            before = self.settled
            try:
                further = self._settle(branch)
                if further is None:
                    return self._outcome(branch)
            except _GivenUp:
                raise
            except TooFar:
                if not stack or self._scales_alone_reach(branch):
                    raise
                if not self._is_cut:
                    self._is_cut = True
                    self._scales_fit(seeds)  # if these reach too far, so does every branch
            except Refused as refused:
                self.met.add(refused.refusal.reason)
                self.in_vain += self.settled - before
                if refused.because:
                    because = [*map(self._root, refused.because)]
                    stack = [each for each in stack if not each.shares(branch, because)]
                if first is None:
                    first = refused.refusal
                    if stack and not self._scales_fit(seeds):
                        raise Refused.again(first) from None
            else:
                stack.extend(reversed(further))
        if self._is_cut:
            raise TooFar
        assert first is not None  # a branch ends in an outcome, in others, or in a refusal
        raise Refused.again(first)

    def _scales_alone_reach(self, branch: Branch) -> bool:
        """Whether as many tensors as were too many are scaled: then they are in every branch."""
        members, changes = self._state.groups.members, branch.changes.items()
        scaled = (key for key, change in changes if isinstance(key, str) and change.has_scale)
        return (
            self._reach is not None and sum(len(members(key)) for key in scaled) > self._reach + 1
        )

    def _scales_fit(self, seeds: Mapping[Key, Affine]) -> bool:
        """Whether the scales may find a place: False only if every alternative is refused."""
        branch, state = Branch(), self._state
        try:
            for key, change in seeds.items():
                self._assign(branch, key, change.with_shift(np.zeros((1,) * change.rank)))
            for index, chosen in branch.nodes():
                self.scaled += 1
                self.asked.add(index)
                step = state.step(index, self._known(branch, index))
                if (step.certain or chosen) and len(step.alternatives) == 1:
                    self._take(branch, index, step.alternatives[0])
                elif not chosen and state.entries[index].combines is Combines.SUM:
                    branch.open[index] = None  # its choice is one of shifts; any other is left out
        except Refused as refused:
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
        if branch.decided is not None:
            self._take(branch, *branch.decided)
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
                return [branch.fork(index, alternative) for alternative in step.alternatives]
        return None

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

    def _take(self, branch: Branch, index: int, changes: Mapping[int, Affine]) -> None:
        keys = self._state.keys(index)
        if isinstance(changes, Variant) and changes.still and len(keys) > _WIDE:
            self._hold(branch, index, changes)
            changes = changes.own
        for port, change in changes.items():
            key = keys.get(port) or self._state.key(index, port)
            # What is known of a wide Concat comes back with each of its steps.
            if key is not None and branch.of(self._root(key)) is not change:
                self._assign(branch, key, change, settled=index)

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
            if self._reach is not None and branch.disturbed > self._reach + 1:
                raise TooFar
            if self._dead_ends is not None:
                self._dead_ends.require_none(groups.seen(key), change, self.asked)
        branch.forced.put(self._state.around(key), self._origin, settled)

    def _root(self, key: Key) -> Key:
        """Return the key that stands for one and all that have become one with it."""
        return self._state.groups.root(key) if isinstance(key, str) else key

    def _name(self, key: Key) -> str:
        return repr(key if isinstance(key, str) else self._state.graph.reads[key[0]][key[1]])

    def _given_up(self) -> _GivenUp | TooFar:
        origin = self._origin
        if self._is_near:
            return TooFar()
        return _GivenUp(
            Reason.SEARCH_LIMIT,
            "the graph" if origin is None else self._state.view(origin).label,
            "the search for a place for its scale and shift was given up after too many steps",
        )
