"""Planning: which nodes go, how every tensor is re-parametrised, and why the others stay.

Planning reads shapes and the parameters of BatchNormalizations; it touches no weight and changes
no model. A node is removed by making its two sides the same tensor: its input becomes
``x' = p * x + q`` and its output ``y' = r * y + u`` such that ``x' = y'``. The ways to choose
``p, q, r, u`` are tried from the cheapest; each is carried through the graph (``propagation``).

A BatchNormalization that stays absorbs any change, one that is gone absorbs none, so what can be
removed together depends on the order: those right behind their layer go first (they take nothing
from anybody), then those with the most elements, so that most work is saved; if one stays for
others that have gone, in an order by which more go, if there is one (``competition``).
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from functools import cached_property, partial
from typing import TYPE_CHECKING

from onnx_bnfold.operators import batchnorm
from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.options import Options
from onnx_bnfold.planning import outcomes
from onnx_bnfold.planning.candidates import candidates, in_order, require_removable, watched
from onnx_bnfold.planning.conditions import require_allowed
from onnx_bnfold.planning.direct import LONG_ROW, DirectFolds, Row, into_layer
from onnx_bnfold.planning.graph_state import GraphState, Key
from onnx_bnfold.planning.plan import Given, GraphPlan
from onnx_bnfold.planning.precision_limits import Limits
from onnx_bnfold.planning.record import Record
from onnx_bnfold.planning.totals import Totals, commit, complete, require_totals
from onnx_bnfold.planning.ways import Way
from onnx_bnfold.reasons import Reason, Refusal, Refused

if TYPE_CHECKING:
    from onnx_bnfold.planning.clamps import Clamps
    from onnx_bnfold.planning.fused_nodes import FusedNodes
    from onnx_bnfold.planning.long_rows import LongRows
    from onnx_bnfold.planning.shared_constants import SharedConstants

# Reasons that have to do with other nodes than the one that refuses.
_MAY_CHANGE = frozenset(
    (Reason.CAPTURED, Reason.CONFLICT, Reason.SEARCH_LIMIT, Reason.UNKNOWN_SHAPE)
)


def plan_graph(
    state: GraphState, limits: Limits, excluded: dict[int, Refusal], options: Options
) -> GraphPlan:
    """Return the plan of one graph; its state holds the changes.

    Args:
        state: the graph, with nothing decided.
        limits: what a re-parametrised tensor may become.
        excluded: nodes that must stay, with the reason.
        options: what the user asked for.
    """
    start = state.copy()
    planner, open_choices = _Planner(state, limits, excluded, options), 0
    planner.run()
    if planner.competing:
        planner, open_choices = planner.better(start)
    complete(planner.state)
    records = dict(sorted(planner.records.items()))
    plan = GraphPlan(planner.state, limits, records, planner.given)
    plan.doubtful, plan.unsure = planner.doubtful | excluded, planner.unsure
    plan.open_choices, plan.kept_affine = open_choices, dict(sorted(planner.kept_affine.items()))
    plan.forms, plan.left = options.forms, state.work.left(records | plan.kept_affine)
    return plan


class _Planner:
    def __init__(
        self, state: GraphState, limits: Limits, excluded: dict[int, Refusal], options: Options
    ) -> None:
        self.state = state
        self.limits = limits
        self.excluded = excluded
        self.options = options
        self.records: dict[int, Record] = {}
        self.kept_affine: dict[int, Record] = {}
        self.given: dict[int, list[Given]] = {}
        self.doubtful: dict[int, Refusal] = {}
        self.unsure: set[int] = set()
        self.clamps: Clamps | None = None
        self._bns: list[int] = []  # that may go, in the order in which they are tried
        self._direct: set[int] = set()  # those that went into a layer, and were in nobody's way
        self._layers: DirectFolds
        self._long_rows: LongRows | None = None
        self._added = 0  # new Add nodes
        # For each node that stayed when it was tried: when that was, counted in removals, and the
        # nodes that were asked. For each node: at which removal something last changed there.
        self._tried: dict[int, tuple[int, set[int]]] = {}
        self._moved: dict[int, int] = {}

    def run(self, order: Sequence[int] | None = None) -> None:
        """Decide on all nodes; in a given order on those BatchNormalizations that may go."""
        bns, affine, unknown = candidates(self.state)
        self.unsure.update(unknown)
        self.state.read_bns([i for i in bns if i not in self.excluded])
        usable = [i for i in bns if self._may_be_tried(i)]
        direct, others = in_order(self.state, usable)
        self.state.read_maps(direct)
        self._layers = DirectFolds(self.state, self.limits, direct, self.options)
        self._bns = [*direct, *others] if order is None else [*order]
        affine = [i for i in affine if i not in self.fused.members]
        free = [i for i in affine if self._may_be_tried(i)]
        if len(free) >= LONG_ROW:
            from onnx_bnfold.planning.long_rows import LongRows  # few plain folds have any

            self._long_rows = LongRows(self.state, self.limits, self.shared, affine, free)
        queue = [*self._bns, *free]
        self._decide_all(queue)
        self._decide_with_clamps(queue)

    @property
    def gone(self) -> list[int]:
        """The BatchNormalizations that go, in the order in which they are tried."""
        return [i for i in self._bns if i in self.state.removed]

    @property
    def competing(self) -> dict[int, Set[int]]:
        """Those that stay and met others that go, each with the nodes that were asked."""
        stay = [(i, self._tried[i][1]) for i in self._bns if i in self._tried]
        rivals = {*self.gone} - self._direct if stay else set()
        return {i: asked for i, asked in stay if not asked.isdisjoint(rivals)}

    def better(self, start: GraphState) -> tuple[_Planner, int]:
        """Return who decides best on a graph with nothing decided, and how many more may go."""
        from onnx_bnfold.planning.competition import Chooser, Plan  # few plain folds ask

        passed = frozenset[int]() if self.clamps is None else self.clamps.movable
        plan = Plan(self.gone, self.competing, {*self.gone} - self._direct, passed)
        first, most = Chooser(start, plan, self._attempt).choose()
        best, other = self, self._again(start)
        if first:
            other.run(sorted(self._bns, key=lambda i: i not in self._direct | first))
            best = max(self, other, key=lambda planner: len(planner.gone))
        return best, max(most - len(best.gone), 0)

    def _attempt(self, state: GraphState, index: int) -> Set[int]:
        trial = self._again(state)
        trial._added = 1  # at most; so no way is taken before all others were tried
        trial._decide(index)
        return trial.given.keys() if index in state.removed else trial._tried[index][1]

    def _again(self, state: GraphState) -> _Planner:
        other = _Planner(state, self.limits, self.excluded, self.options)
        other._layers = self._layers.on(state)
        return other

    def _decide_all(self, queue: Sequence[int]) -> None:
        while queue:
            put_off = [index for index in watched(queue) if not self._decide(index, at_once=False)]
            for index in reversed(put_off):  # none has to go as far as the one in front
                self._decide(index)
            queue = [i for i in queue if i in self._tried and self._has_moved(i)]

    def _decide_with_clamps(self, queue: Sequence[int]) -> None:
        """Try the nodes that stay again where a clamp written with constants lets more pass."""
        state, everywhere = self.state, self.options.clamps_everywhere
        if not everywhere and not any(kind.picks_maxima for kind in {*state.entries}):
            return  # no pool that a clamp could go behind
        asked = set[int]().union(*(asked for _, asked in self._tried.values()))
        if not any(state.entries[index].bounds for index in asked):
            return
        from onnx_bnfold.planning.clamps import Clamps  # few plain folds ask

        self.clamps = Clamps(state, queue, everywhere=everywhere)
        gained, before = True, dict[int, tuple[int, frozenset[int] | None]]()
        while gained:
            gone = len(state.removed)
            for index in queue:
                if index in self._tried:
                    state.clamps = self.clamps.near(index, self._tried[index][1])
                    when, clamps = before.get(index, (0, None))
                    if state.clamps and (state.clamps != clamps or self._has_moved(index, when)):
                        before[index] = len(state.removed), state.clamps
                        self._decide_again(index)
            state.clamps = self.clamps.written
            self._decide_all([i for i in queue if i in self._tried and self._has_moved(i)])
            gained = len(state.removed) > gone

    def _decide_again(self, index: int) -> None:
        """Decide on a node that stays; if it still does, for the same reason."""
        before = self.records.get(index), self.doubtful.get(index), self._tried[index]
        self._decide(index)
        if index in self._tried:
            record, doubt, (when, asked) = before
            self._tried[index] = when, asked | self._tried[index][1]
            self.doubtful.pop(index, None)
            if doubt is not None:
                self.doubtful[index] = doubt
            if record is not None:
                self.records[index] = record

    @cached_property
    def shared(self) -> SharedConstants:
        """What copies of constants would add."""
        from onnx_bnfold.planning.shared_constants import SharedConstants  # few plain folds ask

        return SharedConstants(self.state)

    @cached_property
    def fused(self) -> FusedNodes:
        """What onnxruntime runs as one operator."""
        from onnx_bnfold.planning.fused_nodes import FusedNodes

        return FusedNodes(self.state)

    def _has_moved(self, index: int, when: int | None = None) -> bool:
        """Whether something changed where a node was refused, since so many removals or since then.

        It is tried again then; else a second fold would find more to do.
        """
        since, asked = self._tried[index]
        return any(self._moved.get(other, 0) > (when or since) for other in asked)

    def _may_be_tried(self, index: int) -> bool:
        """Whether nothing forbids to remove a node; what does is recorded."""
        try:
            require_removable(self.state, index, self.limits, self.excluded, self.options)
        except Refused as refused:
            self._keep(index, refused.refusal)
            return False
        return True

    def _keep(
        self, index: int, refusal: Refusal, tried: Sequence[tuple[str, Refusal]] = ()
    ) -> None:
        is_bn = self.state.graph.ops[index] == batchnorm.OPERATOR
        record = Record(self.state.place(index), is_bn, refusal=refusal, tried=tuple(tried))
        (self.records if is_bn else self.kept_affine)[index] = record

    def _decide(self, index: int, *, at_once: bool = True) -> bool:
        """Try all ways to remove a node, commit the least disturbing; False if it is put off."""
        state = self.state
        is_bn = state.graph.ops[index] == batchnorm.OPERATOR
        self.doubtful.pop(index, None)
        self.unsure.discard(index)
        if self._go_at_once(index):
            return True
        if state.work.is_spent:
            self._tried[index] = len(state.removed), set()
            self._keep(index, state.work.refusal(state.view(index).label))
            return True
        from onnx_bnfold.planning import alternatives, propagation  # many plans ask for none
        from onnx_bnfold.planning.cheapest import Cheapest

        search = Cheapest(
            state,
            index,
            partial(self._judge, index),
            partial(alternatives.left, state, self.limits, index),
            partial(self._cost, index),
            self._is_least if is_bn else None,
            partial(propagation.look_for_dead_ends, state, self.options),
            by_count=is_bn and not self._added and self.clamps is None,
        )
        best = search.run(may_put_off=not at_once)
        if search.is_put_off:
            return False
        if best is not None:
            broken, added, *_ = best.cost
            if broken:
                self.unsure.update(self.fused.members)  # some are no members any more
            takers = outcomes.absorbing(state, index, best.changes)
            self._commit(index, best.way, best.changes, added, takers, best.totals)
            return True
        tried, met = search.tried, search.met
        if search.doubt is not None:
            self.doubtful[index] = search.doubt
        self._tried[index] = len(state.removed), search.asked
        met.update(refusal.reason for _, refusal in tried)
        if not met.isdisjoint(_MAY_CHANGE):
            self.unsure.add(index)
        self._keep(index, outcomes.why(tried), tried)
        return True

    def _cost(
        self, index: int, way: Way, changes: dict[Key, Affine], totals: Totals
    ) -> tuple[int, ...]:
        """Return what an outcome costs: broken groups, new Adds, what clamps read, its tensors."""
        clamped = self.clamps.cost(index, changes) if self.clamps is not None else (0, 0)
        tensors = outcomes.cost_of_tensors(self.state, index, way, totals)
        constants = [key for key in changes if isinstance(key, tuple)]
        broken = self.fused.broken_by(constants) if constants else 0
        return broken, outcomes.count_added(self.state, changes), *clamped, *tensors

    def _is_least(self, cost: tuple[int, ...]) -> bool:
        """Whether no way still to be tried costs less: each makes a new tensor, or loses an Add."""
        return not self._added and self.clamps is None and cost[:-1] <= (0, 0, 0, 0, 0, 1)

    def _go_at_once(self, index: int) -> bool:
        """Remove a node, and those in a row with it, if that takes no search."""
        state, rows = self.state, list[Row]()
        if index in state.removed:
            return True  # along with another
        if state.graph.ops[index] != batchnorm.OPERATOR:
            rows = self._long_rows.taken(index) if self._long_rows is not None else rows
        elif taken := self._layers.taken(index):
            self._direct.update(taken)
            rows.append(into_layer(state, taken))
        for changes, takers in rows:
            for each, of_each in takers.items():
                self._commit(each, Way.UPSTREAM, changes, 0, of_each)
                changes = {}
        return index in state.removed

    def _judge(self, index: int, asked: set[int], changes: dict[Key, Affine]) -> Totals:
        """Refuse an outcome that costs precision, or more than it saves; else return its totals."""
        state = self.state
        totals = Totals(state, changes)
        self.limits.check(state, index, totals)
        require_totals(state, index, totals)
        if self.clamps is not None:
            self.clamps.require_cheap(index, changes)
        outcomes.require_one_name(state, index)
        require_allowed(self.options, state, index, changes, asked, lambda: self.shared)
        if not state.is_bn(index):
            self.fused.require_whole(changes)
            self.shared.require_cheap(index, changes, asked)
            self.shared.require_stored(index, changes)
        outcomes.require_smaller(state, index, changes)
        return totals

    def _commit(
        self,
        origin: int,
        way: Way,
        changes: dict[Key, Affine],
        added: int,
        takers: Sequence[tuple[int, Given]],
        totals: Totals | None = None,
    ) -> None:
        """Make changes and note which nodes' constants take the scale and the shift."""
        state = self.state
        for index, given in takers:
            self.given.setdefault(index, []).append(given)
        clamps = () if self.clamps is None else self.clamps.new(changes)
        spent = None if self.clamps is None else self.clamps.spent(origin, changes)
        commit(state, changes, totals)
        state.remove(origin)
        self._added += added
        if self._tried:
            self._tried.pop(origin, None)
            self.kept_affine.pop(origin, None)
            near = (index for key in changes for index in state.neighbours(key))
            self._moved.update(dict.fromkeys((origin, *near), len(state.removed)))
        self.records[origin] = outcomes.gone(state, origin, way, takers, added, clamps, spent)
