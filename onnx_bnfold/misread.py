"""Keeps onnx's shape inference from misreading the axes of Squeeze and Unsqueeze.

Measured with onnx 1.23 and onnxruntime 1.32: before opset 11 inference leaves out the axes of a
Squeeze that are not in ascending order, and negative ones of either; in every opset it takes an
empty list of Squeeze for no axis, where onnxruntime squeezes all that can be. onnxruntime believes
that inference when it loads a model, so what lies behind such a node is better left as it is.
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto

from onnx_bnfold.graph import STANDARD_DOMAINS, Graph, bodies_of, graphs_of

OPERATORS = ("Squeeze", "Unsqueeze")
COUNTED_FROM_THE_BACK = 11  # the first opset in which axes may be negative


def has_misread_axes(node: NodeProto, opset: int) -> bool:
    """Whether inference misreads the attribute ``axes`` of a node."""
    if node.op_type not in OPERATORS or node.domain not in STANDARD_DOMAINS:
        return False
    axes = next((list(item.ints) for item in node.attribute if item.name == "axes"), None)
    if axes is None:
        return False
    if opset < COUNTED_FROM_THE_BACK and any(axis < 0 for axis in axes):
        return True
    if node.op_type == "Unsqueeze":
        return False
    return not axes or (opset < COUNTED_FROM_THE_BACK and axes != sorted(axes))


def misread(model: ModelProto) -> list[NodeProto]:
    """Return the nodes of a model whose axes inference misreads."""
    if not any(node.op_type in OPERATORS for body in bodies_of(model) for node in body.node):
        return []
    return [
        node
        for graph in graphs_of(model)
        for node in graph.nodes
        if has_misread_axes(node, graph.opset) or _has_empty_list(graph, node)
    ]


def _has_empty_list(graph: Graph, node: NodeProto) -> bool:
    """Whether a Squeeze reads an empty list of axes."""
    if node.op_type != "Squeeze" or node.domain not in STANDARD_DOMAINS or len(node.input) < 2:
        return False
    name = node.input[1]
    found, index = graph.find_initializer(name), graph.producer.get(name)
    if found is not None:
        return 0 in found[1].dims
    if index is None or graph.ops[index] != "Constant":
        return False
    return any(
        0 in a.t.dims if a.HasField("t") else not a.ints for a in graph.nodes[index].attribute
    )
