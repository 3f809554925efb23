"""Networks of the zoo that torchvision lacks, at full depth and in their training form."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


def _conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


class IBasicBlock(nn.Module):
    """BN - conv - BN - PReLU - conv - BN with a shortcut (ArcFace's "improved residual" block)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv3x3(inputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = _conv3x3(outputs, outputs, stride)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(_conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
            if stride > 1
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(y)) + self.downsample(x)


class IResNet(nn.Module):
    """ArcFace's backbone (insightface, arcface_torch/backbones/iresnet.py), for 32x32 inputs."""

    def __init__(self, depths: tuple[int, ...], embedding: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv3x3(3, 64), nn.BatchNorm2d(64), nn.PReLU(64))
        blocks, width = [], 64
        for depth, outputs in zip(depths, (64, 128, 256, 512), strict=True):
            for i in range(depth):
                blocks.append(IBasicBlock(width, outputs, 2 if i == 0 else 1))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.bn2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(0.0)
        self.fc = nn.Linear(width * 2 * 2, embedding)
        self.features = nn.BatchNorm1d(embedding)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn2(self.blocks(self.stem(x)))
        return self.features(self.fc(torch.flatten(self.dropout(x), 1)))


class PreActBlock(nn.Module):
    """BN - ReLU - conv - BN - ReLU - conv with a shortcut (He et al. 2016, figure 4e)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1, self.conv2 = _conv3x3(inputs, outputs, stride), _conv3x3(outputs, outputs)
        self.shortcut = (
            _conv1x1(inputs, outputs, stride) if stride > 1 or inputs != outputs else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return self.conv2(functional.relu(self.bn2(self.conv1(y)))) + shortcut


class PreActResNet18(nn.Module):
    """Pre-activation ResNet-18 for CIFAR (He et al. 2016), with the final BN and ReLU."""

    def __init__(self) -> None:
        super().__init__()
        blocks, width = [], 64
        for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [PreActBlock(width, outputs, stride), PreActBlock(outputs, outputs, 1)]
            width = outputs
        self.stem, self.blocks = _conv3x3(3, 64), nn.Sequential(*blocks)
        self.bn, self.fc = nn.BatchNorm2d(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn(self.blocks(self.stem(x))))
        return self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class RepVGGBlock(nn.Module):
    """Sum of 3x3 conv - BN, 1x1 conv - BN and, where the shape stays, BN (Ding et al. 2021)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.dense = nn.Sequential(_conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs))
        self.point = nn.Sequential(_conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
        same = inputs == outputs and stride == 1
        self.identity = nn.BatchNorm2d(inputs) if same else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x) + self.point(x)
        return functional.relu(y if self.identity is None else y + self.identity(x))


class RepVGG(nn.Module):
    """RepVGG in training form; A0 has depths 1, 2, 4, 14, 1 and widths 48, 48, 96, 192, 1280."""

    def __init__(self, depths: tuple[int, ...], widths: tuple[int, ...]) -> None:
        super().__init__()
        blocks, width = [], 3
        for depth, outputs in zip(depths, widths, strict=True):
            for i in range(depth):
                blocks.append(RepVGGBlock(width, outputs, 2 if i == 0 else 1))
                width = outputs
        self.blocks, self.fc = nn.Sequential(*blocks), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(functional.adaptive_avg_pool2d(self.blocks(x), 1).flatten(1))


class SepConv(nn.Module):
    """ReLU - depthwise - pointwise - BN, twice (NASNet's separable convolution)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, step in ((inputs, stride), (outputs, 1)):
            layers += [
                nn.ReLU(),
                nn.Conv2d(width, width, kernel, step, kernel // 2, groups=width, bias=False),
                _conv1x1(width, outputs),
                nn.BatchNorm2d(outputs),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class FactorizedReduction(nn.Module):
    """Two strided 1x1 convolutions, one shifted by a pixel, concatenated before one BN."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.left, self.right = (nn.Conv2d(inputs, outputs // 2, 1, bias=False) for _ in range(2))
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(x)
        shifted = functional.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        left, right = (functional.avg_pool2d(t, 1, 2) for t in (x, shifted))
        return self.bn(torch.cat([self.left(left), self.right(right)], 1))


