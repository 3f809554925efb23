"""Tensors that take no change: found once for all, they change no plan and no true reason."""

from __future__ import annotations

import random

import numpy as np
import pytest
from graphs import IMAGE, Net
from random_graphs import random_model
from support import fold_checked, ops

import onnx_bnfold
from onnx_bnfold.planning import propagation
from onnx_bnfold.planning.dead_ends import Kind
from onnx_bnfold.planning.find_dead_ends import find_dead_ends
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.planning.ways import Way
from onnx_bnfold.reasons import Reason


@pytest.fixture
def always(monkeypatch):
    """Look for dead ends before each node that is tried."""

    def look(state, options):
        state.dead_ends = find_dead_ends(state, state.dead_ends)

    def use():
        monkeypatch.setattr(propagation, "look_for_dead_ends", look)

    return use


@pytest.mark.parametrize("seed", range(40))
def test_they_change_no_plan(seed, always):
    model = random_model(random.Random(seed), steps=20)
    before, _ = onnx_bnfold.fold(model)
    always()
    after, _ = onnx_bnfold.fold(model)
    assert after == before


def test_the_reason_is_that_of_what_refuses(always):
    """The shift would have to pass the Relu in front of a movement."""
    always()
    net = Net(IMAGE)
    t = net.op("Transpose", net.op("Relu", net.conv("x", 4)), perm=[0, 1, 3, 2])
    _, report = fold_checked(net.model(net.op("Sigmoid", net.bn(t))), kept=1)
    assert report.kept[0].refusal.culprit.startswith("Relu")
    assert report.kept[0].refusal.reason is Reason.NO_SHIFT


def test_a_part_that_takes_no_shift(always):
    """Of a Concat, if the shift is not that of another part alone."""
    always()
    net = Net(IMAGE)
    parts = [net.conv("x", 4), net.op("Relu", net.conv("x", 4))]
    both = net.bn(net.op("Concat", *parts, axis=1))
    fold_checked(net.model(net.op("Sigmoid", both)), kept=1)


def test_what_absorbs_is_no_dead_end(always):
    always()
    net = Net(IMAGE)
    t = net.op("Transpose", net.conv("x", 4), perm=[0, 1, 3, 2])
    fold_checked(net.model(net.op("Sigmoid", net.bn(t))))


def test_a_node_that_may_go_hands_nothing_on(always):
    """The scale of a difference from a constant goes into the layer, though it is an output."""
    always()
    net = Net(IMAGE)
    folded, _ = fold_checked(net.model(net.op("Sub", net.const([2.0]), net.conv("x", 4))))
    assert ops(folded) == ["Conv"]


def test_a_negative_scale_that_a_sum_hands_on(always):
    """Behind the sum stands a layer that would take any scale, and any shift."""
    always()
    net = Net(IMAGE)
    rectified = net.op("Transpose", net.op("Relu", net.conv("x", 4)), perm=[0, 1, 3, 2])
    t = net.op("Add", rectified, net.bn(net.op("Sigmoid", "x")))
    _, report = fold_checked(net.model(net.conv(t, 4)), kept=1)
    down = dict(report.kept[0].tried)[Way.DOWNSTREAM]
    assert down.reason is Reason.NEEDS_POSITIVE_SCALE
    assert down.culprit.startswith("Relu")


def test_a_positive_scale_passes_it(always):
    always()
    net = Net(IMAGE)
    t = net.op(
        "Add", net.op("Relu", net.conv("x", 4)), net.bn(net.op("Sigmoid", "x"), signs="positive")
    )
    fold_checked(net.model(net.conv(t, 4)))


def test_slopes_that_a_negative_scale_inverts_are_no_dead_end(always):
    """All but one of the slopes can be inverted; the scale of that channel is positive."""
    always()
    net = Net(IMAGE)
    slopes = net.const(np.array([0.0, 0.5, 0.25, 2.0], np.float32).reshape(4, 1, 1))
    t = net.op("PRelu", net.conv("x", 4), slopes)
    scale = net.const(np.array([2.0, -2.0, 4.0, -0.5], np.float32).reshape(4, 1, 1))
    folded, _ = fold_checked(net.model(net.op("Sigmoid", net.op("Mul", t, scale))))
    assert ops(folded) == ["Conv", "PRelu", "Sigmoid"]


