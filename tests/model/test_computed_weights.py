"""Weights that deterministic operators compute from constants: what is evaluated, and what is not.

``test_constants`` has the ways in which exporters write a constant; here are those in which a
network computes one.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest
import support
from graphs import IMAGE, Net
from onnx import TensorProto, helper, numpy_helper
from support import fold_checked, ops, saved_external

import onnx_bnfold
from onnx_bnfold import Options, Reason
from onnx_bnfold.model import constants, determinism, evaluate
from onnx_bnfold.model.graph import graphs_of

SHAPE = (4, 4, 3, 3)


def axes_of(net, *axes):
    """The axes of a reduction, an attribute or an input."""
    return ((), {"axes": axes}) if net.opset < 18 else ((net.ints(*axes),), {})


def weight_norm(net, v):
    inputs, attributes = axes_of(net, 1, 2, 3)
    size = net.op("ReduceL2", v, *inputs, keepdims=1, **attributes)
    return net.op("Mul", net.op("Div", v, size), net.random(4, 1, 1, 1))


def spectral_norm(net, v):
    flat = net.op("Reshape", v, net.ints(4, -1))
    sigma = net.op("MatMul", net.random(4), net.op("MatMul", flat, net.random(36)))
    return net.op("Div", v, sigma)


def standardised(net, v):
    inputs, attributes = axes_of(net, 1, 2, 3)
    apart = net.op("Sub", v, net.op("ReduceMean", v, *inputs, **attributes))
    square = net.op("Mul", apart, apart)
    deviation = net.op("Sqrt", net.op("ReduceMean", square, *inputs, **attributes))
    return net.op("Div", apart, net.op("Add", deviation, net.const(np.float32(1e-5))))


def standardised_by_a_bn(net, v, *, mean=None):
    flat = net.op("Reshape", v, net.ints(1, 4, -1))
    one, zero = np.ones(4), np.zeros(4)
    parameters = [net.const(n) for n in (one, zero, zero, one)]
    if mean == "shared":
        parameters[2] = parameters[1]
    elif mean == "handed on":  # onnxruntime writes through the Reshape
        parameters[2] = net.op("Reshape", parameters[1], net.ints(4))
    made = net.op("BatchNormalization", flat, *parameters, outputs=3, training_mode=1)
    return net.op("Reshape", made[0], net.ints(*SHAPE))


def binary(net, v):
    return net.op("Mul", net.op("Sign", v), net.const(np.float32(0.25)))


def fake_quantised(net, v):
    """With operators of its own: a quotient that is rounded and cut off."""
    step = net.const(np.float32(0.1))
    steps = net.op("Round", net.op("Div", v, step))
    return net.op("Mul", net.op("Clip", steps, *map(net.const, np.float32([-8, 7]))), step)


def pruned(net, v):
    mask = net.op("Greater", net.op("Abs", v), net.const(np.float32(1)))
    return net.op("Where", mask, v, net.const(np.zeros((1, 1, 1, 1))))


def blurred(net, v):
    """A kernel convolved with another."""
    other = net.op("Pad", net.random(4, 4, 1, 1), net.ints(0, 0, 1, 1, 0, 0, 1, 1))
    return net.op("Conv", v, other, pads=[1, 1, 1, 1])


def attended(net, v):
    return net.op("Softmax", v, axis=1)


def parts(net, v):
    a, b = net.op("Split", v, outputs=2, axis=0)
    return net.op("Concat", b, a, axis=0)


def two_of(net, q):
    """Unsigned integers and one, for a shift."""
    unsigned = net.op("Cast", net.op("Abs", q), to=TensorProto.UINT32)
    return unsigned, net.const(np.uint32(1))


def from_integers(net, v):
    q = net.op("Cast", net.op("Mul", v, net.const(np.float32(10))), to=TensorProto.INT32)
    return net.op(
        "Cast", net.op("BitShift", *two_of(net, q), direction="LEFT"), to=TensorProto.FLOAT
    )


WEIGHTS = (
    weight_norm,
    spectral_norm,
    standardised,
    standardised_by_a_bn,
    binary,
    fake_quantised,
    pruned,
    blurred,
    attended,
    parts,
    from_integers,
)
named = pytest.mark.parametrize("weight", WEIGHTS, ids=lambda w: w.__name__)


def net_of(weight, opset=17, side="behind", dtype=np.float32):
    net = Net(IMAGE, opset=opset)
    x = "x" if side == "behind" else net.bn("x")
    y = net.op("Conv", x, weight(net, net.random(*SHAPE, dtype=dtype)))
    return net, net.bn(y, channels=4) if side == "behind" else y


@named
@pytest.mark.parametrize("side", ["behind", "in front"])
def test_a_computed_weight_takes_a_bn(weight, side):
    net, y = net_of(weight, side=side)
    folded, _ = fold_checked(net.model(y))
    assert ops(folded) == ["Conv"]
    read = {name for node in folded.graph.node for name in node.input}
    assert {t.name for t in folded.graph.initializer} == read - {"x"}, "what it was made of goes"


@pytest.mark.parametrize("opset", [13, 15, 18, 21])
@pytest.mark.parametrize("weight", [weight_norm, spectral_norm, standardised, binary, attended])
def test_versions(weight, opset):
    net, y = net_of(weight, opset)
    folded, _ = fold_checked(net.model(y))
    assert ops(folded) == ["Conv"]


@named
def test_a_file_whose_values_are_left_in_it(weight, tmp_path, monkeypatch):
    net, y = net_of(weight)
    model, source, target = net.model(y), tmp_path / "model.onnx", tmp_path / "folded.onnx"
    saved_external(model, source)
    onnx_bnfold.fold_file(source, target, Options(metadata=False))
    folded = onnx.load(target)
    assert ops(folded) == ["Conv"]
    support.assert_same_function(onnx.load(source), folded)


@named
def test_where_nothing_is_folded_nothing_is_evaluated(weight, monkeypatch):
    """Neither with no BN, nor with one that goes elsewhere."""
    net = Net(IMAGE)
    y = net.op("Conv", net.relu(net.bn(net.conv("x", 4))), weight(net, net.random(*SHAPE)))
    model = net.model(net.op("Sigmoid", y))
    before = [n.op_type for n in model.graph.node]
    run = []
    monkeypatch.setattr(evaluate, "_by_runtime", lambda node, *_: run.append(node.op_type))
    if weight is not standardised_by_a_bn:  # that one goes, too
        folded, _ = onnx_bnfold.fold(model)
        assert not run
        assert ops(folded) == [op for op in before if op != "BatchNormalization"]


@named
def test_a_mul_on_the_way_to_a_weight_is_no_fold(weight):
    if weight is not standardised_by_a_bn:
        net = Net(IMAGE)
        scaled = net.op("Mul", weight(net, net.random(*SHAPE)), net.random(4, 1, 1, 1))
        model = net.model(net.op("Conv", "x", scaled))
        folded, report = fold_checked(model)
        assert not report.records
        assert folded == model


def test_a_weight_is_computed_once_for_many_questions(monkeypatch):
    net, y = net_of(standardised)
    state = net.state(y)
    run, real = [], evaluate._by_runtime
    monkeypatch.setattr(
        evaluate, "_by_runtime", lambda node, *rest: run.append(node) or real(node, *rest)
    )
    name = next(n.input[1] for n in net.nodes if n.op_type == "Conv")
    first = state.constants.value(name)
    assert state.constants.value(name) is first
    assert len(run) == 2


def test_what_is_remembered_is_limited(monkeypatch):
    monkeypatch.setattr(constants, "MOST_REMEMBERED", 3000)
    net = Net(IMAGE)
    names = [net.op("Sign", net.random(2, 1, 1000)) for _ in range(3)]
    known = net.state(*names).constants
    for name in (*names, *names):
        np.testing.assert_array_equal(known.value(name), np.sign(known.value(name)))
    assert [*known._values] == names[-1:]


def test_two_layers_that_share_what_makes_their_weights():
    net = Net(IMAGE)
    v = net.random(*SHAPE)
    a, b = (net.bn(net.op("Conv", "x", weight_norm(net, v), pads=[1] * 4)) for _ in range(2))
    folded, _ = fold_checked(net.model(net.op("Add", a, b), net.op("Relu", v)))
    assert sorted(ops(folded)) == ["Add", "Conv", "Conv", "Relu"]


def test_a_computed_weight_that_is_an_output_stays():
    net = Net(IMAGE)
    w = weight_norm(net, net.random(*SHAPE))
    folded, _ = fold_checked(net.model(net.bn(net.op("Conv", "x", w)), w))
    assert "ReduceL2" in ops(folded)


# --- in which type -----------------------------------------------------------------------------


def test_half_precision_is_evaluated_as_onnxruntime_does():
    """The sum of squares exceeds what half precision holds; the norm does not."""
    net = Net()
    net.input("x", IMAGE, TensorProto.FLOAT16)
    v = net.const(net.values(4, 4, 3, 3) * 60, np.float16)
    size = net.op("ReduceL2", v, axes=[1, 2, 3])
    y = net.op("Conv", "x", net.op("Div", v, size), net.random(4, dtype=np.float16))
    folded, _ = fold_checked(net.model(net.bn(y, channels=4, dtype=np.float16)))
    assert ops(folded) == ["Conv"]


def test_a_number_between_two_steps_is_rounded_as_the_model_rounds_it():
    """In float32 each quotient is a tie, in more digits next to one."""
    step = np.float32(0.1)
    ties = (np.arange(-4, 4) + np.float32(0.5)).astype(np.float32) * step
    net = Net(("N", 8, 2, 2))
    steps = net.op("Round", net.op("Div", net.const(ties.reshape(8, 1, 1, 1)), net.const(step)))
    y = net.op("Conv", "x", net.op("Mul", steps, net.const(step)), group=8)
    state = net.state(y)
    exact = np.round(ties.astype(np.float64) / np.float64(step))
    found = state.constants.value(steps).reshape(-1)
    assert (found != exact).any(), "the case shows nothing"
    fold_checked(net.model(net.bn(y)))


def test_a_type_that_onnxruntime_does_not_compute_is_a_reason():
    net = Net()
    net.input("x", IMAGE, TensorProto.BFLOAT16)
    kind = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    y = net.op("Conv", "x", net.op("Softmax", net.random(*SHAPE, dtype=kind)))
    y = net.bn(y, channels=4, dtype=kind)
    _, report = fold_checked(net.model(y), kept=1, compare=False)
    refusal = report.kept[0].refusal
    assert refusal.reason is Reason.PARAMETERS_NOT_CONSTANT
    assert "Softmax" in refusal.culprit
    assert "cannot be evaluated" in refusal.sentence


# --- what is no constant -----------------------------------------------------------------------


def random_like(net, v):
    return net.op("RandomNormalLike", v, seed=1.0)


def bernoulli(net, v):
    return net.op("Bernoulli", net.op("Softmax", v), seed=1.0)


def dropped_out(net, v):
    return net.op("Dropout", v, net.const(np.float32(0.5)), net.const(np.array(True)), seed=1)


def chosen(net, v):
    """By a subgraph, which may do anything."""
    branch = helper.make_graph(
        [helper.make_node("Identity", [v], ["chosen"])], "b", [],
        [helper.make_tensor_value_info("chosen", TensorProto.FLOAT, SHAPE)],
    )  # fmt: skip
    condition = net.op("Cast", net.op("ReduceMax", "x", keepdims=0), to=TensorProto.BOOL)
    return net.op("If", condition, then_branch=branch, else_branch=branch)


def custom(net, v):
    return net.op("Sign", v, domain="my.domain")


@pytest.mark.parametrize("weight", [random_like, bernoulli, dropped_out, chosen, custom])
def test_what_may_differ_from_run_to_run_is_no_constant(weight):
    net, y = net_of(weight)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my.domain", 1)]
    model = helper.make_model(net.graph(y), opset_imports=imports, ir_version=8)
    _, report = onnx_bnfold.fold(model)
    unknown = weight is custom  # and with it the rank of what the Conv makes
    expected = Reason.UNKNOWN_SHAPE if unknown else Reason.WEIGHT_NOT_CONSTANT
    assert report.kept[0].refusal.reason is expected


def test_a_bn_in_training_may_write_over_what_is_computed_in_each_run():
    """As PyTorch exports the standardised weights of timm, with statistics that nobody needs."""

    def weight(net, v):
        flat = net.op("Reshape", v, net.ints(1, 4, -1))
        one, zero = net.const(np.ones(4)), net.const(np.zeros(4))
        mean = net.op("ReduceMean", flat, axes=[0, 2], keepdims=0)
        variance = net.op("ReduceMean", net.op("Mul", flat, flat), axes=[0, 2], keepdims=0)
        names = [one, zero, mean, net.op("Identity", variance)]
        made = net.op("BatchNormalization", flat, *names, outputs=3, training_mode=1)
        return net.op("Reshape", made[0], net.ints(*SHAPE))

    net, y = net_of(weight)
    fold_checked(net.model(y))


def test_a_bn_in_training_that_reads_what_many_nodes_hand_on():
    def weight(net, v):
        names = [net.const(np.ones(4)) for _ in range(4)]
        for _ in range(1100):
            names[3] = net.op("Identity", names[3])
        return net.op("BatchNormalization", v, *names, outputs=3, training_mode=1)[0]

    net, y = net_of(weight)
    folded, _ = onnx_bnfold.fold(net.model(y))
    assert "Identity" not in ops(folded)


@pytest.mark.parametrize("mean", ["shared", "handed on"])
def test_a_bn_in_training_that_writes_over_what_it_reads_is_no_constant(mean):
    """onnxruntime lets mean and bias, one tensor, drift from run to run."""
    net, y = net_of(partial(standardised_by_a_bn, mean=mean))
    model = net.model(y)
    folded, report = onnx_bnfold.fold(model)
    assert {r.refusal.reason for r in report.kept} == {
        Reason.PARAMETERS_NOT_CONSTANT, Reason.WEIGHT_NOT_CONSTANT,
    }  # fmt: skip
    assert "that nothing else reads" in report.kept[0].refusal.sentence
    assert folded == model


def test_an_attribute_of_a_function_is_not_known():
    """A call may give any axes; the default, all of them, is what inference would take."""
    net = Net(prefix="f_")
    v = net.op("Constant", value=support.tensor("v", net.values(*SHAPE).astype(np.float32)))
    size = net.op("ReduceL2", v)
    axes = net.nodes[-1].attribute.add(name="axes", ref_attr_name="axes")
    axes.type = onnx.AttributeProto.INTS
    names = [net.op("Constant", value=support.tensor("p", np.ones(4, np.float32))) for _ in "abcd"]
    y = net.op("BatchNormalization", net.op("Conv", "x", net.op("Div", v, size)), *names)
    imports = [helper.make_opsetid("", 17)]
    function = helper.make_function("f", "F", ["x"], [y], net.nodes, imports, ["axes"])
    outer = Net(IMAGE)
    outer.functions.append(function)
    model = outer.model(outer.op("F", "x", domain="f", axes=[1, 2, 3]))
    body = graphs_of(model)[1]
    known = constants.Constants(body, numpy_helper.to_array, {}, None)
    assert known.get(v) is not None
    assert known.get(size) is None
    fold_checked(model)  # where the call is inlined they are known


@pytest.mark.parametrize("size", [100, 5000])
def test_products_of_large_matrices_are_not_computed(size):
    net = Net(IMAGE)
    a, b = (net.op("Expand", net.random(1, 1), net.ints(size, size)) for _ in range(2))
    corner = net.op("Slice", net.op("MatMul", a, b), net.ints(0, 0), net.ints(4, 4), net.ints(0, 1))
    y = net.bn(net.op("Conv", "x", net.op("Reshape", corner, net.ints(4, 4, 1, 1))))
    report = onnx_bnfold.plan(net.model(y))
    assert len(report.kept) == (size > 1000)


@pytest.mark.parametrize(
    ("read", "made", "kernel", "expected"),
    [((6, 12), 8, (), 24), ((10,), 10, (), 10), ((), 5, (), 5**0.5), ((9,), 4, (3, 3), 54)],
)
def test_work(read, made, kernel, expected):
    node = helper.make_node("MaxPool", ["x"], ["y"], **({"kernel_shape": kernel} if kernel else {}))
    assert evaluate.work(node, read, made) == pytest.approx(expected)


# --- which operators ---------------------------------------------------------------------------


def test_deterministic_operators():
    """What draws random numbers or runs a subgraph is not; most operators are."""
    schemas = [s for s in onnx.defs.get_all_schemas() if s.domain == ""]
    newest = max(s.since_version for s in schemas)
    rest = {s.name for s in schemas if not determinism.is_deterministic(s.name, newest)}
    random = {s.name for s in schemas if s.name.startswith("Random")}
    assert random | {"Bernoulli", "Multinomial", "Dropout", "If", "Loop", "Scan"} <= rest
    assert len(rest) < 25, rest
    assert not determinism.is_deterministic(None, newest)
    assert not determinism.is_deterministic("NoSuchOperator", newest)
    assert not determinism.is_deterministic("Einsum", 7), "it is younger"


@pytest.mark.parametrize("op", sorted(determinism.READ_BY_REFERENCE))
def test_what_the_reference_evaluator_reads_is_deterministic(op):
    assert determinism.is_deterministic(op, 28)
