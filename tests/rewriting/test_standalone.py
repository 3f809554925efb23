"""BatchNormalizations that stay, written as Mul and Add or as a depthwise Conv."""

from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
from graphs import IMAGE, Net
from onnx import ModelProto, TensorProto, helper
from random_graphs import random_model
from support import (
    BFLOAT16,
    all_nodes,
    assert_same_function,
    bn,
    conv,
    join,
    model_of,
    node,
    ops,
    run,
    tensor,
    value_of,
)

import onnx_bnfold
from onnx_bnfold import Options, Reason

FORMS = {"mul-add": Options(standalone="mul-add"), "conv": Options(standalone="conv")}
MUL_ADD = FORMS["mul-add"]


def folded_twice(model, options):
    """Fold a model; see that it is the same function and that a second fold changes nothing."""
    folded, report = onnx_bnfold.fold(model, options)
    onnx.checker.check_model(folded, full_check=True)
    assert_same_function(model, folded)
    again, later = onnx_bnfold.fold(folded, options)
    assert again.SerializeToString() == folded.SerializeToString(), later.lines()
    return folded, report


@pytest.mark.parametrize(
    ("scale", "shift", "written"), [(2, 0, ["Mul"]), (1, 3, ["Add"]), (2, 3, ["Mul", "Add"])]
)
def test_neither_an_addition_of_zero_nor_a_product_by_one_is_written(scale, shift, written):
    net = Net(IMAGE)
    channels = net.shape("x")[1]
    given = [net.const(np.full(channels, float(value))) for value in (scale, shift, 0, 1)]
    y = net.op("BatchNormalization", net.op("Sigmoid", "x"), *given, epsilon=0.0)
    folded, report = folded_twice(net.model(net.op("Tanh", y)), MUL_ADD)
    assert ops(folded) == ["Sigmoid", *written, "Tanh"]
    assert len(report.kept) == 1
    assert len(report.records) == 3 - len(written)


@pytest.mark.parametrize(
    ("form", "written"), [("mul-add", ["Mul", "Add"]), ("conv", ["BatchNormalization"])]
)
def test_a_norm_of_vectors_is_written_as_no_conv(form, written):
    net = Net(("N", 4))
    model = net.model(net.op("Tanh", net.bn(net.op("Sigmoid", "x"))))
    folded, _ = folded_twice(model, FORMS[form])
    assert ops(folded) == ["Sigmoid", *written, "Tanh"]


def between_opaque(shape=("N", 4, 3, 3), opset=17) -> ModelProto:
    net = Net(shape, opset=opset)
    inference = {"is_test": 1} if opset < 7 else {}
    y = net.bn(net.op("Abs", "x"), channels=4, **inference)
    return net.model(net.op("Neg", y))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_otherwise_is_no_bn_that_is_left(form):
    _, report = folded_twice(between_opaque(), FORMS[form])
    (kept,) = report.kept
    assert report.left == ()
    assert (kept.written_as, kept.not_written) == (form, None)
    assert f"; written as {form}, {kept.form_cost}" in kept.sentence()
    assert f"0 of 1 BatchNormalization folded, 1 written as {form}, " in report.summary()
    _, plain = onnx_bnfold.fold(between_opaque())
    assert plain.left == plain.kept
    assert (plain.kept[0].written_as, plain.kept[0].not_written) == ("keep", None)
    assert "written" not in plain.kept[0].sentence() + plain.summary()


@pytest.mark.parametrize(
    ("model", "form", "why"),
    [
        (between_opaque(("N", 4)), "conv", "its input has 2 axes, and a Conv needs 3"),
        (between_opaque((1, 4, 0)), "conv", "its input has an axis without elements"),
        (between_opaque(opset=6), "mul-add", "opset 6 has no such operator"),
    ],
    ids=["vectors", "empty", "old"],
)
def test_what_cannot_be_written_otherwise_is_said(model, form, why):
    _, report = onnx_bnfold.fold(model, FORMS[form])
    (left,) = report.left
    assert left.written_as == "keep"
    assert left.not_written.startswith(why)
    assert left.sentence().endswith(f"; not written as asked: {left.not_written}")
    assert "written as" not in report.summary()


