"""Groups: a BN that changes nothing makes two tensors one, unless both have to keep their names."""

import numpy as np
import pytest
from graphs import IMAGE, Net
from onnx import TensorProto
from support import fold_checked, ops

from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.planning.merged_tensors import Groups

CHANNELS = 4


def identity(net, x):
    """A BN that changes nothing."""
    one, zero = net.const(np.ones(CHANNELS)), net.const(np.zeros(CHANNELS))
    return net.op("BatchNormalization", x, one, zero, zero, one, epsilon=0.0)


def read_by_branches(net, name):
    """An If whose branches read a tensor."""
    bodies = {}
    for key in ("then_branch", "else_branch"):
        inner = Net(prefix=f"{key}_{name}_")
        bodies[key] = inner.graph(inner.op("Neg", name), name=f"{key}_{name}")
    return net.op("If", net.input(f"is_{name}", [], TensorProto.BOOL), **bodies)


def used(net, name, use):
    """Use a tensor; return what of it is an output of the graph."""
    return {
        "output": lambda: name,
        "branches": lambda: read_by_branches(net, name),
        "node": lambda: net.op("Sigmoid", name),
    }[use]()


@pytest.mark.parametrize("back", ["output", "branches"])
@pytest.mark.parametrize("front", ["output", "branches", "graph input"])
def test_one_tensor_cannot_have_two_names_that_are_known_elsewhere(front, back):
    net = Net(IMAGE)
    x = "x" if front == "graph input" else net.conv("x", CHANNELS)
    y = identity(net, x)
    outputs = [] if front == "graph input" else [used(net, x, front)]
    fold_checked(net.model(*outputs, used(net, y, back)), kept=1)


@pytest.mark.parametrize(
    ("front", "back"), [("output", "node"), ("node", "output"), ("branches", "node")]
)
def test_one_tensor_has_the_name_that_is_known_elsewhere(front, back):
    net = Net(IMAGE)
    x = net.conv("x", CHANNELS)
    y = identity(net, x)
    folded, _ = fold_checked(net.model(used(net, x, front), used(net, y, back)))
    assert "BatchNormalization" not in ops(folded)


def test_two_in_a_row_between_outputs():
    """The first can go; then the name of what the second reads is known elsewhere, too."""
    net = Net(IMAGE)
    x = net.conv("x", CHANNELS)
    fold_checked(net.model(x, identity(net, identity(net, x))), kept=1)


def changed(rng):
    """A change of a tensor of four axes."""
    shape = (1, CHANNELS, 1, 1)
    return Affine.of(rng.uniform(0.5, 2, shape), rng.standard_normal(shape))


@pytest.mark.parametrize("position", range(3))
def test_a_tensor_that_nobody_sees_is_found_where_it_is_as_it_was(position, rng):
    groups = Groups(Net(IMAGE).state("x").graph)
    for number in range(3):
        groups.lose("t", None if number == 1 else changed(rng))
        groups.change("t", changed(rng))
    totals = [total for _, total in groups.lost("t")]
    back = totals[position].inverse()
    assert [total.then(back).is_identity for total in totals] == [n == position for n in range(3)]
    assert groups.may_be_unchanged("t", back)


def test_of_a_channel_that_was_constant_one_element_says_nothing():
    """Its scale is set to another where it gets too large."""
    groups = Groups(Net(IMAGE).state("x").graph)
    zero = np.zeros((1,) * 4)
    groups.lose("t", Affine(zero + 2.0**-500, zero))
    groups.change("t", Affine(zero + 2.0**300, zero))
    assert groups.may_be_unchanged("t", Affine(zero + 2.0**150, zero))


def test_of_those_that_nobody_sees_none_is_composed_that_is_far_from_what_it_was(rng, monkeypatch):
    groups = Groups(Net(IMAGE).state("x").graph)
    for _ in range(20):
        groups.lose("t", changed(rng))
    compositions = []
    monkeypatch.setattr(Affine, "then", lambda *changes: compositions.append(changes))
    assert not groups.may_be_unchanged("t", changed(rng))
    assert not compositions
