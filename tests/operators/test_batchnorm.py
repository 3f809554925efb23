"""Which BatchNormalizations may go: their opsets, attributes, outputs and parameters."""

import numpy as np
import onnx
import pytest
from graphs import Net
from reference import evaluate
from support import (
    BFLOAT16,
    Parts,
    assert_same_function,
    bn,
    constant_operand,
    conv,
    count,
    error,
    feeds_for,
    fold_checked,
    initializer,
    join,
    layer,
    model_of,
    node,
    ops,
    reasons,
    run,
    tensor,
    value_of,
)

import onnx_bnfold
from onnx_bnfold import Options, Reason
from onnx_bnfold.operators import batchnorm

X = {"x": (2, 3, 5, 6)}
NEWEST_OPSET = onnx.defs.onnx_opset_version()


def conv_bn(rng, *, options=None, **attributes):
    """The model x -> Conv -> BN -> y; `attributes` are the BN's, `options` the model's."""
    parts = join(conv("x", "c", (4, 3, 3, 3), rng), bn("c", "y", 4, rng, **attributes))
    return model_of(parts.nodes, X, ["y"], parts.initializers, **(options or {}))


def with_parameter(model, role, value):
    """The same model, with another value of one of the BN's parameters: scale, B, mean or var."""
    changed = next(t for t in model.graph.initializer if t.name == f"y_{role}")
    changed.CopyFrom(tensor(changed.name, value))
    return model


def newest_opset_of_onnxruntime() -> int:
    """onnx may be ahead of onnxruntime, which then refuses its newest opsets."""
    identity = node("Identity", ["x"], ["y"]).nodes
    for opset in range(NEWEST_OPSET, 14, -1):
        model = model_of(identity, {"x": (1,)}, {"y": (1,)}, opset=opset)
        try:
            run(model, {"x": np.zeros(1, np.float32)})
        except Exception:
            continue
        return opset
    raise AssertionError("onnxruntime runs no opset")


# --- opsets, IR versions, attributes -------------------------------------------------------------

# The old attributes that each opset knows, as exporters wrote them for inference.
ATTRIBUTES = {
    1: {"is_test": 1, "spatial": 1, "momentum": 0.9, "consumed_inputs": [0, 0, 0, 1, 1]},
    6: {"is_test": 1, "spatial": 1, "momentum": 0.9},
    7: {"spatial": 1, "momentum": 0.9},
    8: {"spatial": 1, "momentum": 0.9},
    9: {"momentum": 0.9},
    14: {"momentum": 0.9, "training_mode": 0},
}


@pytest.mark.parametrize("opset", range(7, NEWEST_OPSET + 1))
@pytest.mark.parametrize("attributes", ["default", "all"])
def test_every_opset(opset, attributes, rng):
    known = ATTRIBUTES[max(k for k in ATTRIBUTES if k <= opset)] if attributes == "all" else {}
    model = conv_bn(rng, options={"opset": opset, "ir_version": 3 if opset < 9 else 8}, **known)
    engine = run if opset <= newest_opset_of_onnxruntime() else evaluate
    folded, _ = fold_checked(model, engine=engine)
    assert ops(folded) == ["Conv"]
    assert folded.opset_import == model.opset_import


@pytest.mark.parametrize("opset", range(1, 7))
@pytest.mark.parametrize("attributes", ["is_test", "all"])
def test_opsets_that_no_engine_runs(opset, attributes, rng):
    known = ATTRIBUTES[1 if opset < 6 else 6] if attributes == "all" else {"is_test": 1}
    model = conv_bn(rng, options={"opset": opset, "ir_version": 3}, **known)
    folded, _ = fold_checked(model, engine=evaluate)
    assert ops(folded) == ["Conv"]


@pytest.mark.parametrize("ir_version", range(3, onnx.IR_VERSION + 1))
def test_every_ir_version(ir_version, rng):
    parts = join(conv("x", "c", (4, 3, 3, 3), rng, bias=False), bn("c", "y", 4, rng))
    model = model_of(parts.nodes, X, ["y"], parts.initializers, opset=9, ir_version=ir_version)
    newest = ir_version > 11  # more than older engines read
    folded, _ = fold_checked(model, engine=evaluate if newest else run)
    assert folded.ir_version == ir_version
    listed = {i.name for i in folded.graph.input}
    initializers = {t.name for t in folded.graph.initializer}
    assert len(initializers) == 2
    assert listed == ({"x"} | initializers if ir_version < 4 else {"x"})


