"""Writing a clamp as a Max and a Min with constants, behind the pool that alone reads it."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto

from onnx_bnfold.model.graph import copy_of
from onnx_bnfold.model.messages import new_node
from onnx_bnfold.planning.clamps import bounds_of, pool_behind, written
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.rewriting.descriptions import rename_shards
from onnx_bnfold.rewriting.fresh_names import Names


def write_clamp(
    state: GraphState,
    nodes: Sequence[NodeProto],
    index: int,
    constants: Sequence[str],
    names: Names,
) -> tuple[int, list[NodeProto]]:
    """Write a clamp with constants, in place.

    Args:
        state: the graph, with all changes.
        nodes: of the body; their tensors have their final names.
        index: the clamp.
        constants: names of what ``written`` returns.
        names: gives new ones.

    Returns:
        The node that further ones go behind, and these. If that is another one, a pool, the first
        of them is the clamp, and the node itself has no readers any more.
    """
    node, pool = nodes[index], pool_behind(state, index)
    data, first = node.input[bounds_of(state, index).data], node
    if pool is not None:
        first = copy_of(node)
        first.output[0] = nodes[pool].output[0]
        nodes[pool].input[0] = data
        data = nodes[pool].output[0] = names.fresh(f"{first.output[0]}_unbounded")
    operators = [each.operator for each in written(state, index)]
    chain = _chain(first, data, operators, constants, names)
    for changed in (first,) if pool is None else (first, nodes[pool]):
        rename_shards(changed, {})  # nothing is known of where a new tensor is to be
    return (index, chain[1:]) if pool is None else (pool, chain)


def _chain(
    first: NodeProto, data: str, operators: Sequence[str], constants: Sequence[str], names: Names
) -> list[NodeProto]:
    """Write a node as one or two of some operators, each with its constant; return them."""
    name, result = first.name, first.output[0]
    first.op_type = operators[0]
    del first.attribute[:], first.input[:]
    first.input.extend([data, constants[0]])
    if len(operators) == 1:
        return [first]
    first.output[0] = names.fresh(f"{result}_{operators[0].lower()}")
    label = names.fresh(f"{name}_{operators[1].lower()}") if name else ""
    return [first, new_node(operators[1], [first.output[0], constants[1]], [result], label)]
