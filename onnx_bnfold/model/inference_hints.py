"""Ranks and types of tensors as operators imply them, where shape inference knows none.

The inputs of a local function have neither, and so inference knows nothing of what is computed from
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import ModelProto, NodeProto, TensorProto

from onnx_bnfold.model.graph import STANDARD_DOMAINS, Dims, Graph, bodies_of, operator
from onnx_bnfold.model.messages import new_node

Types = Mapping[str, tuple[Dims | None, int]]

SAME_RANK = frozenset(
    {
        *("AveragePool", "BatchNormalization", "Cast", "Clip", "Dropout", "Elu", "Identity"),
        *("GroupNormalization", "LeakyRelu", "MaxPool", "Relu", "Sigmoid", "Softmax", "Tanh"),
    }
)
# All inputs and the output have one type.
_ONE_TYPE = frozenset(
    {
        *("Add", "Concat", "Conv", "ConvTranspose", "Div", "Gemm", "MatMul", "Max", "Min", "Mul"),
        *("PRelu", "Sub", "Sum"),
    }
)
# The first input and the output have one type.
_SAME_TYPE = (SAME_RANK - {"Cast"}) | {
    *("Abs", "Expand", "Flatten", "Gather", "GlobalAveragePool", "GlobalMaxPool", "Neg", "Pad"),
    *("ReduceMax", "ReduceMean", "Reshape", "Resize", "Slice", "Squeeze", "Tile", "Transpose"),
    *("Unsqueeze",),
}


# Their output is like their first input, which onnx's inference does not know.
NOT_INFERRED = frozenset({"GroupNormalization"})


def stand_in(model: ModelProto) -> None:
    """Write nodes of which onnx infers nothing as others of the same shape and type."""
    for body in bodies_of(model):
        for node in body.node:
            if node.op_type not in NOT_INFERRED or operator(node) is None:
                continue
            if node.input and len(node.output) == 1:
                node.CopyFrom(new_node("Identity", [node.input[0]], [node.output[0]]))


def ranks_by_layers(graph: Graph, types: Types) -> dict[str, int]:
    """Return the ranks that layers imply: tensor name → rank.

    Args:
        graph: the graph.
        types: of its tensors, as far as inference knows them.
    """
    known = {**types, **{n: (tuple(tensor.dims), 0) for n, tensor in _held(graph)}}
    ranks: dict[str, int] = {}
    for node in _both_ways(graph):
        _note_rank(graph, known, node, ranks)
    return ranks


def types_by_constants(graph: Graph) -> dict[str, int]:
    """Return the element types that constants imply: tensor name → element type."""
    types = {tensor.name: tensor.data_type for tensor in graph.initializers.values()}
    types.update((name, tensor.data_type) for name, tensor in _held(graph))
    for node in _both_ways(graph):
        ends = [node.input[0], node.output[0]]
        if node.op_type in _ONE_TYPE:
            ends = [*filter(None, node.input), node.output[0]]
        elif node.op_type not in _SAME_TYPE:
            continue
        data_type = next((types[end] for end in ends if end in types), TensorProto.UNDEFINED)
        if data_type != TensorProto.UNDEFINED:
            for end in ends:
                types.setdefault(end, data_type)
    return types


def _held(graph: Graph) -> Iterator[tuple[str, TensorProto]]:
    """Yield the name of each Constant node's output, and the tensor that it holds."""
    for op, node in zip(graph.ops, graph.nodes, strict=True):
        if op == "Constant" and node.attribute[:1] and node.attribute[0].HasField("t"):
            yield node.output[0], node.attribute[0].t


def _both_ways(graph: Graph) -> Iterator[NodeProto]:
    """Yield the standard nodes in order and in reverse: a tensor's producer and readers count."""
    for nodes in (graph.nodes, list(reversed(graph.nodes))):
        for node in nodes:
            if node.domain in STANDARD_DOMAINS and node.input and node.output:
                yield node


def _note_rank(graph: Graph, types: Types, node: NodeProto, ranks: dict[str, int]) -> None:
    ends = (node.input[0], node.output[0])
    rank: int | None = None
    if node.op_type == "Gemm":
        rank = 2
    elif node.op_type in ("Conv", "ConvTranspose"):
        # The weight may be computed by nodes; after a fold it is an initializer.
        weight = graph.find_initializer(node.input[1])
        dims = types.get(node.input[1], (None, 0))[0] if weight is None else weight[1].dims
        rank = None if dims is None else len(dims)
    elif node.op_type in SAME_RANK:
        rank = next((ranks[e] for e in ends if e in ranks), None)
    if rank is not None:
        for end in ends:
            ranks.setdefault(end, rank)