@pytest.mark.parametrize("opset", [7, 9, 14, 15])
def test_the_default_epsilon_is_1e_5(opset, rng):
    """A variance of the same size shows which epsilon was taken."""
    model = conv_bn(rng, epsilon=None, options={"opset": opset, "ir_version": 8})
    model = with_parameter(model, "var", np.full(4, 1e-5, np.float32))
    fold_checked(model)


@pytest.mark.parametrize("epsilon", [0.0, 1e-10, 1e-3, 1.0], ids=str)
def test_epsilon(epsilon, rng):
    model = with_parameter(conv_bn(rng, epsilon=epsilon), "var", np.full(4, 1e-3, np.float32))
    fold_checked(model)


# --- what keeps a BatchNormalization -------------------------------------------------------------


def kept(model, reason, **options):
    """Assert that the one BN stays for a reason, and that the file is as it was."""
    folded, report = fold_checked(model, kept=1, **options)
    refusal = report.kept[0].refusal
    assert refusal.reason == reason, report.lines()
    assert refusal.culprit
    assert refusal.sentence
    assert folded.graph == model.graph
    return refusal


def test_training_mode_stays(rng):
    model = conv_bn(rng, training_mode=1)
    refusal = kept(model, Reason.TRAINING_MODE, compare=False)
    assert "eval" in refusal.sentence


def test_training_mode_with_statistics_as_outputs_stays(rng):
    parts = join(
        conv("x", "c", (4, 3, 3, 3), rng),
        bn("c", "y", 4, rng, training_mode=1, extra_outputs=["m", "v"]),
    )
    model = model_of(parts.nodes, X, ["y", "m", "v"], parts.initializers)
    kept(model, Reason.TRAINING_MODE)


@pytest.mark.parametrize("opset", [1, 6])
@pytest.mark.parametrize("attributes", [{}, {"is_test": 0}], ids=["default", "explicit"])
def test_training_before_opset_7_stays(opset, attributes, rng):
    model = conv_bn(rng, options={"opset": opset, "ir_version": 3}, **attributes)
    kept(model, Reason.TRAINING_MODE, compare=False)


@pytest.mark.parametrize("opset", [1, 6, 7, 8])
def test_statistics_per_element_stay(opset, rng):
    """With spatial=0 the parameters have the shape (C, H, W)."""
    is_test = {"is_test": 1} if opset < 7 else {}
    parts = join(conv("x", "c", (4, 3, 1, 1), rng), bn("c", "y", 4, rng, spatial=0, **is_test))
    per_element = [
        tensor(t.name, rng.uniform(0.5, 1.5, (4, 5, 6)).astype(np.float32))
        for t in parts.initializers[2:]
    ]
    initializers = parts.initializers[:2] + per_element
    model = model_of(parts.nodes, X, {"y": (2, 4, 5, 6)}, initializers, opset=opset, ir_version=3)
    kept(model, Reason.NOT_PER_CHANNEL, compare=False)


def test_spatial_0_of_a_vector_may_go_if_it_is_right(rng):
    """At rank 2 the parameters of spatial=0 have the shape (C,) all the same."""
    gemm = layer("Gemm", "x", "c", (3, 4), rng, bias_shape=(4,))
    parts = join(gemm, bn("c", "y", 4, rng, spatial=0))
    shapes = {"x": (2, 3)}
    model = model_of(parts.nodes, shapes, ["y"], parts.initializers, opset=8, ir_version=3)
    stays = len(onnx_bnfold.plan(model).kept)
    fold_checked(model, kept=stays, engine=evaluate)


@pytest.mark.parametrize("opset", [7, 9, 13])
def test_named_extra_outputs_stay(opset, rng):
    """With the outputs of training a BN before opset 14 computes something else."""
    parts = join(
        conv("x", "c", (4, 3, 3, 3), rng),
        bn("c", "y", 4, rng, extra_outputs=["m", "v", "sm", "sv"]),
    )
    model = model_of(parts.nodes, X, ["y"], parts.initializers, opset=opset)
    kept(model, Reason.EXTRA_OUTPUTS, compare=False)


def test_extra_outputs_that_are_read_stay(rng):
    parts = join(
        conv("x", "c", (4, 3, 3, 3), rng),
        bn("c", "y", 4, rng, extra_outputs=["m", "v"]),
    )
    model = model_of(parts.nodes, X, ["y", "m"], parts.initializers, opset=9)
    kept(model, Reason.EXTRA_OUTPUTS, compare=False)


