"""The networks of the zoo as files: trained or downloaded once, and kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.sessions import Feed, Session
from tools.mnist.data import Mnist
from tools.trained_zoo.inputs import Floats
from tools.trained_zoo.networks import NETWORKS
from tools.trained_zoo.public import PUBLIC, made
from tools.trained_zoo.train import export, trained

_BATCH = 64


class Model(NamedTuple):
    """A network with one input.

    Attributes:
        path: of its file.
        inputs: real ones.
        batch: how many are run at once.
    """

    path: Path
    inputs: Floats
    batch: int

    def session(self) -> Session:
        """Return a session without onnxruntime's optimisations."""
        return Session(CheckedModel(self.path, str(self.path)))

    def feeds(self, inputs: Floats | None = None) -> list[Feed]:
        """Return the inputs, or others, as batches."""
        values = self.inputs if inputs is None else inputs
        name = self.session().inputs[0].name
        return [{name: values[i : i + self.batch]} for i in range(0, len(values), self.batch)]


class Training(NamedTuple):
    """How the small networks are trained, and by what exporter they are written."""

    steps: int
    seed: int
    decay: float
    exporter: str


def public(name: str, folder: Path, inputs: int | None) -> Model:
    """Return a model of a package.

    Args:
        name: in ``PUBLIC``.
        folder: where it is kept.
        inputs: how many; 48 by default.
    """
    entry = PUBLIC[name]
    return Model(made(name, folder), entry.inputs(inputs or 48), entry.batch)


def small(
    name: str, folder: Path, inputs: int | None, training: Training, mnist: Callable[[], Mnist]
) -> Model:
    """Return a network that is trained on MNIST.

    Args:
        name: in ``NETWORKS``.
        folder: where its weights and the model are kept.
        inputs: how many of the test images; 512 by default.
        training: how.
        mnist: reads the images.
    """
    stem = f"{name}-{training.decay:g}-{training.steps}-{training.seed}"
    path = folder / f"{stem}.{training.exporter}.onnx"
    if not path.is_file():
        export(_network(name, folder / f"{stem}.pt", training, mnist), path, training.exporter)
    images = mnist().test.images[: inputs or 512].astype(np.float32) / 255
    return Model(path, images, _BATCH)


def _network(name: str, weights: Path, training: Training, mnist: Callable[[], Mnist]) -> nn.Module:
    """Return a network with the weights that are kept, or trained."""
    if weights.is_file():
        network = NETWORKS[name]()
        network.load_state_dict(torch.load(weights, weights_only=True))
        return network.eval()
    network = trained(
        name, mnist().train, steps=training.steps, seed=training.seed, decay=training.decay
    )
    torch.save(network.state_dict(), weights)
    return network
