"""The search for a place for a change: its limits, and what it says when it finds none."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import IMAGE, Net

import onnx_bnfold
from onnx_bnfold import Reason
from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.operators.rules import Step, Transparent
from onnx_bnfold.operators.table import OPERATORS
from onnx_bnfold.planning import propagation
from onnx_bnfold.planning.carrying import TooFar
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.reasons import Refused


def shifting_bn(net: Net, x: str) -> str:
    """A BN that adds one value per channel and multiplies by one."""
    ones, zeros = net.const(np.ones(4)), net.const(np.zeros(4))
    shift = net.const(np.arange(1.0, 5))
    return net.op("BatchNormalization", x, ones, shift, zeros, ones, epsilon=0.0)


def stays(net: Net, *outputs: str):
    (record,) = onnx_bnfold.plan(net.model(*outputs)).kept
    return record


def competing() -> tuple[Net, str]:
    """The shift of a BN goes upstream by any of three layers, the second way only."""
    net = Net(IMAGE)
    t = net.op("Add", net.op("Add", net.conv("x", 4), net.conv("x", 4)), net.conv("x", 4))
    return net, net.op("Sigmoid", net.bn(t))


@pytest.mark.parametrize(
    ("limit", "value"), [("MOST_BRANCHES", 1), ("MOST_SETTLED_PER_NODE", -1000)]
)
def test_a_search_that_is_given_up_says_so(monkeypatch, limit, value):
    """Downstream a Sigmoid refuses at once, which is true of that way and not the reason."""
    net, y = competing()
    assert not onnx_bnfold.plan(net.model(y)).kept
    monkeypatch.setattr(propagation, limit, value)
    record = stays(net, y)
    assert record.refusal.reason is Reason.SEARCH_LIMIT
    assert "given up" in record.refusal.sentence


@pytest.mark.parametrize("first", [Reason.GRAPH_INPUT, Reason.OPAQUE], ids=str)
def test_a_limit_does_not_hide_behind_an_earlier_refusal(monkeypatch, first):
    """Upstream is refused for good; downstream nobody knows."""
    net = Net(IMAGE)
    x = "x" if first is Reason.GRAPH_INPUT else net.op("Sigmoid", "x")
    t = net.op("Add", net.bn(x), net.conv("x", 4))
    y = net.conv(t, 2)
    assert not onnx_bnfold.plan(net.model(y)).kept
    monkeypatch.setattr(propagation, "MOST_BRANCHES", 1)
    record = stays(net, y)
    assert record.tried[0][1].reason is first
    assert record.refusal.reason is Reason.SEARCH_LIMIT


@pytest.mark.parametrize(
    ("limit", "value"),
    [("MOST_BRANCHES", 2), ("MOST_SETTLED_PER_NODE", (2 - 1000) / 5)],  # two nodes settled in all
)
def test_a_limit_does_not_hide_behind_a_branch_that_was_refused(monkeypatch, limit, value):
    """The first operand of the Add takes no shift; the second was not reached."""
    net = Net(IMAGE)
    t = net.op("Add", net.op("Sigmoid", "x"), net.conv("x", 4))
    y = net.op("Sigmoid", shifting_bn(net, t))
    assert not onnx_bnfold.plan(net.model(y)).kept
    monkeypatch.setattr(propagation, limit, value)
    record = stays(net, y)
    assert record.tried[0][1].reason is Reason.SEARCH_LIMIT


@pytest.mark.parametrize("certain", [True, False])
def test_a_rule_that_finds_no_way_refuses(monkeypatch, certain):
    entry = Transparent(lambda view, known: Step((), certain), version=14)
    monkeypatch.setitem(OPERATORS, "Relu", entry)
    net = Net(IMAGE)
    record = stays(net, net.op("Relu", net.bn(net.op("Relu", "x"))))
    assert record.refusal.reason is Reason.CONFLICT
    assert record.refusal.culprit.startswith("Relu")


def test_where_the_scale_finds_no_place_the_shift_is_not_moved_around(monkeypatch):
    """Each Add lets the shift come from either operand; the scale ends at the graph's output."""
    net = Net(IMAGE)
    t = net.conv("x", 4)
    y = net.conv(net.op("Relu", net.bn(t)), 4, 3, pads=[1] * 4)
    for _ in range(8):
        t = net.op("Add", t, net.conv("x", 4))
    monkeypatch.setattr(propagation, "MOST_BRANCHES", 12)
    (record,) = onnx_bnfold.plan(net.model(net.op("Add", t, y))).kept
    assert Reason.SEARCH_LIMIT not in {refusal.reason for _, refusal in record.tried}


def test_a_choice_of_scales_is_tried_to_the_end():
    """The first operand of the product refuses the scale, the other takes it."""
    net = Net(IMAGE)
    t = net.op("Mul", net.op("Sigmoid", "x"), net.conv("x", 4))
    t = net.op("Add", t, net.op("Mul", net.op("Sigmoid", "x"), net.conv("x", 4)))
    folded, _ = onnx_bnfold.fold(net.model(net.bn(net.op("Add", t, net.conv("x", 4)))))
    assert "BatchNormalization" not in {node.op_type for node in folded.graph.node}


def far(ends_at: str) -> tuple[GraphState, propagation.Search]:
    """A search from a tensor of which a row of Adds makes more; each offers another to shift."""
    net = Net(IMAGE)
    first = t = net.conv("x", 4)
    for _ in range(6):
        t = net.op("Add", net.op("Identity", t), net.conv("x", 4))
    state = net.state(net.op(ends_at, t) if ends_at == "Sigmoid" else net.conv(t, 2))
    seeds = {first: Affine.of(np.full((1, 1, 1, 1), 2.0), np.ones((1, 1, 1, 1)))}
    return state, propagation.Search(state, None, seeds)


def found(search: propagation.Search, *reach: int) -> object:
    """What a search finds; for each reach it is cut once."""
    for most in reach:
        with pytest.raises(TooFar):
            search.run(most)
    try:
        changes = search.run()
    except Refused as refused:
        return refused.refusal
    return {key: (change.scale.tolist(), change.shift.tolist()) for key, change in changes.items()}


@pytest.mark.parametrize("ends_at", ["Conv", "Sigmoid"])
def test_a_search_that_was_cut_goes_on_where_it_was(ends_at):
    """It finds what one finds that was not cut, and settles no node twice."""
    (first, cut), (second, whole) = far(ends_at), far(ends_at)
    assert found(cut, 2, 5) == found(whole)
    assert cut.asked == whole.asked
    settled = [
        state.work.asked + state.work.looked_at - search.scaled
        for state, search in ((first, cut), (second, whole))
    ]
    assert settled[0] == settled[1]
