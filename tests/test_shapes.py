"""Shapes: what is known of a tensor where neither the file nor inference says it."""

import numpy as np
import pytest
from graphs import Net
from support import fold_checked, ops

WINDOW = {"kernel_shape": [2, 2]}
FEEDS = {"x": np.random.default_rng(0).standard_normal((2, 4, 3, 3)).astype(np.float32)}


@pytest.mark.parametrize(
    ("op", "attributes"), [("AveragePool", WINDOW), ("MaxPool", WINDOW), ("Identity", {})]
)
@pytest.mark.parametrize("side", ["behind", "in front"])
def test_the_rank_that_a_layer_fixes_passes_an_operator(op, attributes, side):
    """The input has no shape: how many axes there are, only the layer's weight says."""
    net = Net(None)
    t = net.input("x", None)
    if side == "behind":
        t = net.op(op, net.conv(t, 4, channels=4, rank=4), **attributes)
        y = net.bn(t, channels=4, signs="positive")
    else:
        t = net.op(op, net.bn(t, channels=4, signs="positive"), **attributes)
        y = net.conv(t, 4, channels=4, rank=4)
    folded, _ = fold_checked(net.model(y), feeds=FEEDS)
    assert "BatchNormalization" not in ops(folded)
