"""One fold of one model: plan, compute, and plan again without what did not fit its type."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto

from onnx_bnfold.arrays import Array
from onnx_bnfold.model.constants import Constants, OpenTensor
from onnx_bnfold.model.graph import Graph, ReadTensor, graphs_of
from onnx_bnfold.model.shape_inference import Inference, Shapes
from onnx_bnfold.model.source import Source, rounded
from onnx_bnfold.model.validate import require_sound
from onnx_bnfold.options import Options, Standalone
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.planning.kept import UnmatchedPatterns, unmatched
from onnx_bnfold.planning.plan import GraphPlan, Place, Restated
from onnx_bnfold.planning.planner import plan_graph
from onnx_bnfold.planning.precision_limits import Limits
from onnx_bnfold.planning.record import Record
from onnx_bnfold.reasons import Refusal
from onnx_bnfold.rewriting.graph_editor import Pending, freeze_constants, rewrite
from onnx_bnfold.rewriting.new_constants import Unrepresentable, Whole, exact, require_representable
from onnx_bnfold.rounds import Rounds
from onnx_bnfold.storage.tensors import clear_place

if TYPE_CHECKING:
    from onnx_bnfold.planning.value_ranges import Ranges


class Pipeline(Rounds):
    """The planning of one model, and what was learnt from failed attempts.

    Args:
        model: the model; it is never changed. Its tensors may lack their bytes.
        read: reads the elements of an initializer.
        options: what the user asked for.
        ranges: of the tensors of the main graph, if they were measured.
        open_tensor: tells where the elements of an initializer lie, if any may lie in a file.

    Attributes:
        original: the model, its nodes in order.
        unmatched: patterns of the options that match nothing.
        model: the same with its branches merged, and with what else was put in a node's place; the
            result of the earlier rounds, if there are any.
    """

    def __init__(
        self,
        model: ModelProto,
        read: ReadTensor,
        options: Options,
        ranges: Ranges | None = None,
        open_tensor: OpenTensor | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.options = options
        self.merges = 0
        self._source = Source(read, open_tensor)
        self._excluded: dict[tuple[int, int], Refusal] = {}
        self._ranges = ranges
        self._unequal: set[tuple[int, str]] = set()
        self._restated: dict[Place, Restated] = {}
        self._unread: set[str] = set()
        self._index()
        if not require_sound(self._graphs):
            from onnx_bnfold.model.node_order import in_order

            self.model = in_order(model, self._graphs)
            self._index()
        self.unmatched = unmatched(self._graphs, options)
        self.original = self.model
        self.nodes_before = sum(len(graph.nodes) for graph in self._graphs)
        if options.merge_branches:
            self._merge()

    def _index(self) -> None:
        self._graphs = graphs_of(self.model, freeze_initializers=self.options.freeze_initializers)
        self._inference = Inference(self.model, self._graphs[0], self._source.read_rounded)
        if self.origins is not None:
            self.origins.label(self._graphs)

    def _copy(self) -> ModelProto:
        copy = ModelProto()
        copy.CopyFrom(self.model)
        if self.options.freeze_initializers:
            freeze_constants(copy, self._graphs[0])
        return copy

    def _merge(self) -> None:
        """Go on with a copy of the model in which parallel branches are one Conv."""
        from onnx_bnfold.rewriting import branch_merging
        from onnx_bnfold.rewriting.parallel_branches import merges

        state = self._state(0, {})
        found = [one for one in merges(state) if branch_merging.fits(state, one)]
        if not found:
            return
        copy = self._copy()
        self._source = self._source.with_computed(
            branch_merging.apply(copy, self._graphs, state, found)
        )
        self.merges += len(found)
        self.merged += tuple(
            Record.of_merged(state.place(bn), state.place(m.conv)) for m in found for bn in m.bns
        )
        self.model = copy
        self._index()

    def _state(self, position: int, known: dict[int, GraphState]) -> GraphState:
        graph = self._graphs[position]
        outer = None if graph.parent is None else known[id(graph.parent)]
        shapes = Shapes(graph, self._inference, position, None if outer is None else outer.shapes)
        constants = Constants(
            graph,
            self._source.read,
            shapes,
            None if outer is None else outer.constants,
            self._source.open,
        )
        state = GraphState(graph, constants, shapes, self.options)
        known[id(graph)] = state
        return state

    def plan(self) -> Sequence[GraphPlan]:
        """Plan every graph of the model, leaving out what turned out not to be representable."""
        if self.unmatched and self.options.must_match:
            raise UnmatchedPatterns(self.unmatched)
        with np.errstate(all="ignore"):  # what is no finite number is refused, not warned of
            while True:
                self._plan_once()
                try:
                    self._settle()
                except Unrepresentable as failed:
                    self.exclude(failed.failures)
                else:
                    return self.plans

    def _plan_once(self) -> None:
        self._plan_graphs()
        while self._restate():
            self._plan_graphs()
        for position, plan in enumerate(self.plans):
            plan.restated = {n: was for (p, n), was in self._restated.items() if p == position}
            if self.options.equalize:
                self._equalize(position, plan)

    def _settle(self) -> None:
        """See that another fold of the result finds nothing.

        What it would find is done in another round, or left for good.
        """
        if not self.alters or not self._may_be_judged_otherwise:
            return
        from onnx_bnfold.planning import settle

        gained = True
        while True:
            copy, pending, ranges = self._result()
            source = self._source.with_computed({n: new.compute for n, new in pending.items()})
            again = Pipeline(copy, source.read, self.options, ranges, source.open)
            again._plan_once()
            found = [*settle.removed(self.plans, again.plans)]
            if gained and (again.merges or settle.finds_places(self.plans, found)):
                gained = self._go_on(copy, pending, ranges)
            elif not settle.leave(self.plans, again.plans, found, again._restated):
                return

    @property
    def _may_be_judged_otherwise(self) -> bool:
        options = self.options
        if options.equalize or options.merge_branches or options.forms:
            return True
        return any(plan.is_open for plan in self.plans)

    def _result(self) -> tuple[ModelProto, dict[str, Pending], Ranges | None]:
        """Return the present plan's result, its constants that lack values, and measured ranges."""
        copy = ModelProto()
        copy.CopyFrom(self.model)
        pending = self.apply(copy)
        for tensor, _, _ in pending.values():
            clear_place(tensor)
        if self._ranges is None:
            return copy, pending, None
        from onnx_bnfold.planning.value_ranges import of_result

        return copy, pending, of_result(self._ranges, self.plans[0].state)

    def _go_on(
        self, result: ModelProto, pending: Mapping[str, Pending], ranges: Ranges | None
    ) -> bool:
        """Plan the result of the present plan, its constants not rounded yet.

        Args:
            result, pending, ranges: see ``_result``.

        Returns:
            Whether more goes.
        """
        self.verify()
        self.model = result
        values = {name: partial(_exact, new) for name, new in pending.items()}
        self._source = self._source.with_computed(values)
        from onnx_bnfold.planning.settle import Origins

        self.origins = self.origins or Origins()
        self.origins.follow(self.plans)
        self._ranges = ranges
        self.earlier.append(self.plans)
        self._excluded, self._unequal, self._restated, self._unread = {}, set(), {}, set()
        self._index()
        merges = self.merges
        if self.options.merge_branches:
            self._merge()
        self._plan_once()
        return self.merges > merges or any(plan.state.removed for plan in self.plans)

    @property
    def _limits(self) -> Limits:
        return Limits(self.options.max_rescale, self.options.profile)

    def _plan_graphs(self) -> None:
        known: dict[int, GraphState] = {}
        self.plans = [self._plan_graph(position, known) for position in range(len(self._graphs))]

    def _plan_graph(self, position: int, known: dict[int, GraphState]) -> GraphPlan:
        excluded = {n: r for (p, n), r in self._excluded.items() if p == position}
        state = self._state(position, known)
        return plan_graph(state, self._limits, excluded, self.options)

    def _restate(self) -> bool:
        """Go on with a copy of the model in which nodes that stay have another form, if any do."""
        return any(self._restate_as(form) for form in self.options.forms)

    def _restate_as(self, form: Standalone) -> bool:
        from onnx_bnfold.rewriting import standalone

        found = []
        for position, plan in enumerate(self.plans):
            excluded = {n for p, n in self._excluded if p == position}
            found.append(standalone.to_restate(plan, form, self._limits, excluded))
        if not any(found):
            return False
        copy = self._copy()
        copied = standalone.apply(copy, self.plans, found, form)
        moved = copied.moved
        self._unread |= copied.unread
        self._excluded = {(p, moved[p, n]): r for (p, n), r in self._excluded.items()}
        earlier = {(p, moved[p, n]): was for (p, n), was in self._restated.items()}
        self._restated = copied.restated | earlier
        self.model = copy
        self._index()
        return True

    def _equalize(self, position: int, plan: GraphPlan) -> None:
        from onnx_bnfold.planning.equalize import equalize
        from onnx_bnfold.planning.value_ranges import from_statistics

        if self._ranges is None:
            ranges: Ranges = from_statistics(plan.state)
        else:
            ranges = self._ranges if position == 0 else {}
        excluded = frozenset(root for p, root in self._unequal if p == position)
        equalize(plan, ranges, self._limits, excluded)

    def exclude(self, failures: Mapping[tuple[int, int], Refusal]) -> None:
        """Keep, from the next plan on, the nodes that caused constants which do not fit.

        Args:
            failures: of one attempt: (position of the graph, index of the node whose constant
                fails) → why.

        Raises:
            RuntimeError: they would be met again, without end.
        """
        excluded, unequal = set(self._excluded), set(self._unequal)
        for (position, index), refusal in failures.items():
            plan = self.plans[position]
            if index in plan.equalized:  # what is not needed goes first
                self._unequal.update((position, root) for root in plan.equalized[index])
                continue
            cause = position, [*plan.touched.get(index, [index])][-1]
            self._excluded[cause] = refusal
        if (excluded, unequal) == (set(self._excluded), self._unequal):
            culprits = {refusal.culprit for refusal in failures.values()}
            raise RuntimeError(f"{min(culprits)} fails whatever is left out")

    def verify(self) -> None:
        """Compute every new constant and forget it.

        Raises:
            Unrepresentable: some do not fit their type; all of them are named.
        """
        require_representable(self.plans)

    def planned(self) -> Sequence[GraphPlan]:
        """Plan until every new constant fits its type."""
        while True:
            self.plan()
            try:
                self.verify()
            except Unrepresentable as failed:
                self.exclude(failed.failures)
            else:
                return self.plans

    def apply(self, copy: ModelProto) -> dict[str, Pending]:
        """Rewrite a copy of the model by the present plan; see ``graph_editor.rewrite``."""
        freeze, unread = self.options.freeze_initializers, self._unread
        pending = rewrite(copy, self.plans, freeze=freeze, unread=unread)
        if self._source.computed:
            pending.update(self._computed(copy, pending.keys()))
        return pending

    def _computed(self, copy: ModelProto, known: Set[str]) -> Iterator[tuple[str, Pending]]:
        """Yield what merges and earlier rounds have made and the plan does not change."""
        for tensor in copy.graph.initializer:
            compute = self._source.computed.get(tensor.name)
            if compute is not None and tensor.name not in known:
                whole = Whole(partial(rounded, compute, tensor.data_type))
                yield tensor.name, Pending(tensor, math.prod(tensor.dims), whole)

    @property
    def alters(self) -> bool:
        """Whether anything changes by the present plan."""
        return bool(self.merges or self._restated or self.earlier) or any(
            any((plan.state.removed, plan.equalized, plan.equal_scales)) for plan in self.plans
        )

    @property
    def read(self) -> ReadTensor:
        """Reads the elements of an initializer of the model."""
        return self._source.read

    @property
    def graphs(self) -> list[Graph]:
        """The bodies of the model."""
        return self._graphs


def _exact(new: Pending) -> Array:
    """Return the elements of a new constant before they are rounded, in its shape."""
    return exact(new.compute).reshape(tuple(new.tensor.dims))
