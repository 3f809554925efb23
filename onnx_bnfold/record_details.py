"""What records say of nodes beyond what became of them: operator, place, bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from onnx import TensorProto

from onnx_bnfold.model.graph import Graph, graphs_of
from onnx_bnfold.operators import batchnorm
from onnx_bnfold.pipeline import Pipeline
from onnx_bnfold.planning.plan import Recorded
from onnx_bnfold.planning.record import Record
from onnx_bnfold.storage.tensors import bytes_needed


def records_of(pipeline: Pipeline) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Return the records of a plan.

    Returns:
        What became of every node that went, and of every BatchNormalization; and why each
        decomposed BatchNormalization stays that does.
    """
    graphs = _given_graphs(pipeline)
    gone = (*pipeline.merged, *(each.record for each in pipeline.never_run))
    merged = [record._replace(operator=batchnorm.OPERATOR) for record in gone]
    return (
        (*merged, *_detailed(graphs, pipeline.recorded)),
        tuple(_detailed(graphs, pipeline.decomposed_bns)),
    )


def _detailed(graphs: Mapping[str, Graph], recorded: Iterable[Recorded]) -> Iterator[Record]:
    for each in recorded:
        graph = each.plan.state.graph
        operator = _operator(graph, each)
        given = graphs.get(graph.path)
        name = graph.writes[each.node][0] if each.restated is None else each.restated.output
        index = None if given is None else given.producer.get(name)
        if given is not None and index is not None and given.ops[index] == operator:
            size = _parameter_bytes(given, index)
            yield each.record._replace(operator=operator, index=index, bytes=size)
        else:
            yield each.record._replace(operator=operator)


def _operator(graph: Graph, each: Recorded) -> str:
    return batchnorm.OPERATOR if each.record.is_norm else graph.ops[each.node] or ""


def _given_graphs(pipeline: Pipeline) -> Mapping[str, Graph]:
    """Return the graphs of the model as it was given, by path; none where names have moved."""
    if pipeline.earlier:
        return {}
    graphs = pipeline.graphs if pipeline.model is pipeline.given else graphs_of(pipeline.given)
    return {graph.path: graph for graph in graphs}


def _parameter_bytes(graph: Graph, index: int) -> int | None:
    """Return the bytes of the constants that a node reads, None if one is of no known size."""
    found = (_held(graph, name) for name in dict.fromkeys(graph.reads[index]))
    try:
        return sum(bytes_needed(tuple(t.dims), t.data_type) for t in found if t is not None)
    except ValueError:
        return None


def _held(graph: Graph, name: str) -> TensorProto | None:
    """Return the tensor that an initializer, or a node without inputs, holds."""
    producer = graph.producer.get(name)
    if producer is None or graph.reads[producer]:
        return graph.initializers.get(name)
    value = graph.attributes.get(producer, {}).get("value")
    return value.t if value is not None and value.HasField("t") else None
