"""Groups: a BN that changes nothing makes two tensors one, unless both have to keep their names."""

import numpy as np
import pytest
from graphs import IMAGE, Net
from onnx import TensorProto
from support import fold_checked, ops

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
