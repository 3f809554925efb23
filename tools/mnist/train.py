"""Training the seed's CNN, saving it and restoring it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from onnx_bnfold.errors import ModelError, UsageError
from onnx_bnfold.progress import progress
from tools.mnist.data import Part
from tools.mnist.files import replacing
from tools.mnist.network import TinyCnn

BATCH = 128


@dataclass(frozen=True)
class Schedule:
    """How long and how to train.

    Attributes:
        name: what the reports call it.
        phases: (epochs, learning rate) of Adam, one after the other.
        bn_momentum: the weight of the new batch in the BNs' moving averages.
        averaging: decay of the moving average of all weights, which is the network that is kept.
        target: the test accuracy it must reach, in [0, 1].
    """

    name: str
    phases: tuple[tuple[float, float], ...]
    bn_momentum: float
    averaging: float
    target: float


# The seed's epochs, learning rates and BN decay. The seed keeps the last step's weights, which at
# these rates move its accuracy by up to 1 % from one epoch to the next; their average does not.
FULL = Schedule("full", ((5, 0.01), (5, 0.002)), bn_momentum=0.01, averaging=0.998, target=0.990)
# One epoch: lower rates, and averages that do not remember weights of 100 steps ago.
QUICK = Schedule(
    "quick", ((0.6, 0.003), (0.4, 0.001)), bn_momentum=0.05, averaging=0.98, target=0.985
)
SCHEDULES = {schedule.name: schedule for schedule in (FULL, QUICK)}


@dataclass(frozen=True)
class Training:
    """What is remembered of a training beside the weights."""

    schedule: str
    seed: int
    steps: int
    seconds: float


def train(part: Part, schedule: Schedule, seed: int) -> tuple[TinyCnn, Training]:
    """Train a fresh network with Adam on the cross-entropy, the last incomplete batch left out.

    Args:
        part: the training images, at least one batch.
        schedule: how long and how.
        seed: of the initial weights and of the order of the images.

    Returns:
        The network of averaged weights, in eval mode, and the record of its training.
    """
    torch.manual_seed(seed)
    network = TinyCnn(bn_momentum=schedule.bn_momentum)
    average = AveragedModel(
        network, multi_avg_fn=get_ema_multi_avg_fn(schedule.averaging), use_buffers=True
    )
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    images = torch.from_numpy(part.images.copy())
    labels = torch.from_numpy(part.labels.astype("int64"))
    rates = _rates(schedule, len(labels) // BATCH)
    start = time.perf_counter()
    with _subnormals_as_zero():
        steps = progress(rates, total=len(rates), label=f"training ({schedule.name})")
        for rate, batch in zip(steps, _batches(len(labels)), strict=False):
            optimizer.param_groups[0]["lr"] = rate
            loss = nn.functional.cross_entropy(network(images[batch] / 255), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(network)
    seconds = time.perf_counter() - start
    return average.module.eval(), Training(schedule.name, seed, len(rates), seconds)


def save(network: TinyCnn, training: Training, path: Path) -> None:
    """Write the weights, the moving averages and the record of the training."""
    with replacing(path) as temporary:
        torch.save({"state": network.state_dict(), "training": asdict(training)}, temporary)


def restore(path: Path) -> tuple[TinyCnn, Training]:
    """Read what `save` wrote.

    Raises:
        UsageError: there is no such file.
        ModelError: it holds something else.
    """
    network = TinyCnn()
    try:
        saved = torch.load(path, weights_only=True)
        network.load_state_dict(saved["state"])
        return network.eval(), Training(**saved["training"])
    except FileNotFoundError:
        raise UsageError(f"{path} is not there: train first, without --restore") from None
    except Exception:  # torch.load has no base class for what a broken file may raise
        raise ModelError(f"{path} is not a network saved here: train again") from None


def _rates(schedule: Schedule, steps_per_epoch: int) -> list[float]:
    return [
        rate for epochs, rate in schedule.phases for _ in range(round(epochs * steps_per_epoch))
    ]


def _batches(count: int) -> Iterator[torch.Tensor]:
    """Yield the indices of batch after batch, in a new order each epoch, without end."""
    while True:
        yield from torch.randperm(count)[: count - count % BATCH].split(BATCH)


@contextmanager
def _subnormals_as_zero() -> Iterator[None]:
    """Flush subnormal numbers: Adam's averages fade into them, at four times the time per step."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
