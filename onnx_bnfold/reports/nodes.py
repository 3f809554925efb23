"""What was done with each BatchNormalization, and the nodes around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from onnx import ModelProto

from onnx_bnfold.model.graph import Graph, graphs_of, operator
from onnx_bnfold.operators import batchnorm
from onnx_bnfold.pipeline import Pipeline
from onnx_bnfold.planning.plan import Decision, GraphPlan
from onnx_bnfold.report import Record

# (position of the graph, node index) → position in the report's ``layers``.
Places = Mapping[tuple[int, int], int]


@dataclass(frozen=True)
class Node:
    """A node.

    Attributes:
        op: its operator, with the domain unless that is the standard one.
        name: its name, or that of its first output if it has none.
        graph: path of its graph; "" is the main graph.
    """

    op: str
    name: str
    graph: str


@dataclass(frozen=True)
class Taker(Node):
    """A node that took scale or shift of a removed one.

    Attributes:
        scale, shift: whether it took that.
        is_behind: whether it is later in the graph than the removed node.
        layer: position in the report's ``layers``; None if it is not listed there.
    """

    scale: bool
    shift: bool
    is_behind: bool
    layer: int | None


@dataclass(frozen=True)
class Attempt:
    """A failed way to remove a node, and why it failed (see ``reasons.Refusal``)."""

    way: str
    reason: str
    culprit: str
    sentence: str


@dataclass(frozen=True)
class NodeRecord(Node):
    """What was done with one node.

    Attributes:
        status: ``folded`` or ``kept``.
        way: how it was folded, or None.
        taken_by: the nodes that took its scale and shift; empty if it changed nothing.
        added_nodes: number of Add nodes that its shift needed.
        written_as: of a kept node ``keep``, ``mul-add`` or ``conv``; else None.
        reason, culprit, sentence: of a kept node see ``reasons.Refusal``; else None.
        tried: of a kept node, each way to fold it and why it failed.
        input: name of the tensor that it reads.
        producer: the node that writes that tensor; None if it is an input of the graph.
        output: name of the tensor that it writes.
        consumers: the nodes that read that tensor.
        is_graph_output: whether that tensor is an output of its graph.
    """

    status: str
    way: str | None
    taken_by: tuple[Taker, ...]
    added_nodes: int
    written_as: str | None
    reason: str | None
    culprit: str | None
    sentence: str | None
    tried: tuple[Attempt, ...]
    input: str
    producer: Node | None
    output: str
    consumers: tuple[Node, ...]
    is_graph_output: bool


def records_of(pipeline: Pipeline, positions: Places) -> Iterator[NodeRecord]:
    """Yield the decisions of all graphs of a model.

    Args:
        pipeline: the fold.
        positions: (identity of the plan, node index) → position in the report's ``layers``.
    """
    recorders = {
        id(plan): _Recorder(
            plan, {n: layer for (p, n), layer in positions.items() if p == id(plan)}
        )
        for plan in chain.from_iterable(pipeline.rounds)
    }
    for plan, decision in pipeline.decisions:
        yield recorders[id(plan)].record(decision)


def merged_records(merged: Sequence[Record], original: ModelProto) -> Iterator[NodeRecord]:
    """Yield records of BatchNormalizations whose branch was merged into a Conv before planning.

    Args:
        merged: their records; all are in the main graph.
        original: the model that still has them.
    """
    graph = graphs_of(original)[0]
    indices = {graph.label(index): index for index in range(len(graph.nodes))}
    for record in merged:
        index, conv = indices[record.name], indices.get(record.scale_to[0])
        x, y = graph.nodes[index].input[0], graph.nodes[index].output[0]
        takers: tuple[Taker, ...] = ()
        if conv is not None:  # else it stands for another BatchNormalization
            takers = (Taker(*_names(graph, conv), True, True, conv > index, None),)
        yield _record(graph, (index, x, y), Decision(index, record.way), takers)


class _Recorder:
    """Records the decisions of one graph."""

    def __init__(self, plan: GraphPlan, layers: Mapping[int, int]) -> None:
        self.state = plan.state
        self.layers = layers
        self.touched: dict[int, list[int]] = {}
        for index, causes in plan.touched.items():
            for cause in causes:
                self.touched.setdefault(cause, []).append(index)

    def record(self, decision: Decision) -> NodeRecord:
        graph, index = self.state.graph, decision.node
        if decision.restated is not None:
            x, y = decision.restated.input, decision.restated.output
        elif decision.folded:
            x, y = self.state.sides(index)
        else:
            x, y = graph.nodes[index].input[0], graph.nodes[index].output[0]
        return _record(graph, (index, x, y), decision, tuple(self._takers(decision)))

    def _takers(self, decision: Decision) -> Iterator[Taker]:
        if not decision.folded:
            return
        for index in sorted(self.touched.get(decision.node, ())):
            yield Taker(
                *_names(self.state.graph, index),
                scale=index in decision.scale_to,
                shift=index in decision.shift_to,
                is_behind=index > decision.node,
                layer=self.layers.get(index),
            )


def _record(
    graph: Graph,
    where: tuple[int, str, str],
    decision: Decision,
    takers: tuple[Taker, ...],
) -> NodeRecord:
    """Return the record of a node.

    Args:
        graph: of the node.
        where: the node's index, its data input and its output.
        decision: about the node.
        takers: the nodes that took its scale and shift.
    """
    index, x, y = where
    producer, refusal, was = graph.producer.get(x), decision.refusal, decision.restated
    names = _names(graph, index)
    if was is not None:
        names = batchnorm.OPERATOR, was.name, graph.path
    readers = dict.fromkeys(reader for reader, _ in graph.readers.get(y, ()))
    return NodeRecord(
        *names,
        status="folded" if refusal is None else "kept",
        way=decision.way,
        taken_by=takers,
        added_nodes=decision.added,
        written_as=None if refusal is None else "keep" if was is None else was.form,
        reason=None if refusal is None else refusal.reason.value,
        culprit=None if refusal is None else refusal.culprit,
        sentence=None if refusal is None else refusal.sentence,
        tried=tuple(
            Attempt(way, met.reason.value, met.culprit, met.sentence)
            for way, met in (decision.tried if refusal is not None else ())
        ),
        input=x,
        producer=None if producer is None else Node(*_names(graph, producer)),
        output=y,
        consumers=tuple(Node(*_names(graph, reader)) for reader in readers),
        is_graph_output=y in graph.outputs,
    )


def _names(graph: Graph, index: int) -> tuple[str, str, str]:
    return operator(graph.nodes[index]), graph.name(index), graph.path
