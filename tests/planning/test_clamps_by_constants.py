"""Max and Min by constants, and HardSigmoid, as clamps that any change passes."""

import numpy as np
import onnx
import pytest
from graphs import Net
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from support import assert_same_function, feeds_for, fold_checked, ops, reasons, run

import onnx_bnfold
from onnx_bnfold import Options, Reason
from onnx_bnfold.planning import clamps

FREE = Options(bn_free=True)
IMAGE = ("N", 4, 6, 6)


@pytest.fixture(autouse=True)
def _small_is_enough(monkeypatch):
    """Let small tensors gain, too."""
    monkeypatch.setattr(clamps, "LEAST_SAVED", 0)


BOUNDS = {
    "a value per channel": lambda net: net.random(4, 1, 1),
    "with a batch axis": lambda net: net.random(1, 4, 1, 1),
    "one value": lambda net: net.random(1),
    "a scalar": lambda net: net.const(np.float32(0.3)),
}
OTHER = {"Max": "Min", "Min": "Max"}


def extremum(net: Net, op: str, x: str, *bounds: str, first: bool = False) -> str:
    return net.op(op, *((*bounds, x) if first else (x, *bounds)))


def upstream(op: str, bound, signs, *, shift: bool = True, first: bool = False, shape=IMAGE):
    """Conv → Max → BN → Sigmoid."""
    net = Net(shape)
    y = extremum(net, op, net.conv("x", 4), bound(net), first=first)
    return net.model(net.op("Sigmoid", net.bn(y, signs=signs, shift=shift)))


@pytest.mark.parametrize("op", OTHER)
@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
@pytest.mark.parametrize("first", [True, False], ids=["constant first", "constant last"])
def test_a_negative_scale_behind_it(op, bound, first):
    folded, report = fold_checked(upstream(op, bound, [-1], first=first), options=FREE)
    assert ops(folded) == ["Conv", OTHER[op], "Sigmoid"]
    [record] = report.folded
    assert (record.clamps, record.clamp_elements) == ((), 0)  # it is no node more


@pytest.mark.parametrize("op", OTHER)
@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
def test_scales_of_both_signs_behind_it(op, bound):
    folded, report = fold_checked(upstream(op, bound, "mixed"), options=FREE)
    assert ops(folded) == ["Conv", "Max", "Min", "Sigmoid"]
    [record] = report.folded
    assert record.clamp_elements == 4 * 6 * 6
    assert len(record.clamps) == 1


@pytest.mark.parametrize("signs", [[-1], "mixed", [0, 0, -1, 1]], ids=str)
def test_an_infinite_bound_is_none(signs):
    def bound(net):
        return net.const(np.float32([-np.inf, 0.1, -np.inf, 0.3]).reshape(4, 1, 1))

    fold_checked(upstream("Max", bound, signs), options=FREE)


@pytest.mark.parametrize("op", OTHER)
def test_without_being_asked_a_positive_scale_alone_passes(op):
    folded, _ = fold_checked(upstream(op, BOUNDS["a scalar"], "positive"))
    assert ops(folded) == ["Conv", op, "Sigmoid"]
    _, report = fold_checked(upstream(op, BOUNDS["a scalar"], [-1]), kept=1)
    assert Reason.NEEDS_POSITIVE_SCALE in reasons(report)[0]


def test_a_negative_scale_in_front_of_it():
    net = Net(IMAGE)
    y = extremum(net, "Max", net.bn(net.op("Sigmoid", "x")), net.random(4, 1, 1))
    folded, _ = fold_checked(net.model(net.conv(y, 2)), options=FREE)
    assert ops(folded) == ["Sigmoid", "Max", "Min", "Conv"]


def test_several_constants():
    net = Net(IMAGE)
    y = extremum(net, "Max", net.conv("x", 4), net.random(4, 1, 1), net.random(1))
    model = net.model(net.op("Sigmoid", net.bn(y, signs=[-1])))
    folded, _ = fold_checked(model, options=FREE)
    assert ops(folded) == ["Conv", "Min", "Sigmoid"]
    assert len(folded.graph.node[1].input) == 2


def test_two_in_a_row():
    """As Clip is written by some exporters."""
    net = Net(IMAGE)
    y = extremum(net, "Min", net.conv("x", 4), net.const(np.float32(1)))
    y = extremum(net, "Max", y, net.const(np.float32(-1)))
    folded, _ = fold_checked(net.model(net.op("Sigmoid", net.bn(y, signs=[-1]))), options=FREE)
    assert ops(folded) == ["Conv", "Max", "Min", "Sigmoid"]


