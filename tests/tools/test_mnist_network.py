import math

import numpy as np
import onnx
import pytest
import torch

from tools.mnist.measure import logits
from tools.mnist.network import TinyCnn, erase_batch_norm, to_onnx

SHAPES = {
    "conv1.weight": (20, 1, 5, 5),
    "conv1.bias": (20,),
    "bn.weight": (20,),
    "bn.bias": (20,),
    "fc1.weight": (1000, 15680),
    "fc1.bias": (1000,),
    "bn_1.weight": (1000,),
    "bn_1.bias": (1000,),
    "fc2.weight": (10, 1000),
    "fc2.bias": (10,),
}


@pytest.fixture(scope="module")
def network() -> TinyCnn:
    """An untrained network whose BNs are no identities."""
    torch.manual_seed(0)
    result = TinyCnn()
    for norm in (result.bn, result.bn_1):
        for values in (norm.weight, norm.running_var):
            torch.nn.init.uniform_(values, 0.5, 2)
        for values in (norm.bias, norm.running_mean):
            torch.nn.init.normal_(values)
    return result.eval()


@pytest.fixture(scope="module")
def exported(network) -> onnx.ModelProto:
    return to_onnx(network)


@pytest.fixture
def images(rng) -> np.ndarray:
    return rng.integers(256, size=(3, 1, 28, 28), dtype=np.uint8)


def test_parameters_are_the_seeds(network):
    assert {name: tuple(p.shape) for name, p in network.named_parameters()} == SHAPES
    assert sum(p.numel() for p in network.parameters()) == 15_693_570


@pytest.mark.parametrize(
    ("layer", "fans"), [("conv1", 25 + 500), ("fc1", 15_680 + 1_000), ("fc2", 1_000 + 10)]
)
def test_initial_values_are_the_seeds(layer, fans):
    torch.manual_seed(0)
    fresh = getattr(TinyCnn(), layer)
    assert fresh.weight.std().item() == pytest.approx(math.sqrt(2 / fans), rel=0.1)
    assert torch.all(fresh.bias == torch.tensor(0.1))


def test_batch_norms_have_the_seeds_settings():
    network = TinyCnn()
    assert {(n.eps, n.momentum, n.affine) for n in (network.bn, network.bn_1)} == {
        (0.001, 0.01, True)
    }


def test_column_means_do_not_matter(network):
    pictures = torch.rand(3, 1, 28, 28)
    shifted = pictures + torch.rand(3, 1, 1, 28)
    torch.testing.assert_close(network(shifted), network(pictures), rtol=1e-3, atol=1e-4)


def test_export_keeps_the_batch_norms(exported):
    onnx.checker.check_model(exported, full_check=True)
    assert [node.op_type for node in exported.graph.node] == [
        "ReduceMean",
        "Sub",
        "Conv",
        "BatchNormalization",
        "Relu",
        "Flatten",
        "Gemm",
        "BatchNormalization",
        "Relu",
        "Gemm",
    ]


def test_export_has_a_dynamic_batch(exported, network, images):
    assert exported.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    expected = network(torch.from_numpy(images) / 255).detach().numpy()
    for count in (1, 3):
        got = logits(exported, images[:count])
        assert got.shape == (count, 10)
        np.testing.assert_allclose(got, expected[:count], rtol=1e-4, atol=1e-4)


def test_erasing_keeps_the_other_weights(network):
    bare = erase_batch_norm(network)
    assert not [name for name, _ in bare.named_parameters() if name.startswith("bn")]
    for name, value in bare.named_parameters():
        assert torch.equal(value, network.get_parameter(name))
