"""Wide nodes: of thousands of parts few change, and the others are not looked at for that."""

from __future__ import annotations

import random

import numpy as np
import pytest
from graphs import Net
from onnx import TensorProto
from support import fold_checked

import onnx_bnfold
from onnx_bnfold.model.graph import graphs_of
from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.operators.rules import Variant
from onnx_bnfold.planning.merged_tensors import Carried, Groups
from onnx_bnfold.planning.propagation import Search

COUNT = 40


def parted(count=COUNT, *, cut="Split"):
    """A layer whose channels are cut into pairs, a BN and a Relu behind each."""
    net = Net(("N", 2 * count, 4, 4))
    x = net.conv("x", 2 * count, group=count)
    if cut == "Split":
        parts = net.op("Split", x, axis=1, outputs=count)
    else:
        bounds = [(net.ints(2 * i), net.ints(2 * i + 2)) for i in range(count)]
        parts = [net.op("Slice", x, *each, net.ints(1)) for each in bounds]
    return net.model(net.op("Concat", *(net.op("Relu", net.bn(p)) for p in parts), axis=1))


def test_each_part_of_a_split_takes_its_own():
    fold_checked(parted())


def test_what_does_not_change_is_not_decided_one_by_one(monkeypatch):
    decided, assign = [], Search._assign

    def counted(self, *args, **more):
        decided.append(args)
        return assign(self, *args, **more)

    monkeypatch.setattr(Search, "_assign", counted)
    assert not onnx_bnfold.plan(parted()).kept
    assert len(decided) <= 6 * COUNT


@pytest.mark.parametrize("beside", ["Relu", "Sigmoid"])
def test_two_wholes_of_the_same_parts(beside):
    """What one leaves as it is stays so for the other: the two share all parts but one."""
    net = Net(("N", 4, 4, 4))
    parts = [net.op("Relu", net.conv("x", 2)) for _ in range(COUNT)]
    part = net.bn(net.op("Sigmoid", net.conv("x", 2)), signs="positive", shift=False)
    wholes = [net.op("Concat", part, *parts, axis=1), net.op("Concat", *parts, part, axis=1)]
    behind = [net.conv(wholes[0], 2), net.conv(net.op(beside, wholes[1]), 2)]
    fold_checked(net.model(*behind), kept=int(beside == "Sigmoid"))


def test_parts_behind_one_that_refuses_are_not_cut(monkeypatch):
    net = Net(("N", 4, 4, 4))
    parts = [net.op("Sigmoid", "x"), *(net.conv("x", 4) for _ in range(COUNT))]
    whole = net.bn(net.op("Concat", *parts, axis=1))
    cut, mapped = [], Affine.map
    monkeypatch.setattr(Affine, "map", lambda *args: cut.append(args) or mapped(*args))
    assert len(onnx_bnfold.plan(net.model(net.op("Sigmoid", whole))).kept) == 1
    assert len(cut) < COUNT


def test_a_sum_of_many_has_few_changes_of_its_own(monkeypatch):
    """A shift may go to any one operand; all else is the same in all proposals."""
    net = Net(("N", 4, 4, 4))
    total = net.op("Sum", *(net.conv("x", 4) for _ in range(COUNT)))
    made, of = [], Affine.map
    monkeypatch.setattr(Affine, "map", lambda *args: made.append(args) or of(*args))
    variants, init = [], Variant.__init__

    def counted(self, base, own, **more):
        variants.append(own)
        init(self, base, own, **more)

    monkeypatch.setattr(Variant, "__init__", counted)
    assert not onnx_bnfold.plan(net.model(net.op("Relu", net.bn(total)))).kept
    assert variants
    assert max(map(len, variants)) == 1
    assert len(made) <= 6 * COUNT


def test_a_variant_is_its_base_with_what_is_its_own():
    one, other = Affine.identity(1), Affine.of(np.ones(1), np.ones(1))
    variant = Variant({0: one, 1: one}, {1: other, -1: other})
    assert dict(variant) == dict(variant.items()) == {0: one, 1: other, -1: other}
    assert [*variant] == [0, 1, -1]
    assert len(variant) == 3


@pytest.mark.parametrize("seed", range(10))
def test_ports_by_those_that_stand_for_what_they_carry(seed):
    """Kept up to date as groups are joined, in any order, they are those that are found anew."""
    net, choose = Net(("N", 4, 4, 4)), random.Random(seed)
    names = ["x"]
    for _ in range(12):
        names.append(net.bn(choose.choice(names)))
    net.input("other", ["N"], TensorProto.FLOAT)
    graph = graphs_of(net.model(names[-1]))[0]
    groups = Groups(graph)
    keys = {0: (3, 1)} | {port: choose.choice(names) for port in range(1, 9)}
    carried = Carried(groups, keys)
    nodes = [i for i, op in enumerate(graph.ops) if op == "BatchNormalization"]
    choose.shuffle(nodes)
    for index in nodes:
        groups.join(index, graph.reads[index][0], graph.writes[index][0])
        if choose.random() < 0.5:
            found = {root: sorted(ports) for root, ports in carried.ports.items()}
            anew = Carried(groups, keys).ports
            assert found == {root: sorted(ports) for root, ports in anew.items()}