class NasCell(nn.Module):
    """A NASNet-A cell: separable convolutions and pools, added in pairs and concatenated."""

    def __init__(self, before: int, now: int, width: int, stride: int, *, reduce: bool) -> None:
        super().__init__()
        squeeze = nn.Sequential(nn.ReLU(), _conv1x1(before, width), nn.BatchNorm2d(width))
        self.before = FactorizedReduction(before, width) if reduce else squeeze
        self.now = nn.Sequential(nn.ReLU(), _conv1x1(now, width), nn.BatchNorm2d(width))
        self.sep = nn.ModuleList(SepConv(width, width, k, stride) for k in (5, 3, 5, 3))
        self.average = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        self.largest = nn.MaxPool2d(3, stride, 1)

    def forward(self, before: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
        p, h = self.before(before), self.now(now)
        pairs = [
            self.sep[0](h) + self.sep[1](p),
            self.sep[2](p) + self.sep[3](p),
            self.average(h) + self.average(p),
            self.largest(h) + self.average(p),
        ]
        return now, torch.cat(pairs, 1)


class NasNet(nn.Module):
    """A stem and NASNet-A cells: normal, reduction, normal after a reduction, normal."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, bias=False), nn.BatchNorm2d(32))
        wide = 4 * width
        self.cells = nn.ModuleList(
            [
                NasCell(32, 32, width, 1, reduce=False),
                NasCell(32, wide, width, 2, reduce=False),
                NasCell(wide, wide, width, 1, reduce=True),
                NasCell(wide, wide, width, 1, reduce=False),
            ]
        )
        self.fc = nn.Linear(wide, 10)

    def forward(self, x: Tensor) -> Tensor:
        before = now = self.stem(x)
        for cell in self.cells:
            before, now = cell(before, now)
        return self.fc(functional.adaptive_avg_pool2d(functional.relu(now), 1).flatten(1))


class StandardisedConv(nn.Conv2d):
    """A Conv2d whose weight is standardised per output channel (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, correction=0)
        weight = (self.weight - mean) / torch.sqrt(var + 1e-5)
        return self._conv_forward(x, weight, self.bias)


class StdConv(nn.Conv2d):
    """The same by a batch normalisation in training mode (timm's StdConv2d)."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = functional.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6)
        return self._conv_forward(x, weight.reshape_as(self.weight), self.bias)


class BinaryConv(nn.Conv2d):
    """A Conv2d of the signs of its weight times their mean magnitude (XNOR-Net)."""

    def forward(self, x: Tensor) -> Tensor:
        size = self.weight.abs().mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, torch.sign(self.weight) * size, self.bias)


class QatConv(nn.Conv2d):
    """A Conv2d that is trained for int8: weights per channel and its input are quantised."""

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.full((self.out_channels,), 0.01)
        if torch.compiler.is_exporting():  # dynamo does not know PyTorch's own operators for it
            x = _quantised(x, torch.tensor(0.05), torch.tensor(0, dtype=torch.int8))
            weight = _quantised(self.weight, scale, torch.zeros_like(scale, dtype=torch.int8))
        else:
            x = torch.fake_quantize_per_tensor_affine(x, 0.05, 0, -128, 127)
            zero = torch.zeros(self.out_channels, dtype=torch.int32)
            weight = torch.fake_quantize_per_channel_affine(self.weight, scale, zero, 0, -128, 127)
        return self._conv_forward(x, weight, self.bias)


def _quantised(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Return what QuantizeLinear and DequantizeLinear make of a tensor, an axis 0 of scales."""
    options = {"attrs": {"axis": 0}, "shape": x.shape, "version": 20}
    made = torch.onnx.ops.symbolic
    integers = made("QuantizeLinear", (x, scale, zero), dtype=torch.int8, **options)
    return made("DequantizeLinear", (integers, scale, zero), dtype=torch.float32, **options)


def weight_norm(inputs: int, outputs: int, kernel: int, **options: int) -> nn.Module:
    """Return a Conv2d whose weight is ``g * v / |v|`` (Salimans and Kingma 2016)."""
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(inputs, outputs, kernel, **options))


def spectral_norm(inputs: int, outputs: int, kernel: int, **options: int) -> nn.Module:
    """Return a Conv2d whose weight is divided by its largest singular value, as estimated."""
    return nn.utils.spectral_norm(nn.Conv2d(inputs, outputs, kernel, **options))


class ComputedWeights(nn.Module):
    """A residual network whose convolutions compute their weights."""

    def __init__(self, conv: str, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        made = globals()[conv]
        self.stem = nn.Sequential(made(3, widths[0], 3, padding=1), nn.BatchNorm2d(widths[0]))
        blocks = []
        for inputs, outputs in zip((widths[0], *widths), widths, strict=False):
            blocks.append(
                nn.ModuleList(
                    [
                        nn.Sequential(made(inputs, outputs, 3, stride=2, padding=1),
                                      nn.BatchNorm2d(outputs), nn.ReLU(),
                                      made(outputs, outputs, 3, padding=1),
                                      nn.BatchNorm2d(outputs)),
                        nn.Sequential(made(inputs, outputs, 1, stride=2), nn.BatchNorm2d(outputs)),
                    ]
                )
            )  # fmt: skip
        self.blocks = nn.ModuleList(blocks)
        self.fc = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        for body, shortcut in self.blocks:
            x = functional.relu(body(x) + shortcut(x))
        return self.fc(x.mean((2, 3)))


class Speech(nn.Module):
    """As DeepSpeech 2: convolutions over a spectrogram, and GRUs with a BN behind each."""

    def __init__(self, width: int = 24, layers: int = 3) -> None:
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv2d(1, 8, (11, 5), (2, 1), padding=(5, 2), bias=False),
            nn.BatchNorm2d(8), nn.Hardtanh(0, 20),
            nn.Conv2d(8, 8, (5, 5), (2, 1), padding=(2, 2), bias=False),
            nn.BatchNorm2d(8), nn.Hardtanh(0, 20),
        )  # fmt: skip
        sizes = (80, *[width] * layers)  # 8 channels of 10 frequencies are left of 40
        self.layers = nn.ModuleList(nn.GRU(n, width, batch_first=True) for n in sizes[:-1])
        self.norms = nn.ModuleList(nn.BatchNorm1d(n) for n in sizes[1:])
        self.head = nn.Linear(width, 29, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.front(x).flatten(1, 2).transpose(1, 2)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(x)[0].transpose(1, 2)).transpose(1, 2)
        return self.head(x)
