"""The zoo: real architectures, exported to ONNX with every BatchNormalization kept.

Weights and statistics are random and seeded. Inputs are small, and VGG's classifier is narrow: what
can be folded depends on neither. torch is imported where it is used; it takes seconds.
"""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import onnx

if TYPE_CHECKING:
    import torch

EXPORTERS = ("torchscript", "dynamo")
# What the dynamo exporter wrote up to PyTorch 2.3, too: each module a local function.
FORMS = (*EXPORTERS, "functions")


@dataclass(frozen=True)
class Entry:
    """One architecture.

    Attributes:
        build: makes the network.
        shape: shape of one input, without the batch.
        norms: number of its BatchNormalizations.
        folded: how many can be removed when every gamma is positive.
        mixed: how many can be removed when gamma has mixed signs.
        quick: whether it is cheap enough for every test run.
    """

    build: Callable[[], torch.nn.Module]
    shape: tuple[int, ...]
    norms: int
    folded: int
    mixed: int
    quick: bool = False


def _torchvision(name: str, **options: Any) -> Callable[[], torch.nn.Module]:
    def build() -> torch.nn.Module:
        import torchvision

        return torchvision.models.get_model(name, weights=None, **options)

    return build


def _own(name: str, *arguments: Any) -> Callable[[], torch.nn.Module]:
    def build() -> torch.nn.Module:
        return getattr(_beside("architectures"), name)(*arguments)

    return build


def _beside(name: str) -> ModuleType:
    """Import a module; tests import this file as `zoo`, tools as `tests.zoo`."""
    return import_module(f"{__package__}.{name}".lstrip("."))


def _vgg16_bn() -> torch.nn.Module:
    import torch
    import torchvision

    network = torchvision.models.vgg16_bn(weights=None)
    network.avgpool = torch.nn.AdaptiveAvgPool2d(1)
    network.classifier = torch.nn.Linear(512, 10)
    return network


def _r3d_18() -> torch.nn.Module:
    """Build it with biases of zero: onnxscript 0.7 writes missing ones with two axes, invalidly."""
    import torch
    import torchvision

    network = torchvision.models.video.r3d_18(weights=None)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.bias = torch.nn.Parameter(torch.zeros(module.out_channels))
    return network


def _entry(
    build: Callable[[], torch.nn.Module],
    norms: int,
    shape: tuple[int, ...] = (3, 64, 64),
    *,
    folded: int | None = None,
    mixed: int | None = None,
    quick: bool = False,
) -> Entry:
    """Make an entry; all BatchNormalizations can be removed unless other counts are given."""
    folded = norms if folded is None else folded
    return Entry(build, shape, norms, folded, folded if mixed is None else mixed, quick)


_INCEPTION = {"aux_logits": False, "init_weights": False}
_SMALL = (3, 32, 32)
_A0 = ((1, 2, 4, 14, 1), (48, 48, 96, 192, 1280))

