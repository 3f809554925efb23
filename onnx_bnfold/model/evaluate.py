"""Evaluate single nodes whose inputs are constants, or infer the types of their outputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, SparseTensorProto, TensorProto, TypeProto, helper, numpy_helper

from onnx_bnfold.arrays import Array
from onnx_bnfold.errors import ModelError
from onnx_bnfold.model.graph import Graph, ReadTensor
from onnx_bnfold.model.misread import is_misread
from onnx_bnfold.reasons import Reason, Refused
from onnx_bnfold.storage.tensors import is_external


def infer_node(
    node: NodeProto,
    opset: int,
    types: dict[str, TypeProto],
    values: dict[str, TensorProto],
) -> dict[str, TypeProto] | None:
    """Infer the types of a standard node's outputs.

    Args:
        node: the node.
        opset: version of its operator set.
        types: of its inputs, by name.
        values: of those inputs that may determine shapes, by name.

    Returns:
        Name of the output → type; None if onnx's inference misreads the node.

    Raises:
        Exception: of several types, if the node is invalid.
    """
    plain = NodeProto()
    plain.CopyFrom(node)
    plain.domain = ""
    if is_misread(plain, opset, lambda name: _integers(values.get(name))):
        return None
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    imports = [helper.make_opsetid("", opset)]
    return onnx.shape_inference.infer_node_outputs(
        schema, plain, types, values, opset_imports=imports
    )


def _integers(tensor: TensorProto | None) -> list[int] | None:
    if tensor is None:
        return None
    value = numpy_helper.to_array(tensor)
    return [*map(int, value.reshape(-1))] if value.dtype.kind == "i" else None


def dense(sparse: SparseTensorProto, read: ReadTensor) -> Array:
    """Return the values of a sparse tensor in the shape of the dense one.

    Raises:
        ModelError: the indices do not fit.
    """
    values, indices = read(sparse.values), read(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    try:
        flat = indices
        if indices.ndim == 2:  # one row of coordinates per value
            flat = np.ravel_multi_index(tuple(indices.T), dense.shape)
        fits = flat.shape == values.shape and flat.min(initial=0) >= 0
        dense.reshape(-1)[flat if fits else dense.size] = values
    except (IndexError, TypeError, ValueError) as error:
        raise ModelError(
            f"sparse tensor {sparse.values.name!r}: its indices do not fit its values or its "
            f"shape {list(sparse.dims)}; repair the model"
        ) from error
    return dense


def held_by(node: NodeProto, read: ReadTensor) -> dict[str, Array] | None:
    """Return output name → tensor of a Constant node; None for other nodes and other attributes."""
    if node.op_type != "Constant" or len(node.attribute) != 1:
        return None
    held, output = node.attribute[0], node.output[0]
    if held.HasField("t"):
        return {output: _read_named(held.t, output, read)}
    if held.HasField("sparse_tensor"):
        return {output: dense(held.sparse_tensor, read)}
    return None


def _read_named(tensor: TensorProto, name: str, read: ReadTensor) -> Array:
    """Return a tensor's values; an error calls a tensor without a name by ``name``."""
    try:
        return read(tensor)
    except ModelError:
        if tensor.name:
            raise
    named = TensorProto()
    named.CopyFrom(tensor)
    named.name = name
    return read(named)


def run_node(
    graph: Graph, index: int, feeds: Mapping[str, Array], read: ReadTensor
) -> dict[str, Array]:
    """Return output name → values of a node, by onnx's reference evaluator.

    Args:
        graph: that has the node.
        index: of the node.
        feeds: input name → values.
        read: returns the elements of a tensor.

    Raises:
        Refused: the node cannot be evaluated.
    """
    from onnx.reference import ReferenceEvaluator  # 0.3 s, needed by few models

    plain = NodeProto()
    plain.CopyFrom(graph.nodes[index])
    plain.domain = ""
    for item in plain.attribute:
        if item.HasField("t") and is_external(item.t):
            item.t.CopyFrom(numpy_helper.from_array(read(item.t)))
    names = [n for n in plain.output if n]
    alone = helper.make_graph(
        [plain],
        "constant",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
         for n, v in feeds.items()],
        [onnx.ValueInfoProto(name=n) for n in names],
    )  # fmt: skip
    model = helper.make_model(alone, opset_imports=[helper.make_opsetid("", graph.opset)])
    try:
        results = ReferenceEvaluator(model).run(names, dict(feeds))
    except Exception as error:  # the evaluator raises what numpy raises
        raise Refused(
            Reason.PARAMETERS_NOT_CONSTANT,
            graph.label(index),
            f"it cannot be evaluated ({error}); repair the model",
        ) from error
    return {n: np.asarray(r) for n, r in zip(names, results, strict=True)}
