"""How large the values of a tensor are, as the constants around it say."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from graphs import Net

from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.planning import sizes as module
from onnx_bnfold.planning.sizes import sizes, told, told_of_result, usual_sizes


@pytest.mark.parametrize("side", ["in front", "behind"])
def test_the_size_goes_where_a_movement_puts_it(side):
    """Of the norm, channels lie on axis 1; of the tensor that is asked for, on axis 2."""
    net = Net(("N", 4, 3) if side == "in front" else ("N", 3, 4))
    zero, one, deviation = np.zeros(3), np.ones(3), np.array([1.0, 2, 3])

    def norm(x: str, scale, variance) -> str:
        constants = [net.const(values) for values in (scale, zero, zero, variance)]
        return net.op("BatchNormalization", x, *constants, epsilon=0.0)

    x = net.op("Sigmoid", "x")
    if side == "in front":
        y = norm(net.op("Transpose", x, perm=[0, 2, 1]), one, deviation**2)
    else:
        x = y = net.op("Transpose", norm(x, deviation, one), perm=[0, 2, 1])
    found = sizes(net.state(y), x)
    assert found
    for spread in found:
        np.testing.assert_array_equal(spread.scale, deviation.reshape(1, 1, 3))
        assert not spread.has_shift


def test_a_norm_that_stays_says_it_through_one_that_goes():
    """The first has learned a deviation of 3, which it doubles; the second one of 10."""
    net = Net(("N", 1, 3))
    zero = net.const(np.zeros(1))
    x = y = net.op("Sigmoid", "x")
    for scale, variance in ((6.0, 9.0), (1.0, 100.0)):
        factor, spread = (net.const(np.array([value])) for value in (scale, variance))
        y = net.op("BatchNormalization", y, factor, zero, zero, spread, epsilon=0.0)
    state = net.state(y)
    state.removed.add(1)
    assert [spread.scale.item() for spread in sizes(state, x)] == [5, 5, 3, 3]


def test_a_norm_that_stays_is_no_constant_behind_what_is_normalised():
    """It says itself how large its output is."""
    net = Net(("N", 4, 3))
    x = net.op("Sub", net.op("Sigmoid", "x"), net.random(4, 1))
    x = net.op("Mul", x, net.random(4, 1))
    y = net.bn(x)
    state = net.state(y)
    assert usual_sizes(state, x)
    assert not usual_sizes(state, y)
    state.removed.add(3)
    assert usual_sizes(state, y)


def image(net: Net, deviation: float, mean: float) -> str:
    """A tensor of which a BatchNormalization says how large it is."""
    values = (np.array([each]) for each in (deviation, mean, 0.0, 1.0))
    norm = map(net.const, values)
    return net.op("BatchNormalization", net.op("Sigmoid", "x"), *norm, epsilon=0.0)


@pytest.mark.parametrize(("op", "divisor"), [("Sum", 1), ("Mean", 3)])
def test_a_mean_is_smaller_than_a_sum(op, divisor):
    net = Net(("N", 1, 3))
    y = net.op(op, image(net, 2.0, 1.0), image(net, 3.0, -2.0), image(net, 6.0, 0.0))
    statistics, *_ = sizes(net.state(y), y)
    np.testing.assert_allclose(statistics.scale.item(), 7 / divisor)
    np.testing.assert_allclose(statistics.shift.item(), 3 / divisor)


@pytest.mark.parametrize(("op", "factor"), [("Sum", 1), ("Mean", 2)])
def test_a_part_is_larger_than_a_mean(op, factor):
    net = Net(("N", 1, 3))
    x = net.op("Sigmoid", "x")
    total = net.op(op, x, net.op("Tanh", "x"))
    values = (np.array([each]) for each in (1.0, 0.0, 5.0, 9.0))
    y = net.op("BatchNormalization", total, *map(net.const, values), epsilon=0.0)
    statistics, *_ = sizes(net.state(y), x)
    assert (statistics.scale.item(), statistics.shift.item()) == (3 * factor, 5 * factor)


def test_an_answer_is_not_of_the_size_of_what_it_is_about():
    net = Net(("N", 4, 3))
    ones, zeros = net.const(np.ones(4)), net.const(np.zeros(4))
    x = net.op("BatchNormalization", "x", ones, zeros, zeros, ones, epsilon=0.0)
    y = net.op("Softmax", x)
    state = net.state(y)
    assert sizes(state, x)
    assert not sizes(state, y)


def test_what_is_told_holds_for_the_tensors_as_they_are_left():
    """A norm has learned a mean of 4 and a deviation of 3; it goes into what is in front."""
    net = Net(("N", 1, 3))
    given = [net.const(np.array([value])) for value in (6.0, 1.0, 4.0, 9.0)]
    x = net.op("Sigmoid", "x")
    y = net.op("BatchNormalization", x, *given, epsilon=0.0)
    state = net.state(net.op("Tanh", y))
    said = told(state, 1)
    assert [(s.scale.item(), s.shift.item()) for s in said[x]] == [(3, 4), (3, 0)]
    assert [(s.scale.item(), s.shift.item()) for s in said[y]] == [(6, 1), (6, -7)]
    assert not told_of_result(state)
    ones = np.ones((1, 1, 1))
    state.total[x] = Affine.of(2 * ones, -7 * ones)
    state.remove(1)
    left = told_of_result(state)
    assert left.keys() == {x, y}
    for spreads in left.values():
        assert [(s.scale.item(), s.shift.item()) for s in spreads] == [(6, 1), (6, -7)]


def test_what_was_told_counts_where_no_norm_says_more():
    net = Net(("N", 1, 3))
    x = net.op("Sigmoid", "x")
    state = net.state(net.op("Mul", x, net.const(np.full((1, 1), 2.0))))
    assert not sizes(state, x)
    y = state.graph.writes[1][0]
    state.sizes.clear()
    state.told = {y: (Affine.of(np.full((1, 1, 1), 10.0), np.zeros((1, 1, 1))),)}
    assert [spread.scale.item() for spread in sizes(state, x)] == [5]


def test_a_long_row_of_sums_is_looked_at_as_far_as_a_row_of_constants(monkeypatch):
    """It was as long as Python lets functions call one another, and then one more failed."""
    looked = []
    net = Net(("N", 4, 3))
    t = net.op("Sigmoid", "x")
    for _ in range(sys.getrecursionlimit()):
        t = net.op("Add", t, net.op("Sigmoid", "x"))
    monkeypatch.setattr(module, "_of_bn", lambda _, name: looked.append(name) or ())
    state = net.state(t)
    state.told = {"elsewhere": ()}
    assert sizes(state, t) == ()
    assert 0 < len(looked) < 100


def test_where_no_norm_says_anything_none_is_looked_for():
    net = Net(("N", 4, 3))
    y = net.op("Mul", net.op("Sigmoid", "x"), net.random(4, 1))
    state = net.state(net.op("Sigmoid", y))
    state.graph.producer = {}  # of which any look would ask
    assert sizes(state, y) == ()
    assert not state.sizes
