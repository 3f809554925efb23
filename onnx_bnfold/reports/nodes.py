"""What was done with each BatchNormalization, and the nodes around it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from onnx import ModelProto

from onnx_bnfold.model.graph import Graph, graphs_of, operator
from onnx_bnfold.operators import batchnorm
from onnx_bnfold.pipeline import Pipeline
from onnx_bnfold.planning.plan import GraphPlan, Recorded, Restated, Taken
from onnx_bnfold.planning.record import Record
from onnx_bnfold.rewriting.replaced_nodes import NeverRun

# (identity of the plan, node index) → position in the report's ``layers``.
Places = Mapping[tuple[int, int], int]
_NO_REFUSAL = dict.fromkeys(("reason", "culprit", "sentence"))


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
class NodeRecord(Node):
    """What became of one node, and what was around it.

    Attributes:
        record: what became of it.
        taken_by: the nodes that took its scale and shift; empty if it changed nothing.
        written_as: of a kept node ``keep``, ``mul-add`` or ``conv``; else None.
        input: name of the tensor that it reads.
        producer: the node that writes that tensor; None if it is an input of the graph.
        output: name of the tensor that it writes.
        consumers: the nodes that read that tensor.
        is_graph_output: whether that tensor is an output of its graph.
    """

    record: Record
    taken_by: tuple[Taker, ...]
    written_as: str | None
    input: str
    producer: Node | None
    output: str
    consumers: tuple[Node, ...]
    is_graph_output: bool

    def to_dict(self) -> dict[str, Any]:
        """Return it as ``schema.json`` has it, as plain JSON types."""
        record = self.record
        told = _NO_REFUSAL if record.refusal is None else record.refusal.to_dict()
        return {
            "op": self.op,
            "name": self.name,
            "graph": self.graph,
            "status": "folded" if record.folded else "kept",
            "way": None if record.way is None else record.way.value,
            "taken_by": tuple(map(asdict, self.taken_by)),
            "added_nodes": record.added,
            "clamps": list(record.clamps),
            "clamp_elements": record.clamp_elements,
            "written_as": self.written_as,
            "not_written": record.not_written,
            "form_cost": None if record.form_cost is None else record.form_cost._asdict(),
            **told,
            "tried": tuple({"way": way, **met.to_dict()} for way, met in record.tried),
            "input": self.input,
            "producer": None if self.producer is None else asdict(self.producer),
            "output": self.output,
            "consumers": tuple(map(asdict, self.consumers)),
            "is_graph_output": self.is_graph_output,
        }


def records_of(
    pipeline: Pipeline, recorded: Iterable[Recorded], positions: Places
) -> Iterator[NodeRecord]:
    """Yield records with what was around the nodes.

    Args:
        pipeline: the fold.
        recorded: what became of them.
        positions: (identity of the plan, node index) → position in the report's ``layers``.
    """
    taken = {id(plan): _taken(plan) for plan in chain.from_iterable(pipeline.rounds)}
    for each in recorded:
        graph, index, plan = each.plan.state.graph, each.node, id(each.plan)
        if each.restated is not None:
            x, y = each.restated.input, each.restated.output
        elif each.record.folded or not each.record.is_norm:
            x, y = each.plan.state.sides(index)
        else:
            x, y = graph.nodes[index].input[0], graph.nodes[index].output[0]
        takers = sorted(taken[plan].get(index, {}).items()) if each.record.folded else ()
        taken_by = tuple(
            Taker(*_names(graph, i), *part, i > index, positions.get((plan, i)))
            for i, part in takers
        )
        yield _record(graph, (index, x, y), each.record, taken_by, each.restated)


def merged_records(merged: Sequence[Record], unmerged: ModelProto) -> Iterator[NodeRecord]:
    """Yield records of BatchNormalizations whose branch was merged into a Conv before planning.

    Args:
        merged: their records; all are in the main graph.
        unmerged: the model that still has them.
    """
    graph = graphs_of(unmerged)[0]
    indices = {graph.label(index): index for index in range(len(graph.nodes))}
    for record in merged:
        index, conv = indices[record.name], indices.get(record.scale_to[0])
        x, y = graph.nodes[index].input[0], graph.nodes[index].output[0]
        takers: tuple[Taker, ...] = ()
        if conv is not None:  # else it stands for another BatchNormalization
            takers = (Taker(*_names(graph, conv), True, True, conv > index, None),)
        yield _record(graph, (index, x, y), record, takers)


def never_run_records(never_run: Sequence[NeverRun]) -> Iterator[NodeRecord]:
    """Yield records of BatchNormalizations that are never run, as the condition is a constant."""
    for graph, index, record in never_run:
        where = index, graph.reads[index][0], graph.writes[index][0]
        yield _record(graph, where, record, ())


def _taken(plan: GraphPlan) -> dict[int, dict[int, Taken]]:
    """Return what ``plan.touched`` says, by the removed nodes first."""
    found: dict[int, dict[int, Taken]] = {}
    for index, causes in plan.touched.items():
        for origin, part in causes.items():
            found.setdefault(origin, {})[index] = part
    return found


def _record(
    graph: Graph,
    where: tuple[int, str, str],
    record: Record,
    takers: tuple[Taker, ...],
    restated: Restated | None = None,
) -> NodeRecord:
    """Return the record of a node with what was around it.

    Args:
        graph: of the node.
        where: the node's index, its data input and its output.
        record: of the node.
        takers: the nodes that took its scale and shift.
        restated: what the node was, if it is something else by now.
    """
    index, x, y = where
    names, form = _names(graph, index), "keep"
    if restated is not None:
        names, form = (batchnorm.OPERATOR, restated.name, graph.path), restated.form
    producer = graph.producer.get(x)
    readers = dict.fromkeys(reader for reader, _ in graph.readers.get(y, ()))
    return NodeRecord(
        *names,
        record=record,
        taken_by=takers,
        written_as=None if record.folded else form,
        input=x,
        producer=None if producer is None else Node(*_names(graph, producer)),
        output=y,
        consumers=tuple(Node(*_names(graph, reader)) for reader in readers),
        is_graph_output=y in graph.outputs,
    )


def _names(graph: Graph, index: int) -> tuple[str, str, str]:
    return operator(graph.nodes[index]), graph.name(index), graph.path