@pytest.mark.parametrize("opset", [7, 9, 14, 17])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_extra_outputs_left_empty_do_not_count(opset, number, rng):
    """Valid, yet onnxruntime crashes on it: the fold is compared with the model without them."""
    number = min(number, 4 if opset < 14 else 2)
    parts = join(
        conv("x", "c", (4, 3, 3, 3), rng), bn("c", "y", 4, rng, extra_outputs=[""] * number)
    )
    model = model_of(parts.nodes, X, ["y"], parts.initializers, opset=opset)
    folded, _ = fold_checked(model, compare=False)
    del model.graph.node[1].output[1:]
    assert_same_function(model, folded)
    assert ops(folded) == ["Conv"]


# --- parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["scale", "B", "mean", "var"])
def test_a_parameter_of_run_time_stays(role, rng):
    model = conv_bn(rng)
    name = f"y_{role}"
    kept_initializers = [t for t in model.graph.initializer if t.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept_initializers)
    model.graph.input.append(value_of(name, (4,)))
    feeds = feeds_for(model) | {name: np.full(4, 0.5, np.float32)}
    refusal = kept(model, Reason.PARAMETERS_NOT_CONSTANT, feeds=feeds)
    assert name in refusal.culprit + refusal.sentence


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("role", ["scale", "B", "mean", "var"])
def test_a_parameter_that_is_not_finite_stays(role, value, rng):
    model = conv_bn(rng)
    parameter = initializer(model, f"y_{role}").copy()
    parameter[1] = value
    reason = Reason.NOT_FINITE
    if (role, value) == ("var", -np.inf):
        reason = onnx_bnfold.plan(with_parameter(model, role, parameter)).kept[0].refusal.reason
        assert reason in (Reason.NOT_FINITE, Reason.BAD_VARIANCE)
    kept(with_parameter(model, role, parameter), reason, compare=False)


@pytest.mark.parametrize(
    ("variance", "epsilon"), [(-1.0, 0.01), (-0.01, 0.0), (0.0, 0.0), (1.0, -1.0)], ids=str
)
def test_a_variance_that_has_no_root_stays(variance, epsilon, rng):
    model = conv_bn(rng, epsilon=epsilon)
    variances = initializer(model, "y_var").copy()
    variances[2] = variance
    variances[:2] = variances[3:] = 5
    kept(with_parameter(model, "var", variances), Reason.BAD_VARIANCE, compare=False)


@pytest.mark.parametrize("variance", [-0.005, 0.0], ids=str)
def test_a_small_variance_that_epsilon_makes_positive(variance, rng):
    model = with_parameter(conv_bn(rng), "var", np.full(4, variance, np.float32))
    fold_checked(model)


DEGENERATE = {
    "identity": (1, 0),
    "shift": (1, 3),
    "scale": (-2, 0),
    "some-channels": (np.array([1, 2, 1, 1]), np.array([0, 0, 0, 5])),
}
LAYERS = {
    "Conv": ((2, 3, 5, 6), (4, 3, 3, 3), (4,), {}),
    "Conv-no-bias": ((2, 3, 5, 6), (4, 3, 3, 3), None, {}),
    "ConvTranspose": ((2, 3, 5, 6), (3, 4, 3, 3), (4,), {}),
    "ConvTranspose-no-bias": ((2, 3, 5, 6), (3, 4, 3, 3), None, {}),
    "Gemm": ((5, 3), (3, 4), (4,), {"alpha": 0.5, "beta": 3.0}),
    "Gemm-no-bias": ((5, 3), (3, 4), None, {"alpha": 0.5, "beta": 3.0}),
    "MatMul": ((5, 3), (3, 4), None, {}),
}


@pytest.mark.parametrize("op", LAYERS)
@pytest.mark.parametrize("case", DEGENERATE)
def test_a_norm_that_only_scales_or_only_shifts(case, op, rng):
    """Half of the layer's tensors stay what they are."""
    x, weight, bias, attributes = LAYERS[op]
    op = op.removesuffix("-no-bias")
    parts = join(
        layer(op, "x", "c", weight, rng, bias_shape=bias, **attributes),
        bn("c", "y", 4, rng, epsilon=0.0),
    )
    model = model_of(parts.nodes, {"x": x}, ["y"], parts.initializers)
    scale, shift = DEGENERATE[case]
    for role, value in {"scale": scale, "B": shift, "mean": 0, "var": 1}.items():
        with_parameter(model, role, np.broadcast_to(np.float32(value), 4).copy())
    folded, report = fold_checked(model)
    added = ops(folded).count("Add")
    assert added == report.norms[0].added
    assert ops(folded)[0] in (op, "Gemm")
    if case == "identity":
        assert folded.graph.node[0].attribute == model.graph.node[0].attribute


