"""Int8 accuracy on MNIST's 10,000 test images, with the BNs left in and folded first.

    python -m tools.mnist reproduce --quick
    python -m tools.quantize_mnist

quantises the network that the first command trained, and its folded form, by onnxruntime's
`quantize_static` (QDQ format, int8 weights, uint8 activations, 256 training images to calibrate).
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx

import onnx_bnfold
from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.quantize import quantised
from onnx_bnfold.errors import BnFoldError
from tools.mnist import data, measure
from tools.mnist.reproduce import WITH_BN

CALIBRATION = 256  # images
_BATCH = 64


class Row(NamedTuple):
    """A network's figures: ``agreement`` is with the network it was made from, before int8."""

    network: str
    accuracy: float
    agreement: float
    operators: int


def rows(before: Path, mnist: data.Mnist, scratch: Path) -> Iterator[Row]:
    """Yield the figures of the float networks and of their int8 forms.

    Args:
        before: the network with its BNs.
        mnist: training images calibrate, test images measure.
        scratch: a folder for the networks that are made.
    """
    after = scratch / "folded.onnx"
    onnx_bnfold.fold_file(before, after)
    for path, name in ((before, "BN left in"), (after, "folded")):
        reference = measure.logits(path, mnist.test.images, name)
        yield _row(f"{name}, float32", path, reference, reference, mnist)
        images = mnist.train.images[:CALIBRATION]
        for per_channel in (False, True):
            kind = "per channel" if per_channel else "per tensor"
            folder = scratch / f"{name} {kind}"
            int8 = _quantised(path, folder, images, per_channel=per_channel)
            scores = measure.logits(int8, mnist.test.images, f"{name}, int8 {kind}")
            yield _row(f"{name}, int8 {kind}", int8, scores, reference, mnist)


def _quantised(source: Path, folder: Path, images: data.Bytes, *, per_channel: bool) -> Path:
    """Quantise a network, calibrated on images (N, 1, 28, 28) uint8."""
    name = onnx.load(source, load_external_data=False).graph.input[0].name
    batches = (images[i : i + _BATCH] for i in range(0, len(images), _BATCH))
    feeds = [{name: measure.to_unit(batch)} for batch in batches]
    model = CheckedModel(source, str(source))
    return quantised(model, folder, feeds, per_channel=per_channel).path


def _row(
    name: str, path: Path, scores: measure.Floats, reference: measure.Floats, mnist: data.Mnist
) -> Row:
    return Row(
        name,
        measure.accuracy(scores, mnist.test.labels),
        float(np.mean(scores.argmax(axis=1) == reference.argmax(axis=1))),
        len(onnx.load(path).graph.node),
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.quantize_mnist", description=__doc__)
    parser.add_argument(
        "model", type=Path, nargs="?", default=Path("runs/mnist") / WITH_BN,
        help="default %(default)s",
    )  # fmt: skip
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of MNIST's IDX files")
    options = parser.parse_args(arguments)
    try:
        mnist = data.load(options.data)
        print("| network | accuracy | same class as in float32 | nodes |\n|---|---|---|---|")
        with tempfile.TemporaryDirectory() as scratch:
            for row in rows(options.model, mnist, Path(scratch)):
                name, accuracy, agreement, operators = row
                print(f"| {name} | {accuracy:.2%} | {agreement:.2%} | {operators} |", flush=True)
    except (BnFoldError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
