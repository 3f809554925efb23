"""What the tests share: small models with random parameters, and the comparison of two models.

Builders return `Parts` (nodes and initializers); `join` puts parts in a row; `model_of` makes the
model. `fold_checked` folds and asserts what must hold after every fold.
"""

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import onnx_bnfold

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

# Largest error of an output relative to its peak. Both models round: the unfolded one more often.
TOLERANCE = {
    np.dtype(np.float64): 1e-12,
    np.dtype(np.float32): 1e-5,
    np.dtype(np.float16): 1e-2,
    BFLOAT16: 3e-2,
}

# What the operators' odder settings do was read off 1.32; 1.23 computes some of them otherwise, or
# not at all, or ends the process.
KERNELS_AS_READ = tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 32)
needs_kernels_as_read = pytest.mark.skipif(
    not KERNELS_AS_READ,
    reason="onnxruntime before 1.32 computes such nodes otherwise, or not at all",
)

Engine = Callable[[ModelProto, dict[str, np.ndarray]], list[np.ndarray]]


class Parts(NamedTuple):
    """Nodes and the initializers they read."""

    nodes: list[NodeProto]
    initializers: list[TensorProto]


def join(*parts: Parts) -> Parts:
    return Parts([n for p in parts for n in p.nodes], [t for p in parts for t in p.initializers])


def tensor(name: str, array) -> TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes) -> Parts:
    """One node without initializers, named after its first output unless `name` says otherwise."""
    attributes = {"name": f"n_{outputs[0]}"} | attributes
    return Parts([helper.make_node(op, inputs, outputs, **attributes)], [])


def bn(
    x: str,
    y: str,
    channels: int,
    rng: np.random.Generator,
    *,
    dtype=np.float32,
    statistics_dtype=None,
    positive=False,
    extra_outputs: Sequence[str] = (),
    **attributes,
) -> Parts:
    """A BatchNormalization of random parameters `<y>_scale`, `<y>_B`, `<y>_mean`, `<y>_var`.

    The scales have mixed signs (`positive`: none is negative), epsilon is 0.01 unless it is given
    (None leaves the attribute out), and `statistics_dtype` is that of mean and var.
    """
    sign = 1 if positive else np.resize([1, -1], channels)
    statistics_dtype = dtype if statistics_dtype is None else statistics_dtype
    values = {
        "scale": (rng.uniform(0.5, 1.5, channels) * sign).astype(dtype),
        "B": rng.standard_normal(channels).astype(dtype),
        "mean": rng.standard_normal(channels).astype(statistics_dtype),
        "var": rng.uniform(0.1, 2.0, channels).astype(statistics_dtype),
    }
    attributes = {"epsilon": 0.01} | attributes
    if attributes["epsilon"] is None:
        del attributes["epsilon"]
    names = [f"{y}_{role}" for role in values]
    made = node("BatchNormalization", [x, *names], [y, *extra_outputs], **attributes)
    return Parts(made.nodes, [tensor(n, v) for n, v in zip(names, values.values(), strict=True)])


def layer(
    op: str,
    x: str,
    y: str,
    weight_shape: Sequence[int],
    rng: np.random.Generator,
    *,
    bias_shape: Sequence[int] | None = None,
    dtype=np.float32,
    **attributes,
) -> Parts:
    """A Conv, ConvTranspose, Gemm or MatMul with weight `<y>_W` and bias `<y>_bias`, if wanted."""
    initializers = [tensor(f"{y}_W", rng.standard_normal(weight_shape).astype(dtype))]
    if bias_shape is not None:
        initializers.append(tensor(f"{y}_bias", rng.standard_normal(bias_shape).astype(dtype)))
    made = node(op, [x, *(t.name for t in initializers)], [y], **attributes)
    return Parts(made.nodes, initializers)


def conv(x: str, y: str, weight_shape: Sequence[int], rng, *, bias=True, **attributes) -> Parts:
    """A Conv with weight (C_out, C_in / group, *kernel)."""
    shape = weight_shape[:1] if bias else None
    return layer("Conv", x, y, weight_shape, rng, bias_shape=shape, **attributes)


def constant_operand(
    op: str, x: str, y: str, shape: Sequence[int], rng, *, dtype=np.float32, left=False
) -> Parts:
    """Add, Mul, Sub or Div with the initializer `<y>_const`, away from zero."""
    value = rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape)
    inputs = [f"{y}_const", x] if left else [x, f"{y}_const"]
    return Parts(node(op, inputs, [y]).nodes, [tensor(f"{y}_const", value.astype(dtype))])


