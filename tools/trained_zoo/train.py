"""Trains a network of the zoo and exports it with its BNs.

    python -m tools.trained_zoo.train FOLDER [--data MNIST] [--networks NAME ...] [--seed 0]

writes FOLDER/NAME.onnx for each, and FOLDER/inputs.npz with real pictures.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.onnx import TrainingMode

from tools.mnist.data import Part, load
from tools.trained_zoo.networks import NETWORKS, Segmenter

BATCH = 64
EXPORTERS = ("torchscript", "dynamo")
WEIGHT_DECAY = 0.02  # as much that channels die within a few hundred steps
INK = 0.5  # of the pixels that a segmentation is to find


def trained(
    name: str, part: Part, *, steps: int, seed: int, decay: float = WEIGHT_DECAY
) -> nn.Module:
    """Train a network by SGD with weight decay on all its parameters, so that channels die.

    Args:
        name: of the network.
        part: pictures and labels.
        steps: of the optimiser.
        seed: of the initial weights and of the batches.
        decay: of the weights, as a fraction per step of the learning rate.

    Returns:
        The network in eval mode.
    """
    torch.manual_seed(seed)
    network = NETWORKS[name]()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    for _ in range(steps):
        picked = torch.randint(len(part.labels), (BATCH,)).numpy()
        images = torch.from_numpy(part.images[picked]).float() / 255
        loss = _loss(network, images, torch.from_numpy(part.labels[picked].astype(np.int64)))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return network.eval()


def _loss(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    if isinstance(network, Segmenter):
        noisy = images + 0.3 * torch.randn_like(images)
        return functional.binary_cross_entropy(network(noisy), (images > INK).float())
    return functional.cross_entropy(network(images), labels)


def export(network: nn.Module, path: Path, exporter: str = "torchscript") -> None:
    """Write a network as ONNX with every BN it has; the size of a batch is left open.

    Args:
        network: in eval mode.
        path: of the file.
        exporter: one of ``EXPORTERS``.
    """
    names = {"input_names": ["x"], "output_names": ["y"]}
    picture = (torch.zeros(2, 1, 28, 28),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "torchscript":
            torch.onnx.export(
                network, picture, str(path), dynamo=False, training=TrainingMode.PRESERVE,
                do_constant_folding=False, dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
                opset_version=17, **names,
            )  # fmt: skip
        else:
            torch.onnx.export(
                network, picture, str(path), dynamo=True, optimize=False, external_data=False,
                verbose=False, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), **names,
            )  # fmt: skip


def main() -> None:
    """Train and export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, help="folder of MNIST's four files")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    data = load(args.data)
    for name in args.networks:
        network = trained(name, data.train, steps=args.steps, seed=args.seed)
        export(network, args.folder / f"{name}.onnx")
        print(f"{name}: {_dead(network)} of its channels are dead", flush=True)
    pictures = data.test.images[:64].astype(np.float32) / 255
    np.savez(args.folder / "inputs.npz", x=pictures)


def _dead(network: nn.Module) -> int:
    """How many channels a BN all but switches off."""
    norms = [m for m in network.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    return int(sum((norm.weight.detach().abs() < 1e-3).sum() for norm in norms))


if __name__ == "__main__":
    main()
