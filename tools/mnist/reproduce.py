"""Every step of the seed, one after the other, and every figure of it beside ours."""

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import torch

import onnx_bnfold
from onnx_bnfold.check import CheckResult, Latency
from onnx_bnfold.errors import CheckFailed
from tools.mnist import measure
from tools.mnist.data import Mnist
from tools.mnist.files import replacing
from tools.mnist.measure import Comparison
from tools.mnist.network import TinyCnn, erase_batch_norm, to_onnx
from tools.mnist.train import SCHEDULES, Schedule, Training, restore, save, train

WEIGHTS = "tinyCNN.pt"
WITH_BN = "tinyCNN.onnx"
WITHOUT_BN = "NoBN_tinyCNN.onnx"
RESULTS = "results.json"
TOLERATED_DISAGREEMENT = 1e-4  # of the test images: 1 of 10,000


@dataclass(frozen=True)
class Results:
    """All figures of one run; accuracies in [0, 1].

    Attributes:
        sizes: images per part of the split.
        training: the record of the training.
        restored: whether the restored weights equal the trained ones.
        parameters: shape per initializer of the network with BNs.
        operators: of the network with BNs, and of the folded one, in order.
        accuracies: test accuracy per network.
        parts: accuracy with BN per part of the split.
        predicted, label: class and label of test image 0.
        deviation: of the folded weights from the seed's formula.
        comparison: the logits of all test images, before and after.
        check: the package's own check, on 1,000 images.
        environment: versions, threads and processor.
    """

    sizes: dict[str, int]
    training: Training
    restored: bool
    parameters: dict[str, tuple[int, ...]]
    operators: dict[str, list[str]]
    accuracies: dict[str, float]
    parts: dict[str, float]
    predicted: int
    label: int
    deviation: float
    comparison: Comparison
    check: CheckResult
    environment: dict[str, Any]

    @property
    def latency(self) -> Latency:
        """The latency of both networks; it was asked for, so it is there."""
        if self.check.latency is None:
            raise CheckFailed("; ".join(self.check.failures))
        return self.check.latency

    @property
    def schedule(self) -> Schedule:
        """The schedule the network was trained with."""
        return SCHEDULES[self.training.schedule]

    def write(self, path: Path) -> None:
        """Write them as JSON."""
        plain = {**asdict(self), "check": self.check.to_dict()}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")

    def failures(self) -> list[str]:
        """Return one sentence per requirement that does not hold."""
        before, after = self.accuracies["with BN"], self.accuracies["after the trick"]
        disagreeing = self.sizes["test"] - self.comparison.agreeing
        gates = {
            f"test accuracy {before:.2%} is below {self.schedule.target:.1%}": (
                before < self.schedule.target
            ),
            f"accuracy changed from {before:.2%} to {after:.2%}": before != after,
            f"{disagreeing} predictions changed": (
                disagreeing > TOLERATED_DISAGREEMENT * self.sizes["test"]
            ),
            "a BN is left": "BatchNormalization" in self.operators["after the trick"],
            "the restored weights are not the saved ones": not self.restored,
        }
        return [sentence for sentence, failed in gates.items() if failed] + [*self.check.failures]


def trained(mnist: Mnist, schedule: Schedule, seed: int, folder: Path) -> bool:
    """Train and save the network; return whether restoring it gives the same weights."""
    network, training = train(mnist.train, schedule, seed)
    save(network, training, folder / WEIGHTS)
    again, _ = restore(folder / WEIGHTS)
    return all(
        torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items()
    )


def reproduce(mnist: Mnist, folder: Path, runs: int, restored: bool = True) -> Results:
    """Export, fold and measure the saved network.

    Args:
        mnist: the split.
        folder: holds the saved network; the two ONNX models are written there.
        runs: timed pairs of runs per mode of onnxruntime.
        restored: handed on to the results.

    Returns:
        Every figure.

    Raises:
        BnFoldError: there is no saved network, or a network cannot be exported, folded or run.
    """
    network, training = restore(folder / WEIGHTS)
    before, after = folder / WITH_BN, folder / WITHOUT_BN
    model = to_onnx(network)
    with replacing(before) as temporary:
        onnx.save(model, temporary)
    onnx_bnfold.fold_file(before, after)
    folded = onnx.load(after)

    test, labels = mnist.test.images, mnist.test.labels
    torch.manual_seed(training.seed)
    networks: dict[str, onnx.ModelProto] = {
        "with BN": model,
        "untrained without BN": to_onnx(TinyCnn(batch_norm=False)),
        "weights copied": to_onnx(erase_batch_norm(network)),
        "after the trick": folded,
    }
    scores = {name: measure.logits(each, test, name) for name, each in networks.items()}
    accuracies = {name: measure.accuracy(each, labels) for name, each in scores.items()}
    others = {"train": mnist.train, "validation": mnist.validation}
    return Results(
        sizes={name: len(getattr(mnist, name).labels) for name in ("train", "validation", "test")},
        training=training,
        restored=restored,
        parameters={name: value.shape for name, value in measure.parameters(model).items()},
        operators={
            name: [node.op_type for node in networks[name].graph.node]
            for name in ("with BN", "after the trick")
        },
        accuracies=accuracies,
        parts={
            name: measure.accuracy(measure.logits(model, part.images, f"{name} set"), part.labels)
            for name, part in others.items()
        }
        | {"test": accuracies["with BN"]},
        predicted=int(measure.logits(after, test[:1], "one image")[0].argmax()),
        label=int(labels[0]),
        deviation=measure.deviation_from_formula(model, folded),
        comparison=measure.compare(scores["with BN"], scores["after the trick"]),
        check=measure.checked(before, after, test, runs),
        environment=_environment(),
    )


def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnx_bnfold": onnx_bnfold.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "training_threads": torch.get_num_threads(),
    }
