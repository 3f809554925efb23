"""Rows of BatchNormalizations behind a layer, which takes them all at once."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import IMAGE, Net
from support import fold_checked, ops, reasons

import onnx_bnfold
from onnx_bnfold import Options, Reason
from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.operators.entries import OUT
from onnx_bnfold.operators.linear import LinearLayer
from onnx_bnfold.planning.direct import DirectFolds
from onnx_bnfold.planning.precision_limits import Limits
from onnx_bnfold.planning.ways import Way
from onnx_bnfold.reasons import Refused


def row(net: Net, length: int) -> str:
    t = net.conv("x", 4)
    for _ in range(length):
        t = net.bn(t)
    return t


def test_a_layer_is_asked_all_that_it_refuses(monkeypatch):
    """As any node is: what derives from it may refuse more than its vectors tell."""
    require = LinearLayer.require

    def scaled_only(self, port, change):
        if port == OUT and change.has_shift:
            raise Refused(Reason.OPAQUE, self.view.label, "its output takes no shift")
        require(self, port, change)

    monkeypatch.setattr(LinearLayer, "require", scaled_only)
    net = Net(IMAGE)
    _, report = fold_checked(net.model(net.bn(net.conv("x", 4))), kept=1)
    assert Reason.OPAQUE in reasons(report)[0]


def test_what_a_quantised_weight_does_not_take_goes_into_the_layer_behind():
    net = Net((2, 4, 5, 5))
    integers = net.const(net.rng.integers(-90, 90, (6, 4, 1, 1)).astype(np.int8))
    of_inputs = net.const(np.float32([0.05, 0.06, 0.07, 0.08]))
    weight = net.op("DequantizeLinear", integers, of_inputs, axis=1)
    y = net.conv(
        net.bn(net.op("Conv", "x", weight, net.random(6)), channels=6), 3, channels=6, rank=4
    )
    folded, _ = fold_checked(net.model(y), tolerance=1e-4)
    assert ops(folded) == ["DequantizeLinear", "Conv", "Conv"]


@pytest.mark.parametrize("length", [2, 3, 6])
def test_all_of_a_row_go_into_the_layer(length):
    net = Net(IMAGE)
    folded, report = fold_checked(net.model(row(net, length)))
    assert ops(folded) == ["Conv"]
    assert len(report.records) == length
    for record in report.records:
        assert record.way == Way.UPSTREAM
        assert record.scale_to == record.shift_to == ("Conv 'n_conv0'",)


def test_a_row_takes_no_more_changes_than_it_has_nodes(monkeypatch):
    """One by one each would change all tensors in front of it."""
    composed, then = [], Affine.then

    def counted(self, after):
        composed.append(after)
        return then(self, after)

    net = Net(IMAGE)
    model = net.model(row(net, 30))
    monkeypatch.setattr(Affine, "then", counted)
    assert len(onnx_bnfold.plan(model).folded) == 30
    assert len(composed) < 60


def test_a_row_ends_at_a_tensor_that_others_read():
    net = Net(IMAGE)
    t = net.bn(net.conv("x", 4))
    folded, report = fold_checked(
        net.model(net.op("Sigmoid", t), net.op("Sigmoid", net.bn(t))), kept=1
    )
    assert [record.way for record in report.records][:1] == [Way.UPSTREAM]
    assert sorted(ops(folded)) == ["BatchNormalization", "Conv", "Sigmoid", "Sigmoid"]


def test_a_row_ends_at_one_that_is_to_be_kept():
    net = Net(IMAGE)
    model = net.model(row(net, 4))
    third = [n for n in model.graph.node if n.op_type == "BatchNormalization"][2]
    folded, report = fold_checked(model, kept=2, options=Options(keep=(f"^{third.output[0]}$",)))
    assert [record.folded for record in report.records] == [True, True, False, False]
    assert ops(folded) == ["Conv", "BatchNormalization", "BatchNormalization"]


def test_a_layer_takes_nothing_where_another_state_of_the_graph_has_changed():
    net = Net(IMAGE)
    state = net.state(net.op("Sigmoid", row(net, 1)))
    state.read_bns([1])
    state.read_maps([1])
    before = DirectFolds(state, Limits(), [1], Options())
    assert before.taken(1).keys() == {1}
    other = state.copy()
    other.total[state.graph.reads[1][0]] = state.original_map(1)
    assert not before.on(other).taken(1)
    assert before.taken(1)
