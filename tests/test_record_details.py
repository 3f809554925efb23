"""What a record says of its node: operator, place in the model as it was given, bytes."""

from functools import partial

import numpy as np
import onnx
import pytest
from support import Parts, bn, chained, constant_operand, conv, either, join, model_of, node, tensor

import onnx_bnfold
from onnx_bnfold import Options, Way

X = {"x": ("N", 3, 6, 6)}


made = partial(chained, inputs=X)


def places(report) -> list[tuple[str, int | None, int | None]]:
    return [(r.operator, r.index, r.bytes) for r in report.records]


def test_a_plain_fold(rng):
    model = made(
        conv("x", "c", (8, 3, 3, 3), rng),
        bn("c", "b", 8, rng),
        constant_operand("Mul", "b", "m", (8, 1, 1), rng),
        node("Sigmoid", ["m"], ["s"]),
        bn("s", "y", 8, rng),
    )
    for report in (onnx_bnfold.plan(model), onnx_bnfold.fold(model)[1]):
        assert places(report) == [
            ("BatchNormalization", 1, 4 * 8 * 4),
            ("Mul", 2, 8 * 4),
            ("BatchNormalization", 4, 4 * 8 * 4),
        ]
    assert [r.way for r in report.records] == [Way.UPSTREAM, Way.UPSTREAM, None]


def test_constants_of_nodes_count(rng):
    parts = join(conv("x", "c", (8, 3, 3, 3), rng), bn("c", "y", 8, rng))
    held = [
        onnx.helper.make_node("Constant", [], [t.name], value=t)
        for t in parts.initializers
        if t.name.startswith("y_")
    ]
    given = [t for t in parts.initializers if not t.name.startswith("y_")]
    model = model_of([*held, *parts.nodes], X, ["y"], given)
    assert places(onnx_bnfold.plan(model)) == [("BatchNormalization", 5, 4 * 8 * 4)]


@pytest.mark.parametrize("data_type", [onnx.TensorProto.STRING, 99])
def test_a_parameter_of_no_known_size(data_type, rng):
    """The BatchNormalization stays; that is said, and no error."""
    model = made(node("Sigmoid", ["x"], ["s"]), bn("s", "y", 3, rng))
    (scale,) = [t for t in model.graph.initializer if t.name == "y_scale"]
    scale.data_type = data_type
    (record,) = onnx_bnfold.plan(model).records
    assert not record.folded
    assert (record.index, record.bytes) == (1, None)


def test_the_index_is_that_of_the_model_as_it_was_given(rng):
    """Nodes that are not in order are sorted for the fold."""
    model = made(conv("x", "c", (8, 3, 3, 3), rng), bn("c", "y", 8, rng))
    model.graph.node.insert(0, model.graph.node.pop())
    assert places(onnx_bnfold.plan(model)) == [("BatchNormalization", 0, 128)]


@pytest.mark.parametrize("form", ["mul-add", "conv"])
def test_what_is_written_otherwise(form, rng):
    model = made(node("Sigmoid", ["x"], ["s"]), bn("s", "y", 3, rng))
    (record,) = onnx_bnfold.fold(model, Options(standalone=form))[1].records
    assert (record.operator, record.index, record.bytes) == ("BatchNormalization", 1, 48)


def test_the_mul_of_what_is_written_otherwise(rng):
    """It is no node of the model that was given."""
    model = made(
        node("Sigmoid", ["x"], ["s"]),
        bn("s", "b", 3, rng),
        node("Relu", ["b"], ["r"]),
        conv("r", "y", (4, 3, 3, 3), rng, pads=[1, 1, 1, 1]),
    )
    report = onnx_bnfold.fold(model, Options(bn_free=True))[1]
    assert places(report) == [("BatchNormalization", 1, 48), ("Mul", None, None)]


def test_the_add_of_what_is_written_otherwise(rng):
    """It writes the tensor that the BatchNormalization wrote."""
    normalization = node("InstanceNormalization", ["b", "iw", "ib"], ["y"])
    values = [tensor(name, np.ones(3, np.float32)) for name in ("iw", "ib")]
    model = made(
        node("Sigmoid", ["x"], ["s"]), bn("s", "b", 3, rng), Parts(normalization.nodes, values)
    )
    report = onnx_bnfold.fold(model, Options(standalone="mul-add"))[1]
    assert places(report) == [("BatchNormalization", 1, 48), ("Add", None, None)]


def test_a_body_has_its_own_count(rng):
    model = either(join(conv("x", "c", (3, 3, 1, 1), rng), bn("c", "b", 3, rng)), X["x"])
    assert places(onnx_bnfold.plan(model)) == [("BatchNormalization", 1, 48)]


def test_merged_branches(rng):
    model = made(
        conv("x", "a", (3, 3, 3, 3), rng, pads=[1, 1, 1, 1]),
        bn("a", "an", 3, rng),
        bn("x", "i", 3, rng),
        node("Add", ["an", "i"], ["y"]),
    )
    report = onnx_bnfold.fold(model, Options(merge_branches=True))[1]
    assert {r.way for r in report.records} == {Way.MERGED}
    assert {*places(report)} == {("BatchNormalization", None, None)}


def test_a_way_is_its_text():
    assert Way.UPSTREAM == "upstream"
    assert f"{Way.UPSTREAM}" == str(Way.UPSTREAM) == "upstream"
    assert Way("merged") is Way.MERGED
