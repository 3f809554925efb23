"""A table of constants whose rows are picked, as of an embedding, takes what is behind it."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import Net
from onnx import TensorProto
from support import fold_checked, initializer, ops, reasons

import onnx_bnfold
from onnx_bnfold import Reason

ROWS, FEATURES = 7, 4


def net_of(dims=("N", 3), opset: int = 17) -> Net:
    net = Net(opset=opset)
    net.input("i", dims, TensorProto.INT64)
    return net


def feed(*shape: int) -> dict[str, np.ndarray]:
    return {"feeds": {"i": np.random.default_rng(0).integers(0, ROWS, shape)}}


def channels_first(net: Net, t: str) -> str:
    return net.op("Transpose", t, perm=[0, 2, 1])


@pytest.mark.parametrize("opset", [7, 11, 17])
def test_a_norm_over_the_features(opset):
    net = net_of(opset=opset)
    table = net.random(ROWS, FEATURES)
    y = channels_first(net, net.op("Gather", table, "i"))
    model = net.model(net.bn(y, channels=FEATURES))
    folded, report = fold_checked(model, **feed(5, 3))
    assert ops(folded) == ["Gather", "Transpose"]
    assert "Gather" in report.folded[0].scale_to[0]
    assert initializer(folded, table).shape == (ROWS, FEATURES)


def test_features_in_front():
    net = net_of((3,))
    y = net.op("Gather", net.random(FEATURES, ROWS), "i", axis=1)
    y = net.op("Unsqueeze", y, net.ints(0))
    folded, _ = fold_checked(net.model(net.bn(y, channels=FEATURES)), **feed(3))
    assert ops(folded) == ["Gather", "Unsqueeze"]


def test_through_what_passes_a_change():
    net = net_of()
    rows = net.op("Gather", net.random(ROWS, FEATURES), "i")
    y = net.op("ReduceMean", rows, axes=[1], keepdims=0)
    folded, _ = fold_checked(net.model(net.bn(y, channels=FEATURES)), **feed(5, 3))
    assert ops(folded) == ["Gather", "ReduceMean"]


def test_a_norm_over_what_was_picked_stays():
    """The same row may be picked for several channels."""
    net = net_of()
    y = net.op("Gather", net.random(ROWS, FEATURES), "i")
    _, report = fold_checked(net.model(net.bn(y, channels=3)), kept=1, **feed(5, 3))
    assert Reason.PARAMETERS_NOT_CONSTANT in reasons(report)[0]


def test_a_computed_table_stays():
    net = net_of()
    net.input("t", (ROWS, FEATURES))
    y = channels_first(net, net.op("Gather", "t", "i"))
    model = net.model(net.bn(y, channels=FEATURES))
    given = {**feed(5, 3)["feeds"], "t": net.values(ROWS, FEATURES).astype(np.float32)}
    _, report = fold_checked(model, kept=1, feeds=given)
    assert Reason.GRAPH_INPUT in reasons(report)[0]


def test_a_shared_table_is_copied():
    """As where the last layer multiplies by it again."""
    net = net_of()
    table = net.random(ROWS, FEATURES)
    one, other = (net.op("Gather", table, "i") for _ in range(2))
    model = net.model(net.bn(channels_first(net, one), channels=FEATURES), other)
    folded, _ = fold_checked(model, **feed(5, 3))
    tables = [node.input[0] for node in folded.graph.node if node.op_type == "Gather"]
    assert len({*tables}) == 2
    np.testing.assert_array_equal(initializer(folded, table), initializer(model, table))


def test_a_lone_product_does_not_copy_a_table():
    net = net_of()
    table = net.random(500, FEATURES)
    rows = net.op("Mul", net.op("Gather", table, "i"), net.const([3.0]))
    model = net.model(rows, net.op("Gather", table, "i"))
    folded, _ = onnx_bnfold.fold(model)
    assert ops(folded) == ops(model)
