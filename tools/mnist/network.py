"""The seed's CNN in torch, and its way to ONNX."""

import tempfile
import warnings
from pathlib import Path

import onnx
import torch
from torch import nn

SIDE = 28
CLASSES = 10
FILTERS = 20
KERNEL = 5
HIDDEN = 1_000
FLAT = FILTERS * SIDE * SIDE  # 15,680
BN_EPSILON = 0.001
OPSET = 17


class TinyCnn(nn.Module):
    """Conv1, BN, ReLU, FC1, BN_1, ReLU, FC2: the seed's "tinyCNN", with or without its BNs."""

    def __init__(self, batch_norm: bool = True, bn_momentum: float = 0.01) -> None:
        """Build it with the seed's initial values, drawn from torch's global generator.

        Args:
            batch_norm: False erases both BNs, the rest stays.
            bn_momentum: the weight of the new batch in the moving averages, one minus the decay.
        """
        super().__init__()

        def normalize(layer: type[nn.Module], channels: int) -> nn.Module:
            if not batch_norm:
                return nn.Identity()
            return layer(channels, eps=BN_EPSILON, momentum=bn_momentum)

        self.conv1 = nn.Conv2d(1, FILTERS, KERNEL, padding=KERNEL // 2)
        self.bn = normalize(nn.BatchNorm2d, FILTERS)
        self.fc1 = nn.Linear(FLAT, HIDDEN)
        self.bn_1 = normalize(nn.BatchNorm1d, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, CLASSES)
        for layer in (self.conv1, self.fc1, self.fc2):
            # Glorot's normal: standard deviation sqrt(2 / (fan_in + fan_out)).
            nn.init.xavier_normal_(layer.weight)
            nn.init.constant_(layer.bias, 0.1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the logits.

        Args:
            images: (N, 1, 28, 28), values in [0, 1].

        Returns:
            (N, 10).
        """
        # The seed averages axis 1 of an NHWC tensor: each image loses the mean of each column.
        centred = images - images.mean(dim=2, keepdim=True)
        maps = torch.relu(self.bn(self.conv1(centred)))
        hidden = torch.relu(self.bn_1(self.fc1(torch.flatten(maps, 1))))
        return self.fc2(hidden)


def erase_batch_norm(network: TinyCnn) -> TinyCnn:
    """Return the network without its BNs and with its other weights copied as they are."""
    bare = TinyCnn(batch_norm=False)
    kept = {
        name: value for name, value in network.state_dict().items() if name in bare.state_dict()
    }
    bare.load_state_dict(kept)
    return bare


def to_onnx(network: TinyCnn) -> onnx.ModelProto:
    """Export for inference, BNs kept, batch axis dynamic.

    Args:
        network: put into eval mode here.

    Returns:
        A model from `images` (N, 1, 28, 28) float32 to `logits` (N, 10) float32.
    """
    network.eval()
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        # torch warns that this exporter is its old one; the new one would fold the BNs itself.
        warnings.simplefilter("ignore")
        target = Path(scratch) / "network.onnx"
        torch.onnx.export(
            network,
            (torch.zeros(2, 1, SIDE, SIDE),),
            target,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "N"}, "logits": {0: "N"}},
        )
        return onnx.load(target)
