"""Models and single nodes in onnxruntime, with all its optimisations disabled."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto, helper, numpy_helper

ort.set_default_logger_severity(4)

_KEPT_SESSIONS = 300
# The second of functions whose constants are of float32, as MeanVarianceNormalization's.
_NO_KERNEL = ("NOT_IMPLEMENTED", "bound to different types")
_LATE = "does not support double yet"  # which it says of an LSTM when it runs
_sessions: dict[tuple, ort.InferenceSession | None] = {}


class NoKernel(Exception):
    """onnxruntime has no implementation of this operator for this type."""


def session(model: ModelProto) -> ort.InferenceSession:
    """Return a session of one thread that computes node by node."""
    return ort.InferenceSession(
        model.SerializeToString(), _options(), providers=["CPUExecutionProvider"]
    )


@functools.cache
def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    return options


@functools.cache
def newest_opset() -> int:
    """Return the newest opset that both onnx and onnxruntime know."""
    for opset in range(onnx.defs.onnx_opset_version(), 6, -1):
        node = helper.make_node("Relu", ["x"], ["y"])
        try:
            session(single_node(node, {"x": np.zeros(1, np.float32)}, opset, 10))
        except Exception:
            continue
        return opset
    raise AssertionError("onnxruntime loads no model")


@functools.cache
def newest_ir_version() -> int:
    """Return the newest IR version that both onnx and onnxruntime know."""
    for version in range(int(onnx.IR_VERSION), 3, -1):
        node = helper.make_node("Relu", ["x"], ["y"])
        try:
            session(single_node(node, {"x": np.zeros(1, np.float32)}, 13, version))
        except Exception:
            continue
        return version
    raise AssertionError("onnxruntime loads no model")


def run_node(node: NodeProto, inputs: Mapping[str, np.ndarray], opset: int) -> list[np.ndarray]:
    """Run one node without a body; raise NoKernel where there is no implementation.

    Small integers (axes, shapes, pads) are initializers, everything else is an input.
    """
    fixed = {n: a for n, a in inputs.items() if a.dtype == np.int64 and a.size <= 64}
    feeds = {n: a for n, a in inputs.items() if n not in fixed}
    key = (
        node.SerializeToString(),
        opset,
        tuple((n, a.dtype.char, a.shape) for n, a in feeds.items()),
        tuple((n, a.tobytes(), a.shape) for n, a in fixed.items()),
    )
    if key not in _sessions:
        if len(_sessions) >= _KEPT_SESSIONS:
            _sessions.clear()
        try:
            _sessions[key] = session(single_node(node, feeds, opset, 10, fixed))
        except Exception as error:
            if not any(text in str(error) for text in _NO_KERNEL):
                raise
            _sessions[key] = None
    found = _sessions[key]
    if found is None:
        raise NoKernel(node.op_type)
    try:
        return found.run(None, feeds)
    except Exception as error:
        if _LATE in str(error):
            raise NoKernel(node.op_type) from error
        raise


def single_node(
    node: NodeProto,
    feeds: Mapping[str, np.ndarray],
    opset: int,
    ir_version: int,
    fixed: Mapping[str, np.ndarray] | None = None,
) -> ModelProto:
    """Return a model of one node; `fixed` are initializers."""
    graph = helper.make_graph(
        [node],
        "single",
        [typed(name, array.dtype, array.shape) for name, array in feeds.items()],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
        [numpy_helper.from_array(array, name) for name, array in (fixed or {}).items()],
    )
    imports = [helper.make_opsetid("", opset)]
    if node.domain:
        imports.append(helper.make_opsetid(node.domain, 1))
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def typed(name: str, dtype, shape: Sequence[int | str | None] | None) -> onnx.ValueInfoProto:
    """Return the declaration of a tensor."""
    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape
    )
