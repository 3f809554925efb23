"""The plans of one model as it is, and what was learnt from attempts that failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from onnx import ModelProto

from onnx_bnfold.model.constants import Constants
from onnx_bnfold.model.graph import Graph, copy_of, graphs_of
from onnx_bnfold.model.shape_inference import Inference, Shapes
from onnx_bnfold.model.source import Source
from onnx_bnfold.model.validate import require_sound
from onnx_bnfold.operators import batchnorm
from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.options import Options
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.planning.kept import kept_by
from onnx_bnfold.planning.plan import GraphPlan
from onnx_bnfold.planning.precision_limits import Limits
from onnx_bnfold.planning.record import Record
from onnx_bnfold.reasons import Reason, Refusal
from onnx_bnfold.rewriting.graph_editor import freeze_constants
from onnx_bnfold.rewriting.new_constants import Unrepresentable, require_representable
from onnx_bnfold.rounds import Rounds

# Position of a graph → name of a tensor → what is known of its size (``planning.sizes``).
Told = dict[int, dict[str, tuple[Affine, ...]]]
_BY_SIZES = frozenset(
    {
        Reason.UNKNOWN_SHAPE,
        Reason.PARAMETERS_NOT_CONSTANT,
        Reason.WEIGHT_NOT_CONSTANT,
        Reason.BIAS_NOT_CONSTANT,
    }
)


class Attempts(Rounds):
    """A model whose graphs are planned as they are, again without what did not fit its type.

    Args:
        model: the model, its nodes in order; it is never changed. Its tensors may lack their bytes.
        source: reads the elements of initializers.
        options: what the user asked for.
        norms_alone: whether bodies without a BatchNormalization are left as they are.

    Attributes:
        model: the model that is planned.
        options: what the user asked for.
    """

    def __init__(
        self, model: ModelProto, source: Source, options: Options, *, norms_alone: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.options = options
        self._source = source
        self._norms_alone = norms_alone
        self._excluded: dict[tuple[int, int], Refusal] = {}
        self._unequal: set[tuple[int, str]] = set()
        self._told: Told = {}
        self._index()

    def _index(self, known: Attempts | None = None) -> None:
        """Index the model, if others have not done so."""
        if known is None:
            freeze = self.options.freeze_initializers
            self._graphs = graphs_of(self.model, freeze_initializers=freeze)
            self._inference = Inference(self.model, self._graphs, self._source.read_rounded)
        else:
            self._graphs, self._inference = known._graphs, known._inference
        if self.origins is not None:
            self.origins.label(self._graphs)

    def _copy(self) -> ModelProto:
        copy = copy_of(self.model)
        if self.options.freeze_initializers:
            freeze_constants(copy, self._graphs[0])
        return copy

    def _state(self, position: int, known: dict[int, GraphState]) -> GraphState:
        graph = self._graphs[position]
        outer = None if graph.parent is None else known[id(graph.parent)]
        shapes = Shapes(graph, self._inference, position, None if outer is None else outer.shapes)
        around, kept = None if outer is None else outer.constants, kept_by(graph, self.options)
        source = self._source
        constants = Constants(graph, source.read, shapes, around, source.open, kept)
        state = GraphState(graph, constants, shapes, kept)
        state.told = self._told.get(position, state.told)
        known[id(graph)] = state
        return state

    def _states(self) -> list[GraphState]:
        """Return a state of every graph, nothing decided."""
        known: dict[int, GraphState] = {}
        return [self._state(position, known) for position in range(len(self._graphs))]

    def _keep_told(self, more: Told, *, bodies_moved: bool) -> None:
        """Keep what is known of the sizes of tensors, with more of it.

        Args:
            more: of the same tensors or others.
            bodies_moved: whether bodies other than the main graph have other positions by now.
        """
        known = {p: of for p, of in self._told.items() if p == 0 or not bodies_moved}
        self._told = known | {p: known.get(p, {}) | of for p, of in more.items()}

    def _told_of_result(self) -> Told:
        """Return what is known of the sizes of tensors as the present plans leave them."""
        from onnx_bnfold.planning.sizes import told_of_result  # few folds take two rounds

        return {position: told_of_result(plan.state) for position, plan in enumerate(self.plans)}

    @property
    def _limits(self) -> Limits:
        return Limits(self.options.max_rescale, self.options.profile)

    @property
    def _alters_otherwise(self) -> bool:
        """Whether the options ask for more than that BatchNormalizations go."""
        return bool(self.options.equalize or self.options.merge_branches or self.options.forms)

    def _plan_graphs(self) -> None:
        self.plans = self._planned()
        if any(map(_lacks_sizes, self.plans)) and self._inference.refine():
            self.plans = self._planned()

    def _planned(self) -> list[GraphPlan]:
        known: dict[int, GraphState] = {}
        return [self._plan_graph(position, known) for position in range(len(self._graphs))]

    def _plan_graph(self, position: int, known: dict[int, GraphState]) -> GraphPlan:
        excluded = {n: r for (p, n), r in self._excluded.items() if p == position}
        state = self._state(position, known)
        if self._norms_alone and batchnorm.OPERATOR not in state.graph.ops:
            return GraphPlan(state, self._limits)
        if not (excluded or state.has_bns) and self._all_stay(state):
            plan = GraphPlan(state, self._limits, forms=self.options.forms)
            plan.find_kept_affine = partial(
                _tried_in_vain, state.copy(), self._limits, self.options
            )
            return plan
        from onnx_bnfold.planning.planner import plan_graph  # where nothing goes, none is made

        return plan_graph(state, self._limits, excluded, self.options)

    def _all_stay(self, state: GraphState) -> bool:
        from onnx_bnfold.planning import without_place  # most models hold a BatchNormalization

        return without_place.all_stay(state, clamps_everywhere=self.options.clamps_everywhere)

    @property
    def graphs(self) -> list[Graph]:
        """The bodies of the model."""
        return self._graphs

    def exclude(self, failures: Mapping[tuple[int, int], Refusal]) -> None:
        """Keep, from the next plan on, the nodes that caused constants which do not fit.

        Args:
            failures: of one attempt: (position of the graph, index of the node whose constant
                fails) → why.

        Raises:
            RuntimeError: they would be met again, without end.
        """
        from onnx_bnfold.rewriting.misfits import misfits  # few folds fail

        excluded, unequal = set(self._excluded), set(self._unequal)
        for (position, index), refusal in failures.items():
            plan = self.plans[position]
            if index in plan.equalized:  # what is not needed goes first
                self._unequal.update((position, root) for root in plan.equalized[index])
                continue
            for cause in misfits(plan, index):
                self._excluded[position, cause] = refusal
        if (excluded, unequal) == (set(self._excluded), self._unequal):
            culprits = {refusal.culprit for refusal in failures.values()}
            raise RuntimeError(f"{min(culprits)} fails whatever is left out")

    def verify(self) -> None:
        """Compute every new constant and forget it.

        Raises:
            Unrepresentable: some do not fit their type; all of them are named.
        """
        require_representable(self.plans)

    def _go_on_from(self, other: Attempts) -> bool:
        """Take over the plans of the same model, unless something did not fit there.

        Then they are not what a first attempt gives.
        """
        if other._excluded or other._unequal or other._norms_alone:
            return False
        self.plans = other.plans
        return True

    def plan_as_it_is(self) -> list[GraphPlan]:
        """Plan every graph, nothing merged or written otherwise, until every constant fits."""
        return self._until_it_fits(self._plan_graphs, self.verify)

    def _until_it_fits(self, *steps: Callable[[], object]) -> list[GraphPlan]:
        """Take steps again and again, without what they find does not fit its type."""
        with np.errstate(all="ignore"):  # what is no finite number is refused, not warned of
            while True:
                try:
                    for step in steps:
                        step()
                except Unrepresentable as failed:
                    self.exclude(failed.failures)
                else:
                    return self.plans


def _lacks_sizes(plan: GraphPlan) -> bool:
    """Whether a node stays that may go where more is known of sizes, and what depends on them."""
    return any(
        refusal.reason in _BY_SIZES
        for record in plan.records.values()
        if record.refusal is not None
        for refusal in (record.refusal, *(tried for _, tried in record.tried))
    )


def planned_as_it_is(
    model: ModelProto, source: Source, options: Options, *, norms_alone: bool = False
) -> Attempts:
    """Return the first plans of a model; see ``Attempts``."""
    attempts = Attempts(model, source, options, norms_alone=norms_alone)
    require_sound(attempts.graphs)
    attempts.plan_as_it_is()
    return attempts


def _tried_in_vain(state: GraphState, limits: Limits, options: Options) -> dict[int, Record]:
    """Try affine nodes of which it is certain that they stay: that says why."""
    from onnx_bnfold.planning.planner import plan_graph

    with np.errstate(all="ignore"):
        return plan_graph(state, limits, {}, options).kept_affine
