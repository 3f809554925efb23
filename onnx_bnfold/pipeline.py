"""One fold of one model: plan, compute, and plan again without what did not fit its type."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import partial
from typing import TYPE_CHECKING

from onnx import ModelProto

from onnx_bnfold.attempts import Attempts, planned_as_it_is
from onnx_bnfold.model.constants import OpenTensor
from onnx_bnfold.model.graph import ReadTensor, copy_of
from onnx_bnfold.model.source import Source
from onnx_bnfold.model.validate import require_sound
from onnx_bnfold.options import Options, Standalone
from onnx_bnfold.planning.kept import UnmatchedPatterns, unmatched
from onnx_bnfold.planning.plan import GraphPlan, Place, Restated
from onnx_bnfold.planning.record import Record
from onnx_bnfold.process_memory import give_back_freed_memory
from onnx_bnfold.rewriting.computed_elements import Pending, Rounded
from onnx_bnfold.rewriting.graph_editor import rewrite
from onnx_bnfold.storage.tensors import clear_place

if TYPE_CHECKING:
    from onnx_bnfold.model.functions import Root
    from onnx_bnfold.planning.ranges import Ranges
    from onnx_bnfold.rewriting.replaced_nodes import Copied


class Pipeline(Attempts):
    """The planning of one model, and what was learnt from failed attempts.

    Args:
        model: the model; it is never changed. Its tensors may lack their bytes.
        read: reads the elements of an initializer.
        options: what the user asked for.
        ranges: of the tensors of the main graph, if they were measured.
        open_tensor: tells where the elements of an initializer lie, if any may lie in a file.

    Attributes:
        given: the model as it was given.
        original: the model, its nodes in order.
        unmerged: the same with those calls of functions inlined that are.
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
        self.given = model
        self._stored = Source(read, open_tensor)
        super().__init__(model, self._stored, options)
        self._ranges = self._measured = ranges
        self._restated: dict[Place, Restated] = {}
        self._unread: set[str] = set()
        if not require_sound(self._graphs):
            from onnx_bnfold.model.node_order import in_order

            self.model = in_order(model, self._graphs)
            self._index()
        self.unmatched = unmatched(self._graphs, options)
        self.original = self.unmerged = self.model
        self._may_inline = bool(self.model.functions)
        self._is_flat = self._may_resolve = False
        self.nodes_before = sum(len(graph.nodes) for graph in self._graphs)
        self._prepare()

    def _prepare(self) -> None:
        """Go on with what constant conditions and the options make of the model."""
        if any(graph.carriers for graph in self._graphs):
            self._resolve()
        if self.options.merge_branches:
            self._merge()

    def _resolve(self) -> None:
        """Go on with branches instead of Ifs of constant conditions, where a BN goes by that."""
        from onnx_bnfold.rewriting.constant_ifs import known_ifs, resolved

        tried = partial(planned_as_it_is, source=self._source, options=self.options)
        while True:  # what an If in a branch has hidden of it may be known without that
            states = self._states()
            known = known_ifs(states)
            self._may_resolve |= bool(known)
            found = resolved(self.model, states, known, self._limits, lambda m: tried(m).counts[1])
            if not self._go_on_with(found):
                return
            self.unmerged = self.model

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
            branch_merging.apply(copy, self._graphs, state, found, metadata=self.options.metadata)
        )
        self.merges += len(found)
        self.merged += tuple(
            Record.of_merged(state.place(bn), state.place(m.conv)) for m in found for bn in m.bns
        )
        self.model = copy
        self._index()

    def plan(self) -> Sequence[GraphPlan]:
        """Plan every graph of the model, leaving out what turned out not to be representable."""
        if self.unmatched and self.options.must_match:
            raise UnmatchedPatterns(self.unmatched)
        return self._until_it_fits(self._plan_once, self._settle)

    def _plan_once(self) -> None:
        self._plan_graphs()
        self._inline()
        self._plan_further()

    def _plan_further(self) -> None:
        """Go on from the plan of the model as it is, or with calls inlined."""
        while self._evaluate() or self._restate():
            self._plan_graphs()
        for position, plan in enumerate(self.plans):
            plan.restated = {n: was for (p, n), was in self._restated.items() if p == position}
            if self.verdicts:
                self.tell(plan)
            if self.options.equalize:
                self._equalize(position, plan)
        if self.options.equalize:
            give_back_freed_memory()

    def _settle(self) -> None:
        """See that another fold of the result finds nothing.

        What it would find is done in another round, or left for good.
        """
        if not self.alters or not self._may_be_judged_otherwise:
            return
        from onnx_bnfold.planning import settle

        gained, measured = True, self._ranges is not None
        while True:
            if self._may_inline_more or self._may_resolve:
                self.verify()  # trials would blame a node of theirs for what does not fit
            copy, pending, ranges = self._result()
            source = self._source.with_computed({n: new.compute for n, new in pending.items()})
            again = Pipeline(copy, source.read, self.options, ranges, source.open)
            if settle.leave_branches(self.plans, again.resolved):
                continue
            again._may_inline = self._may_inline_more
            again._plan_once()
            if again.inlined:
                self._inline_all_or_none(again.gone)
                continue
            found = [*settle.removed(self.plans, again.plans)]
            if gained and (again.merges or settle.finds_places(self.plans, found)):
                gained = self._go_on(copy, pending, ranges)
            elif not settle.leave(
                self.plans, again.plans, found, again._restated, measured=measured
            ):
                return

    @property
    def _may_be_judged_otherwise(self) -> bool:
        if self._alters_otherwise:
            return True
        is_open = self._may_inline_more or any(plan.is_open for plan in self.plans)
        return is_open or (self._may_resolve and self.counts[1] > 0)

    @property
    def _may_inline_more(self) -> bool:
        """Whether a BN that stays might go if calls were inlined in what the others leave."""
        return bool(self.model.functions) and not self._is_flat and self.counts[1] > 0

    def _result(self) -> tuple[ModelProto, dict[str, Pending], Ranges | None]:
        """Return the present plan's result, its constants that lack values, and measured ranges."""
        copy = copy_of(self.model)
        pending = self.apply(copy)
        for new in pending.values():
            clear_place(new.tensor)
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
        exact = {name: new.compute.exactly() for name, new in pending.items()}
        from onnx_bnfold.planning.settle import Origins

        self.origins = self.origins or Origins()
        self.origins.follow(self.plans)
        self.earlier.append(self.plans)
        merges, self._told = self.merges, self._told_of_result()
        self._adopt(result, self._source.with_computed(exact), ranges, None)
        self._plan_once()
        return self.merges > merges or any(plan.state.removed for plan in self.plans)

    def _inline(self) -> None:
        """Go on with the original with calls of functions inlined, if a BN goes by that."""
        if self._may_inline:
            self._may_inline = False
            self._choose(self.plans)

    def _inline_all_or_none(self, gone: Set[tuple[Root, str]]) -> None:
        """Plan the original anew, all calls of functions inlined, if more goes by that.

        Args:
            gone: what goes by inlining in the present result; else it is left for good.
        """
        first = now = planned_as_it_is(self.original, self._stored, self.options)
        if self.inlined:
            now = planned_as_it_is(self.unmerged, self._stored, self.options)
        if self._choose(first.plans, all_instead_of=now):
            self._is_flat = True
            self._plan_further()
            return
        from onnx_bnfold.planning.settle import leave_norms

        self._is_flat = not leave_norms(self.model, self.plans, gone)

    def _choose(
        self, plans: Sequence[GraphPlan], *, all_instead_of: Attempts | None = None
    ) -> bool:
        """Go on with a plan of the original with calls inlined, if any are; see ``choose``."""
        from onnx_bnfold.rewriting.inlining_choice import choose  # few models have functions

        def trial(model: ModelProto, norms_alone: bool) -> Attempts:
            return planned_as_it_is(model, self._stored, self.options, norms_alone=norms_alone)

        chosen = choose(self.original, plans, trial, all_instead_of=all_instead_of)
        if all_instead_of is None or chosen.model is not None:
            self.verdicts, self.gone = chosen.verdicts, chosen.gone
            self._is_flat = chosen.is_settled and not self._alters_otherwise
        if chosen.model is None:
            return False
        same = chosen.attempted if isinstance(chosen.attempted, Attempts) else None
        self.unmerged, self.inlined = chosen.model, chosen.calls
        self.earlier, self.origins, self.merges, self.merged = [], None, 0, ()
        self.never_run, self._told = (), {}
        self._adopt(chosen.model, self._stored, self._measured, same)
        if same is None or self.model is not chosen.model or not self._go_on_from(same):
            self._plan_graphs()
        return True

    def _adopt(
        self, model: ModelProto, source: Source, ranges: Ranges | None, known: Attempts | None
    ) -> None:
        """Go on with another model, of which no more is known than what others have indexed."""
        self.model, self._source, self._ranges = model, source, ranges
        self._excluded, self._unequal, self._restated, self._unread = {}, set(), {}, set()
        self._index(known)
        self._prepare()

    def _evaluate(self) -> bool:
        """Go on with a copy of the model in which constants stand for BNs, if some compute any."""
        if all(record.folded for plan in self.plans for record in plan.records.values()):
            return False
        from onnx_bnfold.rewriting import constant_bns

        return self._go_on_with(constant_bns.evaluated(self._copy, self.plans))

    def _restate(self) -> bool:
        """Go on with a copy of the model in which nodes that stay have another form, if any do."""
        return any(self._restate_as(form) for form in self.options.forms)

    def _restate_as(self, form: Standalone) -> bool:
        from onnx_bnfold.rewriting.standalone import restated

        return self._go_on_with(restated(self._copy, self.plans, form, self._limits))

    def _go_on_with(self, copied: Copied | None) -> bool:
        if copied is None:
            return False
        if moved := copied.moved:
            self._excluded = {(p, moved[p, n]): r for (p, n), r in self._excluded.items()}
            self._restated = {(p, moved[p, n]): was for (p, n), was in self._restated.items()}
        self._restated = copied.restated | self._restated
        self._unread |= copied.unread
        self._keep_told(copied.told, bodies_moved=bool(copied.resolved))
        self.resolved = self.resolved or copied.resolved
        self.never_run += copied.never_run
        self.model = copied.model
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
        equalize(plan, ranges, self._limits, excluded, measured=ranges is self._ranges)

    def planned(self) -> Sequence[GraphPlan]:
        """Plan until every new constant fits its type."""
        return self._until_it_fits(self.plan, self.verify)

    def apply(self, copy: ModelProto) -> dict[str, Pending]:
        """Rewrite a copy of the model by the present plan; see ``graph_editor.rewrite``."""
        freeze, metadata = self.options.freeze_initializers, self.options.metadata
        if not (self.alters or self._unread or freeze):
            return {}
        pending = rewrite(copy, self.plans, freeze=freeze, unread=self._unread, metadata=metadata)
        if self._source.computed:
            pending.update(self._computed(copy, pending.keys()))
        return pending

    def _computed(self, copy: ModelProto, known: Set[str]) -> Iterator[tuple[str, Pending]]:
        """Yield what merges and earlier rounds have made and the plan does not change."""
        for tensor in copy.graph.initializer:
            compute = self._source.computed.get(tensor.name)
            if compute is not None and tensor.name not in known:
                elements = Rounded(compute, tuple(tensor.dims), tensor.data_type)
                yield tensor.name, Pending(tensor, math.prod(tensor.dims), elements)

    @property
    def alters(self) -> bool:
        """Whether anything changes by the present plan."""
        changed = (any((p.state.removed, p.equalized, p.equal_scales)) for p in self.plans)
        return bool(self.merges or self.inlined or self._restated or self.earlier) or any(changed)

    @property
    def read(self) -> ReadTensor:
        """Return what reads the elements of an initializer of the model."""
        return self._source.read