def test_scales_of_zero(rng):
    """The channel becomes a constant; nothing divides by it."""
    scale = np.array([0, -0.0, 1, -1], np.float32)
    folded, _ = fold_checked(with_parameter(conv_bn(rng), "scale", scale))
    assert not initializer(folded, "c_W")[:2].any()


def test_parameters_of_the_wrong_size_stay(rng):
    model = with_parameter(conv_bn(rng), "mean", np.zeros(3, np.float32))
    folded, report = onnx_bnfold.fold(model)
    assert report.kept[0].refusal.reason == Reason.INCONSISTENT_SHAPES
    assert folded.graph == model.graph


def test_a_parameter_of_one_element_is_right_or_stays(rng):
    """Not valid, yet some engines broadcast it."""
    model = with_parameter(conv_bn(rng), "mean", np.zeros(1, np.float32))
    _, report = onnx_bnfold.fold(model)
    assert report.kept[0].refusal.reason == Reason.INCONSISTENT_SHAPES


def test_one_initializer_for_all_parameters(rng):
    parts = conv("x", "c", (4, 3, 3, 3), rng)
    norm = node("BatchNormalization", ["c", "p", "p", "p", "p"], ["y"])
    parameter = tensor("p", np.array([0.5, 1, 1.5, 2], np.float32))
    folded, _ = fold_checked(
        model_of([*parts.nodes, *norm.nodes], X, ["y"], [*parts.initializers, parameter])
    )
    assert "p" not in {t.name for t in folded.graph.initializer}


def test_a_parameter_that_is_also_the_bias_of_the_layer(rng):
    shared = tensor("p", rng.uniform(0.5, 1.5, 4).astype(np.float32))
    weight = tensor("W", rng.standard_normal((4, 3, 1, 1)).astype(np.float32))
    nodes = [
        *node("Conv", ["x", "W", "p"], ["c"]).nodes,
        *node("BatchNormalization", ["c", "p", "p", "p", "p"], ["y"]).nodes,
    ]
    folded, _ = fold_checked(model_of(nodes, X, ["y"], [weight, shared]))
    assert ops(folded) == ["Conv"]


def test_parameters_shared_with_a_norm_that_stays(rng):
    first = join(conv("x", "c", (4, 3, 1, 1), rng), bn("c", "b", 4, rng))
    shared = list(first.nodes[-1].input[1:])
    nodes = [
        *first.nodes,
        *node("Sigmoid", ["b"], ["s"]).nodes,
        *node("BatchNormalization", ["s", *shared], ["y"]).nodes,
    ]
    folded, _ = fold_checked(model_of(nodes, X, ["y"], first.initializers), kept=1)
    assert {t.name for t in folded.graph.initializer} >= set(shared)


# --- initializers that a caller may override -----------------------------------------------------


@pytest.mark.parametrize("name", ["y_scale", "y_B", "y_mean", "y_var", "c_W", "c_bias"])
def test_an_overridable_initializer_stays(name, rng):
    model = conv_bn(rng)
    model.graph.input.append(value_of(name, initializer(model, name).shape))
    refusal = kept(model, Reason.OVERRIDABLE_INITIALIZER)
    assert name in refusal.culprit + refusal.sentence
    assert "freeze" in refusal.sentence
    feeds = feeds_for(model) | {name: initializer(model, name) * 2}
    assert_same_function(model, onnx_bnfold.fold(model)[0], feeds=feeds)


@pytest.mark.parametrize("name", ["y_scale", "y_mean", "c_W", "c_bias"])
def test_a_frozen_initializer_is_a_constant_and_no_input(name, rng):
    model = conv_bn(rng)
    model.graph.input.append(value_of(name, initializer(model, name).shape))
    folded, _ = fold_checked(model, options=Options(freeze_initializers=True))
    assert ops(folded) == ["Conv"]
    assert [i.name for i in folded.graph.input] == ["x"]


def test_an_overridable_bias_still_lets_an_unrelated_pair_fold(rng):
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng),
        bn("c", "b", 4, rng),
        node("Sigmoid", ["b"], ["s"]),
        conv("s", "d", (4, 4, 1, 1), rng),
        bn("d", "y", 4, rng),
    )
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    model.graph.input.append(value_of("c_bias", (4,)))
    folded, report = fold_checked(model, kept=1)
    assert [r.folded for r in report.norms] == [False, True]
    assert [i.name for i in folded.graph.input] == ["x", "c_bias"]


# --- types of the parameters ---------------------------------------------------------------------

FLOATS = [np.float16, BFLOAT16, np.float32, np.float64]


def named(dtype) -> str:
    return np.dtype(dtype).name


