"""How much planning asks: in proportion to the graph, whatever its shape. Time is not measured."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import IMAGE, Net
from onnx import TensorProto, helper

import onnx_bnfold
from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.planning import int8_noise
from onnx_bnfold.planning.candidates import in_order
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.planning.merged_tensors import Groups
from onnx_bnfold.planning.precision_limits import Limits
from onnx_bnfold.planning.totals import Totals


@pytest.fixture
def work(monkeypatch):
    """What is counted: questions to rules and layers, compositions of changes, looks at names."""
    found = {"questions": 0, "compositions": 0, "names": 0}

    def count(kind, owner, name):
        function = getattr(owner, name)

        def counted(*args, **kwargs):
            found[kind] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    count("questions", GraphState, "step")
    count("compositions", Affine, "then")
    count("names", Groups, "is_fixed")
    return found


def constants(front, count=60):
    """A chain of Mul and Add by constants near 1 and 0."""
    net = Net(IMAGE)
    t = front(net)
    for number in range(count):
        t = net.op(("Mul", "Add")[number % 2], t, net.const(net.rng.uniform(0.9, 1.1, (4, 1, 1))))
    return net.model(net.op("Sigmoid", t))


def test_a_chain_of_constants_behind_a_layer(work):
    onnx_bnfold.plan(constants(lambda net: net.conv("x", 4)))
    assert work["questions"] <= 2 * 60
    assert work["compositions"] <= 6 * 60


def test_a_chain_of_constants_that_only_its_own_can_take(work):
    onnx_bnfold.plan(constants(lambda net: net.op("Sigmoid", "x")))
    assert work["questions"] <= 16 * 60
    assert work["compositions"] <= 16 * 60


def preactivated(blocks):
    net = Net(IMAGE)
    t = net.conv("x", 4)
    for _ in range(blocks):
        t = net.op("Add", t, net.conv(net.op("Relu", net.bn(t, signs="positive")), 4))
    return net.model(t)


def dense(layers):
    net = Net(IMAGE)
    parts = [net.conv("x", 4), net.conv("x", 2)]
    for _ in range(layers):
        t = net.op("Concat", *parts, axis=1)
        parts.append(net.conv(net.op("Relu", net.bn(t, signs="positive")), 2))
    return net.model(net.op("Concat", *parts, axis=1))


@pytest.mark.parametrize("network", [preactivated, dense])
def test_what_finds_no_place_is_not_asked_again_for_each_node(network, work):
    """By the square it would take more than 15 times as much."""
    onnx_bnfold.plan(network(10))
    small = work["questions"]
    work["questions"] = 0
    onnx_bnfold.plan(network(40))
    assert work["questions"] <= 6 * small


def fan(norms):
    """One tensor that many BatchNormalizations read: a change of it asks all who do."""
    net = Net(IMAGE)
    t = net.conv("x", 4)
    return net.model(*(net.conv(net.bn(t), 4) for _ in range(norms)))


def sums(blocks, patterns=((1,),)):
    """A common scale of all sums asks all nodes; a shift that goes on asks few."""
    net = Net(IMAGE)
    parts = [net.op("Relu", net.conv("x", 4)) for _ in range(blocks)]
    parts = [net.bn(t, signs=patterns[i % len(patterns)]) for i, t in enumerate(parts)]
    while len(parts) > 1:
        parts = [net.op("Add", *pair) for pair in zip(parts[::2], parts[1::2], strict=True)]
    return net.model(net.conv(parts[0], 4))


@pytest.mark.parametrize("network", [fan, sums])
def test_a_way_that_reaches_far_is_not_followed_where_another_ends_nearby(network, work):
    """By the square it would take more than 15 times as much."""
    onnx_bnfold.plan(network(16))
    small = dict(work)
    work.update(dict.fromkeys(work, 0))
    onnx_bnfold.plan(network(64))
    assert all(work[kind] <= 6 * small[kind] for kind in work)


def row_of_sums(blocks):
    """Each BatchNormalization shifts what is added up so far, or what will be."""
    net = Net(IMAGE)
    t = net.conv("x", 4)
    for _ in range(blocks):
        t = net.op("Add", t, net.bn(net.op("Relu", net.conv("x", 4)), signs="positive"))
    return net.model(net.conv(t, 4))


def test_tensors_that_change_alike_are_composed_alike_once():
    """However many they are, and however often: what is one object stays one."""
    state = Net(IMAGE).state("x")
    first, more = (Affine.of(np.full((1, 1, 1, 1), f), np.zeros((1, 1, 1, 1))) for f in (2.0, 3.0))
    state.total.update(dict.fromkeys("abc", first))
    totals = Totals(state, dict.fromkeys("abcd", more))
    assert totals.of("a") is totals.of("b") is totals.of("c")
    assert totals.of("a").agrees_with(first.then(more))
    assert totals.of("d") is more


def test_a_shift_goes_no_farther_than_it_has_to(work):
    """One that stays takes it for now, and not the layer at the other end of the row."""
    report = onnx_bnfold.plan(row_of_sums(16))
    assert not report.kept
    small = dict(work)
    work.update(dict.fromkeys(work, 0))
    assert not onnx_bnfold.plan(row_of_sums(64)).kept
    assert all(work[kind] <= 7 * small[kind] for kind in work)


def test_no_branch_is_searched_that_takes_no_shift(work):
    """Those of a tree of sums that have gone, until one is left; each by the shift of its sum."""
    assert not onnx_bnfold.plan(sums(128, [(1, -1)])).kept
    assert work["questions"] <= 150 * 128


def test_signs_that_differ_are_not_carried_through_all_sums_for_each_norm(work):
    """Where one has gone by all sums, behind a ReLU, those of another sign stay."""
    onnx_bnfold.plan(sums(64, [(1, 1, 1, -1), *[(-1, 1, 1, 1)] * 63]))
    assert work["questions"] <= 20 * 64


def dense_with_constants(layers, front, factor, summand):
    """Each layer reads all before it, by a BatchNormalization, a Mul and an Add, as in Caffe."""
    net = Net((1, 32, 4, 4))
    t = front(net)
    for _ in range(layers):
        channels = net.shape(t)[1]
        ones = [net.const(np.ones(channels)) for _ in range(4)]
        y = net.op("BatchNormalization", t, *ones)
        y = net.op("Mul", y, net.const(np.full((channels, 1, 1), factor)))
        y = net.op("Add", y, net.const(np.full((channels, 1, 1), summand)))
        t = net.op("Concat", t, net.conv(net.op("Relu", y), 2, bias=False), axis=1)
    return net.model(net.conv(t, 2))


def computed_layer(net):
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.5])
    return net.op("Conv", "x", net.op("ConstantOfShape", net.ints(32, 32, 1, 1), value=value))


@pytest.mark.parametrize(
    ("front", "factor", "summand"),
    [(computed_layer, 2.0, 1.0), (lambda net: net.conv("x", 32), 1.0, 100.0)],
)
def test_what_refuses_an_outcome_is_not_met_again_by_every_other_choice(
    front, factor, summand, monkeypatch
):
    """Each further layer leaves a choice: without end, they would double what is judged."""
    judged, check = [], Limits.check
    monkeypatch.setattr(Limits, "check", lambda *args: (judged.append(1), check(*args)))
    onnx_bnfold.plan(dense_with_constants(12, front, factor, summand))
    assert len(judged) <= 22 * 12


def row_of_moved(length):
    """BatchNormalizations in a row, a Transpose in front of each, between what takes nothing."""
    net = Net(IMAGE)
    t = net.op("Sigmoid", "x")
    for _ in range(length):
        t = net.bn(net.op("Transpose", t, perm=[0, 1, 3, 2]))
    return net.model(net.op("Sigmoid", t))


def test_a_row_becomes_one_by_what_is_next_door(work):
    """Where one has taken all that it may, others go on in the other direction from behind."""
    assert len(onnx_bnfold.plan(row_of_moved(40)).kept) == 1
    small = dict(work)
    work.update(dict.fromkeys(work, 0))
    assert len(onnx_bnfold.plan(row_of_moved(160)).kept) == 1
    assert all(work[kind] <= 6 * small[kind] for kind in work)


def far_off(length):
    """A chain of Mul and Add between what takes nothing; no small constant takes a large one."""
    net = Net(IMAGE)
    t = net.op("Add", net.op("Sigmoid", "x"), net.const(np.full((4, 1, 1), 1e6)))
    for number in range(2 * length):
        size = (1, 1e-3)[number % 2]
        factor = net.const(size * net.rng.uniform(0.9, 1.1, (4, 1, 1)))
        t = net.op(("Mul", "Add")[number % 2], t, factor)
    return net.model(net.op("Sigmoid", t))


def test_no_outcome_is_made_for_each_constant_that_does_not_take_a_shift(monkeypatch):
    """By the square it would take more than ten times as much."""
    judged, check = [], Limits.check
    monkeypatch.setattr(
        Limits, "check", lambda *args: (judged.append(len(args[3].changes)), check(*args))
    )
    onnx_bnfold.plan(far_off(10))
    small = sum(judged)
    judged.clear()
    onnx_bnfold.plan(far_off(40))
    assert sum(judged) <= 5 * small


class Counting(dict):
    """Counts how often it is asked."""

    asked = 0

    def get(self, *key):
        self.asked += 1
        return super().get(*key)


@pytest.mark.parametrize("rows", [1, 2])
def test_what_stands_in_front_of_a_row_is_looked_for_once(rows):
    """By the square it would take more than ten times as much."""

    def asked(length):
        net = Net(IMAGE)
        ends = []
        for _ in range(rows):
            t = net.conv("x", 4)
            for _ in range(length):
                t = net.bn(t)
            ends.append(t)
        state = net.state(*ends)
        state.graph.producer = Counting(state.graph.producer)
        bns = [i for i, op in enumerate(state.graph.ops) if op == "BatchNormalization"]
        assert in_order(state, bns) == (bns, [])
        assert {state.rank(index) for index in reversed(bns)} == {4}
        return state.graph.producer.asked

    assert asked(160) <= 4.1 * asked(40)


def test_what_nobody_says_of_ranges_is_looked_for_once(monkeypatch):
    """Only BatchNormalizations say anything: a chain of constants has none."""
    looked = []
    of_statistics = int8_noise.from_statistics

    def from_statistics(state):
        looked.append(state)
        return of_statistics(state)

    monkeypatch.setattr(int8_noise, "from_statistics", from_statistics)
    net = Net(IMAGE)
    t = net.conv("x", 4)
    for _ in range(12):  # channels that are soon far apart, in no long row
        t = net.op("Mul", t, net.const(np.reshape([0.1, 1, 2, 4], (4, 1, 1))))
    onnx_bnfold.plan(net.model(net.op("Sigmoid", t)))
    assert len(looked) == 1


class Looked(tuple[int, ...]):
    """Nodes around a tensor that count those which are looked at."""

    nodes = 0

    def __iter__(self):
        for index in super().__iter__():
            Looked.nodes += 1
            yield index


@pytest.mark.parametrize("signs", ["mixed", "positive"])
def test_many_bns_that_read_one_tensor(monkeypatch, signs):
    """Each is refused by the node in front of all; the other readers are not looked at for that."""
    net, count = Net(IMAGE), 60
    x = net.op("Relu", net.conv("x", 4))
    layers = [net.conv(net.bn(x, signs=signs), 4, 3, pads=[1] * 4) for _ in range(count)]
    around = GraphState.around
    monkeypatch.setattr(GraphState, "around", lambda self, key: Looked(around(self, key)))
    Looked.nodes = 0
    assert len(onnx_bnfold.plan(net.model(*layers)).kept) == count
    assert Looked.nodes <= 8 * count


def test_who_refuses_behind_merged_tensors_is_looked_for_once(monkeypatch):
    """One BN goes, and what it wrote is read by a Sigmoid; so all others stay."""
    net, count = Net(IMAGE), 40
    x = net.conv("x", 4)
    outputs = [net.op("Sigmoid", net.bn(x)) for _ in range(count)]
    looked, find = [], GraphState._with_port

    def counted(self, *port):
        looked.append(port)
        return find(self, *port)

    monkeypatch.setattr(GraphState, "_with_port", counted)
    assert len(onnx_bnfold.plan(net.model(*outputs)).kept) == count - 1
    assert len(looked) <= 5 * count


def test_a_scale_that_reaches_far_is_not_carried_through_a_stream_twice(work):
    """Each block adds to the stream what several BatchNormalizations and padded layers make."""
    net = Net(IMAGE)
    t = net.conv("x", 4)
    for _ in range(20):
        branch = net.conv(net.bn(t), 4, 3, pads=[1] * 4)
        branch = net.conv(net.op("Relu", net.bn(branch, channels=4)), 4, 3, pads=[1] * 4)
        t = net.op("Add", t, net.bn(branch, channels=4))
    onnx_bnfold.plan(net.model(net.conv(net.bn(t), 4)))
    assert work["questions"] <= 50 * 20
