"""BatchNormalizations that compute a constant, and the constant in their place.

PyTorch standardises weights by a BatchNormalization in training mode, for example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnx_bnfold.arrays import Array
from onnx_bnfold.model.graph import counterparts
from onnx_bnfold.operators import batchnorm
from onnx_bnfold.planning.plan import CONSTANT, Decision, GraphPlan, Place, Restated
from onnx_bnfold.reasons import Refused
from onnx_bnfold.rewriting.descriptions import rename_shards


def values(plan: GraphPlan) -> dict[int, Array]:
    """Return what the BatchNormalizations of a graph compute that compute a constant.

    Args:
        plan: of the graph; where a constant cannot be computed, it says so from now on.
    """
    graph, constants, found = plan.state.graph, plan.state.constants, dict[int, Array]()
    for position, decision in enumerate(plan.decisions):
        index = decision.node
        if graph.ops[index] != batchnorm.OPERATOR:
            continue
        output, *others = graph.writes[index]
        if constants.get(output) is None or any(graph.is_read(name) for name in others if name):
            continue
        try:
            found[index] = constants.value(output)
        except Refused as refused:
            plan.decisions[position] = decision._replace(refusal=refused.refusal)
    return found


@dataclass
class Replaced:
    """What is in a copy of a model in which constants replace nodes.

    Attributes:
        decisions: of the nodes that were replaced.
        unread: the constants that these have read.
    """

    decisions: dict[Place, Decision] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)


def apply(
    model: ModelProto, plans: Sequence[GraphPlan], found: Sequence[Mapping[int, Array]]
) -> Replaced:
    """Replace BatchNormalizations by Constant nodes in a copy of a model, in place.

    Args:
        model: the copy.
        plans: of its graphs.
        found: for each graph what its nodes compute that are to be replaced.
    """
    graphs, replaced = [plan.state.graph for plan in plans], Replaced()
    bodies = counterparts(model, graphs)
    for position, (graph, body) in enumerate(zip(graphs, bodies, strict=True)):
        for index, value in found[position].items():
            name, x, y = graph.name(index), graph.reads[index][0], graph.writes[index][0]
            was = Restated(CONSTANT, name, x, y)
            replaced.decisions[position, index] = Decision(index, CONSTANT, restated=was)
            replaced.unread.update(graph.reads[index])
            _hold(body.node[index], value)
    return replaced


def _hold(node: NodeProto, value: Array) -> None:
    """Make a node a Constant that holds its first output."""
    del node.attribute[:], node.input[:], node.output[1:]
    node.op_type, node.domain = "Constant", ""
    node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(value)))
    rename_shards(node, {})