@pytest.mark.parametrize("statistics", FLOATS, ids=named)
@pytest.mark.parametrize("scale", FLOATS, ids=named)
@pytest.mark.parametrize("x", FLOATS, ids=named)
def test_parameters_of_another_type(x, scale, statistics, rng):
    """From opset 15 on scale and B, and mean and var, may have types of their own."""
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng, dtype=x),
        bn("c", "y", 4, rng, dtype=scale, statistics_dtype=statistics),
    )
    model = model_of(parts.nodes, X, ["y"], parts.initializers, dtype=x, opset=15)
    folded, _ = fold_checked(model, engine=evaluate)
    assert {initializer(folded, t.name).dtype for t in folded.graph.initializer} == {np.dtype(x)}


@pytest.mark.parametrize("narrow", [np.float16, BFLOAT16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("op", ["Mul", "BatchNormalization"])
@pytest.mark.parametrize(
    ("opset", "scale_too"), [(14, False), (15, False), (15, True)], ids=["14", "15", "15-scale"]
)
def test_what_goes_into_a_norm_of_narrow_parameters_keeps_its_digits(
    op, opset, scale_too, narrow, rng
):
    """They take the type of the data, as soon as one of a pair that shares a type changes."""
    if op == "Mul":
        front = constant_operand("Mul", "x", "m", (4, 1, 1), rng)
    else:
        front = bn("x", "m", 4, rng)
    kind = narrow if scale_too else np.float32
    norm = bn("m", "y", 4, rng, dtype=kind, statistics_dtype=narrow)
    parts = join(front, norm)
    m = model_of(parts.nodes, {"x": ("N", 4, 2, 2)}, ["y"], parts.initializers, opset=opset)
    folded, _ = fold_checked(m, kept=1, engine=evaluate, tolerance=1e-6)
    assert ops(folded) == ["BatchNormalization"]
    kinds = [initializer(folded, name).dtype for name in folded.graph.node[0].input[1:]]
    assert kinds[0] == kinds[1]
    assert kinds[2] == kinds[3]


@pytest.mark.parametrize("statistics", [np.float32, np.float16], ids=named)
@pytest.mark.parametrize(
    ("variance", "factor", "expected"),
    [
        (2.0, 3.0, 18.0),
        (2.0, -3.0, 18.0),
        (1e-3, 100.0, 10.0),
        (0.0, 3.0, 0.0),
        (2.0, 1.0, 2.0),
        (-0.005, 3.0, -0.005),
    ],
)
def test_the_variance_goes_on_to_say_how_the_input_is_spread(
    variance, factor, expected, statistics, rng
):
    """It is scaled along with the input, as far as its type holds that."""
    front = constant_operand("Mul", "x", "m", (3, 1, 1), rng)
    norm = bn("m", "y", 3, rng, statistics_dtype=statistics, epsilon=0.01)
    parts = join(front, norm)
    model = model_of(parts.nodes, {"x": (2, 3, 2, 2)}, ["y"], parts.initializers, opset=14)
    with_parameter(model, "var", np.array([1, variance, 2], statistics))
    factors = np.array([2, 1 / factor, 4], np.float32).reshape(3, 1, 1)
    next(t for t in model.graph.initializer if t.name == "m_const").CopyFrom(
        tensor("m_const", factors)
    )
    folded, _ = fold_checked(model, kept=1, engine=evaluate, tolerance=1e-6)
    assert ops(folded) == ["BatchNormalization"]
    found = initializer(folded, folded.graph.node[0].input[4])
    np.testing.assert_allclose(found, [0.25, expected, 0.125], rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("factor", [2.0**-8, 2.0**14])
def test_a_variance_that_its_type_does_not_hold_stays(factor):
    """The scale takes all of it then."""
    norm = batchnorm.BatchNorm(None, np.array([[1.0], [0], [0], [2], [2], [0]]), 0.0, 0.0)
    scaled = norm.between(np.array([factor]), np.ones(1), onnx.TensorProto.FLOAT16)
    held = factor < 1
    assert (scaled.variance != 4) == held
    assert scaled.scale / scaled.deviation == 1 / factor


@pytest.mark.parametrize(
    ("opset", "dtype"),
    [(o, d) for o in (9, 13, 14, 15, 17) for d in FLOATS if d is not BFLOAT16 or o >= 14],
    ids=lambda value: str(value) if isinstance(value, int) else named(value),
)
def test_one_type_for_all(opset, dtype, rng):
    """bfloat16 came with opset 14."""
    parts = join(
        conv("x", "c", (4, 3, 3, 3), rng, dtype=dtype, bias=False),
        bn("c", "y", 4, rng, dtype=dtype),
    )
    model = model_of(parts.nodes, X, ["y"], parts.initializers, dtype=dtype, opset=opset)
    folded, _ = fold_checked(model, engine=evaluate)
    assert ops(folded) == ["Conv"]
    assert {initializer(folded, t.name).dtype for t in folded.graph.initializer} == {
        np.dtype(dtype)
    }


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64], ids=named)
@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_one_type_for_all_in_onnxruntime(op, dtype, rng):
    linear = Parts(
        node(op, ["x", "W"], ["c"]).nodes, [tensor("W", rng.standard_normal((3, 4)).astype(dtype))]
    )
    parts = join(linear, bn("c", "y", 4, rng, dtype=dtype))
    fold_checked(model_of(parts.nodes, {"x": (5, 3)}, ["y"], parts.initializers, dtype=dtype))


def test_float16_in_onnxruntime(rng):
    parts = join(
        conv("x", "c", (4, 3, 3, 3), rng, dtype=np.float16), bn("c", "y", 4, rng, dtype=np.float16)
    )
    fold_checked(model_of(parts.nodes, X, ["y"], parts.initializers, dtype=np.float16))


@pytest.mark.parametrize("stored", ["raw_data", "float_data", "double_data", "int32_data"])
def test_parameters_in_the_typed_fields_of_a_tensor(stored, rng):
    dtype = {"double_data": np.float64, "int32_data": np.float16}.get(stored, np.float32)
    parts = join(conv("x", "c", (4, 3, 1, 1), rng, dtype=dtype), bn("c", "y", 4, rng, dtype=dtype))
    model = model_of(parts.nodes, X, ["y"], parts.initializers, dtype=dtype)
    for t in model.graph.initializer:
        values = onnx.numpy_helper.to_array(t)
        if stored != "raw_data":
            t.ClearField("raw_data")
            plain = values.view(np.uint16) if dtype == np.float16 else values
            getattr(t, stored).extend(plain.ravel().tolist())
    folded, _ = fold_checked(model, engine=evaluate)
    assert ops(folded) == ["Conv"]


# --- operators of the same name ------------------------------------------------------------------


@pytest.mark.parametrize("domain", ["my.domain", "com.microsoft", "ai.onnx.ml"])
def test_a_norm_of_another_domain_is_no_batch_normalization(domain, rng):
    model = conv_bn(rng, options={"imports": {domain: 1}})
    model.graph.node[1].domain = domain
    folded, report = onnx_bnfold.fold(model)
    assert not report.records
    assert folded.graph == model.graph


@pytest.mark.parametrize("op", ["Conv", "Gemm", "MatMul", "Identity"])
def test_a_layer_of_another_domain_is_opaque(op, rng):
    shapes = {"c": (2, 4, 3, 4)}
    model = conv_bn(rng, options={"imports": {"my.domain": 1}, "value_info": shapes})
    model.graph.node[0].op_type = op
    model.graph.node[0].domain = "my.domain"
    refusal = kept(model, Reason.OPAQUE, compare=False)
    assert "n_c" in refusal.culprit


def test_the_alias_of_the_standard_domain(rng):
    """onnxruntime takes "ai.onnx" for the standard domain, the checker does not."""
    model = conv_bn(rng)
    model.opset_import[0].domain = "ai.onnx"
    for n in model.graph.node:
        n.domain = "ai.onnx"
    folded, _ = onnx_bnfold.fold(model)
    assert_same_function(model, folded)
    assert count(folded, "Conv", "ai.onnx") == 1


# --- a fold that the type of the weights cannot hold ---------------------------------------------

HUGE = {
    # dtype, factor on the weight, factor on the scale, factor on the input
    "float16": (np.float16, 1e3, 1e3, 1e-4),
    "float32": (np.float32, 1e30, 1e10, 1e-20),
    "float64": (np.float64, 1e300, 1e10, 1e-200),
    "bfloat16": (BFLOAT16, 1e30, 1e10, 1e-20),
}


@pytest.mark.parametrize("case", HUGE)
def test_weights_that_would_overflow_stay(case, rng):
    dtype, weight, scale, x = HUGE[case]
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng, dtype=dtype, bias=False),
        bn("c", "y", 4, rng, dtype=dtype),
    )
    model = model_of(parts.nodes, X, ["y"], parts.initializers, dtype=dtype)
    with_parameter(model, "scale", initializer(model, "y_scale") * np.array(scale, dtype))
    model.graph.initializer[0].CopyFrom(
        tensor("c_W", initializer(model, "c_W") * np.array(weight, dtype))
    )
    feeds = {"x": (feeds_for(model)["x"] * np.array(x, dtype))}
    engine = evaluate if case in ("float64", "bfloat16") else run
    folded, report = fold_checked(model, kept=1, feeds=feeds, engine=engine)
    assert report.kept[0].refusal.reason == Reason.OVERFLOW
    assert folded.graph == model.graph


