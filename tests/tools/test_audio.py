"""The networks for sound have the layers of their packages, and fold."""

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import onnx_bnfold
from onnx_bnfold import Options
from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.quantize import quantised, snr
from onnx_bnfold.check.sessions import Session

torch = pytest.importorskip("torch")
pytest.importorskip("PIL.Image")
audio = pytest.importorskip("tools.trained_zoo.audio")
public = pytest.importorskip("tools.trained_zoo.public")


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
    model = public.exported(made, *shape)
    report = onnx_bnfold.plan(model)
    assert len(report.norms) == norms
    assert len(report.left) <= left
    assert not onnx_bnfold.plan(model, Options(bn_free=True)).left


def test_the_scales_of_a_resize_are_constants(tmp_path):
    """They are 1, 1, 2, 2 in int8, too: else onnxruntime does not run it."""
    model = public.exported(audio.Bats(8, 32, 3).eval(), 1, 32, 32)
    before = ReferenceEvaluator(model)
    made = public.with_joined_constants(onnx.load_from_string(model.SerializeToString()))
    path, (x,) = tmp_path / "bats.onnx", np.random.default_rng(0).random((1, 4, 1, 32, 32), "f4")
    onnx.save(made, path)
    writers = {o: node.op_type for node in made.graph.node for o in node.output}
    resizes = [node for node in made.graph.node if node.op_type == "Resize"]
    assert [writers[node.input[-1]] for node in resizes] == ["Constant"] * 3
    (reference,) = before.run(None, {"x": x})
    int8 = Session(quantised(CheckedModel(path, "bats"), tmp_path / "int8", [{"x": x}]))
    assert snr(reference, int8.run({"x": x})["y"]) > 10


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
