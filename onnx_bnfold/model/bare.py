"""Models without what planning does not read: copies to be looked at, not to be run.

PyTorch's exporter writes with each node where in the sources it comes from: often more than all the
rest of the graph. Shape inference needs no weights either.
"""

from __future__ import annotations

import math

from onnx import GraphProto, ModelProto, TensorProto

from onnx_bnfold.model.graph import STANDARD_DOMAINS, bodies_of
from onnx_bnfold.storage.tensors import is_external

# Initializers of up to this many elements keep their values, since shapes may depend on them.
LARGEST_KEPT = 1024

# External floats are read if they have up to this many elements: they may be scales of a Resize.
_LARGEST_SCALES = 16


def without_metadata(model: ModelProto) -> ModelProto:
    """Return a model whose nodes have no ``metadata_props``: itself, emptied, or a new one.

    Args:
        model: must not be used afterwards.
    """
    found = False
    for body in bodies_of(model):
        for node in body.node:
            if node.metadata_props:
                node.ClearField("metadata_props")
                found = True
    # Protobuf gives the memory back with the whole model only.
    return ModelProto.FromString(model.SerializeToString()) if found else model


def without_weights(model: ModelProto) -> ModelProto:
    """Copy a model without the values of its large initializers and without derived value_info.

    The file's value_info of tensors that standard operators compute is left out: inference computes
    it anew, and a wrong entry must not lead to a wrong fold.
    """
    light = ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph, source = light.graph, model.graph
    graph.name = "graph"  # the original name may not be text
    graph.node.extend(source.node)
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    foreign = {o for n in source.node if n.domain not in STANDARD_DOMAINS for o in n.output}
    graph.value_info.extend(v for v in source.value_info if v.name in foreign)
    graph.initializer.extend(_shape_only(t) for t in source.initializer)
    graph.initializer.extend(
        TensorProto(name=s.values.name, dims=s.dims, data_type=s.values.data_type)
        for s in source.sparse_initializer
    )
    for body in bodies_of(light):
        if isinstance(body, GraphProto):
            _open_negative_sizes(body)
    return without_metadata(light)


def _open_negative_sizes(graph: GraphProto) -> None:
    """Clear sizes of -1, which some converters write for unknown ones."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
            if dim.dim_value < 0:
                dim.Clear()


def _shape_only(tensor: TensorProto) -> TensorProto:
    is_kept = may_be_parameter(tensor) if is_external(tensor) else _is_small(tensor)
    if is_kept:
        return tensor
    return TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)


def may_be_parameter(tensor: TensorProto) -> bool:
    """Return whether a tensor may be axes, sizes or the like, or the scales of a Resize."""
    integers = tensor.data_type == TensorProto.INT64
    return _is_small(tensor, LARGEST_KEPT if integers else _LARGEST_SCALES)


def _is_small(tensor: TensorProto, limit: int = LARGEST_KEPT) -> bool:
    return bool(math.prod(tensor.dims) <= limit)
