"""What a re-parametrised tensor that stays may become."""

from functools import partial

import numpy as np
import onnx
import pytest
from graphs import IMAGE, Net
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from support import (
    assert_same_function,
    bn,
    conv,
    count,
    fold_checked,
    join,
    layer,
    model_of,
    node,
    ops,
    reasons,
    tensor,
)

import onnx_bnfold
from onnx_bnfold import Options, Reason
from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.planning.precision_limits import _present

X = {"x": ["N", 4, 6, 6]}


def branch(rng, scale):
    """A tensor that a BN, a ReLU and a Conv read; gamma is smaller in the first channel."""
    norm = bn("a", "n", 4, rng, positive=True)
    values = norm.initializers[0]
    factor = np.array([scale, 1, 1, 1])
    gamma = (np.frombuffer(values.raw_data, np.float32) * factor).astype(np.float32)
    values.raw_data = gamma.tobytes()
    return join(
        conv("x", "a", (4, 4, 1, 1), rng), norm, node("Relu", ["n"], ["r"]),
        conv("r", "c", (4, 4, 1, 1), rng),
    )  # fmt: skip


def stream(rng, scale):
    """A residual stream that a branch reads, and that goes on."""
    onward = conv("a", "d", (4, 4, 1, 1), rng)
    return join(branch(rng, scale), onward, node("Add", ["c", "d"], ["y"]))


def model(rng, scale=1.0):
    parts = stream(rng, scale)
    return model_of(parts.nodes, X, ["y"], parts.initializers)


def test_a_stream_is_shifted_in_float(rng):
    fold_checked(model(rng))


@pytest.mark.parametrize("profile", ["fp16", "int8"])
def test_profiles_keep_what_they_must(profile, rng):
    """int8 leaves every range alone; fp16 takes an ordinary shift and refuses a large one."""
    m = model(rng, scale=1 if profile == "int8" else 1e-3)
    _, report = fold_checked(m, kept=1, options=Options(profile=profile))
    assert reasons(report)[0] & {Reason.RANGE, Reason.PRECISION}


def test_int8_folds_what_makes_no_new_range(rng):
    parts = join(conv("x", "a", (4, 4, 3, 3), rng), bn("a", "y", 4, rng))
    fold_checked(
        model_of(parts.nodes, X, ["y"], parts.initializers), options=Options(profile="int8")
    )


def test_a_gamma_close_to_zero_is_not_divided_into_a_stream(rng):
    _, report = fold_checked(model(rng, scale=1e-5), kept=1)
    assert Reason.PRECISION in reasons(report)[0]


@pytest.mark.parametrize(("scale", "kept"), [(1, 0), (1e-3, 1)])
def test_a_part_is_of_the_size_of_the_sum(scale, kept, rng):
    """Both parts of a sum that is normalised are read by others, too."""
    parts = join(
        conv("x", "c", (4, 4, 1, 1), rng), conv("x", "d", (4, 4, 1, 1), rng),
        node("Add", ["c", "d"], ["a"]), bn("a", "y", 4, rng, positive=True),
        conv("c", "z", (4, 4, 1, 1), rng), conv("d", "w", (4, 4, 1, 1), rng),
    )  # fmt: skip
    gamma = next(t for t in parts.initializers if t.name == "y_scale")
    factor = np.array([scale, 1, 1, 1])
    gamma.raw_data = (np.frombuffer(gamma.raw_data, np.float32) * factor).astype("f4").tobytes()
    outputs = ["y", "z", "w"]
    _, report = fold_checked(model_of(parts.nodes, X, outputs, parts.initializers), kept=kept)
    assert not kept or Reason.PRECISION in reasons(report)[0]


@pytest.mark.parametrize(("scale", "kept"), [(1, 0), (1e-3, 1)])
@pytest.mark.parametrize("op", ["Add", "Sum"])
def test_a_sum_is_of_the_size_of_its_parts(op, scale, kept, rng):
    """What reads the sum of stream and branch would take the shift back."""
    behind = conv("s", "y", (4, 4, 1, 1), rng)
    parts = join(branch(rng, scale), node(op, ["c", "a"], ["s"]), behind)
    _, report = fold_checked(model_of(parts.nodes, X, ["y"], parts.initializers), kept=kept)
    assert not kept or Reason.PRECISION in reasons(report)[0]


def beside_a_conv(norm, rng):
    """A BN of r that can only go by rescaling what it and a Conv of r add up to."""
    parts = join(
        conv("x", "a", (4, 4, 1, 1), rng), node("Relu", ["a"], ["r"]),
        conv("r", "b", (4, 4, 3, 3), rng, pads=[1] * 4), norm,
        node("Add", ["b", "n"], ["s"]), node("Relu", ["s"], ["t"]),
        conv("t", "y", (4, 4, 3, 3), rng, pads=[1] * 4),
    )  # fmt: skip
    return model_of(parts.nodes, X, ["y"], parts.initializers)


@pytest.mark.parametrize(("bound", "kept"), [(1.01, 1), (1e6, 0)])
def test_max_rescale(bound, kept, rng):
    m = beside_a_conv(bn("r", "n", 4, rng, positive=True), rng)
    _, report = fold_checked(m, kept=kept, options=Options(max_rescale=bound))
    if kept:
        assert Reason.RANGE in reasons(report)[0]