def model_of(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Sequence[int | str | None] | None],
    outputs: Mapping[str, Sequence[int | str | None] | None] | Sequence[str],
    initializers: Sequence[TensorProto] = (),
    *,
    dtype=np.float32,
    opset: int = 17,
    ir_version: int = 8,
    imports: Mapping[str, int] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
    value_info: Mapping[str, Sequence[int | str | None] | None] | None = None,
) -> ModelProto:
    """A model; `inputs` and `outputs` map names to shapes (None: unknown rank), all of `dtype`.

    A pair `(dtype, shape)` overrides `dtype` for one value. Outputs that are only named get the
    shape that shape inference finds. Below IR version 4 the initializers are listed as inputs too,
    as the format asks.
    """
    unshaped = () if isinstance(outputs, Mapping) else outputs
    outputs = outputs if isinstance(outputs, Mapping) else dict.fromkeys(outputs)
    listed = [value_of(name, shape, dtype) for name, shape in inputs.items()]
    if ir_version < 4:
        listed += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in initializers]
    graph = helper.make_graph(
        nodes,
        "g",
        listed,
        [value_of(name, shape, dtype) for name, shape in outputs.items()],
        initializers,
        value_info=[value_of(n, shape, dtype) for n, shape in (value_info or {}).items()],
    )
    opsets = [helper.make_opsetid(d, v) for d, v in ({"": opset} | dict(imports or {})).items()]
    model = helper.make_model(
        graph, ir_version=ir_version, opset_imports=opsets, functions=functions, producer_name="t"
    )
    if unshaped:
        inferred = onnx.shape_inference.infer_shapes(model)
        del model.graph.output[:]
        model.graph.output.extend(inferred.graph.output)
    return model


def chained(*parts: Parts, inputs: Mapping[str, Any], **settings) -> ModelProto:
    """A model of parts in a row: the first output of the last node is its output."""
    whole = join(*parts)
    return model_of(
        whole.nodes, inputs, [whole.nodes[-1].output[0]], whole.initializers, **settings
    )


def half_folding(rng, channels: int = 4, inputs: Mapping[str, Any] | None = None) -> ModelProto:
    """Conv -> BN (goes) -> Sigmoid -> BN (stays)."""
    return chained(
        conv("x", "c", (channels, 3, 3, 3), rng),
        bn("c", "b", channels, rng),
        node("Sigmoid", ["b"], ["s"]),
        bn("s", "y", channels, rng),
        inputs=inputs or {"x": ("N", 3, 5, 6)},
    )


def either(inside: Parts, shape: Sequence[int | str], **settings) -> ModelProto:
    """A model of an If: what makes b of x, in the same shape, or x as it is."""
    taken = helper.make_graph(inside.nodes, "then", [], [value_of("b", None)], inside.initializers)
    other = node("Identity", ["x"], ["i"], name="i")
    left = helper.make_graph(other.nodes, "else", [], [value_of("i", None)])
    choice = node("If", ["which"], ["y"], then_branch=taken, else_branch=left)
    return model_of(choice.nodes, {"x": shape, "which": (bool, ())}, {"y": shape}, **settings)


def saved_external(model: ModelProto, path: Path, location: str = "weights.bin", **how) -> Path:
    """Save a model, which onnx would change, with all of its tensors in a file beside it."""
    how = {"location": location, "size_threshold": 0} | how
    onnx.save_model(copy.deepcopy(model), path, save_as_external_data=True, **how)
    return path


def value_of(name: str, shape, dtype=np.float32) -> onnx.ValueInfoProto:
    """Type and shape of a graph input or output; `shape` may be a pair `(dtype, shape)`."""
    if isinstance(shape, tuple) and len(shape) == 2 and isinstance(shape[1], list | tuple | None):
        dtype, shape = shape
    element_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, element_type, shape)


def parsed(text: str, *initializers: TensorProto) -> ModelProto:
    """A model in onnx's textual syntax, with initializers added."""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(initializers)
    return model