def test_a_bias_that_would_overflow_stays(rng):
    """B - mean * scale / sigma is beyond float16, every value of the model within it."""
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng, dtype=np.float16), bn("c", "y", 4, rng, dtype=np.float16)
    )
    model = model_of(parts.nodes, X, ["y"], parts.initializers, dtype=np.float16)
    for role, value in {"scale": 500, "mean": 6e4, "var": 6e4}.items():
        with_parameter(model, role, np.full(4, value, np.float16))
    model.graph.initializer[1].CopyFrom(tensor("c_bias", np.zeros(4, np.float16)))
    kept(model, Reason.OVERFLOW, compare=False)


def test_one_of_two_norms_that_would_overflow_together(rng):
    """Each fits alone: what is folded is finite, and right."""
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng, dtype=np.float16, bias=False),
        bn("c", "b", 4, rng, dtype=np.float16),
        bn("b", "y", 4, rng, dtype=np.float16),
    )
    model = model_of(parts.nodes, X, ["y"], parts.initializers, dtype=np.float16)
    for t in model.graph.initializer[1:]:
        value = {"scale": 300, "var": 1}.get(t.name[2:], 0)
        t.CopyFrom(tensor(t.name, np.full(4, value, np.float16)))
    feeds = {"x": feeds_for(model)["x"] * np.float16(1e-2)}
    assert np.isfinite(evaluate(model, feeds)[0]).all()
    folded, _ = onnx_bnfold.fold(model)
    for t in folded.graph.initializer:
        assert np.isfinite(initializer(folded, t.name)).all()
    assert error(evaluate(model, feeds)[0], evaluate(folded, feeds)[0]) < 1e-2
    assert count(folded) == 1


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=named)
def test_weights_below_the_smallest_normal_float32_stay(dtype, rng):
    """1e-25 times 1e-15: of the product a float32 keeps nothing that is worth it."""
    linear = conv("x", "c", (4, 3, 1, 1), rng, dtype=dtype, bias=False)
    parts = join(linear, bn("c", "y", 4, rng, dtype=dtype))
    model = model_of(parts.nodes, X, ["y"], parts.initializers, dtype=dtype)
    model.graph.initializer[0].CopyFrom(
        tensor("c_W", initializer(model, "c_W") * np.array(1e-25, dtype))
    )
    with_parameter(model, "scale", np.full(4, 1e-15, dtype))
    with_parameter(model, "mean", np.zeros(4, dtype))
    with_parameter(model, "B", np.zeros(4, dtype))
    feeds = {"x": feeds_for(model)["x"] * np.array(1e25, dtype)}
    _, report = fold_checked(model, kept=1, feeds=feeds, engine=evaluate)
    assert report.kept[0].refusal.reason == Reason.PRECISION


