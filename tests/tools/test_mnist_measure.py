import math

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import onnx_bnfold
from onnx_bnfold.errors import ModelError, UsageError
from tools.mnist import measure
from tools.mnist.network import TinyCnn, to_onnx


@pytest.fixture(scope="module")
def pair() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    torch.manual_seed(0)
    network = TinyCnn()
    for norm in (network.bn, network.bn_1):
        torch.nn.init.uniform_(norm.running_var, 0.001, 2)
        torch.nn.init.normal_(norm.running_mean)
    model = to_onnx(network)
    return model, onnx_bnfold.fold(model)[0]


def test_accuracy_counts_the_largest_score():
    scores = np.array([[1, 2], [2, 1], [0, 1], [1, 0]], np.float32)
    assert measure.accuracy(scores, np.array([1, 0, 0, 0], np.uint8)) == 0.75


def test_compare():
    before = np.array([[4, 1], [-8, 2]], np.float32)
    after = np.array([[4, 1.5], [-8, -9]], np.float32)
    assert measure.compare(before, after) == measure.Comparison(1, 11.0, 11 / 8)


def test_folded_weights_follow_the_formula(pair):
    assert measure.deviation_from_formula(*pair) < 1e-6


@pytest.mark.parametrize("operator", ["Conv", "Gemm"])
@pytest.mark.parametrize("position", [1, 2], ids=["weight", "bias"])
def test_other_weights_are_seen(pair, operator, position):
    model, folded = pair
    changed = onnx.ModelProto()
    changed.CopyFrom(folded)
    node = next(node for node in changed.graph.node if node.op_type == operator)
    tensor = next(t for t in changed.graph.initializer if t.name == node.input[position])
    values = numpy_helper.to_array(tensor) * np.float32(1.001)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    assert measure.deviation_from_formula(model, changed) == pytest.approx(1e-3, rel=0.1)


def test_a_network_with_its_batch_norms_is_not_folded(pair):
    assert math.isinf(measure.deviation_from_formula(pair[0], pair[0]))


def test_parameters_are_listed_as_they_are_read(pair):
    shapes = {name: value.shape for name, value in measure.parameters(pair[0]).items()}
    assert len(shapes) == 14
    assert list(shapes)[:2] == ["conv1.weight", "conv1.bias"]
    assert shapes["bn_1.running_var"] == (1000,)


def test_logits_of_a_missing_file(tmp_path, rng):
    with pytest.raises(UsageError, match=r"nothing\.onnx"):
        measure.logits(tmp_path / "nothing.onnx", np.zeros((1, 1, 28, 28), np.uint8))


def test_logits_of_no_model(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"broken\.onnx"):
        measure.logits(path, np.zeros((1, 1, 28, 28), np.uint8))
