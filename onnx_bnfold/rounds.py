"""What was planned for a model in one round after another, and what became of each node by it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING

from onnx_bnfold.operators.affine import Float64
from onnx_bnfold.planning.plan import Decision, GraphPlan

if TYPE_CHECKING:
    from onnx_bnfold.planning.settle import Origins
    from onnx_bnfold.report import Record, Rescaled


class Rounds:
    """The plans of a model, each round planning the result of the one before.

    Attributes:
        plans: of the last round, one per graph.
        earlier: the plans of the rounds before.
        merged: the BatchNormalizations that went with merged branches.
        origins: tells where the nodes of each round came from, if there is more than one.
    """

    def __init__(self) -> None:
        self.plans: list[GraphPlan] = []
        self.earlier: list[list[GraphPlan]] = []
        self.merged: tuple[Record, ...] = ()
        self.origins: Origins | None = None

    @property
    def rounds(self) -> Iterator[list[GraphPlan]]:
        """The plans of all rounds, each of the result of the one before."""
        yield from self.earlier
        yield self.plans

    @property
    def decisions(self) -> list[tuple[GraphPlan, Decision]]:
        """What was decided on each node at last, and the plan that says it, in order."""
        if self.origins is None:
            return [(plan, decision) for plan in self.plans for decision in plan.decisions]
        found = []
        for number, plans in enumerate(self.rounds):
            is_last = plans is self.plans
            for position, plan in enumerate(plans):
                for decision in plan.decisions:
                    if is_last or decision.folded or decision.restated is not None:
                        graph, index = plan.state.graph, decision.node
                        place = self.origins.place(number, position, graph, index)
                        found.append((place, plan, decision))
        found.sort(key=itemgetter(0))
        return [(plan, decision) for _, plan, decision in found]

    @property
    def counts(self) -> tuple[int, int]:
        """How many BatchNormalizations go, and how many stay, by the present plan."""
        fates = [d.folded for plan, d in self.decisions if plan.is_bn(d)]
        return sum(fates) + len(self.merged), len(fates) - sum(fates)

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

    def changes(self) -> dict[str, tuple[Float64, Float64]]:
        """Return scale and shift of every tensor of the main graph that changes, by name."""
        from onnx_bnfold.report import composed

        total = composed([plans[0] for plans in self.rounds])
        return {name: (change.scale, change.shift) for name, change in total.items()}

    def records(self) -> tuple[Record, ...]:
        """Return what became of every node, by the present plan."""
        from onnx_bnfold.report import record_of  # a quiet fold makes no report

        return self.merged + tuple([record_of(*decided) for decided in self.decisions])
