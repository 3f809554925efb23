"""Networks are trained, exported with their BNs, folded and checked."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")

from onnx_bnfold.check import CheckOptions
from tools.check_calibration import verdicts
from tools.mnist.data import Part
from tools.trained_zoo.networks import NETWORKS
from tools.trained_zoo.train import export, trained


def bars(count: int) -> Part:
    """Pictures with a bar whose row is the label."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, count).astype(np.uint8)
    images = rng.integers(0, 60, (count, 1, 28, 28)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[0, 2 * label + 2 : 2 * label + 5] = 255
    return Part(images, labels)


@pytest.mark.parametrize("name", NETWORKS)
def test_trained_networks_hold(tmp_path, name):
    part = bars(256)
    network = trained(name, part, steps=12, seed=0)
    path, inputs = tmp_path / "net.onnx", tmp_path / "x.npy"
    export(network, path)
    np.save(inputs, part.images[:16].astype(np.float32) / 255)
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    assert "BatchNormalization" in nodes
    for against, failure, _, _ in verdicts(path, replace(CheckOptions(), inputs=inputs)):
        assert not failure, against