def test_it_is_turned_back_by_a_second_norm():
    net = Net(IMAGE)
    y = net.bn(extremum(net, "Max", net.conv("x", 4), net.random(4, 1, 1)), signs=[-1])
    y = extremum(net, "Max", y, net.random(1))
    folded, _ = fold_checked(net.model(net.op("Sigmoid", net.bn(y, signs=[-1]))), options=FREE)
    assert ops(folded) == ["Conv", "Max", "Min", "Sigmoid"]


def test_behind_a_pool_unasked():
    net = Net(IMAGE)
    y = extremum(net, "Max", net.conv("x", 4), net.random(4, 1, 1))
    y = net.op("MaxPool", net.bn(y), kernel_shape=[2, 2], strides=[2, 2])
    folded, _ = fold_checked(net.model(net.op("Sigmoid", y)))
    assert ops(folded) == ["Conv", "MaxPool", "Max", "Min", "Sigmoid"]


def test_bounds_that_vary_over_positions_stay_in_front_of_the_pool():
    net = Net(IMAGE)
    y = extremum(net, "Max", net.conv("x", 4), net.random(6, 1))
    y = net.op("MaxPool", net.bn(y), kernel_shape=[2, 2], strides=[2, 2])
    model = net.model(net.op("Sigmoid", y))
    fold_checked(model, kept=1)
    folded, _ = fold_checked(model, options=FREE)
    assert ops(folded) == ["Conv", "Max", "Min", "MaxPool", "Sigmoid"]


def test_a_shared_constant_is_not_edited():
    net = Net(IMAGE)
    bound = net.random(4, 1, 1)
    y = net.bn(extremum(net, "Max", net.conv("x", 4), bound), signs=[-1])
    z = extremum(net, "Max", net.conv("x", 4), bound)
    model = net.model(net.op("Sigmoid", y), net.op("Tanh", z))
    folded, _ = fold_checked(model, options=FREE)
    assert [op for op in ops(folded) if op in OTHER] == ["Min", "Max"]


def test_a_channel_of_gamma_zero():
    model = upstream("Max", BOUNDS["a value per channel"], [0, -1, -1, 0])
    folded, _ = fold_checked(model, options=FREE)
    assert ops(folded) == ["Conv", "Max", "Min", "Sigmoid"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.0])
def test_odd_values(value):
    model = upstream("Max", BOUNDS["a value per channel"], "mixed")
    folded, _ = onnx_bnfold.fold(model, FREE)
    x = np.random.default_rng(0).standard_normal((1, 4, 6, 6)).astype(np.float32)
    x[0, 1, 4, 4] = value
    (a,), (b,) = run(model, {"x": x}), run(folded, {"x": x})
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


MUST_STAY = {
    "a computed bound": lambda net, y: net.op("Max", y, net.op("Tanh", "x")),
    "the tensor itself": lambda net, y: net.op("Max", y, y, net.random(1)),
    "a bound that broadcasts": lambda net, y: net.op(
        "Max", net.op("ReduceMax", y, axes=[2], keepdims=1), net.random(6, 1)
    ),
}


@pytest.mark.parametrize("build", MUST_STAY.values(), ids=MUST_STAY)
def test_what_is_no_clamp(build):
    """It is written as a Mul and an Add."""
    net = Net(IMAGE)
    y = net.bn(build(net, net.conv("x", 4)), signs=[-1])
    model = net.model(net.op("Sigmoid", y))
    folded, report = onnx_bnfold.fold(model, FREE)
    assert report.kept[0].written_as == "mul-add"
    assert [op for op in ops(folded) if op in OTHER] == ["Max"]
    assert_same_function(model, folded)


@pytest.mark.parametrize("signs", [[-1], [0], "mixed", "some zero"], ids=str)
@pytest.mark.parametrize(("op", "bound"), [("Max", np.nan), ("Max", np.inf), ("Min", -np.inf)])
def test_a_bound_that_leaves_no_number_is_left_alone(op, bound, signs):
    """A channel of gamma zero is NaN then, which no constant would be."""
    net = Net(IMAGE)
    y = net.op(op, net.conv("x", 4), net.const(np.float32([0.5, bound, 0, 1]).reshape(4, 1, 1)))
    model = net.model(net.op("Tanh", net.bn(y, signs=signs)))
    folded, report = onnx_bnfold.fold(model, FREE)
    assert report.kept[0].written_as == "mul-add"
    assert op in ops(folded)
    feeds = feeds_for(model)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(*run(model, feeds), *run(folded, feeds), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("opset", "kept"), [(11, True), (12, False)])
