"""A network as Keras stores it becomes the same function in ONNX."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support import run

from tools.trained_zoo.from_keras import rebuilt

torch = pytest.importorskip("torch")

SIZE, WIDTH, CLASSES = 6, 5, 3


def layer(kind: str, name: str, *inputs: str, **config: object) -> dict:
    return {
        "class_name": kind,
        "name": name,
        "config": {"name": name, **config},
        "inbound_nodes": [[[each, 0, 0, {}] for each in inputs]],
    }


LAYERS = [
    layer("InputLayer", "image", batch_input_shape=[None, SIZE, SIZE, 2]),
    layer("Conv2D", "conv", "image", strides=[2, 2], padding="same"),
    layer("BatchNormalization", "norm", "conv", epsilon=0.001),
    layer("Activation", "relu", "norm", activation="relu"),
    layer("Add", "sum", "relu", "conv"),
    layer("AveragePooling2D", "mean", "sum", pool_size=[2, 2], strides=[1, 1], padding="same"),
    layer("Flatten", "flat", "mean"),
    layer("Dense", "class", "flat", units=CLASSES, activation="softmax"),
]


class File:
    """What h5py makes of such a file, as far as it is read."""

    def __init__(self, path: Path) -> None:
        self.attrs = {"model_config": json.dumps({"config": {"layers": LAYERS}})}
        rng = np.random.default_rng(0)
        shapes = {
            "conv/conv/kernel": (3, 3, 2, WIDTH),
            **{f"norm/norm/{part}": (WIDTH,) for part in ("gamma", "beta", "moving_mean")},
            "norm/norm/moving_variance": (WIDTH,),
            "class/class/kernel": (SIZE * SIZE // 4 * WIDTH, CLASSES),
        }
        self.weights = {
            name: rng.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in shapes.items()
        }

    def __enter__(self) -> "File":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __getitem__(self, name: str) -> dict:
        assert name == "model_weights"
        return {f"{key}:0": {(): values} for key, values in self.weights.items()}


def test_the_same_function(monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", SimpleNamespace(File=File))
    image = np.random.default_rng(1).standard_normal((2, 2, SIZE, SIZE)).astype(np.float32)
    (found,) = run(rebuilt(Path("net.hdf5")), {"image": image})
    tensors = {key: torch.from_numpy(v) for key, v in File(Path()).weights.items()}
    functional = torch.nn.functional
    # Keras pads at the end where the padding is odd, and no mean counts it.
    x = functional.pad(torch.from_numpy(image), (0, 1, 0, 1))
    conv = functional.conv2d(x, tensors["conv/conv/kernel"].permute(3, 2, 0, 1), stride=2)
    parts = (
        tensors[f"norm/norm/{part}"] for part in ("moving_mean", "moving_variance", "gamma", "beta")
    )
    total = functional.relu(functional.batch_norm(conv, *parts, eps=0.001)) + conv
    ones = functional.pad(torch.ones_like(total), (0, 1, 0, 1))
    mean = functional.avg_pool2d(functional.pad(total, (0, 1, 0, 1)), 2, 1)
    mean = mean / functional.avg_pool2d(ones, 2, 1)
    flat = mean.permute(0, 2, 3, 1).flatten(1)
    expected = functional.softmax(flat @ tensors["class/class/kernel"], dim=1)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-6)
