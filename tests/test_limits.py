"""What a re-parametrised tensor that stays may become."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from support import bn, conv, fold_checked, join, model_of, node, reasons

import onnx_bnfold
from onnx_bnfold import Options, Reason

X = {"x": ["N", 4, 6, 6]}


def stream(rng, scale):
    """A residual stream that a BN, a ReLU and a Conv read, and that goes on."""
    norm = bn("a", "n", 4, rng, positive=True)
    values = norm.initializers[0]
    factor = np.array([scale, 1, 1, 1])
    gamma = (np.frombuffer(values.raw_data, np.float32) * factor).astype(np.float32)
    values.raw_data = gamma.tobytes()
    return join(
        conv("x", "a", (4, 4, 1, 1), rng), norm, node("Relu", ["n"], ["r"]),
        conv("r", "c", (4, 4, 1, 1), rng),
        conv("a", "d", (4, 4, 1, 1), rng), node("Add", ["c", "d"], ["y"]),
    )  # fmt: skip


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


@pytest.mark.parametrize(("bound", "kept"), [(1.01, 1), (1e6, 0)])
def test_max_rescale(bound, kept, rng):
    """An identity BN beside a Conv can only go by rescaling what both add up to."""
    parts = join(
        conv("x", "a", (4, 4, 1, 1), rng), node("Relu", ["a"], ["r"]),
        conv("r", "b", (4, 4, 3, 3), rng, pads=[1] * 4), bn("r", "n", 4, rng, positive=True),
        node("Add", ["b", "n"], ["s"]), node("Relu", ["s"], ["t"]),
        conv("t", "y", (4, 4, 3, 3), rng, pads=[1] * 4),
    )  # fmt: skip
    m = model_of(parts.nodes, X, ["y"], parts.initializers)
    _, report = fold_checked(m, kept=kept, options=Options(max_rescale=bound))
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
