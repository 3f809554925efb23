"""Equalisation: the free scales make channels alike, and the function stays."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from graphs import Net
from onnx import TensorProto, helper, numpy_helper
from support import (
    Parts,
    assert_same_function,
    bn,
    conv,
    error,
    feeds_for,
    fold_checked,
    initializer,
    join,
    layer,
    model_of,
    node,
    run,
    tensor,
)

import onnx_bnfold
from onnx_bnfold import Options, UsageError
from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.quantize import quantised, snr
from onnx_bnfold.check.sessions import Session
from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.planning.equalize import _gain_of_bn, _reader
from onnx_bnfold.planning.int8_groups import Group, Member, Reader
from onnx_bnfold.planning.ranges import Range

EQUALIZE = Options(profile="int8", equalize=True)
PLAIN = Options(profile="int8")
SLOPE = np.full((4, 1, 1), 0.1, np.float32)
X = {"x": ["N", 4, 6, 6]}
UNEVEN = np.array([0.05, 0.5, 1.0, 2.0], np.float32)


def uneven(x, y, rng, gamma=UNEVEN):
    """A BN whose channels differ much in size."""
    norm = bn(x, y, len(gamma), rng, positive=True)
    values = {"scale": gamma, "B": np.zeros(len(gamma), np.float32)}
    for name, value in values.items():
        place = [t.name for t in norm.initializers].index(f"{y}_{name}")
        norm.initializers[place] = tensor(f"{y}_{name}", value)
    return norm


def front(rng):
    return join(conv("x", "a", (4, 4, 3, 3), rng), uneven("a", "n", rng))


def behind(t, rng, group=1):
    return conv(t, "y", (4, 4 // group, 3, 3), rng, group=group)


EQUAL_SCALES = {
    "directly": lambda rng: join(front(rng), behind("n", rng)),
    "relu": lambda rng: join(front(rng), node("Relu", ["n"], ["r"]), behind("r", rng)),
    "prelu": lambda rng: join(
        front(rng),
        join(node("PRelu", ["n", "slope"], ["r"]), Parts([], [tensor("slope", SLOPE)])),
        behind("r", rng),
    ),
    "max-pool": lambda rng: join(
        front(rng), node("MaxPool", ["n"], ["r"], kernel_shape=[2, 2]), behind("r", rng)
    ),
    "depthwise": lambda rng: join(front(rng), behind("n", rng, group=4)),
    "two-readers": lambda rng: join(
        front(rng), behind("n", rng), conv("n", "z", (2, 4, 1, 1), rng)
    ),
    "residual": lambda rng: join(
        front(rng), node("Relu", ["n"], ["r"]),
        conv("r", "c", (4, 4, 3, 3), rng, pads=[1] * 4), uneven("c", "m", rng),
        node("Add", ["m", "r"], ["s"]), behind("s", rng),
    ),
    "concat": lambda rng: join(
        front(rng), conv("x", "c", (4, 4, 3, 3), rng), uneven("c", "m", rng, UNEVEN[::-1].copy()),
        node("Concat", ["n", "m"], ["s"], axis=1), conv("s", "y", (4, 8, 3, 3), rng),
    ),
    "norm-that-stays": lambda rng: join(
        front(rng), node("Relu", ["n"], ["r"]), bn("r", "k", 4, rng),
        node("Tanh", ["k"], ["t"]), behind("t", rng),
    ),
    "gemm": lambda rng: join(
        front(rng), node("Flatten", ["n"], ["f"]), layer("Gemm", "f", "y", (64, 5), rng)
    ),
}  # fmt: skip


def outputs(build):
    return ["y", "z"] if build is EQUAL_SCALES["two-readers"] else ["y"]


def spread(model, feeds, name):
    """Largest peak of a channel over the smallest."""
    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    seen.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    peaks = np.abs(run(seen, feeds)[-1]).max(axis=(0, 2, 3))
    return float(peaks.max() / peaks.min())


def first_tensor(model):
    """What the first Conv writes, or the ReLU behind it."""
    return model.graph.node[0].output[0]


@pytest.mark.parametrize("build", EQUAL_SCALES.values(), ids=EQUAL_SCALES)
def test_channels_become_alike(build, rng):
    parts = build(rng)
    model = with_own_statistics(model_of(parts.nodes, X, outputs(build), parts.initializers))
    kept = sum(n.op_type == "Tanh" for n in parts.nodes)
    plain, _ = fold_checked(model, kept=kept, options=PLAIN)
    folded, report = fold_checked(model, kept=kept, options=EQUALIZE)
    assert report.equalized
    assert "equalized" in report.summary()
    feeds = feeds_for(model, N=4)
    before, after = (spread(m, feeds, first_tensor(m)) for m in (plain, folded))
    assert after < before / 2


def test_a_reader_that_feels_nothing_gets_even_channels(rng):
    """The channels of a depthwise layer have scales of their own: all is gained, nothing lost."""
    parts = EQUAL_SCALES["depthwise"](rng)
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    plain, _ = onnx_bnfold.fold(model, PLAIN)
    folded, _ = onnx_bnfold.fold(model, EQUALIZE)
    old, new = (initializer(m, m.graph.node[0].input[1]) for m in (plain, folded))
    factors = (new / old).reshape(4, -1)[:, 0]
    np.testing.assert_allclose(factors, UNEVEN.max() / UNEVEN, rtol=0.02)


def test_a_channel_is_as_large_as_where_it_is_largest():
    """Beside the largest of the same tensor; the sizes of two tensors are not compared."""
    channels, gain = np.arange(2), np.ones(2)
    uneven, even = (
        Member(channels, Range(-high, high, high**2, 4))
        for high in (np.array([0.25, 1]), np.array([8.0, 8]))
    )
    np.testing.assert_array_equal(Group((uneven,), (uneven,), gain).factors(), [4, 1])
    assert Group((uneven, even), (uneven,), gain).factors() is None


def largest_of(peaks):
    """What a reader of these weights, ``(groups, C_out / groups, C_in / groups)``, says of them."""

    def largest(choices):
        return np.array([(peaks / f.reshape(len(peaks), 1, -1)).max(axis=2) for f in choices])

    return largest


def test_the_noise_of_steps_of_one():
    """A twelfth each: of 255 steps in a tensor's range, and of 127 in a weight's magnitude."""
    member = Member(np.arange(2), Range(np.full(2, -55.0), np.full(2, 200.0), np.ones(2), 4))
    gain, power = np.array([3.0, 9]), np.array([4.0, 8])
    choices = [np.ones(2), np.array([2.0, 2])]
    assert member.noises(choices, gain) == pytest.approx([12 / 12, 12 / 12])
    reader = Reader(member, largest_of(np.full((1, 2, 2), 127.0)), gain, power)
    choices[1] = np.array([2.0, 1])
    assert reader.noises(choices, gain) == pytest.approx([2 * 12 / 12, 2 * 24 / 12])


@pytest.mark.parametrize(("weight", "gain"), [([3, 1], [9 / 11, 1 / 11]), ([0, 0], [0, 0])])
def test_noise_in_front_of_a_layer_counts_beside_what_the_layer_writes(weight, gain):
    """Of inputs of power 1 and 2, weights of 3 and 1 make 9 + 2."""
    net = Net(("N", 2, 3, 3))
    y = net.op("Conv", "x", net.const(np.array(weight, np.float32).reshape(1, 2, 1, 1)))
    ends, power = np.ones(2), np.array([1.0, 2])
    reader = _reader(net.state(y), 0, Member(np.arange(2), Range(-ends, ends, power, 4)))
    np.testing.assert_allclose(reader.gain, gain)


def test_noise_in_front_of_a_norm_counts_beside_what_the_norm_writes():
    """Its input has got a factor of 2 and its output one of 8."""
    norm = SimpleNamespace(channels=2, a=np.array([1.0, 3]), spread=np.array([2.0, 1]))
    state = SimpleNamespace(
        bn=lambda index: norm,
        rank=lambda index: 4,
        sides=lambda index: (2, 8),
        change=lambda factor, rank: Affine.of(np.full((1,) * rank, factor), np.zeros((1,) * rank)),
    )
    np.testing.assert_allclose(_gain_of_bn(state, 0), np.array([1, 9]) / 4 / (2**2 + 3**2))


def test_a_norm_that_stays_gets_scales_of_one_size(rng):
    """Their sizes go into the variance; signs, zeros and the function stay."""
    parts = join(node("Relu", ["x"], ["r"]), bn("r", "n", 4, rng), node("Tanh", ["n"], ["y"]))
    parts.initializers[0].CopyFrom(tensor("n_scale", np.array([0.01, -30, 0, 2], np.float32)))
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    plain, _ = fold_checked(model, kept=1, options=PLAIN)
    folded, _ = fold_checked(model, kept=1, options=EQUALIZE)
    assert initializer(plain, "n_scale").tolist() == initializer(model, "n_scale").tolist()
    scale, variance = initializer(folded, "n_scale"), initializer(folded, "n_var")
    np.testing.assert_array_equal(scale, scale.max() * np.array([1, -1, 0, 1]))
    assert (variance >= 0).all()
    assert variance[2] == initializer(model, "n_var")[2]


@pytest.mark.parametrize(
    ("gamma", "dtype"),
    [
        ([1, 1, -1, 1], np.float32),
        ([0, 0, 0, 0], np.float32),
        ([1e-30, 1, 1, 1], np.float32),
        ([0.5, 1, 1, 1], np.float16),
    ],
)
def test_what_is_of_one_size_or_beyond_use_or_narrow_is_left_alone(gamma, dtype, rng):
    norm = bn("r", "n", 4, rng, dtype=dtype)
    parts = join(node("Relu", ["x"], ["r"]), norm, node("Tanh", ["n"], ["y"]))
    parts.initializers[0].CopyFrom(tensor("n_scale", np.array(gamma, dtype)))
    model = model_of(parts.nodes, X, ["y"], parts.initializers, dtype=dtype)
    folded, _ = onnx_bnfold.fold(model, EQUALIZE)
    assert folded.SerializeToString() == onnx_bnfold.fold(model, PLAIN)[0].SerializeToString()


def test_the_sizes_of_a_norm_that_stays_are_those_it_has_behind_an_equalized_tensor(rng):
    """They are 1/16, 1/4, 1/4 and 1: its own, divided by the factors of what it reads."""
    powers = np.array([0.25, 0.5, 0.5, 1], np.float32)
    parts = join(
        conv("x", "a", (4, 4, 3, 3), rng), uneven("a", "n", rng, powers),
        node("Relu", ["n"], ["r"]), uneven("r", "k", rng, powers), node("Tanh", ["k"], ["y"]),
    )  # fmt: skip
    known = {"n_var": np.ones_like(powers), "k_mean": np.zeros_like(powers), "k_var": powers**2}
    others = [t for t in parts.initializers if t.name not in known]
    model = model_of(
        parts.nodes, X, ["y"], [*others, *(tensor(name, value) for name, value in known.items())]
    )
    folded, report = fold_checked(model, kept=1, options=EQUALIZE)
    assert report.equalized
    scale = next(n.input[1] for n in folded.graph.node if n.op_type == "BatchNormalization")
    assert len(set(initializer(folded, scale).tolist())) == 1


LEFT = {
    "sigmoid": lambda rng: join(front(rng), node("Sigmoid", ["n"], ["r"]), behind("r", rng)),
    "clip": lambda rng: join(
        front(rng),
        node("Clip", ["n", "low", "high"], ["r"]),
        behind("r", rng),
    ),
    "output": lambda rng: join(front(rng), behind("n", rng), node("Identity", ["n"], ["z"])),
    "even-already": lambda rng: join(
        conv("x", "a", (4, 4, 3, 3), rng), uneven("a", "n", rng, np.ones(4, np.float32)),
        behind("n", rng),
    ),
    "no-norm-that-knows": lambda rng: join(
        conv("x", "a", (4, 4, 3, 3), rng), node("Relu", ["a"], ["r"]), behind("r", rng)
    ),
}  # fmt: skip


@pytest.mark.parametrize("build", LEFT.values(), ids=LEFT)
def test_what_cannot_be_rescaled_or_gains_nothing_is_left_alone(build, rng):
    parts = build(rng)
    limits = [tensor("low", np.float32(0)), tensor("high", np.float32(6))]
    ends = ["y", *("z" for n in parts.nodes if n.op_type == "Identity")]
    model = model_of(parts.nodes, X, ends, [*parts.initializers, *limits])
    plain, _ = onnx_bnfold.fold(model, PLAIN)
    folded, report = onnx_bnfold.fold(model, EQUALIZE)
    assert not report.equalized
    assert folded.SerializeToString() == plain.SerializeToString()


def matrix_per_channel(net):
    n = net.bn(net.conv("x", 4), signs="positive")
    return net.op("MatMul", n, net.random(4, net.shape(n)[-1], 5))


def own_statistics(net):
    n = net.bn(net.conv("x", 4), signs="positive")
    one = net.op("Slice", n, net.ints(0), net.ints(1), net.ints(1))
    two = net.op("Concat", one, one, axis=1)
    normal = net.op("InstanceNormalization", two, net.random(2), net.random(2))
    return normal, net.op("Tanh", net.bn(two))


@pytest.mark.parametrize(
    ("build", "width", "kept"),
    [(matrix_per_channel, 6, 0), (matrix_per_channel, 1, 0), (own_statistics, 6, 1)],
)
def test_a_reader_that_does_not_sum_over_channels_is_left_alone(build, width, kept):
    net = Net(("N", 3, 6, width))
    outputs = build(net)
    model = net.model(*([outputs] if isinstance(outputs, str) else outputs))
    _, report = fold_checked(model, kept=kept, options=EQUALIZE)
    assert not report.equalized


def test_int8_gains(rng, tmp_path):
    """On a net whose channels differ by up to 100 times, quantised by onnxruntime."""
    gamma = (10 ** rng.uniform(-1, 1, 32)).astype(np.float32)
    parts = [conv("x", "c0", (32, 3, 3, 3), rng)]
    for i in range(4):
        parts += [uneven(f"c{i}", f"n{i}", rng, gamma), node("Relu", [f"n{i}"], [f"r{i}"])]
        parts.append(conv(f"r{i}", f"c{i + 1}", (32, 32, 3, 3), rng))
    whole = join(*parts)
    shape = {"x": ["N", 3, 20, 20]}
    model = with_own_statistics(model_of(whole.nodes, shape, ["c4"], whole.initializers))
    calibration, test = ([feeds_for(model, s, N=4) for s in range(k, k + 3)] for k in (0, 3))
    source, found = tmp_path / "m.onnx", {}
    onnx.save(model, source)
    np.savez(tmp_path / "x.npz", **feeds_for(model, 9, N=20))
    ways = {
        "plain": PLAIN,
        "equalized": EQUALIZE,
        "measured": Options(profile="int8", equalize=True, ranges=str(tmp_path / "x.npz")),
    }
    for name, options in ways.items():
        target = tmp_path / f"{name}.onnx"
        onnx_bnfold.fold_file(source, target, options)
        session = Session(quantised(CheckedModel(target, name), tmp_path / name, calibration))
        pairs = [(run(model, feed)[0], session.run(feed)["c4"]) for feed in test]
        found[name] = snr(*(np.concatenate(arrays) for arrays in zip(*pairs, strict=True)))
    assert found["equalized"] > found["plain"] + 1, found
    assert found["measured"] > found["plain"] + 1, found


def with_own_statistics(model):
    """Give every BN the mean and variance of what it reads, as training does."""
    feed = feeds_for(model, 7, N=16)
    for norm in [n for n in model.graph.node if n.op_type == "BatchNormalization"]:
        seen = onnx.ModelProto()
        seen.CopyFrom(model)
        value = helper.make_tensor_value_info(norm.input[0], TensorProto.FLOAT, None)
        seen.graph.output.append(value)
        values = run(seen, feed)[-1]
        for name, function in ((norm.input[3], np.mean), (norm.input[4], np.var)):
            for t in model.graph.initializer:
                if t.name == name:
                    new = function(values, axis=(0, 2, 3)).astype(np.float32)
                    t.CopyFrom(numpy_helper.from_array(new, name))
    return model


def test_float16_is_rescaled_within_its_bound(rng):
    gamma = np.array([1e-3, 1, 1, 1], np.float16)
    parts = join(
        conv("x", "a", (4, 4, 1, 1), rng, dtype=np.float16),
        uneven("a", "n", rng, gamma),
        conv("n", "y", (4, 1, 1, 1), rng, group=4, dtype=np.float16),
    )
    for t in parts.initializers:
        t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float16), t.name))
    model = model_of(parts.nodes, X, ["y"], parts.initializers, dtype=np.float16)
    folded, report = onnx_bnfold.fold(model, EQUALIZE)
    assert_same_function(model, folded, N=2)
    assert not report.equalized  # a factor of 64 is beyond the 32 of float16


def test_what_does_not_fit_its_type_is_not_equalized(rng):
    """A weight that would overflow keeps its group from being equalised, not the BN from going."""
    parts = EQUAL_SCALES["depthwise"](rng)
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    weight = next(t for t in model.graph.initializer if t.name == model.graph.node[0].input[1])
    values = numpy_helper.to_array(weight).copy()
    values[0] = 3e38 / np.abs(values[0]).max() * values[0]
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    folded, report = onnx_bnfold.fold(model, EQUALIZE)
    assert len(report.folded) == 1
    assert not report.equalized
    assert np.isfinite(initializer(folded, folded.graph.node[0].input[1])).all()


def test_a_square_has_other_factors_than_what_is_squared(rng):
    parts = join(
        front(rng), node("Relu", ["n"], ["r"]), node("Mul", ["r", "r"], ["q"]),
        bn("q", "k", 4, rng), node("Relu", ["k"], ["t"]), behind("t", rng),
    )  # fmt: skip
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    folded, report = onnx_bnfold.fold(model, EQUALIZE)
    assert_same_function(model, folded)
    assert set(report.equalized) <= {"k"}


@pytest.mark.parametrize(
    ("gamma", "epsilon", "equal_scales"),
    [
        ([0.1, 1, 1, 1], 0.0, True),
        ([0.1, 1, 10, 5], 50.0, True),
        ([3e-8, 1, 1, 2e10], 1000.0, False),
    ],
    ids=["no-epsilon", "large-epsilon", "too-wide"],
)
def test_extreme_norms(gamma, epsilon, equal_scales, rng):
    parts = bn("x", "y", 4, rng, epsilon=epsilon)
    parts.initializers[0].CopyFrom(tensor("y_scale", np.array(gamma, np.float32)))
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    folded, _ = fold_checked(model, kept=1, options=EQUALIZE)
    assert (len(set(initializer(folded, "y_scale").tolist())) == 1) is equal_scales


@pytest.mark.parametrize("again", [PLAIN, EQUALIZE, Options()], ids=["int8", "equalize", "float"])
def test_an_evened_norm_is_left_alone_later(again, rng):
    """What its variance was is not known any more."""
    parts = EQUAL_SCALES["norm-that-stays"](rng)
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    folded, _ = onnx_bnfold.fold(model, EQUALIZE)
    later, report = onnx_bnfold.fold(folded, again)
    assert later.SerializeToString() == folded.SerializeToString()
    assert [r.refusal.reason.value for r in report.kept] == ["equalized"]


def test_a_branch_is_equalized_by_statistics(rng):
    parts = EQUAL_SCALES["relu"](rng)
    inner = model_of(parts.nodes, X, ["y"], parts.initializers).graph
    branch = helper.make_graph(inner.node, "branch", [], inner.output, inner.initializer)
    chosen = helper.make_node("If", ["which"], ["z"], then_branch=branch, else_branch=branch)
    ends = [*inner.input, helper.make_tensor_value_info("which", TensorProto.BOOL, [])]
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    imports = [helper.make_opsetid("", 17)]
    graph = helper.make_graph([chosen], "g", ends, [out])
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    folded, report = onnx_bnfold.fold(model, EQUALIZE)
    assert report.equalized
    assert_same_function(model, folded)


@pytest.fixture
def saved(rng, tmp_path):
    parts = EQUAL_SCALES["relu"](rng)
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    onnx.save(model, tmp_path / "m.onnx")
    return model, tmp_path


def test_measured_ranges(saved):
    model, folder = saved
    np.savez(folder / "x.npz", **feeds_for(model, N=20))
    options = Options(profile="int8", equalize=True, ranges=str(folder / "x.npz"))
    report = onnx_bnfold.fold_file(folder / "m.onnx", folder / "o.onnx", options)
    assert report.equalized
    assert onnx_bnfold.plan_file(folder / "m.onnx", options).equalized == report.equalized
    feeds, folded = feeds_for(model, 1, N=3), onnx.load(folder / "o.onnx")
    assert error(run(model, feeds)[0], run(folded, feeds)[0]) < 1e-5
    assert sorted(p.name for p in folder.iterdir()) == ["m.onnx", "o.onnx", "x.npz"]


def test_ranges_of_a_model_that_takes_a_fixed_number_of_examples(saved):
    model, folder = saved
    np.savez(folder / "x.npz", **feeds_for(model, N=20))
    options = Options(profile="int8", equalize=True, ranges=str(folder / "x.npz"))
    expected = onnx_bnfold.plan_file(folder / "m.onnx", options).equalized
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    for size in (1, 5, 20):
        batch.dim_value = size
        onnx.save(model, folder / "fixed.onnx")
        assert onnx_bnfold.plan_file(folder / "fixed.onnx", options).equalized == expected
    batch.dim_value = 3
    onnx.save(model, folder / "fixed.onnx")
    with pytest.raises(UsageError, match="'x' has 20 examples, and the model takes 3 at a time"):
        onnx_bnfold.plan_file(folder / "fixed.onnx", options)


def test_ranges_that_cannot_be_used(saved, tmp_path):
    model, folder = saved
    cases = {"none": None, "no examples": (0, 4, 6, 6), "not finite": np.full((1, 4, 6, 6), np.nan)}
    for sentence, content in cases.items():
        options = Options(equalize=True, ranges=str(tmp_path / f"{sentence}.npz"))
        if content is not None:
            values = np.zeros(content) if isinstance(content, tuple) else content
            np.savez(options.ranges, x=values.astype(np.float32))
        with pytest.raises(UsageError, match="cannot read inputs" if content is None else sentence):
            onnx_bnfold.fold_file(folder / "m.onnx", folder / "o.onnx", options)
    options = Options(equalize=True, ranges="x.npz")
    with pytest.raises(UsageError, match="a model in a file"):
        onnx_bnfold.fold(model, options)
    with pytest.raises(UsageError, match="has no effect without equalize"):
        Options(ranges="x.npz")
    assert not (folder / "o.onnx").exists()


@pytest.mark.parametrize("op", ["Constant", "Identity", "Cast", "Transpose"])
def test_a_constant_that_a_norm_reads_is_left_alone(op, rng):
    """A reader of a constant has it for its own: a change of the tensor would not reach it."""
    image = np.array([1.0, 2.0, 3.0, 400.0], np.float32).reshape(1, 2, 2, 1)
    held = tensor("held", image)
    made = {
        "Constant": node("Constant", [], ["k"], value=held),
        "Cast": Parts(node("Cast", ["held"], ["k"], to=int(TensorProto.FLOAT)).nodes, [held]),
        "Transpose": Parts(node("Transpose", ["held"], ["k"], perm=[0, 1, 3, 2]).nodes, [held]),
        "Identity": Parts(node("Identity", ["held"], ["k"]).nodes, [held]),
    }[op]
    values = {"scale": [1, 2], "B": [0.5, -0.5], "mean": [1, 2], "var": [1, 4]}
    names = [f"n_{role}" for role in values]
    norm = node("BatchNormalization", ["k", *names], ["n"])
    parameters = [
        tensor(name, np.array(value, np.float32))
        for name, value in zip(names, values.values(), strict=True)
    ]
    parts = join(
        made,
        Parts(norm.nodes, parameters),
        conv("n", "c", (3, 2, 1, 1), rng),
        node("Relu", ["x"], ["y"]),
    )
    model = model_of(parts.nodes, {"x": (1, 2)}, ["c", "y"], parts.initializers)
    folded, _ = onnx_bnfold.fold(model, Options(equalize=True))
    assert_same_function(model, folded)


def test_a_large_epsilon_makes_the_scales_larger(rng):
    """At size 1 the second variance would be 1.5e-4 - 1: negative."""
    values = {"scale": [1, 100], "B": [0.5, -0.5], "mean": [1, 2], "var": [0.5, 0.5]}
    names = [f"n_{role}" for role in values]
    norm = node("BatchNormalization", ["x", *names], ["n"], epsilon=1.0)
    parameters = [
        tensor(name, np.array(value, np.float32))
        for name, value in zip(names, values.values(), strict=True)
    ]
    parts = join(Parts(norm.nodes, parameters), node("Sigmoid", ["n"], ["y"]))
    model = model_of(parts.nodes, {"x": (2, 2, 3, 3)}, ["y"], parts.initializers)
    folded, _ = fold_checked(model, kept=1, options=Options(equalize=True))
    np.testing.assert_array_equal(initializer(folded, "n_scale"), [256, 256])
    assert (initializer(folded, "n_var") > 0).all()


def test_the_noise_of_a_tensor_and_of_weights():
    """Three channels, the last without a factor; a step per tensor, and one per output channel."""
    span = Range(np.array([-1.0, -2.0, 0.0]), np.array([2.0, 1.0, 3.0]), np.ones(3), 4)
    member = Member(np.array([0, 1, -1]), span)
    s, gain = np.array([2.0, 4.0]), np.array([3.0, 5.0])
    step = (4 - -8) / 255
    assert member.noises([s], gain) == pytest.approx([step**2 / 12 * (3 / 4 + 5 / 16)])
    peaks = np.array([[[8.0, 4.0, 1.0], [2.0, 24.0, 3.0]]])
    reader = Reader(member, largest_of(peaks), np.ones(3), np.array([1.0, 2.0, 3.0]))
    steps = (max(8 / 2, 4 / 4, 1) / 127) ** 2 + (max(2 / 2, 24 / 4, 3) / 127) ** 2
    assert reader.noises([s], gain) == pytest.approx([steps / 12 * (1 * 4 + 2 * 16 + 3)])
    assert member.onto(np.array([1.0, 2.0, 9.0]), 2).tolist() == [1, 2]