@pytest.mark.parametrize(("bound", "kept"), [(3, 1), (5, 0)])
def test_two_norms_do_not_rescale_further_than_one_may(bound, kept, rng):
    """Each has a scale of 2, and what the second writes would be a quarter of what it was."""
    first, second = (
        set_norm(bn(*names, 4, rng, epsilon=0.0), scale=2.0) for names in (("r", "n"), ("s", "m"))
    )
    parts = join(
        conv("x", "a", (4, 4, 1, 1), rng), node("Sigmoid", ["a"], ["r"]),
        conv("r", "b", (4, 4, 3, 3), rng, pads=[1] * 4), first,
        node("Add", ["b", "n"], ["s"]), second, conv("m", "y", (4, 4, 3, 3), rng),
    )  # fmt: skip
    m = model_of(parts.nodes, X, ["y"], parts.initializers)
    folded, report = onnx_bnfold.fold(m, Options(max_rescale=bound))
    assert_same_function(m, folded)
    assert len(report.kept) == kept
    if kept:
        assert Reason.RANGE in reasons(report)[0]


@pytest.mark.parametrize(("power", "kept"), [(40, 0), (41, 1), (-40, 0), (-41, 1)])
def test_the_bound_of_float32(power, kept, rng):
    norm = set_norm(bn("r", "n", 4, rng, epsilon=0.0), scale=2.0**power)
    _, report = fold_checked(beside_a_conv(norm, rng), kept=kept)
    if kept:
        assert Reason.RANGE in reasons(report)[0]


@pytest.mark.parametrize(("variance", "kept"), [(1.0, 0), (1e-12, 1)])
def test_a_mean_that_dwarfs_what_is_left_is_subtracted_by_the_norm(variance, kept, rng):
    """A constant channel: the norm's difference is exact, a Conv's sum of products is not."""
    norm = bn("r", "n", 4, rng)
    norm.initializers[2].raw_data = np.full(4, 2, np.float32).tobytes()
    norm.initializers[3].raw_data = np.full(4, variance, np.float32).tobytes()
    parts = join(
        conv("x", "a", (4, 4, 1, 1), rng), node("Relu", ["a"], ["r"]), norm,
        conv("n", "y", (4, 4, 1, 1), rng),
    )  # fmt: skip
    _, report = fold_checked(model_of(parts.nodes, X, ["y"], parts.initializers), kept=kept)
    if kept:
        assert Reason.PRECISION in reasons(report)[0]


def set_norm(parts, *, scale=1.0, bias=0.0, mean=0.0, variance=1.0):
    """Give every channel of a BN of four the same parameters."""
    for item, value in zip(parts.initializers, (scale, bias, mean, variance), strict=True):
        item.raw_data = np.full(4, value, np.float32).tobytes()
    return parts


def in_half(model):
    """The same model in float16."""
    for item in model.graph.initializer:
        values = np.frombuffer(item.raw_data, np.float32).astype(np.float16)
        item.data_type, item.raw_data = TensorProto.FLOAT16, values.tobytes()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


@pytest.mark.parametrize(("variance", "half", "kept"), [(1, True, 0), (0, True, 1), (0, False, 0)])
def test_rounding_errors_of_a_constant_channel_are_not_replaced(variance, half, kept, rng):
    """A mean of 4, rounded to float16, is off by 2e-3, of which the norm makes 0.6."""
    norm = set_norm(bn("a", "y", 4, rng, epsilon=1e-5), bias=1, mean=4, variance=variance)
    parts = join(conv("x", "a", (4, 4, 1, 1), rng), norm)
    made = model_of(parts.nodes, X, ["y"], parts.initializers)
    _, report = onnx_bnfold.fold(in_half(made) if half else made)
    assert len(report.kept) == kept
    if kept:
        assert Reason.PRECISION in reasons(report)[0]


@pytest.mark.parametrize(
    ("variance", "kept"), [(1, []), (0, ["BatchNormalization 'n_n'", "BatchNormalization 'n_m'"])]
)
def test_what_a_norm_behind_an_activation_enlarges_is_not_disturbed(variance, kept, rng):
    """A channel that is cut off: the norm behind makes 1.5 of a rounding error of 5e-3."""
    first = set_norm(bn("a", "n", 4, rng), bias=-8)
    second = set_norm(bn("r", "m", 4, rng, epsilon=1e-5), bias=1, variance=variance)
    parts = join(
        conv("x", "a", (4, 4, 1, 1), rng), first, node("Relu", ["n"], ["r"]), second,
        conv("m", "y", (4, 4, 1, 1), rng),
    )  # fmt: skip
    _, report = onnx_bnfold.fold(in_half(model_of(parts.nodes, X, ["y"], parts.initializers)))
    assert [record.name for record in report.kept] == kept


@pytest.mark.parametrize(("gamma", "kept"), [(1e6, 0), (1e7, 1)])
def test_a_shift_that_float64_does_not_know_is_not_folded(gamma, kept, rng):
    """In channel 0, mean·a is 3e8 or 3e9 beside an output of 1: 16 digits hold no more."""
    norm = set_norm(bn("a", "y", 4, rng, epsilon=1e-5), bias=1, mean=1, variance=0)
    for item, others in zip(norm.initializers[:2], (1, 1e12), strict=True):
        first = gamma if others == 1 else 1
        item.raw_data = np.array([first, others, others, others], np.float32).tobytes()
    parts = join(conv("x", "a", (4, 4, 1, 1), rng), norm)
    _, report = onnx_bnfold.fold(model_of(parts.nodes, X, ["y"], parts.initializers))
    assert len(report.kept) == kept


