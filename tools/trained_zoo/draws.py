"""A network drawn anew: its weights moved by as little as a coarser type would move them anyway.

How well a network survives int8 or float16 is chance to a good part, and the same chance for all
inputs, since each weight is rounded once. A mean over draws says what is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, numpy_helper

_LEVELS = 127
_Weights = npt.NDArray[np.floating[Any]]
Step = Callable[[_Weights], _Weights]


def int8_step(weights: _Weights) -> _Weights:
    """Return the step of weights, whichever of their first two axes has a scale per channel.

    Vectors have none: they are biases, in int32, and what BNs hold.
    """
    if weights.ndim < 2:
        return np.zeros_like(weights)
    sizes = np.abs(weights)
    peaks = [sizes.max(tuple({*range(sizes.ndim)} - {axis}), keepdims=True) for axis in (0, 1)]
    return np.minimum(*peaks) / _LEVELS


def float16_step(weights: _Weights) -> _Weights:
    """Return the distance of weights, biases and what BNs hold from the next number of float16."""
    return np.abs(weights) * float(np.finfo(np.float16).eps)


def drawn(model: ModelProto, number: int, step: Step) -> ModelProto:
    """Return a model whose weights are moved by up to half a step.

    Args:
        model: its weights are changed in place.
        number: of the draw; 0 is the model as it is.
        step: between the values that weights may have, of each.
    """
    rng = np.random.default_rng(number)
    for tensor in model.graph.initializer if number else ():
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        weights = numpy_helper.to_array(tensor)
        steps = step(weights)
        if steps.any():
            moved = weights + steps * rng.uniform(-0.5, 0.5, weights.shape)
            tensor.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), tensor.name))
    return model