def test_a_clip_to_another_number_takes_no_scale(always):
    always()
    net = Net(IMAGE)
    t = net.op("Clip", net.conv("x", 4), net.const(np.float32(0)), net.const(np.float32(6)))
    t = net.op("Add", t, net.bn(net.op("Sigmoid", "x"), signs="positive"))
    _, report = fold_checked(net.model(net.conv(t, 4)), kept=1)
    down = dict(report.kept[0].tried)[Way.DOWNSTREAM]
    assert down.reason is Reason.OPAQUE
    assert down.culprit.startswith("Clip")


def test_they_are_looked_for_again_where_more_nodes_have_gone():
    net = Net(IMAGE)
    state = net.state(net.op("Sigmoid", net.bn(net.conv("x", 4))))
    first = find_dead_ends(state, None)
    assert find_dead_ends(state, first) is first
    state.remove(state.graph.ops.index("BatchNormalization"))
    assert find_dead_ends(state, first) is not first


def without_shift(net, *outputs):
    """The tensors that take no shift."""
    return find_dead_ends(net.state(*outputs), None).found[Kind.SHIFT].keys()


def rectified(net):
    return net.op("Relu", net.conv("x", 4))


@pytest.mark.parametrize("op", ["Add", "Sub", "Sum", "Mean"])
def test_a_sum_of_what_takes_no_shift_takes_none(op):
    net = Net(IMAGE)
    inner = net.op(op, rectified(net), rectified(net))
    outer = net.op("Add", inner, net.op("Relu", net.conv("x", 4)))
    free = net.op("Add", outer, net.conv("x", 4))
    dead = without_shift(net, net.conv(free, 4))
    assert {inner, outer} <= dead
    assert free not in dead


def test_nor_does_what_is_added_to_that_where_the_sum_takes_none():
    net = Net(IMAGE)
    t = net.op("Transpose", net.conv("x", 4), perm=[0, 1, 3, 2])
    dead = without_shift(net, net.op("Relu", net.op("Add", t, rectified(net))))
    assert t in dead


def test_a_tensor_that_is_taken_from_itself_takes_any_shift():
    net = Net(IMAGE)
    t = net.op("Transpose", net.conv("x", 4), perm=[0, 1, 3, 2])
    assert t not in without_shift(net, net.op("Relu", net.op("Sub", t, t)))


def test_a_constant_that_is_added_takes_a_shift():
    net = Net(IMAGE)
    t = net.op("Transpose", net.conv("x", 4), perm=[0, 1, 3, 2])
    assert t not in without_shift(net, net.op("Relu", net.op("Add", t, net.random(4, 1, 1))))


def test_what_a_dead_end_depends_on():
    """All that have gone on the way to any of its ends."""
    net = Net(IMAGE)
    parts = [net.bn(rectified(net)) for _ in range(3)]
    t = net.op("Sum", *parts)
    state = net.state(net.conv(t, 4))
    gone = [i for i, op in enumerate(state.graph.ops) if op == "BatchNormalization"]
    for index in gone:
        state.remove(index)
    end = find_dead_ends(state, None).found[Kind.SHIFT][t]
    relus = {i for i, op in enumerate(state.graph.ops) if op == "Relu"}
    assert end.all_asked() == relus | {*gone}


def test_what_a_node_carries_is_looked_up_once(monkeypatch):
    """In a dense block every Concat reads all tensors in front."""
    net, count = Net(IMAGE), 24
    tensors = [net.conv("x", 4)]
    for _ in range(count):
        whole = net.op("Concat", *tensors, axis=1)
        tensors.append(net.conv(net.op("Relu", whole), 2))
    state = net.state(net.op("Concat", *tensors, axis=1))
    asked, keys = [], GraphState.keys
    monkeypatch.setattr(GraphState, "keys", lambda *args: asked.append(args) or keys(*args))
    find_dead_ends(state, None)
    assert len(asked) <= 2 * sum(map(len, state.graph.reads))
