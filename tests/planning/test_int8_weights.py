"""What weights lose to int8 that take the scales of a BatchNormalization in front of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import Net
from int8_models import int8_db
from onnx import ModelProto

import onnx_bnfold
from onnx_bnfold import Options
from onnx_bnfold.reasons import Reason

INT8 = Options(profile="int8")
CHANNELS = 16


def normalised(sizes: np.ndarray, gamma: np.ndarray, *, behind: str) -> ModelProto:
    """A BN of the input, whose channels have these sizes: only the layer behind can take it."""
    net = Net(("N", CHANNELS, 2, 2))
    zeros = np.zeros(CHANNELS)
    values = gamma, zeros, zeros, sizes**2
    y = net.op("BatchNormalization", "x", *map(net.const, values), epsilon=0.0)
    if behind == "Conv":
        return net.model(net.conv(y, 8))
    weight = net.random(4 * CHANNELS, 8)
    return net.model(net.op("MatMul", net.op("Flatten", y), weight))


@pytest.mark.parametrize(
    ("small", "count", "gamma", "goes"),
    [
        (0.05, 1, 1.0, False),  # the weights of one channel would dwarf all others
        (0.02, 1, 1.0, False),
        (0.05, 1, 0.05, True),  # the tensor behind is as uneven as that in front
        (0.3, 1, 1.0, True),
        (0.05, 15, 1.0, True),  # what the tensor in front loses is all there is to lose
    ],
)
@pytest.mark.parametrize("behind", ["Conv", "MatMul"])
def test_weights_do_not_take_what_costs_more_than_it_spares(
    small, count, gamma, goes, behind, tmp_path: Path
):
    sizes = np.repeat([small, 1.0], [count, CHANNELS - count])
    model = normalised(sizes, np.where(sizes < 1, gamma, 1.0), behind=behind)
    folded, report = onnx_bnfold.fold(model)
    _, other = onnx_bnfold.fold(model, INT8)
    assert report.folded
    assert bool(other.folded) == goes
    for record in other.kept:
        assert Reason.PRECISION in {refusal.reason for _, refusal in record.tried}
    rng = np.random.default_rng(0)
    shape = 32, CHANNELS, 2, 2
    scale = sizes.reshape(-1, 1, 1).astype(np.float32)
    feeds = [{"x": scale * rng.standard_normal(shape, np.float32)} for _ in range(8)]
    before, after = int8_db(feeds, [model, folded], tmp_path)
    assert (before - after > 1.5) == (not goes)
