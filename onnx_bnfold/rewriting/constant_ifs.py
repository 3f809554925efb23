"""Ifs whose condition is a constant, replaced by the nodes of the branch that they take.

A tensor that crosses the border of a branch keeps its values. Where a BatchNormalization goes
without that border, the branch takes the place of its If; others stay Ifs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from onnx import GraphProto, ModelProto, NodeProto

from onnx_bnfold.model.functions import nodes_within
from onnx_bnfold.model.graph import Body, Graph, copy_of, counterparts, named_subgraphs
from onnx_bnfold.model.messages import new_node
from onnx_bnfold.operators import batchnorm
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.planning.notes import BRANCH, is_noted
from onnx_bnfold.planning.plan import Place
from onnx_bnfold.planning.precision_limits import Limits
from onnx_bnfold.planning.record import Record
from onnx_bnfold.planning.ways import Way
from onnx_bnfold.reasons import Refused
from onnx_bnfold.rewriting.fresh_names import Names
from onnx_bnfold.rewriting.function_nodes import defined, describe, rename_body
from onnx_bnfold.rewriting.replaced_nodes import Copied, NeverRun, Renamed

OPERATOR = "If"
MOST_TRIED = 16  # models that are planned to find out which Ifs have to go


def resolved(
    model: ModelProto,
    states: Sequence[GraphState],
    known: Sequence[Place],
    limits: Limits,
    trial: Callable[[ModelProto], int],
) -> Copied | None:
    """Return a model in which branches stand for those Ifs by which more goes, None if none does.

    Args:
        model: the model; it is not changed.
        states: of its graphs, nothing decided.
        known: see ``known_ifs``.
        limits: of the fold; an earlier one with the same may have left an If.
        trial: plans a model, and returns how many BatchNormalizations stay.
    """
    taken = dict(_taken(model.ir_version, states, known, limits))
    before = trial(model) if taken else 0
    if not before:
        return None
    graphs = [state.graph for state in states]
    best, renamed = _with_branches(model, graphs, taken)
    fewest = trial(best)
    if fewest >= before:
        return None
    for place in [*taken][:MOST_TRIED]:
        fewer = {other: branch for other, branch in taken.items() if other != place}
        without, others = _with_branches(model, graphs, fewer)
        if fewer and trial(without) <= fewest:
            taken, best, renamed = fewer, without, others
    unread = {graphs[position].reads[index][0] for position, index in taken}
    written = tuple((p, next(filter(None, graphs[p].writes[index]), "")) for p, index in taken)
    dead = tuple(_bns_never_run(states, taken))
    return Copied(best, unread=unread, resolved=written, renamed=renamed, never_run=dead)


def known_ifs(states: Sequence[GraphState]) -> list[Place]:
    """Return the Ifs whose condition is a constant; by some another fold may find more to go."""
    return [
        (position, index)
        for position, state in enumerate(states)
        for index in state.graph.carriers
        if state.graph.ops[index] == OPERATOR
        and state.constants.get(state.graph.reads[index][0]) is not None
    ]


def _taken(
    ir_version: int, states: Sequence[GraphState], known: Sequence[Place], limits: Limits
) -> Iterator[tuple[Place, str]]:
    """Yield the Ifs that may be replaced, and the attribute that holds the branch each takes.

    A branch that is never run must hold no BatchNormalization that the user wants to keep. And an
    If may be what keeps a shape that is misread in a branch from the nodes behind.
    """
    any_kept = any(state.kept for state in states)
    for position, index in known:
        state = states[position]
        graph, constants = state.graph, state.constants
        if is_noted(graph.nodes[index], BRANCH, limits):
            continue
        try:
            condition = constants.value(graph.reads[index][0])
        except Refused:
            continue
        name = "then_branch" if condition.any() else "else_branch"
        branches = dict(named_subgraphs(graph.nodes[index]))
        if condition.size != 1 or name not in branches:
            continue
        place, branch = (position, index), branches[name]
        wanted = any_kept and any(never.kept for never in _never_run(states, {place: name}))
        if wanted or not _fits(ir_version, graph, index, branch):
            continue
        if state.shapes.why_unknown(value.name for value in branch.output) is None:
            yield place, name


def _never_run(states: Sequence[GraphState], taken: Mapping[Place, str]) -> Iterator[GraphState]:
    """Yield the states of the bodies that are never run if Ifs take a branch."""
    positions = {id(state.graph): position for position, state in enumerate(states)}
    never = set[int]()
    for position, state in enumerate(states):  # a body before those in it
        if state.graph.parent is None:
            continue
        around = positions[id(state.graph.parent)]
        branch = taken.get((around, state.graph.carrier))
        if around in never or not (branch is None or state.graph.path.endswith(f".{branch}")):
            never.add(position)
            yield state


def _bns_never_run(states: Sequence[GraphState], taken: Mapping[Place, str]) -> Iterator[NeverRun]:
    for state in _never_run(states, taken):
        graph = state.graph
        for index, op in enumerate(graph.ops):
            if op == batchnorm.OPERATOR:
                record = Record(graph.place(graph.label(index)), True, Way.NEVER_RUN)
                yield NeverRun(graph, index, record)


def _fits(ir_version: int, graph: Graph, index: int, branch: GraphProto) -> bool:
    """Whether a body may hold what a branch does: its constants, and what it hands on."""
    if len(graph.writes[index]) != len(branch.output):
        return False
    kinds = {value.type.WhichOneof("value") for value in branch.output}
    holds = isinstance(graph.body, GraphProto) and ir_version >= 4
    return kinds <= {None, "tensor_type"} and (
        holds or not (branch.initializer or branch.sparse_initializer)
    )


def _with_branches(
    model: ModelProto, graphs: Sequence[Graph], taken: Mapping[Place, str]
) -> tuple[ModelProto, list[Renamed]]:
    """Return a copy of a model in which branches stand for some Ifs, and their new names."""
    copy, renamed = copy_of(model), list[Renamed]()
    bodies, names = counterparts(copy, graphs), _NewNames(graphs)
    for position in reversed(range(len(graphs))):  # a branch before the body that holds it
        chosen = {index: name for (p, index), name in taken.items() if p == position}
        if chosen:
            nodes: list[NodeProto] = []
            for index, node in enumerate([*bodies[position].node]):
                if index in chosen:
                    branch = dict(named_subgraphs(node))[chosen[index]]
                    spliced, mapping = _spliced(bodies[position], node, branch, names)
                    nodes += spliced
                    renamed += [Renamed(position, was, now) for was, now in mapping.items()]
                else:
                    nodes.append(node)
            del bodies[position].node[:]
            bodies[position].node.extend(nodes)
    return copy, renamed


class _NewNames:
    """Gives what leaves a branch a name of its own: the old one, if nothing else has it."""

    def __init__(self, graphs: Sequence[Graph]) -> None:
        self._names = Names(graphs)
        self._tensors, self._nodes = Counter[str](), Counter[str]()
        for graph in graphs:
            self._tensors.update({*graph.producer, *graph.formal, *graph.dims})
            self._nodes.update(graph.names)

    def of_tensor(self, name: str, around: str) -> str:
        return name if self._tensors[name] <= 1 else self._names.fresh(f"{around}/{name}")

    def of_node(self, name: str, around: str) -> str:
        return name if self._nodes[name] <= 1 else self._names.fresh(f"{around}/{name}")


class _Mapping(dict[str, str]):
    """Names of a branch by those that they get; what it reads from outside keeps its name."""

    def __missing__(self, name: str) -> str:
        return name


def _spliced(
    body: Body, node: NodeProto, branch: GraphProto, names: _NewNames
) -> tuple[list[NodeProto], dict[str, str]]:
    """Return the nodes of a branch that stand for an If, and the names of what it defines by now.

    What else it holds goes to the body.
    """
    around = node.name or next(filter(None, node.output), OPERATOR)
    own = [t.name for t in branch.initializer] + [t.values.name for t in branch.sparse_initializer]
    written = {name for each in branch.node for name in each.output if name}
    mapping, passed_on = _Mapping(), list[tuple[str, str]]()
    for value, actual in zip(branch.output, node.output, strict=True):
        if actual and value.name in written and value.name not in mapping:
            mapping[value.name] = actual
        elif actual:
            passed_on.append((value.name, actual))
    for name in (*own, *defined(branch.node)):
        if name and name not in mapping:
            mapping[name] = names.of_tensor(name, around)
    rename_body(branch, mapping)
    nodes = [*branch.node]
    for each in nodes_within(nodes):
        if each.name:
            each.name = names.of_node(each.name, around)
    for each in nodes:
        describe(each, node)
    nodes += [new_node("Identity", [mapping[n]], [y]) for n, y in passed_on]
    _move(body, branch)
    return nodes, mapping


def _move(body: Body, branch: GraphProto) -> None:
    """Move constants of a branch, and what is known of its tensors, to the body around it."""
    outputs = {value.name for value in branch.output}
    body.value_info.extend(v for v in branch.value_info if v.name not in outputs)
    if not isinstance(body, GraphProto):
        return
    body.initializer.extend(branch.initializer)
    body.sparse_initializer.extend(branch.sparse_initializer)
    body.quantization_annotation.extend(branch.quantization_annotation)
