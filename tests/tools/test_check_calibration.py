"""A small share of the campaign that looks for false alarms of the check."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from onnx_bnfold.check import CheckOptions
from tools.check_calibration import KINDS, Network, verdicts


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_right_folds_and_the_original_itself_hold(tmp_path, kind, dtype, seed):
    path = tmp_path / "model.onnx"
    onnx.save(KINDS[kind](np.random.default_rng([seed, 16]), dtype), path)
    for against, failure, _, _ in verdicts(path, CheckOptions(seed=seed)):
        assert not failure, against


@pytest.mark.parametrize("seed", range(5))
def test_one_layer_on_a_small_map(tmp_path, seed):
    # 64 slices of 64 elements, whose errors are those of one factor per channel.
    net = Network(np.random.default_rng(seed), np.float32)
    net.add("Conv", net.weight(64, 64, 3, 3), pads=[1] * 4)
    net.add_norm(64)
    path = tmp_path / "model.onnx"
    onnx.save(net.finish(("N", 64, 4, 4)), path)
    for against, failure, _, draws in verdicts(path, replace(CheckOptions(), seed=seed)):
        assert not failure, against
        assert draws == 4 or against == "rounded anew"