@pytest.mark.parametrize("channels", [[0, 1, 2, 3], [2]], ids=["all", "one"])
def test_weights_that_would_vanish_stay(channels, rng):
    """A scale of 1e-6 makes float16 weights subnormal: a few bits are left of them.

    One channel is enough: a later layer may scale it up again.
    """
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng, dtype=np.float16, bias=False),
        bn("c", "y", 4, rng, dtype=np.float16, statistics_dtype=np.float32),
    )
    model = model_of(parts.nodes, X, ["y"], parts.initializers, dtype=np.float16, opset=15)
    variance = np.ones(4, np.float32)
    variance[channels] = 1e14
    with_parameter(model, "var", variance)
    with_parameter(model, "mean", np.zeros(4, np.float32))
    with_parameter(model, "B", np.zeros(4, np.float16))
    feeds = {"x": feeds_for(model)["x"] * np.float16(1e3)}
    expected = evaluate(model, feeds)[0]
    peaks = np.abs(expected).max((0, 2, 3))
    assert (peaks > 2**-14).all(), "the original holds its output as normal numbers"
    folded, report = fold_checked(model, kept=1, feeds=feeds)
    assert report.kept[0].refusal.reason == Reason.PRECISION
    assert folded.graph == model.graph


def test_a_sparse_weight_is_right_or_stays(rng):
    """A sparse initializer must not crash the pass."""
    parts = join(conv("x", "c", (4, 3, 1, 1), rng, bias=False), bn("c", "y", 4, rng))
    shapes = {"c": (2, 4, 5, 6)}
    model = model_of(parts.nodes, X, {"y": shapes["c"]}, parts.initializers, value_info=shapes)
    weight = initializer(model, "c_W")
    del model.graph.initializer[0]
    model.graph.sparse_initializer.append(
        onnx.helper.make_sparse_tensor(
            tensor("c_W", weight.ravel()[:5]), tensor("", np.arange(5)), weight.shape
        )
    )
    folded, report = onnx_bnfold.fold(model)
    dense = weight.copy().ravel()
    dense[5:] = 0
    reference = onnx.ModelProto()
    reference.CopyFrom(model)
    del reference.graph.sparse_initializer[:]
    reference.graph.initializer.append(tensor("c_W", dense.reshape(weight.shape)))
    if report.kept:
        assert reasons(report)[0] & {Reason.WEIGHT_NOT_CONSTANT, Reason.UNKNOWN_SHAPE}
        assert folded.graph == model.graph
    else:
        assert_same_function(reference, folded)


