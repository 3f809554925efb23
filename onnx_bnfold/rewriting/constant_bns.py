"""BatchNormalizations that compute a constant, and the constant in their place.

PyTorch standardises weights by a BatchNormalization in training mode, for example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnx import ModelProto, NodeProto

from onnx_bnfold.arrays import Array
from onnx_bnfold.model.graph import counterparts
from onnx_bnfold.model.messages import new_attribute, new_tensor
from onnx_bnfold.planning.plan import GraphPlan, Restated
from onnx_bnfold.planning.record import Record
from onnx_bnfold.planning.ways import Way
from onnx_bnfold.reasons import Refused
from onnx_bnfold.rewriting.descriptions import rename_shards
from onnx_bnfold.rewriting.replaced_nodes import Copied


def evaluated(copy: Callable[[], ModelProto], plans: Sequence[GraphPlan]) -> Copied | None:
    """Return a copy of a model in which Constant nodes hold what BNs compute, None if none does.

    Args:
        copy: makes a copy.
        plans: of the graphs; where a constant cannot be computed, they say so from now on.
    """
    found = [_values(plan) for plan in plans]
    if not any(found):
        return None
    graphs, copied = [plan.state.graph for plan in plans], Copied(copy())
    bodies = counterparts(copied.model, graphs)
    for position, (graph, body) in enumerate(zip(graphs, bodies, strict=True)):
        for index, value in found[position].items():
            x, y = graph.reads[index][0], graph.writes[index][0]
            record = Record(graph.place(graph.label(index)), True, Way.CONSTANT)
            was = Restated("constant", graph.name(index), x, y, record)
            copied.restated[position, index] = was
            copied.unread.update(graph.reads[index])
            _hold(body.node[index], value)
    return copied


def _values(plan: GraphPlan) -> dict[int, Array]:
    """Return what the BatchNormalizations of a graph compute that compute a constant."""
    graph, constants, found = plan.state.graph, plan.state.constants, dict[int, Array]()
    for index, record in plan.records.items():
        if not record.is_norm:
            continue
        output, *others = graph.writes[index]
        if constants.get(output) is None or any(graph.is_read(name) for name in others if name):
            continue
        try:
            found[index] = constants.value(output)
        except Refused as refused:
            plan.records[index] = record._replace(refusal=refused.refusal)
    return found


def _hold(node: NodeProto, value: Array) -> None:
    """Make a node a Constant that holds its first output."""
    del node.attribute[:], node.input[:], node.output[1:]
    node.op_type, node.domain = "Constant", ""
    node.attribute.append(new_attribute("value", new_tensor(value)))
    rename_shards(node, {})
