"""Affine nodes of which it is certain, without a look at sizes, that they stay."""

from __future__ import annotations

import random

import numpy as np
import onnx
import pytest
from graphs import Net
from onnx import ModelProto, helper, numpy_helper
from random_graphs import random_model
from support import fold_checked, ops

import onnx_bnfold
from onnx_bnfold.api import write_folded
from onnx_bnfold.planning import without_place
from onnx_bnfold.planning.without_place import all_stay
from tools.transformer_graph import transformer

SENTENCES = ("N", 5, 8)


def is_certain(net, *outputs):
    return all_stay(net.state(*outputs), clamps_everywhere=False)


def attention(net, t):
    """Scores of a tensor with itself, whose factor nobody takes."""
    scores = net.op("MatMul", t, net.op("Transpose", t, perm=[0, 2, 1]))
    return net.op("Softmax", net.op("Div", scores, net.const(np.float32(3))), axis=-1)


def normalized(net, t):
    away = net.op("Sub", t, net.op("ReduceMean", t, axes=[-1]))
    square = net.op("ReduceMean", net.op("Mul", away, away), axes=[-1])
    return net.op("Div", away, net.op("Sqrt", square))


def test_a_transformer_is_copied_without_shape_inference(tmp_path, monkeypatch):
    model = transformer(200)
    onnx.save(model, tmp_path / "model.onnx")
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", None)
    write_folded(tmp_path / "model.onnx", tmp_path / "folded.onnx")
    assert onnx.load(tmp_path / "folded.onnx") == model


STAY = {
    "by a size": lambda net: net.op("Erf", net.op("Add", net.op("Erf", "x"), by_size(net))),
    "attention": lambda net: attention(net, net.matmul("x", 8)),
    "a bias": lambda net: net.op("Sigmoid", net.linear("x", 6)),
    "a bias in a residual": lambda net: normalized(net, net.op("Add", net.linear("x", 8), "x")),
    "beside a movement": lambda net: net.op(
        "Erf", net.op("Transpose", net.affine(net.op("Erf", "x"), 8), perm=[1, 0, 2])
    ),
    "in front of a power": lambda net: net.op("Pow", net.linear("x", 6), net.const(np.float32(3))),
    "behind a Conv": lambda net: net.op("Sigmoid", net.linear(behind_conv(net), 6)),
    "from a constant": lambda net: net.op("Erf", net.op("Sub", net.random(8), net.op("Erf", "x"))),
}


@pytest.mark.parametrize("name", STAY)
def test_it_is_certain(name):
    net = Net(SENTENCES)
    y = STAY[name](net)
    assert is_certain(net, y)
    _, report = fold_checked(net.model(y))
    assert report.records == ()


GO = {
    "a bias of a Gemm": (("N", 8), lambda net: net.op("Sigmoid", net.linear("x", 6))),
    "a bias of no known rank": (
        None,
        lambda net: net.op("Add", net.op("MatMul", "x", net.random(8, 6)), net.random(6)),
    ),
    "a factor": (SENTENCES, lambda net: net.op("Mul", net.matmul("x", 8), net.random(8))),
    "nothing": (
        SENTENCES,
        lambda net: net.op("Erf", net.op("Add", net.op("Erf", "x"), zeros(net))),
    ),
    "nothing, by a size": (
        SENTENCES,
        lambda net: net.op("Erf", net.op("Add", net.op("Erf", "x"), by_size(net, zeros=True))),
    ),
    "a sign": (
        SENTENCES,
        lambda net: net.matmul(net.op("Sub", zeros(net), net.op("Erf", "x")), 8),
    ),
    "into a bias": (
        SENTENCES,
        lambda net: net.op("Erf", net.linear(net.op("Add", net.op("Erf", "x"), net.random(8)), 8)),
    ),
    "after a Conv": (
        ("N", 3, 4),
        lambda net: net.op("Erf", net.op("Add", net.conv("x", 3), net.random(3, 1))),
    ),
}


def behind_conv(net):
    return net.op("Slice", net.conv("x", 3), net.ints(0), net.ints(4), net.ints(2))


def zeros(net):
    return net.const(np.zeros(8, np.float32))


def by_size(net, *, zeros=False):
    """A part of a constant, as long as an axis is."""
    length = net.op("Slice", net.op("Shape", "x"), net.ints(2), net.ints(3))
    whole = net.const(np.zeros(12, np.float32)) if zeros else net.random(12)
    return net.op("Slice", whole, net.ints(0), length)


@pytest.mark.parametrize("name", GO)
def test_it_is_not(name):
    shape, build = GO[name]
    net = Net()
    net.input("x", shape)
    assert not is_certain(net, build(net))


def test_a_part_of_a_constant_as_long_as_an_open_axis_is_none():
    net = Net(("N", "L"))
    length = net.op("Gather", net.op("Shape", "x"), net.ints(1))
    part = net.op("Slice", net.random(12, 8), net.ints(0), length, net.ints(0))
    words = net.op("Erf", net.op("Unsqueeze", "x", net.ints(2)))
    assert is_certain(net, net.op("Erf", net.op("Add", words, part)))


def spelled_out(model: ModelProto, choose: random.Random) -> ModelProto:
    """Return a model with other nodes in place of its BatchNormalizations."""
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type != "BatchNormalization":
            nodes.append(node)
            continue
        scale, offset = (held[name] for name in node.input[1:3])
        kind = choose.choice(["Add", "Sub", "Mul", "Div", "Sigmoid", "Neg"])
        read = [node.input[0]]
        if kind in ("Add", "Sub", "Mul", "Div"):
            given = offset if kind in ("Add", "Sub") else scale
            given = (
                given.reshape(-1, *[1] * (choose.choice([1, 2, 2]))) if given.size > 1 else given
            )
            given = given * choose.choice([0, 1, 1]) + choose.choice([0, 1])
            read.append(f"{node.output[0]}_given")
            tensor = numpy_helper.from_array(given.astype(scale.dtype), read[1])
            model.graph.initializer.append(tensor)
            read = read[::-1] if choose.random() < 0.3 and kind != "Div" else read
        nodes.append(helper.make_node(kind, read, node.output, node.name))
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    graph.ClearField("node")
    graph.ClearField("value_info")
    graph.node.extend(nodes)
    made = ModelProto()
    made.CopyFrom(model)
    made.graph.CopyFrom(graph)
    return made


@pytest.mark.parametrize("seed", range(60))
def test_it_changes_no_plan_and_no_reason(seed, monkeypatch):
    choose = random.Random(seed)
    model = spelled_out(random_model(choose, steps=12), choose)
    folded, report = onnx_bnfold.fold(model)
    monkeypatch.setattr(without_place, "all_stay", lambda *_, **__: False)
    as_tried, tried = onnx_bnfold.fold(model)
    assert folded == as_tried
    assert report.records == tried.records
    assert report.kept_affine == tried.kept_affine


def test_it_is_certain_of_many_random_models():
    certain = 0
    for seed in range(60):
        choose = random.Random(seed)
        model = spelled_out(random_model(choose, steps=12), choose)
        certain += ops(onnx_bnfold.fold(model)[0]) == ops(model)
    assert certain > 10
