"""What layers say of the ranks and types of tensors, where shape inference says nothing.

The inputs of a local function have neither, and so has nothing that is computed from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import NodeProto, TensorProto

from onnx_bnfold.graph import STANDARD_DOMAINS, Dims, Graph

Types = Mapping[str, tuple[Dims | None, int]]

SAME_RANK = frozenset(
    {
        *("AveragePool", "BatchNormalization", "Cast", "Clip", "Dropout", "Elu", "Identity"),
        *("LeakyRelu", "MaxPool", "Relu", "Sigmoid", "Softmax", "Tanh"),
    }
)
# All inputs and the output are of one type.
_ONE_TYPE = frozenset(
    {
        *("Add", "Concat", "Conv", "ConvTranspose", "Div", "Gemm", "MatMul", "Max", "Min", "Mul"),
        *("PRelu", "Sub", "Sum"),
    }
)
# The first input and the output are.
_SAME_TYPE = (SAME_RANK - {"Cast"}) | {
    *("Abs", "Expand", "Flatten", "Gather", "GlobalAveragePool", "GlobalMaxPool", "Neg", "Pad"),
    *("ReduceMax", "ReduceMean", "Reshape", "Resize", "Slice", "Squeeze", "Tile", "Transpose"),
    *("Unsqueeze",),
}


def ranks_by_layers(graph: Graph, types: Types) -> dict[str, int]:
    """Return the ranks of the tensors that layers fix, and of those that have the same."""
    known = {**types, **{n: (tuple(tensor.dims), 0) for n, tensor in _held(graph)}}
    ranks: dict[str, int] = {}
    for node in _twice(graph):
        _note_rank(graph, known, node, ranks)
    return ranks


def types_by_constants(graph: Graph) -> dict[str, int]:
    """Return the types of the tensors that are computed with constants, or from such."""
    types = {tensor.name: tensor.data_type for tensor in graph.initializers.values()}
    types.update((name, tensor.data_type) for name, tensor in _held(graph))
    for node in _twice(graph):
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
    """Yield the tensors that Constant nodes hold, by the names of their outputs."""
    for node in graph.nodes:
        if node.op_type == "Constant" and node.attribute[:1] and node.attribute[0].HasField("t"):
            yield node.output[0], node.attribute[0].t


def _twice(graph: Graph) -> Iterator[NodeProto]:
    """Yield the nodes forth and back, so that both sides of a tensor can tell."""
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
        # A weight may be made by nodes: once it is folded it is an initializer like the others.
        found = graph.find_initializer(node.input[1])
        dims = types.get(node.input[1], (None, 0))[0] if found is None else found[1].dims
        rank = None if dims is None else len(dims)
    elif node.op_type in SAME_RANK:
        rank = next((ranks[e] for e in ends if e in ranks), None)
    if rank is not None:
        for end in ends:
            ranks.setdefault(end, rank)
