"""What takes a change and hands nothing of it on: its answer is the same with and without.

`x -> BN -> operator -> graph output`: nothing but the operator can take what the BN does.
"""

from __future__ import annotations

import numpy as np
import pytest
from graphs import Net
from support import fold_checked, ops, reasons

from onnx_bnfold import Reason

ROW = ("N", 4, 6)
ORDERING = [
    *((op, opset, {}) for op in ("ArgMax", "ArgMin") for opset in (7, 11)),
    *((op, 17, {"axis": 2, "keepdims": 0}) for op in ("ArgMax", "ArgMin")),
    ("ArgMax", 17, {"axis": -1, "select_last_index": 1}),
    ("Hardmax", 17, {}),
    ("Hardmax", 12, {"axis": 2}),
]
SOFTMAXES = [
    (op, opset, attributes)
    for op in ("Softmax", "LogSoftmax")
    for opset, attributes in ((17, {}), (13, {"axis": 2}), (12, {"axis": -1}), (7, {"axis": 2}))
]


def by(net: Net, *gamma: float, shift=0.0, x: str = "x", mean=0.0, var=1.0) -> str:
    """A BN of given scales and shifts."""
    zero = np.zeros(len(gamma))
    values = (zero + gamma, zero + shift, zero + mean, zero + var)
    return net.op("BatchNormalization", x, *map(net.const, values), epsilon=0.0)


def outcome(net: Net, y: str, reason: Reason | None = None) -> None:
    _, report = fold_checked(net.model(y), kept=int(reason is not None))
    assert reason is None or reason in reasons(report)[0], report.lines()


@pytest.mark.parametrize(("op", "opset", "attributes"), ORDERING)
def test_the_order_of_elements(op, opset, attributes):
    net = Net((3, 4, 6), opset=opset)
    outcome(net, net.op(op, net.bn("x", signs="positive"), **attributes))


@pytest.mark.parametrize(("op", "opset", "attributes"), SOFTMAXES)
def test_a_softmax_takes_a_shift(op, opset, attributes):
    net = Net(ROW, opset=opset)
    outcome(net, net.op(op, by(net, 1, 1, 1, 1, shift=[1, -2, 3, 0.5]), **attributes))


@pytest.mark.parametrize(("op", "opset", "attributes"), [*ORDERING, *SOFTMAXES])
def test_a_negative_scale_stays(op, opset, attributes):
    net = Net((3, 4, 6), opset=opset)
    reason = Reason.OPAQUE if "Softmax" in op else Reason.NEEDS_POSITIVE_SCALE
    outcome(net, net.op(op, net.bn("x", shift=False), **attributes), reason)


@pytest.mark.parametrize(
    ("op", "opset", "attributes"),
    [("ArgMax", 17, {"axis": 1}), ("ArgMin", 17, {"axis": -2}), ("Hardmax", 17, {"axis": 1}),
     ("Hardmax", 12, {}), ("Softmax", 17, {"axis": 1}), ("LogSoftmax", 13, {"axis": -2}),
     # Before opset 13 all axes from the given one on are normalised together.
     ("Softmax", 12, {}), ("LogSoftmax", 11, {"axis": 0}), ("Softmax", 7, {"axis": 1})],
)  # fmt: skip
def test_elements_that_are_compared_must_change_alike(op, opset, attributes):
    net = Net((3, 4, 6), opset=opset)
    outcome(net, net.op(op, by(net, 1, 1, 1, 1, shift=[1, -2, 3, 0.5]), **attributes), Reason.AXES)
    net = Net((3, 4, 6), opset=opset)
    outcome(net, net.op(op, by(net, 1, 1, 1, 1, shift=0.5), **attributes))


def test_a_softmax_takes_no_scale():
    net = Net(ROW)
    outcome(net, net.op("Softmax", by(net, 2, 2, 2, 2)), Reason.OPAQUE)


@pytest.mark.parametrize("op", ["ArgMax", "Hardmax"])
def test_a_scale_of_zero_makes_all_elements_equal(op):
    net = Net((3, 4, 6))
    outcome(net, net.op(op, by(net, 1, 0, 1, 1), axis=2), Reason.PRECISION)


@pytest.mark.parametrize("op", ["ArgMax", "Softmax"])
def test_a_shift_that_dwarfs_the_values_stays(op):
    """Their last digits would be lost, by which elements differ."""
    net = Net((3, 4, 6))
    outcome(net, net.op(op, by(net, 1, 1, 1, 1, shift=1000.0, mean=1000.0), axis=2))
    net = Net((3, 4, 6))
    y = net.op(op, by(net, 1, 1, 1, 1, mean=1000.0), axis=2)
    outcome(net, y, Reason.PRECISION)


def test_a_shift_beside_values_of_unknown_size_stays():
    net = Net(ROW)
    both = net.op("Concat", by(net, 1, 1, 1, 1, shift=1.0), net.conv("x", 4), axis=2)
    outcome(net, net.op("Softmax", both), Reason.PRECISION)
    net = Net(ROW)
    model = net.model(net.op("Softmax", net.op("Add", "x", net.const(np.float32(3.0)))))
    folded, _ = fold_checked(model)
    assert ops(folded) == ops(model)


def test_what_comes_out_takes_no_change():
    net = Net(ROW)
    y = net.bn(net.op("Softmax", net.conv("x", 4)))
    _, report = fold_checked(net.model(y), kept=1)
    assert "writes an answer that no scale or shift passes" in report.lines()[0]


def test_the_report_says_what_swallows():
    net = Net((3, 4, 6))
    _, report = fold_checked(net.model(net.op("ArgMax", net.bn("x", signs="positive"), axis=2)))
    assert "into ArgMax" in report.lines()[0]
