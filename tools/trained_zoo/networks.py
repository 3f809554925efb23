"""Networks in the orders in which real ones use BatchNormalization."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv(inputs: int, outputs: int, size: int = 3, **options: int) -> nn.Conv2d:
    """Return a Conv without bias that keeps height and width."""
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False, **options)


class Classifier(nn.Module):
    """A stem of stride 2, blocks, the mean over the picture, and a Linear."""

    def __init__(self, *blocks: nn.Module, width: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, 10) of pictures (N, 1, 28, 28)."""
        found: Tensor = self.head(self.blocks(x).mean((2, 3)))
        return found


def plain() -> nn.Module:
    """Conv, BN, ReLU."""
    return Classifier(
        *_stem(16), conv(16, 32), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        conv(32, 32), nn.BatchNorm2d(32), nn.ReLU(), width=32,
    )  # fmt: skip


def norm_last() -> nn.Module:
    """Conv, ReLU, BN, MaxPool, padded Conv: the order of Keras examples."""
    return Classifier(
        conv(1, 16), nn.ReLU(), nn.BatchNorm2d(16), nn.MaxPool2d(2),
        conv(16, 32), nn.ReLU(), nn.BatchNorm2d(32), nn.MaxPool2d(2),
        conv(32, 32), nn.ReLU(), nn.BatchNorm2d(32), width=32,
    )  # fmt: skip


class _Preactivated(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), conv(width, width),
            nn.BatchNorm2d(width), nn.ReLU(), conv(width, width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)  # type: ignore[no-any-return]


def preactivated() -> nn.Module:
    """BN, ReLU, Conv in residual branches, and a BN behind the last sum."""
    return Classifier(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), _Preactivated(16), _Preactivated(16),
        nn.BatchNorm2d(16), nn.ReLU(), width=16,
    )  # fmt: skip


class _Dense(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), conv(inputs, growth))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.branch(x)], 1)


def dense() -> nn.Module:
    """Blocks that append to what they read, as in DenseNet."""
    return Classifier(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), _Dense(16, 8), _Dense(24, 8), _Dense(32, 8),
        nn.BatchNorm2d(40), nn.ReLU(), width=40,
    )  # fmt: skip


class _Rep(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.large = nn.Sequential(conv(width, width), nn.BatchNorm2d(width))
        self.small = nn.Sequential(conv(width, width, 1), nn.BatchNorm2d(width))
        self.skip = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.large(x) + self.small(x) + self.skip(x))


def repvgg() -> nn.Module:
    """Three branches with a BN each, as RepVGG is trained."""
    return Classifier(*_stem(24), _Rep(24), _Rep(24), width=24)


class Segmenter(nn.Module):
    """Down, up, and a probability for every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_stem(16), conv(16, 32), nn.BatchNorm2d(32), nn.ReLU(),
            nn.ConvTranspose2d(32, 16, 2, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 1, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities (N, 1, 28, 28) of ink."""
        found: Tensor = self.layers(x)
        return found


class UNet(Segmenter):
    """The same with what the way down has seen beside the way up, as in U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.bottom = _twice(1, 8), _twice(8, 16), _twice(16, 32)
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.upper = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.behind, self.last = _twice(32, 16), _twice(16, 8)
        self.layers = nn.Sequential(nn.Conv2d(8, 1, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities (N, 1, 28, 28) of ink."""
        first = self.first(x)
        second = self.second(functional.max_pool2d(first, 2))
        bottom = self.bottom(functional.max_pool2d(second, 2))
        behind = self.behind(torch.cat([self.up(bottom), second], 1))
        found: Tensor = self.layers(self.last(torch.cat([self.upper(behind), first], 1)))
        return found


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        conv(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU(),
        conv(outputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU(),
    )  # fmt: skip


class Recurrent(nn.Module):
    """A BN on the rows of the picture, a GRU or LSTM over them, a BN and a Linear."""

    def __init__(self, kind: type[nn.GRU] | type[nn.LSTM], width: int = 28) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.layer = kind(width, 32, batch_first=True)
        self.last = nn.BatchNorm1d(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, 10)."""
        rows = self.norm(x.squeeze(1).transpose(1, 2)).transpose(1, 2)
        found: Tensor = self.head(self.last(self.layer(rows)[0][:, -1]))
        return found


class ConvRecurrent(nn.Module):
    """Convs, a BN on what they make of each row, a GRU over the rows, a BN and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_stem(8))
        self.rows = Recurrent(nn.GRU, 8 * 14)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, 10)."""
        found: Tensor = self.rows(self.stem(x).transpose(1, 2).flatten(2).unsqueeze(1))
        return found


def weight_normed() -> nn.Module:
    """Convs whose weights are a direction and a length each, and BNs behind."""
    normed = nn.utils.parametrizations.weight_norm
    return Classifier(
        *_stem(16), normed(conv(16, 32)), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        normed(conv(32, 32)), nn.BatchNorm2d(32), nn.ReLU(), width=32,
    )  # fmt: skip


class Half(nn.Module):
    """A network that is trained in float32 and computes in float16 afterwards."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def train(self, mode: bool = True) -> Half:
        """Convert the weights, too."""
        self.network.to(torch.float32 if mode else torch.float16)
        super().train(mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of the network, float32 as x is."""
        kind = torch.float32 if self.training else torch.float16
        return self.network(x.to(kind)).float()  # type: ignore[no-any-return]


def _separable(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        conv(inputs, inputs, groups=inputs), nn.BatchNorm2d(inputs), nn.ReLU6(),
        conv(inputs, outputs, 1), nn.BatchNorm2d(outputs), nn.ReLU6(),
    ]  # fmt: skip


def depthwise() -> nn.Module:
    """Depthwise and pointwise Convs with ReLU6, as in MobileNet."""
    return Classifier(*_stem(16), *_separable(16, 32), *_separable(32, 32), width=32)


def _stem(width: int) -> list[nn.Module]:
    return [nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "norm_last": norm_last,
    "preactivated": preactivated,
    "dense": dense,
    "repvgg": repvgg,
    "segmentation": Segmenter,
    "gru": lambda: Recurrent(nn.GRU),
    "lstm": lambda: Recurrent(nn.LSTM),
    "depthwise": depthwise,
    "unet": UNet,
    "conv_gru": ConvRecurrent,
    "weight_norm": weight_normed,
    "half": lambda: Half(preactivated()),
}
