"""Evaluate single nodes whose inputs are constants, or infer the types of their outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import (
    ModelProto,
    NodeProto,
    OperatorSetIdProto,
    SparseTensorProto,
    TensorProto,
    TypeProto,
    helper,
)

from onnx_bnfold.arrays import Array, data_type_of
from onnx_bnfold.errors import ModelError
from onnx_bnfold.model.determinism import READ_BY_REFERENCE
from onnx_bnfold.model.graph import Graph, ReadTensor
from onnx_bnfold.model.messages import new_tensor, new_value_info
from onnx_bnfold.model.misread import is_misread
from onnx_bnfold.model.numpy_nodes import by_numpy
from onnx_bnfold.reasons import Reason, Refused
from onnx_bnfold.storage.tensors import decode_inline, is_external


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
    imports = [OperatorSetIdProto(domain="", version=opset)]
    return onnx.shape_inference.infer_node_outputs(
        schema, plain, types, values, opset_imports=imports
    )


def _integers(tensor: TensorProto | None) -> list[int] | None:
    if tensor is None:
        return None
    value = decode_inline(tensor)
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


def work(node: NodeProto, read: Sequence[int], made: int) -> float:
    """Return roughly how many products a node adds up, a bound for most operators.

    A product of matrices of sizes ``mk`` and ``kn`` adds up ``mkn``, the root of the sizes of all
    three; a convolution or pooling adds up more by its kernel, at most.

    Args:
        node: the node.
        read: numbers of elements of its inputs.
        made: number of elements of an output.
    """
    kernel = next((item.ints for item in node.attribute if item.name == "kernel_shape"), ())
    return math.sqrt(math.prod(sorted(read)[-2:]) * made) * math.prod(kernel)


def run_node(
    graph: Graph, index: int, feeds: Mapping[str, Array], read: ReadTensor
) -> dict[str, Array]:
    """Return output name → values of a node, each in the type that it has in the model.

    The node computes in its own types, as it does when the model runs: with more digits a
    QuantizeLinear, a Round or a Sign could return something else. Operators that onnx's reference
    evaluator does not read as onnxruntime does are run by onnxruntime, on one thread.

    Args:
        graph: that has the node.
        index: of the node.
        feeds: input name → values.
        read: returns the elements of a tensor.

    Raises:
        Refused: the node cannot be evaluated.
    """
    plain = _plain(graph.nodes[index], read)
    try:
        made = by_numpy(plain, graph.opset, feeds)
        if made is not None:
            return {plain.output[0]: made}
        if plain.op_type in READ_BY_REFERENCE:
            return _by_reference(plain, graph.opset, feeds)
        return _by_runtime(plain, graph.opset, feeds)
    except Exception as error:  # the evaluators raise what numpy and pybind11 raise
        sentence = next(iter(str(error).splitlines()), type(error).__name__)
        raise Refused(
            Reason.PARAMETERS_NOT_CONSTANT,
            graph.label(index),
            f"it cannot be evaluated ({sentence}); repair the model, or fold constants first",
        ) from error


def _plain(node: NodeProto, read: ReadTensor) -> NodeProto:
    """Copy a node of the standard domain with all that it refers to."""
    plain = NodeProto()
    plain.CopyFrom(node)
    plain.domain = ""
    for item in plain.attribute:
        if item.HasField("t") and is_external(item.t):
            item.t.CopyFrom(new_tensor(read(item.t)))
    while plain.output and not plain.output[-1]:  # onnxruntime crashes at some of these
        del plain.output[-1]
    return plain


def _by_reference(node: NodeProto, opset: int, feeds: Mapping[str, Array]) -> dict[str, Array]:
    from onnx.reference import ReferenceEvaluator  # 0.3 s, needed by few models

    names = [n for n in node.output if n]
    model = _model_of(node, names, opset, feeds, {})
    results = ReferenceEvaluator(model).run(names, dict(feeds))
    return {n: np.asarray(r) for n, r in zip(names, results, strict=True)}


def _by_runtime(node: NodeProto, opset: int, feeds: Mapping[str, Array]) -> dict[str, Array]:
    import onnxruntime as ort  # 0.1 s, needed by few models

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    names = [n for n in node.output if n]
    # What is fed could be written over, and arrays of ml_dtypes cannot be.
    model = _model_of(node, names, opset, {}, feeds)
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    results = session.run(names, {})
    return {n: np.asarray(r) for n, r in zip(names, results, strict=True)}


def _model_of(
    node: NodeProto,
    outputs: Sequence[str],
    opset: int,
    fed: Mapping[str, Array],
    held: Mapping[str, Array],
) -> ModelProto:
    graph = helper.make_graph(
        [node],
        "constant",
        [new_value_info(n, data_type_of(v.dtype), v.shape)
         for n, v in fed.items()],
        [onnx.ValueInfoProto(name=n) for n in outputs],
        [new_tensor(v, n) for n, v in held.items()],
    )  # fmt: skip
    imports = [OperatorSetIdProto(domain="", version=opset)]
    # The newest version of the format may be newer than onnxruntime.
    version = helper.find_min_ir_version_for(imports, ignore_unknown=True)
    return helper.make_model(graph, opset_imports=imports, ir_version=version)
