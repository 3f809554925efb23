"""The networks for sound have the layers of their packages, and fold."""

import numpy as np
import pytest

import onnx_bnfold
from onnx_bnfold import Options

torch = pytest.importorskip("torch")
pytest.importorskip("PIL.Image")
audio = pytest.importorskip("tools.trained_zoo.audio")
exported = pytest.importorskip("tools.trained_zoo.public").exported


@pytest.mark.parametrize(
    ("network", "shape", "norms", "left"),
    [
        (audio.MusicVgg, (187, 96), 6, 6),
        (audio.Musicnn, (187, 96), 11, 9),
        (lambda: audio.Bats(8, 32, 3), (1, 32, 32), 9, 6),
    ],
)
def test_a_network_is_exported_with_its_norms(network, shape, norms, left):
    made = network().eval()
    for norm in made.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(norm.weight)
            torch.nn.init.normal_(norm.bias)
    model = exported(made, *shape)
    report = onnx_bnfold.plan(model)
    assert len(report.norms) == norms
    assert len(report.left) <= left
    assert not onnx_bnfold.plan(model, Options(bn_free=True)).left


def test_the_weights_of_a_checkpoint_go_where_they_are_named(monkeypatch):
    network = audio.MusicVgg()
    stored = {}
    for number, norm in enumerate(network.norms):
        name = f"batch_normalization_{number}" if number else "batch_normalization"
        for part in ("gamma", "beta", "moving_mean", "moving_variance"):
            stored[f"{name}/{part}"] = np.full(norm.num_features, number + 0.5, np.float32)
    for number, conv in enumerate(network.convs, 1):
        stored[f"{number}CNN/kernel"] = np.full((3, 3, conv.in_channels, 128), number, np.float32)
        stored[f"{number}CNN/bias"] = np.zeros(128, np.float32)
    stored |= {
        "dense/kernel": np.ones((256, 50), np.float32),
        "dense/bias": np.ones(50, np.float32),
    }
    monkeypatch.setattr(audio, "member", lambda package, name: name)
    monkeypatch.setattr(audio, "checkpoint", lambda index, data: stored)
    loaded = audio.music_vgg()
    assert [conv.weight.mean().item() for conv in loaded.convs] == [1, 2, 3, 4, 5]
    assert float(loaded.norms[3].running_var[0]) == 3.5
    assert not loaded.training
