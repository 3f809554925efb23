"""A model with calls inlined, the plan of it, and which of the calls take part in that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import NamedTuple, Protocol

from onnx import ModelProto

from onnx_bnfold.model.constants import Constants
from onnx_bnfold.model.functions import Functions, Key, Root
from onnx_bnfold.model.graph import Graph
from onnx_bnfold.operators import batchnorm
from onnx_bnfold.planning.plan import GraphPlan, with_roots
from onnx_bnfold.planning.record import Record
from onnx_bnfold.rewriting.constant_ifs import known_ifs, resolved
from onnx_bnfold.rewriting.inlining import Call, Inlined, Origin
from onnx_bnfold.rewriting.replaced_nodes import Copied

Plans = Sequence[GraphPlan]


class Attempted(Protocol):
    """A model and its plans."""

    @property
    def model(self) -> ModelProto: ...

    @property
    def plans(self) -> Plans: ...


# Plans a model; whether it may leave bodies without a BatchNormalization as they are.
Trial = Callable[[ModelProto, bool], Attempted]


class Start(NamedTuple):
    """A node that is removed.

    Attributes:
        root: the body that it is in, or below.
        plan: by which it goes.
        node: its index.
    """

    root: Root
    plan: GraphPlan
    node: int


class Planned:
    """A model with calls inlined, and a plan of it.

    Attributes:
        inlined: the model. Branches may stand in it for Ifs whose conditions the calls give.
        plans: of its graphs.
        attempted: the model with those Ifs, planned.
        with_ifs: the model with those Ifs.
        never_run: the BatchNormalizations of the branches that went with these Ifs.
        for_ifs: the calls that hold these Ifs, or what their conditions are computed from.
    """

    def __init__(self, inlined: Inlined, plans: Plans, attempted: Attempted | None = None) -> None:
        self.inlined = inlined
        self.plans = plans
        self.attempted = attempted
        self.with_ifs = inlined.model
        self.never_run: list[Origin] = []
        self.for_ifs: set[Call] = set()
        self._functions = Functions(inlined.model)

    def with_branches(self, trial: Trial) -> Planned:
        """Return it with branches for Ifs of constant conditions, where a BN goes by that."""
        states = [plan.state for plan in self.plans]
        known = known_ifs(states)
        if not known:
            return self

        def left(model: ModelProto) -> int:
            return Planned(replace(self.inlined, model=model), trial(model, True).plans).left()

        found = resolved(self.inlined.model, states, known, self.plans[0].limits, left)
        if found is None:
            return self
        roots = [root for root, _ in self.with_roots()]
        names = ((roots[position], was, now) for position, was, now in found.renamed)
        inlined = self.inlined.with_names(found.model, names)
        made = Planned(inlined, trial(found.model, True).plans, self.attempted)
        made.with_ifs = self.inlined.model
        made._note(found, self)
        return made

    def _note(self, found: Copied, before: Planned) -> None:
        """Note what went with the Ifs of the model as it was before."""
        places = [*before.with_roots()]
        roots = {id(plan.state.graph): root for root, plan in places}
        for graph, node, _ in found.never_run:
            self.never_run.append(before.inlined.origin(roots[id(graph)], graph.writes[node][0]))
        for position, name in found.resolved:
            root, plan = places[position]
            graph = plan.state.graph
            condition = graph.reads[graph.producer[name]][0]
            for each in {name} | _makers(graph, plan.state.constants, [condition]):
                self.for_ifs.update(before.inlined.origin(root, each).call.outermost_first)

    def with_roots(self) -> Iterator[tuple[Root, GraphPlan]]:
        """Yield the plan of each graph, and the body that the graph is, or is below."""
        return with_roots(self._functions, self.plans)

    def bns(self) -> Iterator[tuple[Origin, GraphPlan, int, Record]]:
        """Yield each BatchNormalization: its origin, its plan, its index, what became of it."""
        for root, plan in self.with_roots():
            for index, record in plan.records.items():
                if record.is_norm:
                    name = plan.state.graph.writes[index][0]
                    yield self.inlined.origin(root, name), plan, index, record

    def going(self) -> dict[Origin, Start | None]:
        """Return the BatchNormalizations that go; None for those of a branch that is never run."""
        found: dict[Origin, Start | None] = dict.fromkeys(self.never_run)
        for origin, plan, index, _ in self.bns():
            if not stays(plan, index):
                found[origin] = Start(origin.call.root, plan, index)
        return found

    def left(self) -> int:
        """Return how many BatchNormalizations stay, those of a function once for each call."""
        times = self._functions.times()
        return sum(times[o.call.root] for o, plan, index, _ in self.bns() if stays(plan, index))

    def inlined_calls(self) -> int:
        """Return how many calls were inlined in what is still there."""
        calls = self._functions.calls
        return sum(call.root in calls for call in self.inlined.calls)

    def seen_from_inside(self, origin: Origin) -> Iterator[Origin]:
        """Yield what a tensor is in each of the functions that were inlined around it."""
        for end, outer in enumerate(origin.call.outermost_first, 1):
            call = Call(self.inlined.calls[outer], origin.call.path[end:])
            yield Origin(call, origin.function, origin.name)


class Summary(NamedTuple):
    """What is known of a model with calls inlined when it and its plan are gone.

    Attributes:
        calls: that were inlined.
        refused: see ``Inlined``.
        left: how many BatchNormalizations stay.
        fates: what became of those in the main graph, by the body and the output that they had.
        is_settled: whether another plan of the result finds no more to do.
    """

    calls: Set[Call]
    refused: Mapping[Key, str]
    left: int
    fates: Mapping[tuple[Root, str], list[tuple[Origin, Record]]]
    is_settled: bool

    @classmethod
    def of(cls, planned: Planned) -> Summary:
        """Return that of a plan."""
        fates: dict[tuple[Root, str], list[tuple[Origin, Record]]] = {}
        for origin, _, _, record in planned.bns():
            if origin.call.root is None:
                fates.setdefault((origin.function, origin.name), []).append((origin, record))
        inlined = planned.inlined
        is_settled = not (planned.for_ifs or any(plan.is_open for plan in planned.plans))
        return cls({*inlined.calls}, inlined.refused, planned.left(), fates, is_settled)


def stays(plan: GraphPlan, index: int) -> bool:
    """Return whether a BatchNormalization stays one: no form that is asked for can be written."""
    if plan.records[index].folded:
        return False
    if not plan.forms:
        return True
    from onnx_bnfold.rewriting.standalone import has_form  # few folds write other forms

    return not any(has_form(plan, index, form) for form in plan.forms)


def complete_functions(whole: Planned, staying: Set[tuple[Root, str]]) -> set[Key]:
    """Return the functions that hold all parameters of a BatchNormalization, or an If's condition.

    Without them none goes there by itself.

    Args:
        whole: a model with calls inlined.
        staying: the BatchNormalizations that matter, each by its body and output.
    """
    found: set[Key] = set()
    for root, plan in whole.with_roots():
        graph, constants = plan.state.graph, plan.state.constants
        for index, needed in _what_has_to_be_there(plan):
            origin = whole.inlined.origin(root, next(filter(None, graph.writes[index]), ""))
            matters = graph.ops[index] != batchnorm.OPERATOR or origin[1:] in staying
            if matters and all(constants.get(name) is not None for name in needed):
                makers = _makers(graph, constants, needed)
                paths = [whole.inlined.origin(root, name).call.path for name in makers]
                for call in origin.call.outermost_first:
                    if all(path[: len(call.path)] == call.path for path in paths):
                        found.add(whole.inlined.calls[call])
    return found


def _what_has_to_be_there(plan: GraphPlan) -> Iterator[tuple[int, Sequence[str]]]:
    """Yield the parameters of each BatchNormalization, and the condition of each known If."""
    reads = plan.state.graph.reads
    yield from ((index, reads[index][1:5]) for index, of in plan.records.items() if of.is_norm)
    yield from ((index, reads[index][:1]) for _, index in known_ifs([plan.state]))


def taking_part(whole: Planned, starts: Iterable[Start]) -> set[Call]:
    """Return the calls that hold nodes or constants without which others would not be removed.

    Args:
        whole: the model with all calls inlined.
        starts: nodes that are removed, each with its plan and its body.
    """
    calls: set[Call] = set()
    by_plan: dict[int, tuple[Root, GraphPlan, list[int]]] = {}
    for root, plan, index in starts:
        by_plan.setdefault(id(plan), (root, plan, []))[2].append(index)
    for root, plan, indices in by_plan.values():
        graph, constants = plan.state.graph, plan.state.constants
        nodes = _changing_with(plan, indices)
        names = {next(filter(None, graph.writes[index]), "") for index in nodes}
        read = {name for index in nodes for name in graph.reads[index]}
        names |= _makers(graph, constants, read)
        for name in names:
            calls.update(whole.inlined.origin(root, name).call.outermost_first)
    return calls


def _changing_with(plan: GraphPlan, indices: Iterable[int]) -> set[int]:
    """Return nodes, and all that write or read a tensor which changes with theirs."""
    graph, total = plan.state.graph, plan.state.total
    found, queue = set(indices), [*indices]
    while queue:
        index = queue.pop()
        for name in (*graph.reads[index], *graph.writes[index]):
            if name not in total:
                continue
            others = {reader for reader, _ in graph.readers.get(name, ())}
            others |= {graph.producer[name]} if name in graph.producer else set()
            queue += others - found
            found |= others
    return found


def _makers(graph: Graph, constants: Constants, names: Iterable[str]) -> set[str]:
    """Return the constants among some tensors, and those that they are computed from."""
    found: set[str] = set()
    queue = [*names]
    while queue:
        name = queue.pop()
        if not name or name in found or constants.get(name) is None:
            continue
        found.add(name)
        scope: Graph | None = graph
        while scope is not None and not scope.defines(name):
            scope = scope.parent
        if scope is not None and name in scope.producer:
            queue += scope.reads[scope.producer[name]]
    return found