def run(model: ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Every output of a model in onnxruntime with all its optimisations disabled."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, dict(feeds))


def feeds_for(model: ModelProto, seed: int = 0, **dims: int) -> dict[str, np.ndarray]:
    """Random arrays for all inputs that are no initializers; a dynamic axis has 2 unless named."""
    rng = np.random.default_rng(seed)
    given = {t.name for t in model.graph.initializer}
    return {i.name: _feed(i, rng, dims) for i in model.graph.input if i.name not in given}


def _feed(value: onnx.ValueInfoProto, rng: np.random.Generator, dims: Mapping[str, int]):
    kind = value.type.tensor_type
    shape = [
        d.dim_value if d.HasField("dim_value") else dims.get(d.dim_param, 2) for d in kind.shape.dim
    ]
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if dtype in TOLERANCE:
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)


def error(expected: np.ndarray, actual: np.ndarray) -> float:
    """Largest absolute difference relative to the peak of the expected values."""
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    peak = np.abs(expected).max(initial=0)
    return float(np.abs(expected - actual).max(initial=0) / (peak if peak else 1))


def assert_same_function(
    original: ModelProto,
    folded: ModelProto,
    *,
    feeds: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    tolerance: float | None = None,
    engine: Engine = run,
    **dims: int,
) -> None:
    """Both models have the same signature and, on random inputs, the same outputs."""
    assert [o.SerializeToString() for o in folded.graph.output] == [
        o.SerializeToString() for o in original.graph.output
    ]
    feeds = feeds_for(original, seed, **dims) if feeds is None else dict(feeds)
    assert feeds.keys() <= {i.name for i in folded.graph.input}
    expected, actual = engine(original, feeds), engine(folded, feeds)
    for output, a, b in zip(original.graph.output, expected, actual, strict=True):
        assert a.dtype == b.dtype, output.name
        assert a.shape == b.shape, output.name
        if a.dtype not in TOLERANCE:
            np.testing.assert_array_equal(a, b, err_msg=output.name)
            continue
        assert np.isfinite(a.astype(np.float64)).all(), f"the original overflows: {output.name}"
        limit = TOLERANCE[a.dtype] if tolerance is None else tolerance
        assert error(a, b) <= limit, f"{output.name}: error {error(a, b):.3g} > {limit:.3g}"


def all_nodes(model: ModelProto) -> list[NodeProto]:
    """The nodes of a model in all its graphs and functions."""
    found = list(model.graph.node) + [n for f in model.functions for n in f.node]
    for n in found:  # grows as bodies are met
        for a in n.attribute:
            found += [inner for g in [a.g, *a.graphs] for inner in g.node]
    return found


def count(model: ModelProto, op: str = "BatchNormalization", domain: str = "") -> int:
    """How many nodes of an operator a model has, in all its graphs and functions."""
    return sum(n.op_type == op and n.domain == domain for n in all_nodes(model))


def ops(model: ModelProto) -> list[str]:
    return [n.op_type for n in model.graph.node]


def initializer(model: ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def reasons(report: onnx_bnfold.Report) -> list[set[onnx_bnfold.Reason]]:
    """For each BN that stays, the reason codes of its refusal and of every way that was tried."""
    return [{r.reason for _, r in record.tried} | {record.refusal.reason} for record in report.kept]


def counting_calls(function: Callable[[], Any]) -> tuple[Any, int]:
    """Return what a function returns, and how many functions it calls: of Python and others."""
    count = 0

    def note(_, event, __):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        result = function()
    finally:
        sys.setprofile(None)
    return result, count


def _valid(model: ModelProto) -> bool:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def fold_checked(
    model: ModelProto,
    *,
    kept: int = 0,
    options: onnx_bnfold.Options | None = None,
    compare: bool = True,
    **comparison,
) -> tuple[ModelProto, onnx_bnfold.Report]:
    """Fold, and assert what holds after every fold.

    The caller's model is unchanged; `kept` BNs stay, and the report's counts are true; the checker
    passes if it passed before; a second fold changes nothing; every output is as before
    (`comparison` goes to `assert_same_function`).
    """
    options = options or onnx_bnfold.Options()
    before = model.SerializeToString(deterministic=True)
    folded, report = onnx_bnfold.fold(model, options)
    assert model.SerializeToString(deterministic=True) == before, "the caller's model was changed"
    assert len(report.kept) == kept, "\n".join(report.lines())
    assert len(report.kept) == count(folded)
    assert report.nodes_before == len(all_nodes(model))
    assert report.nodes_after == len(all_nodes(folded))
    if _valid(model):
        onnx.checker.check_model(folded, full_check=True)
    again, _ = onnx_bnfold.fold(folded, options)
    assert again.SerializeToString() == folded.SerializeToString(), "a second fold changed it"
    if compare:
        assert_same_function(model, folded, **comparison)
    return folded, report