def test_float16(opset, kept):
    net = Net(opset=opset)
    net.input("x", IMAGE, TensorProto.FLOAT16)
    y = net.op("Conv", "x", net.random(4, 4, 1, 1, dtype=np.float16))
    y = net.op("Max", y, net.random(4, 1, 1, dtype=np.float16))
    y = net.bn(y, signs=[-1], dtype=np.float16)
    model = net.model(net.op("Sigmoid", y))
    folded, report = onnx_bnfold.fold(model, FREE)
    onnx.checker.check_model(folded, full_check=True)
    assert bool(report.kept) is kept
    if not kept:
        assert_same_function(model, folded)


@pytest.mark.parametrize("shape", [(None, 4), ("N", 4, "H", "W")], ids=str)
def test_dynamic_sizes(shape):
    net = Net(shape)
    y = net.gemm("x", 4) if len(shape) == 2 else net.conv("x", 4)
    y = net.op("Min", y, net.random(4, *[1] * (len(shape) - 2)))
    model = net.model(net.op("Sigmoid", net.bn(y, signs=[-1])))
    folded, _ = fold_checked(model, options=FREE)
    assert ops(folded)[1:] == ["Max", "Sigmoid"]


def test_one_that_is_an_output_keeps_its_values():
    net = Net(IMAGE)
    y = net.op("Max", net.conv("x", 4), net.random(4, 1, 1))
    model = net.model(net.op("Sigmoid", net.bn(y, signs=[-1])), y)
    folded, report = onnx_bnfold.fold(model, FREE)
    assert ops(folded).count("Max") == 1
    assert report.kept
    assert_same_function(model, folded)


# --- HardSigmoid ----------------------------------------------------------------------------

SLOPES = {
    "as it is by default": {},
    "of a HardSwish": {"alpha": 1 / 6, "beta": 0.5},
    "negative": {"alpha": -0.5, "beta": 0.25},
    "a clip to one": {"alpha": 1.0, "beta": 0.0},
}


@pytest.mark.parametrize("given", SLOPES.values(), ids=SLOPES)
@pytest.mark.parametrize("signs", ["positive", [-1], "mixed", [0, 1, -1, 0]], ids=str)
def test_a_hard_sigmoid_in_front(given, signs):
    """What it does before it cuts off goes into the Conv, too."""
    net = Net(IMAGE)
    y = net.op("HardSigmoid", net.conv("x", 4), **given)
    model = net.model(net.op("Sigmoid", net.bn(y, signs=signs)))
    folded, report = fold_checked(model, options=FREE)
    assert ops(folded) == ["Conv", "Max", "Min", "Sigmoid"]
    assert report.folded[0].clamps == ("HardSigmoid 'n_hardsigmoid3'",)
    fold_checked(model, kept=1)


@pytest.mark.parametrize("given", SLOPES.values(), ids=SLOPES)
def test_a_hard_sigmoid_behind(given):
    net = Net(IMAGE)
    y = net.op("HardSigmoid", net.bn(net.op("Tanh", "x")), **given)
    folded, _ = fold_checked(net.model(net.conv(y, 2)), options=FREE)
    assert ops(folded) == ["Tanh", "Max", "Min", "Conv"]


@pytest.mark.parametrize("given", SLOPES.values(), ids=SLOPES)
def test_a_hard_sigmoid_of_float64(given):
    """Its slope is a float32 number, also if it is the default."""
    net = Net()
    net.input("x", IMAGE, TensorProto.DOUBLE)
    y = net.op("HardSigmoid", net.bn("x", dtype=np.float64), **given)
    model = net.model(net.op("Tanh", net.bn(y, dtype=np.float64)))
    folded, report = onnx_bnfold.fold(model, FREE)
    assert len(report.folded) == 1
    assert "HardSigmoid" not in ops(folded)
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 6))
    (a,), (b,) = (ReferenceEvaluator(m).run(None, {"x": x}) for m in (model, folded))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)


def test_a_hard_sigmoid_between_two_norms():
    """The second finds it written with constants by the first."""
    net = Net(IMAGE)
    y = net.op("HardSigmoid", net.bn(net.op("Tanh", "x")))
    folded, _ = fold_checked(net.model(net.conv(net.bn(y), 2)), options=FREE)
    assert ops(folded) == ["Tanh", "Max", "Min", "Conv"]