ENTRIES = {
    "resnet18": _entry(_torchvision("resnet18"), 20, quick=True),
    "resnet50": _entry(_torchvision("resnet50"), 53),
    "mobilenet_v2": _entry(_torchvision("mobilenet_v2"), 52, quick=True),
    "mobilenet_v3_large": _entry(_torchvision("mobilenet_v3_large"), 46),
    "efficientnet_b0": _entry(_torchvision("efficientnet_b0"), 49),
    "inception_v3": _entry(_torchvision("inception_v3", **_INCEPTION), 94, (3, 128, 128)),
    "googlenet": _entry(_torchvision("googlenet", **_INCEPTION), 57),
    "mnasnet1_0": _entry(_torchvision("mnasnet1_0"), 52),
    "shufflenet_v2_x1_0": _entry(_torchvision("shufflenet_v2_x1_0"), 56),
    "regnet_y_400mf": _entry(_torchvision("regnet_y_400mf"), 53),
    "vgg16_bn": _entry(_vgg16_bn, 13),
    "r3d_18": _entry(_r3d_18, 20, (3, 8, 32, 32)),
    "deeplabv3_resnet50": _entry(_torchvision("deeplabv3_resnet50", weights_backbone=None), 60),
    # In a dense block every layer has a BN of its own on the features of all layers before it, and
    # a ReLU behind it: one of them can set the scale of a feature, the others cannot.
    "densenet121": _entry(_torchvision("densenet121"), 121, folded=63, mixed=62),
    # The first block's BN stands between a PReLU and a padded Conv.
    "iresnet18": _entry(_own("IResNet", (2, 2, 2, 2)), 31, _SMALL, folded=30, quick=True),
    "iresnet50": _entry(_own("IResNet", (3, 4, 14, 3)), 79, _SMALL, folded=78),
    # BNs that read one residual stream and face a ReLU must agree on the signs of its channels.
    "preact_resnet18": _entry(_own("PreActResNet18"), 17, _SMALL, mixed=12, quick=True),
    # The BNs on the identity branches stand between two ReLUs.
    "repvgg_small": _entry(
        _own("RepVGG", (1, 2, 3, 1), (16, 16, 24, 32)), 17, _SMALL, mixed=14, quick=True
    ),
    "repvgg_a0": _entry(_own("RepVGG", *_A0), 61, _SMALL, mixed=44),
    "nasnet_cells": _entry(_own("NasNet"), 41, _SMALL),
    # Weights that the graph computes from constants.
    "weight_norm": _entry(_own("ComputedWeights", "weight_norm"), 10, _SMALL, quick=True),
    "spectral_norm": _entry(_own("ComputedWeights", "spectral_norm"), 10, _SMALL, quick=True),
    "standardised": _entry(_own("ComputedWeights", "StandardisedConv"), 10, _SMALL, quick=True),
    "timm_std_conv": _entry(_own("ComputedWeights", "StdConv"), 20, _SMALL, quick=True),
    "binary_weights": _entry(_own("ComputedWeights", "BinaryConv"), 10, _SMALL, quick=True),
    "qat": _entry(_own("ComputedWeights", "QatConv"), 10, _SMALL, quick=True),
    # Recurrent layers; the dynamo exporter computes their weights from the shape of a state.
    "speech": _entry(_own("Speech"), 5, (1, 40, 16), quick=True),
}


def randomise(network: torch.nn.Module, seed: int, *, mixed: bool) -> None:
    """Give every BatchNorm statistics and parameters as after training, in place.

    Args:
        network: the network.
        seed: of the random numbers.
        mixed: whether gamma is negative in some channels; else it is positive in all.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            size = (module.num_features,)
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            torch.nn.init.normal_(module.bias, 0, 0.1, generator=generator)
            if mixed:
                signs = torch.randint(0, 2, size, generator=generator) * 2 - 1
                module.weight.data.mul_(signs)


def network(name: str, *, mixed: bool = False, seed: int = 0) -> torch.nn.Module:
    """Build an architecture of the zoo, in inference mode."""
    import torch

    torch.manual_seed(seed)
    net = ENTRIES[name].build()
    randomise(net, seed + 1, mixed=mixed)
    return net.eval()


def export(net: torch.nn.Module, shape: tuple[int, ...], exporter: str, path: Path) -> None:
    """Export a network with its BatchNormalizations kept and a dynamic batch.

    Args:
        net: the network, in inference mode.
        shape: shape of one input, without the batch.
        exporter: one of ``FORMS``.
        path: the file to write.
    """
    import torch
    from torch.onnx import TrainingMode

    example = (torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)),)
    names = {"input_names": ["x"], "output_names": ["y"]}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if exporter == "torchscript":
            torch.onnx.export(
                net,
                example,
                path,
                dynamo=False,
                training=TrainingMode.PRESERVE,
                do_constant_folding=False,
                dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
                **names,
            )
        else:
            torch.onnx.export(
                net,
                example,
                path,
                dynamo=True,
                optimize=False,
                external_data=False,
                verbose=False,
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                **names,
            )
    if exporter == "functions":
        onnx.save(_beside("function_models").modules_as_functions(onnx.load(path)), path)


@functools.lru_cache(maxsize=1)
def _cache() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="onnx_bnfold_zoo_")


def exported(name: str, exporter: str, *, mixed: bool = False, folder: Path | None = None) -> Path:
    """Return the ONNX file of an architecture, exporting it where it is not there yet.

    Args:
        name: key of ``ENTRIES``.
        exporter: one of ``FORMS``.
        mixed: whether gamma is negative in some channels.
        folder: where the files are kept; by default until the process ends.
    """
    folder = folder or Path(_cache().name)
    path = folder / f"{name}.{'mixed' if mixed else 'positive'}.{exporter}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        export(network(name, mixed=mixed), ENTRIES[name].shape, exporter, part)
        part.replace(path)
    return path


def load(name: str, exporter: str, **options: Any) -> onnx.ModelProto:
    """Return an architecture of the zoo as a model."""
    return onnx.load(exported(name, exporter, **options))
