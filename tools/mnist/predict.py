"""The class of a single image."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnx_bnfold.errors import UsageError
from tools.mnist.data import Bytes
from tools.mnist.measure import logits

SIZE = (28, 28)


def read_image(path: Path, invert: bool = False) -> Bytes:
    """Read a picture of one digit, as MNIST's are: light ink on a dark ground.

    Args:
        path: of any format Pillow reads; it is made grey and scaled to 28x28.
        invert: for dark ink on a light ground.

    Returns:
        (1, 1, 28, 28) uint8.

    Raises:
        UsageError: the file is not there or is no picture.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            grey = picture.convert("L").resize(SIZE, Image.Resampling.LANCZOS)
    except OSError as error:
        reason = error.strerror or "Pillow cannot read it as a picture"
        raise UsageError(f"{path}: {reason}; give a picture of one digit") from None
    return np.asarray(ImageOps.invert(grey) if invert else grey)[None, None]


def predict(model: Path, image: Bytes) -> npt.NDArray[np.float64]:
    """Return the ten classes' probabilities, the softmax of the logits.

    Args:
        model: a network of this folder, folded or not.
        image: (1, 1, 28, 28) uint8.

    Raises:
        UsageError, ModelError: as in `logits`.
    """
    scores = logits(model, image)[0].astype(np.float64)
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()