def test_a_norm_that_does_what_the_hard_sigmoid_does_first():
    """The input changes, the output does not: it is a clamp to zero and one all the same."""
    net = Net(IMAGE)
    one, zero = np.ones(4), np.zeros(4)
    given = [net.const(v) for v in (4 * one, -2 * one, zero, one)]
    y = net.op("BatchNormalization", net.op("Tanh", "x"), *given, epsilon=0.0)
    y = net.op("HardSigmoid", y, alpha=0.25, beta=0.5)
    folded, _ = fold_checked(net.model(net.op("Sigmoid", y)), options=FREE)
    assert ops(folded) == ["Tanh", "Max", "Min", "Sigmoid"]


def test_a_hard_sigmoid_behind_a_pool_unasked():
    net = Net(IMAGE)
    y = net.bn(net.op("HardSigmoid", net.conv("x", 4)))
    y = net.op("MaxPool", y, kernel_shape=[3, 3], strides=[3, 3])
    folded, _ = fold_checked(net.model(net.op("Sigmoid", y)))
    assert ops(folded) == ["Conv", "MaxPool", "Max", "Min", "Sigmoid"]


@pytest.mark.parametrize("alpha", [0.0, 1e-38])
def test_a_hard_sigmoid_without_a_slope_is_left_alone(alpha):
    net = Net(IMAGE)
    y = net.bn(net.op("HardSigmoid", net.conv("x", 4), alpha=alpha))
    folded, report = onnx_bnfold.fold(net.model(net.op("Sigmoid", y)), FREE)
    assert report.kept[0].written_as == "mul-add"
    assert "HardSigmoid" in ops(folded)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.0])
def test_odd_values_of_a_hard_sigmoid(value):
    net = Net(IMAGE)
    y = net.bn(net.op("HardSigmoid", net.conv("x", 4)))
    model = net.model(net.op("Sigmoid", y))
    folded, _ = onnx_bnfold.fold(model, FREE)
    x = np.random.default_rng(0).standard_normal((1, 4, 6, 6)).astype(np.float32)
    x[0, 1, 4, 4] = value
    (a,), (b,) = run(model, {"x": x}), run(folded, {"x": x})
    known = np.isfinite(a)
    np.testing.assert_allclose(a[known], b[known], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(None, 4), ("N", 4, "H", "W")], ids=str)
def test_a_hard_sigmoid_of_dynamic_sizes(shape):
    net = Net(shape)
    y = net.gemm("x", 4) if len(shape) == 2 else net.conv("x", 4)
    folded, _ = fold_checked(
        net.model(net.op("Sigmoid", net.bn(net.op("HardSigmoid", y)))), options=FREE
    )
    assert ops(folded)[1:] == ["Max", "Min", "Sigmoid"]


def test_a_hard_sigmoid_that_others_read():
    """A layer takes what comes out; a gate has to keep its values."""
    net = Net(IMAGE)
    y = net.op("HardSigmoid", net.conv("x", 4))
    outputs = net.op("Sigmoid", net.bn(y)), net.conv(y, 2)
    folded, _ = fold_checked(net.model(*outputs), options=FREE)
    assert ops(folded) == ["Conv", "Max", "Min", "Sigmoid", "Conv"]
    model = net.model(outputs[0], net.op("Tanh", y))
    folded, report = onnx_bnfold.fold(model, FREE)
    assert "HardSigmoid" in ops(folded)
    assert report.kept[0].written_as == "mul-add"
    assert_same_function(model, folded)


@pytest.mark.parametrize("op", OTHER)
def test_a_bound_beyond_its_type_lets_nothing_through(op):
    """Divided by a negative scale it would be an infinity that cuts off all numbers."""
    net = Net()
    net.input("x", ("N", 1, 4, 4), TensorProto.FLOAT16)
    end = 6e4 if op == "Max" else -6e4
    scale, shift, mean, var = (net.const([n], np.float16) for n in (-0.5, 0.0, 0.0, 1.0))
    y = net.op("BatchNormalization", net.op("Tanh", "x"), scale, shift, mean, var)
    y = net.op(
        "Conv", net.op(op, y, net.const([end], np.float16)), net.const([[[[1e-4]]]], np.float16)
    )
    model = net.model(y)
    folded, report = onnx_bnfold.fold(model, FREE)
    assert report.left == ()
    assert report.kept[0].refusal.reason is Reason.OVERFLOW
    assert_same_function(model, folded)
