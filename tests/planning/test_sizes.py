"""How large the values of a tensor are, as the constants around it say."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import Net

from onnx_bnfold.planning.sizes import sizes


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
