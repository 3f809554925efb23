"""A CausalConvWithState is a depthwise Conv, whose data are in its state, too."""

from __future__ import annotations

import pytest
from graphs import Net
from support import fold_checked, needs_kernels_as_read, ops, reasons

from onnx_bnfold import Reason

pytestmark = needs_kernels_as_read

SHAPE = (2, 4, 6)


def line() -> Net:
    return Net(SHAPE, opset=27)


def causal(net: Net, x: str, *others: str, taps: int = 3, **attributes) -> tuple[str, str]:
    """The output and the state of one with a weight of so many taps."""
    weight = net.random(4, 1, taps)
    return net.op("CausalConvWithState", x, weight, *others, outputs=2, **attributes)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("taps", [1, 3])
def test_a_norm_behind_goes_into_it(taps, bias):
    net = line()
    y, _ = causal(net, "x", *[net.random(4)] * bias, taps=taps, activation="none")
    folded, _ = fold_checked(net.model(net.bn(y)))
    assert ops(folded) == ["CausalConvWithState"]
    assert len(folded.graph.node[0].input) == 3


def test_with_a_state_a_norm_behind_goes_into_it():
    net = line()
    y, state = causal(net, "x", net.random(4), net.input("past", (2, 4, 2)))
    folded, _ = fold_checked(net.model(net.bn(y), state))
    assert ops(folded) == ["CausalConvWithState"]


@pytest.mark.parametrize(("taps", "shift"), [(1, True), (3, False)])
def test_a_norm_in_front_goes_into_it(taps, shift):
    net = line()
    y, _ = causal(net, net.bn("x", shift=shift), taps=taps)
    folded, _ = fold_checked(net.model(y))
    assert ops(folded) == ["CausalConvWithState"]


def test_zeros_in_front_do_not_shift():
    net = line()
    y, _ = causal(net, net.bn("x"))
    _, report = fold_checked(net.model(y), kept=1)
    assert Reason.PADDING in reasons(report)[0]


@pytest.mark.parametrize("past", [False, True], ids=["read", "given"])
def test_data_that_are_in_a_state_stay(past):
    net = line()
    others = ["", net.input("past", (2, 4, 2))] if past else []
    y, state = causal(net, net.bn("x", shift=False), *others)
    _, report = fold_checked(net.model(y, *[state] * (not past)), kept=1)
    assert Reason.OPAQUE in reasons(report)[0]


@pytest.mark.parametrize("front", [False, True])
def test_an_activation_takes_nothing(front):
    net = line()
    x = net.bn("x", shift=False) if front else "x"
    y, _ = causal(net, x, activation="silu")
    _, report = fold_checked(net.model(y if front else net.bn(y, channels=4)), kept=1)
    assert Reason.OPAQUE in reasons(report)[0]