def test_a_bn_without_a_map_says_that_once(rng):
    """What keeps it from going keeps it from another form."""
    parts = join(node("Abs", ["x"], ["a"]), bn("a", "b", 4, rng), node("Neg", ["b"], ["y"]))
    scale = next(t for t in parts.initializers if t.name == parts.nodes[1].input[1])
    others = [t for t in parts.initializers if t is not scale]
    inputs = {"x": ("N", 4, 3, 3), scale.name: (4,)}
    _, report = onnx_bnfold.fold(model_of(parts.nodes, inputs, ["y"], others), MUL_ADD)
    assert report.left[0].refusal.reason is Reason.PARAMETERS_NOT_CONSTANT
    assert report.left[0].not_written is None


def test_a_norm_of_doubles_is_written_as_no_conv(rng):
    """Runtimes have no Conv for them: a model that ran would not run any more."""
    norm = bn("a", "b", 3, rng, dtype=np.float64)
    parts = join(node("Sigmoid", ["x"], ["a"]), norm, node("Tanh", ["b"], ["y"]))
    model = model_of(parts.nodes, {"x": (2, 3, 4, 4)}, ["y"], parts.initializers, dtype=np.float64)
    folded, _ = folded_twice(model, FORMS["conv"])
    assert ops(folded) == ["Sigmoid", "BatchNormalization", "Tanh"]


@pytest.mark.parametrize("form", FORMS)
def test_a_bn_whose_fold_does_not_fit_is_written_otherwise(form, rng):
    """The layer's weights would be 8e38, and its own factors fit."""
    parts = join(conv("x", "c", (4, 3, 1, 1), rng), bn("c", "y", 4, rng))
    weight, scale = parts.initializers[0], parts.initializers[2]
    weight.CopyFrom(tensor(weight.name, np.full((4, 3, 1, 1), 1e38, np.float32)))
    scale.CopyFrom(tensor(scale.name, np.full(4, 8, np.float32)))
    model = model_of(parts.nodes, {"x": ("N", 3, 4, 4)}, ["y"], parts.initializers)
    folded, report = onnx_bnfold.fold(model, FORMS[form])
    assert "BatchNormalization" not in ops(folded)
    assert report.left == ()
    again, _ = onnx_bnfold.fold(folded, FORMS[form])
    assert again.SerializeToString() == folded.SerializeToString()
    [kept] = report.kept
    assert (kept.refusal.reason, kept.written_as) == (Reason.OVERFLOW, form)
    assert (kept.form_cost.nodes, kept.form_cost.elements) == (1, 64)  # an Add has found a place
    feeds = {"x": np.full((1, 3, 4, 4), 1e-38, np.float32)}
    np.testing.assert_allclose(*run(model, feeds), *run(folded, feeds), rtol=1e-5)


def test_a_half_goes_where_the_whole_cannot():
    """The Conv pads its input with zeros: it takes a scale, and no shift."""
    net = Net(IMAGE)
    y = net.bn(net.op("Sigmoid", "x"))
    model = net.model(net.conv(y, 4, 3, pads=[1] * 4))
    folded, report = folded_twice(model, MUL_ADD)
    assert ops(folded) == ["Sigmoid", "Add", "Conv"]
    kept, half = report.records
    assert kept.is_norm
    assert kept.refusal.reason is Reason.OPAQUE
    assert kept.name.startswith("BatchNormalization")
    assert not half.is_norm
    assert half.name.startswith("Mul")


@pytest.mark.parametrize("form", FORMS)
def test_in_a_body_and_in_the_graph_that_holds_it(form, rng):
    """Nodes that move in one take those in the other along."""
    shape = (2, 3, 4, 4)
    inner = join(node("Sigmoid", ["a"], ["c"]), bn("c", "d", 3, rng), node("Tanh", ["d"], ["e"]))
    body = helper.make_graph(inner.nodes, "then", [], [value_of("e", shape)], inner.initializers)
    other = helper.make_graph(node("Neg", ["a"], ["f"]).nodes, "else", [], [value_of("f", shape)])
    flag = tensor("flag", np.array(True))
    parts = join(
        node("Sigmoid", ["x"], ["s"]), bn("s", "a", 3, rng),
        node("If", ["flag"], ["g"], then_branch=body, else_branch=other),
        node("Sigmoid", ["g"], ["h"]), bn("h", "k", 3, rng), node("Tanh", ["k"], ["y"]),
    )  # fmt: skip
    model = model_of(parts.nodes, {"x": shape}, ["y"], [flag, *parts.initializers])
    folded, report = folded_twice(model, FORMS[form])
    written = [n.op_type for n in all_nodes(folded)]
    assert "BatchNormalization" not in written
    assert len(report.kept) == 3
    assert len(report.records) == 3


