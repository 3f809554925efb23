"""What onnxruntime computes with the networks, its optimisations disabled."""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnx_bnfold.check import CheckOptions, CheckResult, check
from onnx_bnfold.check.models import open_model
from onnx_bnfold.check.sessions import Session
from onnx_bnfold.errors import ModelError
from onnx_bnfold.given import ModelLike
from onnx_bnfold.progress import progress
from tools.mnist.data import Bytes

Floats = npt.NDArray[np.float32]
Weights = dict[str, npt.NDArray[np.float32]]

BATCH = 1_000


@dataclass(frozen=True)
class Comparison:
    """Two networks on the same images.

    Attributes:
        agreeing: how many images both put into the same class.
        max_absolute: the largest difference of two logits.
        max_relative: the largest difference of an image's logits over its largest |logit| before.
    """

    agreeing: int
    max_absolute: float
    max_relative: float


def logits(model: ModelLike, images: Bytes, label: str = "model") -> Floats:
    """Evaluate a network.

    Args:
        model: a path or a ModelProto with one input, (N, 1, 28, 28) float32 in [0, 1].
        images: (N, 1, 28, 28) uint8.
        label: for the progress bar.

    Returns:
        (N, 10).

    Raises:
        UsageError: there is no such file.
        ModelError: onnxruntime cannot load it or run it on such images.
    """
    with open_model(model, label) as opened:
        session = Session(opened)
        if len(session.inputs) != 1:
            raise ModelError(f"{opened.label} has {len(session.inputs)} inputs, not one image")
        name = session.inputs[0].name
        starts = range(0, len(images), BATCH)
        results = [
            session.run({name: to_unit(images[start : start + BATCH])})[session.outputs[0]]
            for start in progress(starts, total=len(starts), label=f"evaluating {label}")
        ]
    return np.concatenate(results)


def to_unit(images: Bytes) -> Floats:
    """Map 0..255 to [0, 1] in float32."""
    return images.astype(np.float32) / np.float32(255)


def accuracy(scores: Floats, labels: Bytes) -> float:
    """Return the share of rows whose largest score is at the label."""
    return float(np.mean(scores.argmax(axis=1) == labels))


def compare(before: Floats, after: Floats) -> Comparison:
    """Compare the logits (N, 10) of two networks on the same images."""
    difference = np.abs(after.astype(np.float64) - before).max(axis=1)
    return Comparison(
        agreeing=int(np.sum(before.argmax(axis=1) == after.argmax(axis=1))),
        max_absolute=float(difference.max()),
        max_relative=float((difference / np.abs(before).max(axis=1)).max()),
    )


def checked(before: Path, after: Path, images: Bytes, runs: int) -> CheckResult:
    """Let the package's own check measure rounding noise and latency on a thousand images.

    Args:
        before, after: the models, with their BNs and folded.
        images: (N, 1, 28, 28) uint8; the first 1,000 are taken.
        runs: timed pairs of runs, with onnxruntime's optimisations disabled and again enabled.
    """
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Path(scratch) / "images.npz"
        np.savez(inputs, images=to_unit(images[:BATCH]))
        options = CheckOptions(inputs=inputs, latency=True, runs=runs, warm_up=1)
        return check(before, after, options)


def parameters(model: onnx.ModelProto) -> Weights:
    """List the initializers of an exported or folded network by name, in the order they are read.

    Args:
        model: with weights in the file, no external data.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    read = [name for node in model.graph.node for name in node.input if name in constants]
    return {name: numpy_helper.to_array(constants[name]) for name in dict.fromkeys(read)}


def deviation_from_formula(model: onnx.ModelProto, folded: onnx.ModelProto) -> float:
    """Compare the folded weights with the seed's formula evaluated in float64.

    With s = sqrt(variance + epsilon): W' = W * gamma / s and b' = (b - mean) * gamma / s + beta.

    Args:
        model: the exported network with its two BNs.
        folded: the same without them.

    Returns:
        The largest |difference| of a tensor over the tensor's largest value; inf if the folded
        network still has a BN or is not made of the same layers.
    """
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    taken = [node for node in folded.graph.node if node.op_type in ("Conv", "Gemm")]
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    if len(taken) != len(layers) or count(folded, "BatchNormalization"):
        return math.inf
    constants, results = parameters(model), parameters(folded)
    worst = 0.0
    for layer, norm, new in zip(layers, norms, taken, strict=False):
        weight, bias = (constants[name].astype(np.float64) for name in layer.input[1:3])
        gamma, beta, mean, variance = (constants[n].astype(np.float64) for n in norm.input[1:5])
        epsilon = next(a.f for a in norm.attribute if a.name == "epsilon")
        factor = gamma / np.sqrt(variance + epsilon)
        expected = (
            weight * factor.reshape(-1, *[1] * (weight.ndim - 1)),
            (bias - mean) * factor + beta,
        )
        for name, right in zip(new.input[1:3], expected, strict=True):
            worst = max(worst, float(np.abs(results[name] - right).max() / np.abs(right).max()))
    return worst


def count(model: onnx.ModelProto, operator: str) -> int:
    """Count the main graph's nodes of an operator."""
    return sum(node.op_type == operator for node in model.graph.node)
