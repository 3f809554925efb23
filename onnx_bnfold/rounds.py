"""What was planned for a model in one round after another, and what became of each node by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING

from onnx_bnfold.operators.affine import Float64
from onnx_bnfold.planning.plan import GraphPlan, Place, Recorded
from onnx_bnfold.planning.record import Record
from onnx_bnfold.planning.totals import shifts_norms

if TYPE_CHECKING:
    from onnx_bnfold.model.functions import Root
    from onnx_bnfold.planning.settle import Origins
    from onnx_bnfold.report import Rescaled
    from onnx_bnfold.rewriting.replaced_nodes import NeverRun


class Rounds:
    """The plans of a model, each round planning the result of the one before.

    Attributes:
        plans: of the last round, one per graph.
        earlier: the plans of the rounds before.
        merged: the BatchNormalizations that went with merged branches.
        origins: tells where the nodes of each round came from, if there is more than one.
        merges: number of branches that were merged.
        inlined: number of calls of local functions that were inlined.
        resolved: the Ifs of the model as it was that a branch stands for; see ``Copied``.
        never_run: the BatchNormalizations that went with the other branch.
        verdicts: (path of a graph, output of a BatchNormalization that stays there) → what is in
            its way beyond the border of a function.
        gone: the BatchNormalizations that went by inlining; see ``inlining_choice.Choice``.
    """

    def __init__(self) -> None:
        self.plans: list[GraphPlan] = []
        self.earlier: list[list[GraphPlan]] = []
        self.merged: tuple[Record, ...] = ()
        self.origins: Origins | None = None
        self.merges = 0
        self.inlined = 0
        self.resolved: tuple[tuple[int, str], ...] = ()
        self.never_run: tuple[NeverRun, ...] = ()
        self.verdicts: Mapping[tuple[str, str], Record] = {}
        self.gone: Set[tuple[Root, str]] = frozenset()

    def tell(self, plan: GraphPlan) -> None:
        """Let nodes that stay say what is in their way beyond the border of a function."""
        graph = plan.state.graph
        for index, record in plan.records.items():
            plan.records[index] = self._blaming(graph.path, graph.writes[index][0], record)
        for index, was in plan.restated.items():
            blaming = self._blaming(graph.path, was.output, was.record)
            plan.restated[index] = was._replace(record=blaming)

    def _blaming(self, path: str, output: str, record: Record) -> Record:
        verdict = self.verdicts.get((path, output))
        if verdict is None or record.folded:
            return record
        return record._replace(refusal=verdict.refusal, tried=verdict.tried)

    @property
    def rounds(self) -> Iterator[list[GraphPlan]]:
        """The plans of all rounds, each of the result of the one before."""
        yield from self.earlier
        yield self.plans

    @property
    def recorded(self) -> list[Recorded]:
        """What was decided on each node at last, in order, with what its form costs."""
        if not any(plan.restated for plan in chain.from_iterable(self.rounds)):
            return self._decided
        from onnx_bnfold.planning.form_costs import with_costs  # few folds write other forms

        return with_costs(self._decided, self._is_gone())

    @property
    def _decided(self) -> list[Recorded]:
        if self.origins is None:
            return [each for plan in self.plans for each in plan.recorded]
        found = []
        for number, plans in enumerate(self.rounds):
            is_last = plans is self.plans
            for position, plan in enumerate(plans):
                for each in plan.recorded:
                    if is_last or each.record.folded or each.restated is not None:
                        place = self.origins.place(number, position, plan.state.graph, each.node)
                        found.append((place, each))
        found.sort(key=itemgetter(0))
        return [each for _, each in found]

    def _is_gone(self) -> Callable[[GraphPlan, int], bool]:
        """Return whether a node of a plan's graph goes, by that plan or a later one."""
        plans = [
            (number, position, plan)
            for number, round_ in enumerate(self.rounds)
            for position, plan in enumerate(round_)
        ]
        where = {id(plan): (number, position) for number, position, plan in plans}

        def known_as(plan: GraphPlan, index: int) -> tuple[Place, str | None]:
            (number, position), graph = where[id(plan)], plan.state.graph
            if self.origins is None:
                return (position, index), graph.ops[index]
            return self.origins.place(number, position, graph, index), graph.ops[index]

        gone = {known_as(plan, index) for _, _, plan in plans for index in plan.state.removed}
        return lambda plan, index: known_as(plan, index) in gone

    @property
    def decomposed_bns(self) -> list[Recorded]:
        """Each decomposed BatchNormalization that stays, in order.

        The Mul and the Add that a BatchNormalization was written as are none.
        """
        written = {
            (position, name)
            for plans in self.rounds
            for position, plan in enumerate(plans)
            for index, was in plan.restated.items()
            for name in (was.output, *plan.state.graph.writes[index])
        }
        return [
            each
            for position, plan in enumerate(self.plans)
            for each in plan.decomposed_bns
            if (position, plan.state.graph.writes[each.node][0]) not in written
        ]

    @property
    def counts(self) -> tuple[int, int]:
        """How many BatchNormalizations go, and how many stay, by the present plan."""
        fates = [each.record.folded for each in self._decided if each.record.is_norm]
        gone = len(self.merged) + len(self.never_run)
        return sum(fates) + gone, len(fates) - sum(fates)

    @property
    def open_choices(self) -> int:
        """How many more BatchNormalizations could go at most if others stayed."""
        return sum(plan.open_choices for plan in chain.from_iterable(self.rounds))

    @property
    def equalized(self) -> tuple[str, ...]:
        """The tensors whose channels are made alike by the present plan."""
        plans = chain.from_iterable(self.rounds)
        roots = (r for plan in plans for found in plan.equalized.values() for r in found)
        return tuple(dict.fromkeys(roots))

    @property
    def rescaled(self) -> tuple[Rescaled, ...]:
        """The tensors that stay and are re-parametrised by the present plan."""
        from onnx_bnfold.report import rescaled_of

        return rescaled_of([*self.rounds])

    def int8_loss(self, rescaled: Sequence[Rescaled]) -> float | None:
        """Return what new ranges are expected to cost in int8, in dB; None if that is not much.

        They were asked for where the profile is another one than ``float``.

        Args:
            rescaled: the tensors that have them.
        """
        if not rescaled or any(plan.limits.profile != "float" for plan in self.plans):
            return None
        from onnx_bnfold.planning.int8_noise import expected_loss  # few plain folds rescale any

        graphs = zip(*self.rounds, strict=True)
        losses = [expected_loss([plan.state for plan in plans]) for plans in graphs]
        return max((loss for loss in losses if loss is not None), default=None)

    @property
    def coarser_in_float16(self) -> bool:
        """Whether rounding the present plan's constants to float16 is expected to cost far more.

        Who asks for another profile than ``float`` is told nothing.
        """
        if any(plan.limits.profile != "float" for plan in self.plans):
            return False
        states = [[plan.state for plan in plans] for plans in self.rounds]
        if not any(map(shifts_norms, chain.from_iterable(states))):
            return False
        from onnx_bnfold.planning.half_noise import is_coarser  # few plain folds shift any

        return is_coarser(states)

    def changes(self) -> dict[str, tuple[Float64, Float64]]:
        """Return scale and shift of every tensor of the main graph that changes, by name."""
        from onnx_bnfold.report import composed

        total = composed([plans[0] for plans in self.rounds])
        return {name: (change.scale, change.shift) for name, change in total.items()}