def branches_of_other_sizes(rng, opset, place) -> ModelProto:
    """Return a model whose If has branches that differ in size, which a norm does not tell."""
    norm = bn("t", "b", 3, rng)
    first, outer = join(), join()
    if place == "inside":
        first = join(norm, node("Neg", ["b"], ["e"]))
    else:
        outer, first = norm, node("Neg", ["b"], ["e"])
    unknown = helper.make_tensor_value_info("e", TensorProto.FLOAT, None)
    body = helper.make_graph(first.nodes, "then", [], [unknown], first.initializers)
    mean = node("ReduceMean", ["t"], ["f"], axes=[1])
    unknown = helper.make_tensor_value_info("f", TensorProto.FLOAT, None)
    other = helper.make_graph(mean.nodes, "else", [], [unknown])
    parts = join(
        node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]), outer,
        node("If", ["flag"], ["y"], name="if", then_branch=body, else_branch=other),
    )  # fmt: skip
    inputs = {"x": (2, 4, 4, "C"), "flag": ()}
    model = model_of(parts.nodes, inputs, ["y"], parts.initializers, opset=opset)
    flag = next(value for value in model.graph.input if value.name == "flag")
    flag.type.tensor_type.elem_type = TensorProto.BOOL
    return model


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["inside", "in front"])
@pytest.mark.parametrize(("opset", "is_written"), [(9, False), (10, False), (11, True)])
def test_an_old_if_is_not_told_that_its_branches_differ(form, place, opset, is_written, rng):
    """It would not load any more: before opset 11 inference unites the sizes of branches."""
    model = branches_of_other_sizes(rng, opset, place)
    folded, report = onnx_bnfold.fold(model, FORMS[form])
    onnx.checker.check_model(folded, full_check=True)
    data = rng.standard_normal((2, 4, 4, 3)).astype(np.float32)
    for flag in (True, False):
        feed = {"x": data, "flag": np.array(flag)}
        [expected], [actual] = run(model, feed), run(folded, feed)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    (kept,) = report.kept
    assert (kept.written_as == form) == is_written
    assert is_written or "If 'if' whose branches may differ" in kept.not_written


@pytest.mark.parametrize("form", FORMS)
def test_a_norm_of_a_constant_is_written_otherwise_too(form, rng):
    parts = join(bn("k", "m", 3, rng), node("Mul", ["x", "m"], ["y"]))
    constant = tensor("k", rng.standard_normal((1, 3, 4, 4)).astype(np.float32))
    model = model_of(parts.nodes, {"x": (2, 3, 4, 4)}, ["y"], [constant, *parts.initializers])
    folded_twice(model, FORMS[form])


@pytest.mark.parametrize(("opset", "written"), [(21, "BatchNormalization"), (22, "Conv")])
def test_no_operator_is_written_in_a_type_that_it_does_not_take(opset, written, rng):
    """Conv takes bfloat16 from opset 22 on."""
    parts = join(node("Identity", ["x"], ["i"]), bn("i", "y", 3, rng, dtype=BFLOAT16))
    model = model_of(
        parts.nodes, {"x": (2, 3, 4, 4)}, ["y"], parts.initializers, dtype=BFLOAT16, opset=opset
    )
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.BFLOAT16
    folded, _ = onnx_bnfold.fold(model, FORMS["conv"])
    assert ops(folded) == ["Identity", written]


@pytest.mark.parametrize("seed", [48, 85, 101])
def test_what_a_scale_leaves_is_not_judged_again(seed):
    """A shift of before is as large beside a tensor that is scaled as it was."""
    folded_twice(random_model(Random(seed), steps=(12, 24)[seed % 2]), MUL_ADD)


def test_what_norms_have_said_holds_where_they_are_written_otherwise():
    """The second says how small the zeros are that it reads: they are not moved by a third."""
    found = Path(__file__).parents[1] / "corpus" / "found" / "norms_said_how_small.onnx"
    model = onnx.load(found)
    folded, report = folded_twice(model, Options(standalone="conv", freeze_initializers=True))
    assert [record.written_as for record in report.kept] == ["conv", "conv"]
    feeds = {"t2": np.ones((3, 5, 6), np.float32), "t49": np.ones((3, 5, 6), np.float32)}
    assert not run(folded, feeds)[2].any()
