"""What is left of BatchNormalizations that are written as something else, and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from onnx_bnfold.arrays import dtype_of
from onnx_bnfold.planning.candidates import elements
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.planning.plan import GraphPlan, Recorded
from onnx_bnfold.planning.record import FormCost


def with_costs(
    recorded: Sequence[Recorded], is_gone: Callable[[GraphPlan, int], bool]
) -> list[Recorded]:
    """Return what became of nodes, with the costs of what stands for them.

    Args:
        recorded: what became of them.
        is_gone: whether a node of a plan's graph goes, by that plan or a later one.
    """
    found = []
    for each in recorded:
        if each.restated is not None and not each.record.folded:
            left = [node for node in _nodes(each) if not is_gone(each.plan, node)]
            cost = _cost(each.plan.state, left)
            each = each._replace(record=each.record._replace(form_cost=cost))
        found.append(each)
    return found


def _nodes(each: Recorded) -> Iterator[int]:
    """Yield the nodes that stand for a BatchNormalization: up to the one that writes its output."""
    assert each.restated is not None
    graph, node = each.plan.state.graph, each.node
    yield node
    while graph.writes[node][0] != each.restated.output:
        [(node, _)] = graph.readers[graph.writes[node][0]]
        yield node


def _cost(state: GraphState, nodes: Sequence[int]) -> FormCost:
    depths = [state.entries[node].depth for node in nodes]
    return FormCost(
        len(nodes),
        sum(elements(state, node) for node in nodes),
        sum(_constant_bytes(state, node) for node in nodes),
        sum(depth[0] for depth in depths if isinstance(depth, tuple)),
    )


def _constant_bytes(state: GraphState, node: int) -> int:
    view = state.view(node)
    held = (view.constant(slot) for slot in range(len(view.reads)))
    return sum(info.size * dtype_of(info.data_type).itemsize for info in held if info is not None)
