"""Claims: pairs of BNs that need other shifts of one tensor, whatever else goes."""

import numpy as np
import pytest
from graphs import IMAGE, Net

from onnx_bnfold.planning.claims import Claims


def bn(net, t, shift):
    """A BN that adds a number to each channel."""
    channels = net.shape(t)[1]
    ones, zeros = net.const(np.ones(channels)), net.const(np.zeros(channels))
    bias = net.const(np.full(channels, shift))
    return net.op("BatchNormalization", t, ones, bias, zeros, ones, epsilon=0.0)


def clashes(net, *outputs, passed=frozenset()):
    state = net.state(*outputs)
    bns = [i for i, op in enumerate(state.graph.ops) if op == "BatchNormalization"]
    ordinals = {index: position for position, index in enumerate(bns)}
    found = Claims(state, passed).clashes(bns)
    return sorted(sorted(ordinals[i] for i in pair) for pair in found)


def of_features(net, *shifts):
    """BNs and ReLUs over the first one, two, … of some features."""
    features = [net.conv("x", 3) for _ in shifts]
    for number, shift in enumerate(shifts, 1):
        t = net.op("Concat", *features[:number], axis=1) if number > 1 else features[0]
        yield net.conv(net.relu(bn(net, t, shift)), 2)


@pytest.mark.parametrize(
    ("shifts", "expected"),
    [
        ((1.0, 2.0, 3.0), [[0, 1], [0, 2], [1, 2]]),
        ((1.0, 1.0, 2.0), [[0, 2], [1, 2]]),
        ((1.0, 1.0, 1.0), []),
        ((0.0, 1.0, 0.0), [[0, 1], [1, 2]]),
    ],
    ids=str,
)
def test_bns_clash_that_need_other_shifts(shifts, expected):
    net = Net(IMAGE)
    assert clashes(net, *of_features(net, *shifts)) == expected


def test_a_shift_counts_in_units_of_what_it_is_added_to():
    """y = 2 * x + 2 needs the shift that y = x + 1 needs."""
    net = Net(IMAGE)
    t, ones, zeros = net.conv("x", 3), net.const(np.ones(3)), net.const(np.zeros(3))
    both = [net.const(np.full(3, 2.0))] * 2
    twice = net.op("BatchNormalization", t, *both, zeros, ones, epsilon=0.0)
    outputs = [net.conv(net.relu(y), 2) for y in (twice, bn(net, t, 1.0))]
    assert clashes(net, *outputs) == []


@pytest.mark.parametrize("behind", ["nothing", "layer", "sigmoid", "clip that cuts nothing"])
def test_a_bn_whose_shift_may_go_downstream_claims_nothing(behind):
    net = Net(IMAGE)
    t = net.conv("x", 3)
    outputs = []
    for shift in (1.0, 2.0):
        y = bn(net, t, shift)
        outputs.append(
            {
                "nothing": lambda y=y: y,
                "layer": lambda y=y: net.conv(y, 2),
                "sigmoid": lambda y=y: net.op("Sigmoid", y),
                "clip that cuts nothing": lambda y=y: net.op("Clip", y),
            }[behind]()
        )
    assert clashes(net, *outputs) == []


def test_a_clamp_that_may_get_a_constant_passes_a_shift():
    net = Net(IMAGE)
    outputs = [*of_features(net, 1.0, 2.0)]
    relus = {i for i, op in enumerate(net.state(*outputs).graph.ops) if op == "Relu"}
    assert clashes(net, *outputs) == [[0, 1]]
    assert clashes(net, *outputs, passed=relus) == []


def test_a_channel_without_a_scale_claims_nothing():
    net = Net(IMAGE)
    t, ones, zeros = net.conv("x", 3), net.const(np.ones(3)), net.const(np.zeros(3))
    dead = net.op("BatchNormalization", t, zeros, ones, zeros, ones, epsilon=0.0)
    outputs = [net.conv(net.relu(y), 2) for y in (dead, bn(net, t, 1.0))]
    assert clashes(net, *outputs) == []


@pytest.mark.parametrize(
    ("move", "is_followed"),
    [
        (lambda n, t: n.op("Transpose", t, perm=[0, 1, 3, 2]), True),
        (lambda n, t: n.op("Identity", t), True),
        (lambda n, t: n.op("Add", t, n.conv("x", 3)), False),
        (lambda n, t: n.op("Slice", t, n.ints(0), n.ints(2), n.ints(1)), False),
    ],
    ids=["transposed", "copied", "added", "cut"],
)
def test_a_claim_is_followed_to_what_is_handed_on_whole(move, is_followed):
    """In front of a sum the shift may come from either operand; beside a part others go along."""
    net = Net(IMAGE)
    t = net.conv("x", 3)
    outputs = [net.conv(net.relu(bn(net, y, s)), 2) for y, s in ((t, 1.0), (move(net, t), 2.0))]
    assert clashes(net, *outputs) == [[0, 1]] * is_followed
