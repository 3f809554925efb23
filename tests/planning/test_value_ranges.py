"""Ranges of tensors, as the statistics of norms speak of them and operators carry them on."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import Net

from onnx_bnfold.planning.value_ranges import from_statistics


def norm(net: Net, mean: list[float], deviation: list[float]) -> str:
    """What comes out has this mean and deviation per channel."""
    values = deviation, mean, np.zeros(len(mean)), np.ones(len(mean))
    constants = [net.const(np.array(value, float)) for value in values]
    return net.op("BatchNormalization", "x", *constants, epsilon=0.0)


def ranges_of(net: Net, output: str):
    return from_statistics(net.state(output))


def test_behind_a_relu():
    net = Net(("N", 3, 2, 2))
    y = net.relu(norm(net, [-2, 0, 10], [0.25, 0.5, 1]))
    found = ranges_of(net, y)[y]
    np.testing.assert_array_equal([found.low, found.high], [[0, 0, 6], [0, 2, 14]])
    np.testing.assert_array_equal(found.power, [0, 0.25 / 2, 101])


def test_a_channel_is_repeated_for_its_positions():
    net = Net(("N", 2, 1, 3))
    y = net.op("Flatten", norm(net, [0, 10], [0.5, 1]))
    found = ranges_of(net, y)[y]
    assert found.rank == 2
    np.testing.assert_array_equal([found.low, found.high], np.repeat([[-2, 6], [2, 14]], 3, axis=1))


@pytest.mark.parametrize("shape", [(0, 2, 3), (1, 6, 2), (4, -1), (-1, 2), (-1, 3)], ids=str)
def test_behind_a_reshape_that_does_not_flatten_nothing_is_known(shape):
    net = Net((2, 2, 1, 3))
    y = net.op("Reshape", norm(net, [0, 10], [0.5, 1]), net.ints(*shape))
    assert y not in ranges_of(net, y)