def test_a_norm_beside_one_that_stays_for_rounding_stays_too(rng):
    """Absorbed by the first, the second would give a norm that a second fold takes for harmless."""
    first = set_norm(bn("a", "n", 4, rng, epsilon=1e-5))
    second = set_norm(bn("n", "y", 4, rng, epsilon=1e-5), bias=1e-7, variance=0)
    parts = join(conv("x", "a", (4, 4, 1, 1), rng), first, second)
    folded, report = onnx_bnfold.fold(model_of(parts.nodes, X, ["y"], parts.initializers))
    assert len(report.kept) == 2
    again, _ = onnx_bnfold.fold(folded)
    assert again.SerializeToString() == folded.SerializeToString()


def test_the_statistics_of_a_norm_whose_input_and_output_have_changed():
    net = Net(("N", 1, 3))
    x = net.op("Sigmoid", "x")
    constants = [net.const(np.array([value])) for value in (6.0, 1.0, 5.0, 4.0)]  # 3·(x - 5) + 1
    y = net.op("BatchNormalization", x, *constants, epsilon=0.0)
    state = net.state(y)
    scale, shift = (np.full((1, 1, 1), value) for value in (2.0, -7.0))
    state.total[x], state.total[y] = Affine.of(-scale, shift), Affine.of(4 * scale, shift)
    assert _present(state, 1) == (3 * 8 / -2, 1 * 8 - 7, 5 * -2 - 7, 2 * 2)


@pytest.mark.parametrize("damage", ["training", "variance"])
def test_a_norm_behind_that_says_nothing_blocks_nothing(damage, rng):
    second = bn("n", "y", 4, rng, **({"training_mode": 1} if damage == "training" else {}))
    if damage == "variance":
        set_norm(second, variance=-1)
    parts = join(conv("x", "a", (4, 4, 1, 1), rng), bn("a", "n", 4, rng), second)
    _, report = onnx_bnfold.fold(model_of(parts.nodes, X, ["y"], parts.initializers))
    assert [record.name for record in report.kept] == ["BatchNormalization 'n_y'"]


def test_int8_leaves_alone_what_a_caller_may_give_and_others_read(rng):
    """An initializer that is an input too is no constant: its readers are those of a tensor."""
    parts = join(bn("d", "n", 4, rng, positive=True), conv("n", "y", (4, 4, 1, 1), rng))
    parts = join(parts, conv("d", "z", (4, 4, 1, 1), rng))
    default = onnx.numpy_helper.from_array(np.ones((1, 4, 6, 6), np.float32), "d")
    initializers = [*parts.initializers, default]
    m = model_of(parts.nodes, {"d": [1, 4, 6, 6]}, ["y", "z"], initializers)
    assert not onnx_bnfold.plan(m, Options(profile="int8")).folded
    assert onnx_bnfold.plan(m).folded


# --- whatever is removed, and whoever reads ------------------------------------------------------

HALF, SINGLE = np.float16, np.float32
FEATURES = {"x": ("N", 2)}


def norm_of(x, y, *, scale=1.0, bias=0.0, mean=0.0, variance=1.0, dtype=SINGLE, **attributes):
    """A BN of two channels; each parameter is one number or two."""
    values = zip(("scale", "B", "mean", "var"), (scale, bias, mean, variance), strict=True)
    constants = [tensor(f"{y}_{k}", np.broadcast_to(v, 2).astype(dtype)) for k, v in values]
    names = [c.name for c in constants]
    made = node("BatchNormalization", [x, *names], [y], **{"epsilon": 1e-5} | attributes)
    return made._replace(initializers=constants)


def by(op, x, y, value, *, dtype=SINGLE):
    """A Mul, Add, Sub or Div by a constant of one number, or of one per feature."""
    return node(op, [x, f"{y}_c"], [y])._replace(
        initializers=[tensor(f"{y}_c", np.asarray(value, dtype))]
    )


def gemm(x, y, rng, dtype=SINGLE):
    return layer("Gemm", x, y, (2, 2), rng, bias_shape=(2,), dtype=dtype)