def test_a_scale_of_zero_is_not_taken_out_of_what_is_added_behind(rng):
    """The Conv is to blame: the shift does not pass its padding."""
    parts = join(
        bn("x", "t", 3, rng), constant_operand("Add", "t", "a", (3, 1, 1), rng),
        conv("a", "y", (4, 3, 3, 3), rng, pads=[1] * 4),
    )  # fmt: skip
    for name, values in (("t_scale", [1, 0, 1]), ("t_B", [0] * 3), ("t_mean", [0] * 3)):
        (item,) = (i for i in parts.initializers if i.name == name)
        item.CopyFrom(tensor(name, np.array(values, np.float32)))
    _, report = fold_checked(model_of(parts.nodes, X, ["y"], parts.initializers), kept=1)
    assert Reason.PADDING in reasons(report)[0]
    assert Reason.OVERFLOW not in reasons(report)[0]


@pytest.mark.parametrize(("scale", "left"), [(1.0, 0), (1e-4, 1)])
def test_a_scale_below_the_normal_numbers_is_none_to_be_had(scale, left, rng):
    """It is a factor, of which digits count: 1e-41 has three of them in float32."""
    norm = bn("s", "n", 4, rng)
    norm.initializers[0].CopyFrom(tensor("n_scale", np.full(4, scale, np.float32)))
    factor = Parts([], [tensor("f", np.full((4, 1, 1), 1e-37, np.float32))])
    parts = join(node("Sigmoid", ["x"], ["s"]), norm, node("Mul", ["n", "f"], ["y"]), factor)
    model = model_of(parts.nodes, {"x": (2, 4, 3, 3)}, ["y"], parts.initializers)
    folded, _ = onnx_bnfold.fold(model)
    assert ops(folded).count("Mul") == left


# --- vectors --------------------------------------------------------------------------------


def of_vector(net: Net, x: str) -> str:
    """The product of a matrix and a vector."""
    return net.op("MatMul", x, net.random(4))


@pytest.mark.parametrize("opset", [7, 9, 14, 17])
@pytest.mark.parametrize("signs", ["positive", "negative", "zero"])
def test_a_vector_has_one_channel(signs, opset):
    """As the specification and onnxruntime have it."""
    net = Net(("N", 4), opset=opset)
    y = net.bn(of_vector(net, "x"), channels=1, signs=signs)
    folded, _ = fold_checked(net.model(net.bn(y, channels=1)), N=5)
    assert ops(folded) == ["MatMul", "Add"]


def test_a_norm_of_a_vector_that_stays():
    """It takes a Mul in front of it, whatever becomes of it then."""
    net = Net(("N", 4))
    y = net.op("Mul", net.op("Sigmoid", of_vector(net, "x")), net.const([2.0]))
    model = net.model(net.op("Sigmoid", net.bn(net.relu(y), channels=1)))
    folded, _ = fold_checked(model, kept=1)
    assert "Mul" not in ops(folded)
    for options in (Options(equalize=True), Options(standalone="mul-add"), Options(profile="fp16")):
        fold_checked(model, kept=1, options=options)


def test_a_norm_of_a_vector_in_front_of_a_product():
    net = Net(("N",))
    y = net.op("Unsqueeze", net.bn("x", channels=1), net.ints(1))
    folded, _ = fold_checked(net.model(net.op("MatMul", y, net.random(1, 3))))
    assert ops(folded) == ["Unsqueeze", "Gemm"]


def test_a_vector_of_as_many_elements_as_channels_stays():
    net = Net((4,))
    _, report = fold_checked(net.model(net.bn("x", channels=4)), kept=1, compare=False)
    assert reasons(report)
