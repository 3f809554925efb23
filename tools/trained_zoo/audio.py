"""Networks for sound that packages ship, rebuilt in PyTorch, and their inputs.

musicnn (Pons and Serra 2019) tags music: Conv, ReLU, BN, MaxPool as in TensorFlow, once with
filters for timbre and rhythm, once like VGG. batdetect2 (Mac Aodha et al. 2022) finds the calls of
bats in a spectrogram: down, attention over time, up.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tools.trained_zoo.packages import member
from tools.trained_zoo.tensorflow import checkpoint

_EPSILON = 1e-3  # of TensorFlow's BNs


class _Tagger(nn.Module):
    """Layers in the order in which TensorFlow counts them, so that their weights can be found."""

    def __init__(self, norms: tuple[int, ...]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, eps=_EPSILON) for width in norms)

    def load(self, folder: str, convs: tuple[str, ...], *dense: str) -> nn.Module:
        """Take the weights of a checkpoint; layers are ``convs`` and ``dense`` there."""
        index, data = (
            member("musicnn", f"musicnn/{folder}/.{end}")
            for end in ("index", "data-00000-of-00001")
        )
        stored = {name: torch.tensor(values) for name, values in checkpoint(index, data).items()}
        state = {}
        for number, norm in enumerate(self.norms):
            name = f"batch_normalization_{number}" if number else "batch_normalization"
            parts = ("gamma", "beta", "moving_mean", "moving_variance")
            ours = ("weight", "bias", "running_mean", "running_var")
            for part, own in zip(parts, ours, strict=True):
                state[f"norms.{number}.{own}"] = stored[f"{name}/{part}"]
            state[f"norms.{number}.num_batches_tracked"] = norm.num_batches_tracked
        for number, name in enumerate(convs):
            state[f"convs.{number}.weight"] = stored[f"{name}/kernel"].permute(3, 2, 0, 1)
            state[f"convs.{number}.bias"] = stored[f"{name}/bias"]
        for number, name in enumerate(dense):
            state[f"dense.{number}.weight"] = stored[f"{name}/kernel"].T
            state[f"dense.{number}.bias"] = stored[f"{name}/bias"]
        self.load_state_dict(state)
        return self.eval()


class MusicVgg(_Tagger):
    """Five Convs, each with a ReLU, a BN and a MaxPool behind it."""

    def __init__(self) -> None:
        super().__init__((1, 128, 128, 128, 128, 128))
        self.convs = nn.ModuleList(
            nn.Conv2d(128 if number else 1, 128, 3, padding=1) for number in range(5)
        )
        self.dense = nn.ModuleList([nn.Linear(256, 50)])

    def forward(self, x: Tensor) -> Tensor:
        """Return how likely each of 50 tags is (N, 50), of spectrograms (N, 187, 96)."""
        x = self.norms[0](x[:, None])
        pools = (((4, 1), 2), (2, 2), (2, 2), (2, 2), (4, 4))
        for conv, norm, (size, stride) in zip(self.convs, self.norms[1:], pools, strict=True):
            x = functional.max_pool2d(norm(functional.relu(conv(x))), size, stride)
        return torch.sigmoid(self.dense[0](x.permute(0, 2, 3, 1).flatten(1)))


class Musicnn(_Tagger):
    """Convs over timbre and over time, three residual Convs over those, means and maxima."""

    def __init__(self) -> None:
        super().__init__((1, 204, 204, 51, 51, 51, 64, 64, 64, 1506, 200))
        sizes = [(7, 38), (7, 67), (128, 1), (64, 1), (32, 1)]
        wide = [204, 204, 51, 51, 51]
        first = [nn.Conv2d(1, width, size) for width, size in zip(wide, sizes, strict=True)]
        self.convs = nn.ModuleList([*first, *(nn.Conv2d(1, 64, (7, n)) for n in (561, 64, 64))])
        self.dense = nn.ModuleList([nn.Linear(1506, 200), nn.Linear(200, 50)])

    def _layer(self, number: int, x: Tensor) -> Tensor:
        """Pad in time as TensorFlow does; Conv, ReLU and BN."""
        pad = self.convs[number].kernel_size[0] - 1
        x = functional.pad(x, (0, 0, pad // 2, pad - pad // 2))
        return self.norms[number + 1](functional.relu(self.convs[number](x)))

    def forward(self, x: Tensor) -> Tensor:
        """Return how likely each of 50 tags is (N, 50), of spectrograms (N, 187, 96)."""
        x = self.norms[0](x[:, None])
        found = torch.cat([self._layer(number, x).amax(3) for number in range(5)], 1)
        parts = [found.transpose(1, 2)[:, None]]
        for number in (5, 6, 7):
            more = self._layer(number, parts[-1]).permute(0, 3, 2, 1)
            parts.append(more if number == 5 else more + parts[-1])
        x = torch.cat(parts, 3)
        x = torch.stack([x.amax(2), x.mean(2)], 3).flatten(1)[:, :, None, None]
        x = functional.relu(self.dense[0](self.norms[9](x).flatten(1)))
        return torch.sigmoid(self.dense[1](self.norms[10](x[:, :, None, None]).flatten(1)))


class _Step(nn.Module):
    """A Conv and a BN of a picture and its frequencies, on the way down or up."""

    def __init__(self, inputs: int, outputs: int, height: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.coords = nn.Parameter(torch.zeros(1, 1, height, 1), requires_grad=False)
        self.conv = nn.Conv2d(inputs + 1, outputs, 3, padding=1)
        self.conv_bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        place = self.coords.repeat(x.shape[0], 1, 1, x.shape[3])
        x = self.conv(torch.cat((x, place), 1))
        return functional.relu(self.conv_bn(x if self.up else functional.max_pool2d(x, 2)))


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        for name in ("key_fun", "val_fun", "que_fun", "pro_fun"):
            self.add_module(name, nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x.squeeze(2).permute(0, 2, 1)
        weights = self.key_fun(x) @ self.que_fun(x).permute(0, 2, 1) / self.width
        found = self.val_fun(x).permute(0, 2, 1) @ functional.softmax(weights, 1)
        return self.pro_fun(found.permute(0, 2, 1)).permute(0, 2, 1).unsqueeze(2)


class Bats(nn.Module):
    """The network of batdetect2."""

    def __init__(self, width: int, height: int, classes: int) -> None:
        super().__init__()
        self.height = height // 8
        w = width
        down = ((1, w // 4), (w // 4, w // 2), (w // 2, w))
        up = ((2 * w, w // 2), (w // 2, w // 4), (w // 4, w // 4))
        for n, (inputs, outputs) in enumerate(down):
            self.add_module(f"conv_dn_{n}", _Step(inputs, outputs, height >> n, up=False))
        for n, (inputs, outputs) in enumerate(up):
            self.add_module(f"conv_up_{n + 2}", _Step(inputs, outputs, height // 4 << n, up=True))
        self.conv_dn_3, self.conv_dn_3_bn = nn.Conv2d(w, 2 * w, 3, padding=1), _norm(2 * w)
        self.conv_1d, self.conv_1d_bn = nn.Conv2d(2 * w, 2 * w, (self.height, 1)), _norm(2 * w)
        self.att = _Attention(2 * w)
        self.conv_op, self.conv_op_bn = nn.Conv2d(w // 4, w // 4, 3, padding=1), _norm(w // 4)
        self.conv_size_op = nn.Conv2d(w // 4, 2, 1)
        self.conv_classes_op = nn.Conv2d(w // 4, classes + 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return how likely each kind of call is at each place, of spectrograms (N, 1, H, T)."""
        x1 = self.conv_dn_0(x)
        x2 = self.conv_dn_1(x1)
        x3 = functional.relu(self.conv_dn_3_bn(self.conv_dn_3(self.conv_dn_2(x2))))
        x = self.att(functional.relu(self.conv_1d_bn(self.conv_1d(x3))))
        x = self.conv_up_2(x.repeat([1, 1, self.height, 1]) + x3)
        x = self.conv_up_4(self.conv_up_3(x + x2) + x1)
        x = functional.relu(self.conv_op_bn(self.conv_op(x)))
        return torch.softmax(self.conv_classes_op(x), 1)


def _norm(width: int) -> nn.Module:
    return nn.BatchNorm2d(width)


def music_vgg() -> nn.Module:
    """Return the network with its weights."""
    return MusicVgg().load("MTT_vgg", tuple(f"{number}CNN" for number in range(1, 6)), "dense")


def musicnn() -> nn.Module:
    """Return the network with its weights."""
    convs = ("conv2d", *(f"conv2d_{number}" for number in range(1, 8)))
    return Musicnn().load("MTT_musicnn", convs, "dense", "dense_1")


def bats() -> nn.Module:
    """Return the network with its weights."""
    path = member("batdetect", "batdetect2/models/Net2DFast_UK_same.pth.tar")
    stored = torch.load(path, map_location="cpu", weights_only=True)
    width, height = stored["params"]["num_filters"], stored["params"]["ip_height"]
    network = Bats(width, height, len(stored["params"]["class_names"]))
    state = network.state_dict()
    network.load_state_dict({name: stored["state_dict"][name] for name in state})
    return network.eval()