def in_double(model):
    """The same model in float64."""
    wide = onnx.ModelProto.FromString(model.SerializeToString())
    for item in wide.graph.initializer:
        if item.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
            item.CopyFrom(tensor(item.name, onnx.numpy_helper.to_array(item).astype(np.float64)))
    for value in (*wide.graph.input, *wide.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for cast in wide.graph.node:
        if cast.op_type == "Cast":
            cast.attribute[0].i = TensorProto.DOUBLE
    return wide


def errors(original, folded, x):
    """For each output the errors of both models, per channel, and the peaks."""
    exact, before, after = (
        ReferenceEvaluator(m).run(None, {"x": x.astype(kind)})
        for m, kind in ((in_double(original), np.float64), (original, x.dtype), (folded, x.dtype))
    )
    for e, b, a in zip(exact, before, after, strict=True):
        axes = tuple(axis for axis in range(e.ndim) if axis != 1)
        sizes = (b.astype(np.float64) - e, a.astype(np.float64) - e, e)
        yield tuple(np.abs(size).max(axis=axes) for size in sizes)


def assert_no_less_accurate(original, folded, x):
    """Four times the original's own error, and a few units in the last place, are allowed."""
    unit = np.finfo(x.dtype).eps / 2
    for before, after, peak in errors(original, folded, x):
        assert (after <= 4 * before + 8 * unit * peak).all(), (before, after, peak)


def around(mean, dtype):
    """Numbers around a mean that a type holds without an error."""
    return (mean + np.random.default_rng(0).integers(-3, 4, (64, 2))).astype(dtype)


IN_FRONT = {
    "BN": lambda m, t: norm_of("x", "n", bias=0.1, mean=m, variance=4, dtype=t),
    "Add-BN": lambda m, t: join(
        by("Add", "x", "a", 1, dtype=t),
        norm_of("a", "n", bias=0.1, mean=m + 1, variance=4, dtype=t),
    ),
    "Sub-BN": lambda m, t: join(
        by("Sub", "x", "a", 3, dtype=t),
        norm_of("a", "n", bias=[0.1, 0.2], mean=m - 3, variance=4, dtype=t),
    ),
    "Mul-BN": lambda m, t: join(
        by("Mul", "x", "a", 0.5, dtype=t),
        norm_of("a", "n", bias=0.1, mean=m / 2, variance=1, dtype=t),
    ),
    "Sub-BN-of-no-mean": lambda m, t: join(
        by("Sub", "x", "a", m, dtype=t), norm_of("a", "n", bias=0.1, variance=4, dtype=t)
    ),
    "Sub": lambda m, t: by("Sub", "x", "n", m, dtype=t),
    "Add": lambda m, t: by("Add", "x", "n", -m, dtype=t),
    "Sub-Div": lambda m, t: join(
        by("Sub", "x", "a", m, dtype=t), by("Div", "a", "n", 2, dtype=t)
    ),
    "Mul-Sub": lambda m, t: join(
        by("Mul", "x", "a", 0.5, dtype=t), by("Sub", "a", "n", m / 2, dtype=t)
    ),
}  # fmt: skip


@pytest.mark.parametrize("front", IN_FRONT)
@pytest.mark.parametrize(
    ("dtype", "mean"), [(HALF, 500), (HALF, 50), (SINGLE, 1e5), (SINGLE, 300)], ids=str
)
def test_a_large_mean_is_not_left_to_a_layer(dtype, mean, front, rng):
    """Whatever subtracts it in front of a Gemm does so exactly; a sum of products does not."""
    parts = join(IN_FRONT[front](mean, dtype), gemm("n", "y", rng, dtype))
    model = model_of(parts.nodes, FEATURES, ["y"], parts.initializers, dtype=dtype)
    folded, _ = onnx_bnfold.fold(model)
    assert ops(folded)[-1] == "Gemm"
    assert len(ops(folded)) == 2
    assert_no_less_accurate(model, folded, around(mean, dtype))


@pytest.mark.parametrize("front", IN_FRONT)
def test_a_small_mean_is_left_to_a_layer(front, rng):
    """But a lone sum tells nothing of the size of what it reads."""
    parts = join(IN_FRONT[front](1, SINGLE), gemm("n", "y", rng))
    folded, _ = onnx_bnfold.fold(model_of(parts.nodes, FEATURES, ["y"], parts.initializers))
    stays = {"Sub": ["Sub"], "Add": ["Add"], "Mul-Sub": ["Sub"]}.get(front, [])
    assert ops(folded) == [*stays, "Gemm"]


def test_pixels_are_normalised_by_the_first_layer(rng):
    parts = join(
        by("Sub", "x", "a", np.full((3, 1, 1), 127.5)), by("Div", "a", "b", np.full((3, 1, 1), 58)),
        conv("b", "y", (4, 3, 3, 3), rng),
    )  # fmt: skip
    model = model_of(parts.nodes, {"x": ("N", 3, 6, 6)}, ["y"], parts.initializers)
    folded, _ = fold_checked(model)
    assert ops(folded) == ["Conv"]


@pytest.mark.parametrize("factor", [0.3, 0.5])
def test_a_sum_behind_a_product_that_is_rounded_costs_nothing_more(factor, rng):
    """A Mul by a power of two rounds nothing."""
    parts = join(by("Mul", "x", "a", factor), by("Add", "a", "b", -300), gemm("b", "y", rng))
    folded, _ = onnx_bnfold.fold(model_of(parts.nodes, FEATURES, ["y"], parts.initializers))
    assert ops(folded) == (["Gemm"] if factor == 0.3 else ["Add", "Gemm"])


@pytest.mark.parametrize("op", ["Add", "Sub"])
def test_a_constant_says_nothing_of_what_it_is_added_to(op, rng):
    """Statistics that do not know of it would make the tensor in front as large as it is."""
    parts = join(
        conv("x", "t", (4, 4, 1, 1), rng),
        node("Mul", ["t", "f"], ["m"]),
        node(op, ["m", "s"], ["a"]),
        bn("a", "b", 4, rng, positive=True),
        node("Sigmoid", ["b"], ["y"]),
        conv("t", "z", (4, 4, 1, 1), rng),
    )
    constants = [tensor("f", np.float32(1.5)), tensor("s", np.float32(1e5))]
    model = model_of(parts.nodes, X, ["y", "z"], [*parts.initializers, *constants])
    folded, _ = onnx_bnfold.fold(model)
    assert_same_function(model, folded)


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_what_is_normalised_has_no_usual_size(factor, rng):
    """What is made of it has the size 1, but another Conv reads it as it was."""
    factors = np.array([factor, 1.2, 0.8, 1.1], np.float32).reshape(4, 1, 1)
    summand, other = (rng.uniform(0.5, 1, (4, 1, 1)).astype(np.float32) for _ in range(2))
    parts = join(
        conv("x", "t", (4, 4, 1, 1), rng),
        node("Mul", ["t", "f"], ["m"]),
        node("Add", ["m", "s"], ["a"]),
        node("Mul", ["a", "o"], ["b"]),
        node("Sigmoid", ["b"], ["y"]),
        conv("t", "z", (4, 4, 1, 1), rng),
    )
    constants = [tensor("f", factors), tensor("s", summand), tensor("o", other)]
    model = model_of(parts.nodes, X, ["y", "z"], [*parts.initializers, *constants])
    folded, _ = onnx_bnfold.fold(model)
    assert_same_function(model, folded)
    again, _ = onnx_bnfold.fold(folded)  # in which the channel is as small, or as large
    assert_same_function(model, again)


@pytest.mark.parametrize("between", ["", "Identity", "Transpose", "Reshape"])
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no-norm"])
@pytest.mark.parametrize("size", [1, 1e5])
@pytest.mark.parametrize("op", ["Add", "Sub"])
def test_a_sum_that_is_an_output_is_not_taken_back_by_others(op, size, norm, between, rng):
    """It would be, if it went: the tensor in front of it would become the output."""
    made = [gemm("x", "t", rng), norm_of("t", "n")] if norm else [gemm("x", "n", rng)]
    if between == "Reshape":
        made.append(node("Reshape", ["n", "shape"], ["m"]))
        made[-1] = made[-1]._replace(initializers=[tensor("shape", np.array([-1, 2]))])
    elif between:
        options = {"perm": [0, 1]} if between == "Transpose" else {}
        made.append(node(between, ["n"], ["m"], **options))
    made += [by(op, "m" if between else "n", "y", size), gemm("n", "z", rng)]
    parts = join(*made)
    model = model_of(parts.nodes, FEATURES, ["y", "z"], parts.initializers)
    folded, _ = fold_checked(model, tolerance=1e-6)
    stays = size > 1 or not norm
    assert count(folded, op) == stays


@pytest.mark.parametrize(("epsilon", "kept"), [(1e-5, 0), (1e-3, 1), (1e-1, 1)])
def test_an_offset_is_measured_in_the_true_spread(epsilon, kept, rng):
    """A variance far below epsilon; another layer reads what would be shifted."""
    weight = tensor("w", np.eye(2).astype(HALF) * HALF(0.01))
    parts = join(
        node("MatMul", ["x", "w"], ["t"])._replace(initializers=[weight]),
        norm_of("t", "y", bias=[3, -3], variance=1e-4, dtype=HALF, epsilon=epsilon),
        gemm("t", "z", rng, HALF),
    )
    model = model_of(parts.nodes, FEATURES, ["y", "z"], parts.initializers, dtype=HALF)
    folded, report = onnx_bnfold.fold(model)
    assert len(report.kept) == kept
    assert_no_less_accurate(model, folded, rng.standard_normal((64, 2)).astype(HALF))


ISLANDS = {
    "harmless": ({"scale": 2, "bias": 1}, 0),
    "overflow": ({"scale": 1e5}, 1),
    "underflow": ({"scale": 1e-9}, 1),
    "shift": ({"mean": 1e5}, 1),
    "small-shift": ({"mean": 300}, 1),
}


@pytest.mark.parametrize("case", ISLANDS)
def test_a_tensor_between_two_casts_has_the_limits_of_its_own_type(case, rng):
    parameters, kept = ISLANDS[case]
    parts = join(
        gemm("x", "a", rng), node("Cast", ["a"], ["b"], to=TensorProto.FLOAT16),
        node("Cast", ["b"], ["c"], to=TensorProto.FLOAT), norm_of("c", "y", **parameters),
    )  # fmt: skip
    model = model_of(parts.nodes, FEATURES, ["y"], parts.initializers)
    folded, _ = fold_checked(model, kept=kept, compare=False)
    assert_no_less_accurate(model, folded, rng.standard_normal((64, 2)).astype(SINGLE))


@pytest.mark.parametrize(("op", "value", "left"), [("Mul", 2, 0), ("Mul", 1e5, 1), ("Add", 1e5, 1)])
@pytest.mark.parametrize("profile", ["float", "fp16"])
def test_so_it_has_for_other_removals(profile, op, value, left, rng):
    parts = join(
        gemm("x", "a", rng), node("Cast", ["a"], ["b"], to=TensorProto.FLOAT16),
        node("Cast", ["b"], ["c"], to=TensorProto.FLOAT), by(op, "c", "y", value),
    )  # fmt: skip
    model = model_of(parts.nodes, FEATURES, ["y"], parts.initializers)
    folded, _ = onnx_bnfold.fold(model, Options(profile=profile))
    assert count(folded, op) == left


@pytest.mark.parametrize("form", ["mul-add", "conv"])
@pytest.mark.parametrize(("mean", "variance", "kept"), [(10, 0, True), (1, 1, False)])
@pytest.mark.parametrize("dtype", [HALF, SINGLE])
def test_a_constant_channel_stays_a_norm(dtype, mean, variance, kept, form):
    """Mul and Add would round what the norm subtracts first."""
    norm = norm_of("x", "n", bias=0.5, mean=[mean, 0], variance=[variance, 1], dtype=dtype)
    parts = join(norm, node("Sigmoid", ["n"], ["y"]))
    model = model_of(parts.nodes, {"x": (1, 2, 2)}, ["y"], parts.initializers, dtype=dtype)
    folded, report = onnx_bnfold.fold(model, Options(standalone=form))
    assert (count(folded) == 1) == kept
    x = np.zeros((1, 2, 2), dtype)
    x[:, 0] = mean
    assert_no_less_accurate(model, folded, x)
    if kept:
        assert report.kept[0].refusal.reason is Reason.PRECISION
        assert "without a BatchNormalization" in report.lines()[0]


@pytest.mark.parametrize("kept", [True, False])
def test_a_product_in_front_of_a_norm_of_rounding_errors_stays(kept, rng):
    """The layer would get other rounding errors, which the norm enlarges a hundred times."""
    mean, variance = (4, 0) if kept else (1, 1)
    parts = join(
        gemm("x", "a", rng, HALF), by("Mul", "a", "b", 0.3, dtype=HALF),
        norm_of("b", "y", bias=1, mean=mean, variance=variance, dtype=HALF),
        node("Relu", ["b"], ["z"]),
    )  # fmt: skip
    model = model_of(parts.nodes, FEATURES, ["y", "z"], parts.initializers, dtype=HALF)
    folded, _ = onnx_bnfold.fold(model)
    assert count(folded, "Mul") == kept


@pytest.mark.parametrize(
    ("dtype", "mean", "left"), [(HALF, 653, 1), (HALF, 1, 0), (SINGLE, 653, 0)]
)
def test_a_mean_that_its_type_does_not_hold_is_not_made(dtype, mean, left):
    """653 · 0.7646 = 499.3, which float16 rounds by a fiftieth of the deviation."""
    parts = join(
        by("Div", "x", "a", 0.7646, dtype=dtype),
        norm_of("a", "y", mean=mean, variance=1, dtype=dtype),
    )
    folded, _ = onnx_bnfold.fold(
        model_of(parts.nodes, FEATURES, ["y"], parts.initializers, dtype=dtype)
    )
    assert count(folded, "Div") == left


@pytest.mark.parametrize("parameter", ["bias", "mean", "variance"])
@pytest.mark.parametrize("side", ["in front", "behind"])
def test_parameters_that_differ_beside_others_that_do_not(side, parameter):
    """The sum goes into the norm."""
    parameters = {"mean": 1, "variance": 1, "bias": 1} | {parameter: [1, 2]}
    norm, value = partial(norm_of, **parameters), [0.3, 0.4]
    if side == "behind":
        parts = join(norm("x", "n"), by("Add", "n", "y", value))
    else:
        parts = join(by("Add", "x", "n", value), norm("n", "y"))
    model = model_of(parts.nodes, FEATURES, ["y"], parts.initializers)
    folded, _ = fold_checked(model, kept=1)
    assert ops(folded) == ["BatchNormalization"]


def test_a_sum_goes_into_the_mean_of_a_norm():
    """Whatever the data are, the norm's output is as large as the mean that it subtracts."""
    parts = join(by("Add", "x", "n", 100), norm_of("n", "y", mean=100))
    folded, _ = fold_checked(model_of(parts.nodes, FEATURES, ["y"], parts.initializers), kept=1)
    assert ops(folded) == ["BatchNormalization"]


@pytest.mark.parametrize("mover", ["Identity", "Transpose"])
def test_a_shift_that_a_mover_hands_on_costs_nothing(mover, rng):
    """The layer's new output holds what was the sum's: nobody takes anything back."""
    options = {"perm": [0, 1]} if mover == "Transpose" else {}
    parts = join(
        gemm("x", "a", rng), node(mover, ["a"], ["b"], **options), by("Add", "b", "y", 1e5)
    )
    folded, _ = fold_checked(model_of(parts.nodes, FEATURES, ["y"], parts.initializers))
    assert ops(folded) == ["Gemm", mover]


@pytest.mark.parametrize(("value", "left"), [(1159, 1), (0.25, 0)])
def test_a_bias_that_its_type_does_not_hold_is_not_made(value, left):
    """1158.61 is rounded to 1159; beside that, what the norm makes of data around 0 is small."""
    parts = join(
        norm_of("x", "a", bias=-0.39, mean=1159, variance=1, dtype=HALF),
        by("Add", "a", "y", value, dtype=HALF),
    )
    model = model_of(parts.nodes, FEATURES, ["y"], parts.initializers, dtype=HALF)
    folded, _ = onnx_bnfold.fold(model)
    assert count(folded, "Add") == left


@pytest.mark.parametrize(("profile", "kept"), [("float", 0), ("fp16", 1)])
def test_the_profile_fp16_has_the_limits_of_float16(profile, kept, rng):
    """A shift of eight deviations of what another layer reads."""
    parts = join(gemm("x", "t", rng), norm_of("t", "y", bias=8), gemm("t", "z", rng))
    model = model_of(parts.nodes, FEATURES, ["y", "z"], parts.initializers)
    fold_checked(model, kept=kept, options=Options(profile=profile))


@pytest.mark.parametrize(("opset", "kept"), [(6, 1), (7, 0)])
def test_before_opset_7_a_norm_is_not_written_otherwise(opset, kept):
    """Operands broadcast by attributes there."""
    options = {"is_test": 1} if opset < 7 else {}
    parts = join(norm_of("x", "n", **options), node("Sigmoid", ["n"], ["y"]))
    model = model_of(
        parts.nodes, {"x": ("N", 2, 2)}, {"y": ("N", 2, 2)}, parts.initializers, opset=opset
    )
    folded, _ = onnx_bnfold.fold(model, Options(standalone="mul-add"))
    assert count(folded) == kept


@pytest.mark.parametrize(("sign", "left"), [(1, 1), (-1, 1)])
def test_two_sums_do_not_become_one_that_is_coarser(sign, left):
    """500 is exact in float16, 499.9 is not; what is left may be small."""
    parts = join(
        by("Sub", "x", "a", 500 * sign, dtype=HALF), by("Add", "a", "b", 0.1 * sign, dtype=HALF),
        node("Sigmoid", ["b"], ["y"]),
    )  # fmt: skip
    model = model_of(parts.nodes, FEATURES, ["y"], parts.initializers, dtype=HALF)
    folded, _ = onnx_bnfold.fold(model)
    assert count(folded, "Sub") + count(folded, "Add") == 1 + left


@pytest.mark.parametrize(
    ("others", "weights", "group", "kept"),
    [
        (1, [1, 1], 1, 0),
        (1e-4, [1, 1], 1, 1),
        (1, [1e3, 1], 1, 1),
        (1, [1e3, 1e3], 1, 0),
        (1, [1, 1], 2, 1),
    ],
    ids=["live", "all-dead", "heavy", "both-heavy", "depthwise"],
)
def test_a_dead_channel_beside_a_live_one_may_move(others, weights, group, kept, rng):
    """A layer that adds both up rounds as much for the live one; a depthwise one does not."""
    weight = np.array(weights, SINGLE) if group == 2 else np.tile(np.array(weights, SINGLE), (2, 1))
    constant = tensor("w", weight.reshape(2, 2 // group, 1, 1))
    parts = join(
        conv("x", "t", (2, 3, 1, 1), rng),
        norm_of("t", "y", bias=[1, 0], variance=[1e-12, others], epsilon=1e-2),
        node("Conv", ["t", "w"], ["z"], group=group)._replace(initializers=[constant]),
    )
    model = model_of(parts.nodes, {"x": ("N", 3, 2, 2)}, ["y", "z"], parts.initializers)
    _, report = onnx_bnfold.fold(model)
    assert len(report.kept) == kept


@pytest.mark.parametrize("form", ["mul-add", "conv"])
def test_a_dead_channel_that_is_small_beside_others_is_no_reason_to_keep_a_norm(form):
    norm = norm_of("x", "n", scale=[1e-3, 1], mean=[0.5, 0], variance=[0, 1], epsilon=1e-3)
    parts = join(norm, node("Sigmoid", ["n"], ["y"]))
    model = model_of(parts.nodes, {"x": ("N", 2, 2)}, ["y"], parts.initializers)
    folded, _ = onnx_bnfold.fold(model, Options(standalone=form))
    assert not count(folded)


# --- small nets of odd numbers -------------------------------------------------------------------

CHANNELS = 4
OPTIONS = {
    "default": Options(),
    "fp16": Options(profile="fp16"),
    "int8": Options(profile="int8"),
    "mul-add": Options(standalone="mul-add"),
    "conv": Options(standalone="conv"),
    "merge": Options(merge_branches=True),
}


class OddNet:
    """A row of few nodes, some of them outputs; means of 1e3, variances of 1e-8, epsilons of 0.1.

    Half of the nets have the true statistics of their input `x` in their norms and sums.
    """

    def __init__(self, seed, dtype):
        self.rng, self.dtype = np.random.default_rng(seed), dtype
        self.parts: list = []
        offset = self.rng.choice([0, 0, 500] if dtype is HALF else [0, 1e3, 1e5])
        x = offset + self.rng.standard_normal((3, CHANNELS, 3, 3)) * self.rng.choice([0.5, 3])
        self.x = (np.round(x) if offset else x).astype(dtype)
        self.is_true = self.rng.random() < 0.5
        self.tensors = ["x"]
        for _ in range(self.rng.integers(3, 9)):
            name = self.tensors[
                -1 if self.rng.random() < 0.8 else self.rng.integers(len(self.tensors))
            ]
            kinds = [self.norm, self.layer, self.sum, self.product, self.rectifier, self.standard]
            self.rng.choice(kinds)(str(name))
        outputs = [t for t in self.tensors[1:-1] if self.rng.random() < 0.2]
        self.model = self.model_of(*outputs, self.tensors[-1])

    def model_of(self, *outputs):
        parts, shape = join(*self.parts), {"x": (3, CHANNELS, 3, 3)}
        return model_of(parts.nodes, shape, outputs, parts.initializers, dtype=self.dtype)

    def add(self, op, x, *values, **attributes):
        y = f"t{len(self.tensors)}"
        constants = [tensor(f"{y}_{i}", v.astype(self.dtype)) for i, v in enumerate(values)]
        made = node(op, [x, *(c.name for c in constants)], [y], **attributes)
        self.parts.append(made._replace(initializers=constants))
        self.tensors.append(y)
        return y

    def values(self, name):
        if name == "x":
            return self.x.astype(np.float64)
        model = in_double(self.model_of(name))
        return ReferenceEvaluator(model).run(None, {"x": self.x.astype(np.float64)})[0]

    def norm(self, x):
        rng = self.rng
        if self.is_true:
            mean, variance = self.values(x).mean((0, 2, 3)), self.values(x).var((0, 2, 3))
        else:
            mean = rng.standard_normal(CHANNELS) * rng.choice([0, 1, 1e3])
            variance = rng.uniform(0.3, 3, CHANNELS) * rng.choice([1, 1, 1e-8])
        scale = rng.uniform(0.5, 2, CHANNELS) * rng.choice([1, -1, 1e-3], CHANNELS)
        bias = rng.standard_normal(CHANNELS) * rng.choice([0, 1])
        epsilon = float(rng.choice([1e-5, 1e-3, 1e-1]))
        self.add("BatchNormalization", x, scale, bias, mean, variance, epsilon=epsilon)

    def layer(self, x):
        group = int(self.rng.choice([1, 1, CHANNELS]))
        weight = self.rng.standard_normal((CHANNELS, CHANNELS // group, 1, 1)) / 2
        self.add("Conv", x, weight, self.rng.standard_normal(CHANNELS), group=group)

    def sum(self, x):
        size = self.rng.choice([0.1, 1, 100])
        value = self.rng.standard_normal((CHANNELS, 1, 1)) * size
        if self.is_true:
            value = self.values(x).mean((0, 2, 3)).reshape(-1, 1, 1)
        self.add("Sub", x, value)

    def product(self, x):
        value = self.rng.uniform(0.3, 3, (CHANNELS, 1, 1))
        self.add(str(self.rng.choice(["Mul", "Div"])), x, value)

    def rectifier(self, x):
        self.add(str(self.rng.choice(["Relu", "Identity"])), x)

    def standard(self, x):
        values = self.values(x)
        mean, deviation = values.mean((0, 2, 3)), values.std((0, 2, 3)) + 1e-3
        centred = self.add("Sub", x, mean.reshape(-1, 1, 1))
        self.add("Div", centred, deviation.reshape(-1, 1, 1))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [HALF, SINGLE], ids=["float16", "float32"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_odd_numbers_cost_no_digits(dtype, options):
    folded_nodes = 0
    for seed in range(40):
        net = OddNet(seed, dtype)
        outputs = ReferenceEvaluator(net.model).run(None, {"x": net.x})
        if not all(np.isfinite(output).all() for output in outputs):
            continue
        folded, report = onnx_bnfold.fold(net.model, OPTIONS[options])
        folded_nodes += sum(record.folded for record in report.records)
        assert_no_less_accurate(net.model, folded, net.x)
    assert folded_nodes > 10


@pytest.mark.parametrize(("factor", "layer"), [(1.0, "Conv"), (2.0**-100, "BatchNormalization")])
def test_a_shift_leaves_a_tensor_room_in_its_type(factor, layer):
    """Into the Conv the Add goes divided by the factor, and is in float16 on the way."""
    net = Net((3, 1, 3, 6))
    x = net.op("Cast", net.conv("x", 4, bias=False), to=TensorProto.FLOAT16)
    factors = net.const(np.array([1, factor, 1, factor])[:, None, None])
    x = net.op("Mul", net.op("Cast", x, to=TensorProto.FLOAT), factors)
    x = net.op("MaxPool", net.op("Add", x, net.random(4, 1, 1)), kernel_shape=[2, 2])
    model = net.model(net.bn(x))
    folded, report = onnx_bnfold.fold(model)
    assert_same_function(model, folded, tolerance=2e-3)  # that of float16
    (added,) = (r for r in report.records if r.folded and r.name.startswith("Add"))
    assert [name.split(" ")[0] for name in added.shift_to] == [layer]


@pytest.mark.parametrize(
    ("gamma", "half", "kept"),
    [(1500.0, True, 2), (100.0, True, 1), (1500.0, False, 1), (-1500.0, True, 2), (0.0, True, 1)],
)
def test_a_scale_leaves_a_tensor_room_in_its_type(gamma, half, kept):
    """The BN divides by 30, and what is added is to be 30 times as large: 180,000 is too much."""
    net = Net((1, 4, 8, 8))

    def norm(x, gamma, variance):
        values = ([gamma] * 4, [0.0] * 4, [0.0] * 4, [variance] * 4)
        return net.op("BatchNormalization", x, *map(net.const, values), epsilon=0.0)

    t = net.conv(net.input("z", (1, 4, 8, 8)), 4)
    added = net.op("Add", net.relu(norm("x", 1.0, 900.0)), norm(t, gamma, 1.0))
    made = net.model(net.conv(added, 4), net.op("Sigmoid", t))
    made = in_half(made) if half else made
    _, report = onnx_bnfold.fold(made)
    assert len(report.kept) == kept
    if kept == 2:
        assert any("would reach" in line for line in report.lines())


@pytest.mark.parametrize(("gamma", "kept"), [(1.0, 0), (1e-4, 1)])
def test_a_concat_with_a_tensor_of_unknown_size_hides_no_shift(gamma, kept):
    """What the Concat writes is of unknown size; of its part behind the Conv the size is known."""
    net = Net(IMAGE)
    x = net.conv("x", 4)
    other = net.op("Abs", net.conv("x", 4))
    scale, bias = net.const(np.full(4, gamma)), net.const(np.full(4, 0.4))
    mean, variance = net.const(np.zeros(4)), net.const(np.ones(4))
    y = net.op("BatchNormalization", x, scale, bias, mean, variance)
    z = net.conv(net.op("Concat", other, x, axis=1), 3)
    fold_checked(net.model(y, z), kept=kept)


@pytest.mark.parametrize(("factor", "left"), [(0.5, 0), (1e-30, 2)])
def test_a_size_out_of_all_proportion_is_not_believed(factor, left):
    """What the norm says of its input would make 1e28 of a tensor that another layer reads."""
    net, double = Net(), np.float64
    net.input("x", ("N", 3), TensorProto.DOUBLE)

    def layer(x: str) -> str:
        return net.op("Gemm", x, net.random(3, 3, dtype=double), net.random(3, dtype=double))

    x = layer("x")
    y = net.op("Mul", x, net.const(np.full(3, factor), double))
    y = net.op("Add", y, net.const(np.full(3, 1.4), double))
    statistics = (net.const(np.full(3, v), double) for v in (0.6, 1e-3, 1.4, 2e-4))
    y = net.op("BatchNormalization", y, *statistics)
    folded, _ = fold_checked(net.model(y, layer(x)))
    assert sum(n.op_type in ("Mul", "Add") for n in folded.graph.node) == left
