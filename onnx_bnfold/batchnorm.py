"""Reading a BatchNormalization node: every version of the operator, and the arithmetic once.

In inference ``y = scale * (x - input_mean) / sqrt(input_var + epsilon) + B`` (ONNX
BatchNormalization-15), per channel on axis 1: the affine map ``y = a * x + b`` with
``a = scale / sqrt(input_var + epsilon)`` and ``b = B - input_mean * a``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from onnx_bnfold.affine import AGREEMENT, Float64
from onnx_bnfold.graph import attribute
from onnx_bnfold.reasons import Reason, Refused
from onnx_bnfold.view import FLOATS, NodeView, overridable

OPERATOR = "BatchNormalization"
# In the ``doc_string`` of a node whose ``input_var`` holds what ``scale`` was: see ``Norm.evened``.
EVENED = "onnx_bnfold: input_var holds the sizes of scale, not the variance of the input"
PARAMETERS = ("scale", "B", "input_mean", "input_var")
# The specification's default, as the float32 an attribute holds.
DEFAULT_EPSILON = float(np.float32(1e-5))
_LEAST = 2.0**-60  # of the variances that ``evened`` makes; float32 has room on both sides


@dataclass(frozen=True, eq=False)
class Norm:
    """A BatchNormalization as numbers, ``(C,)`` float64 each.

    Attributes:
        a, b: its affine map ``y = a * x + b``.
        mean, deviation: what it says of its input: ``input_mean`` and ``sqrt(input_var + eps)``.
        spread: the standard deviation of its input, ``sqrt(input_var)``.
        bias: ``B``.
        epsilon: the attribute.
    """

    a: Float64
    b: Float64
    mean: Float64
    deviation: Float64
    spread: Float64
    bias: Float64
    epsilon: float

    @cached_property
    def cancellation(self) -> float:
        """Largest ratio of what the mean contributes to a channel's output and that output."""
        offset, peak = np.abs(self.a * self.mean), np.abs(self.bias) + np.abs(self.a) * self.spread
        seen = offset > 0
        with np.errstate(divide="ignore"):
            return float((offset[seen] / peak[seen]).max(initial=0))

    def evened(self, scale: Float64) -> tuple[Float64, Float64] | None:
        """Move the sizes of a ``scale`` into the variance, which nobody rounds to int8.

        Args:
            scale: ``(C,)``, to be used in place of the norm's own.

        Returns:
            ``scale`` and ``input_var`` of the same function, the scales being of one size or zero;
            None if they are so already, or if it takes numbers beyond all use.
        """
        used = scale != 0
        size = np.abs(scale[used])
        if not size.size or size.max() - size.min() <= AGREEMENT * size.max():
            return None
        wanted = np.square(self.deviation[used] / size)
        if not ((wanted >= _LEAST) & (wanted <= 1 / _LEAST)).all():
            return None
        least = 2 * math.sqrt(max(self.epsilon, 0) / wanted.min())
        # A power of two, so that no variance becomes negative.
        factor = 2.0 ** math.ceil(math.log2(least)) if least > 1 else 1.0
        variance = np.square(self.deviation) - self.epsilon
        variance[used] = factor**2 * wanted - self.epsilon
        if not (variance <= 1 / _LEAST).all():
            return None
        return factor * np.sign(scale), variance


def read_norm(view: NodeView) -> Norm:
    """Read a BatchNormalization.

    Raises:
        Refused: it is in training mode, not per channel, or its parameters are unusable.
    """
    _require_inference(view)
    if str(view.node.doc_string).endswith(EVENED):
        raise Refused(
            Reason.EQUALIZED,
            view.label,
            "--equalize has put its scale into its variance, which says no more how its input is "
            "spread; fold the original model",
        )
    scale, bias, mean, variance = (_parameter(view, i) for i in range(4))
    if not scale.shape == bias.shape == mean.shape == variance.shape or scale.ndim != 1:
        raise Refused(
            Reason.INCONSISTENT_SHAPES,
            view.label,
            "its four parameters are not vectors of one length; repair the model",
        )
    epsilon = float(attribute(view.node, "epsilon", DEFAULT_EPSILON))
    deviation = np.sqrt(_positive_variance(view, variance + epsilon))
    with np.errstate(over="ignore", invalid="ignore"):
        a = scale / deviation
        b = bias - mean * a
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise Refused(
            Reason.NOT_FINITE,
            view.label,
            "a parameter is infinite or NaN; retrain or repair the model",
        )
    spread = np.sqrt(np.maximum(variance, 0))
    return Norm(a, b, mean, deviation, spread, bias, epsilon)


def _require_inference(view: NodeView) -> None:
    node = view.node
    if view.opset < 7:
        training = not attribute(node, "is_test", 0)
    else:
        training = bool(attribute(node, "training_mode", 0))
    if training:
        name = "is_test=0" if view.opset < 7 else "training_mode=1"
        raise Refused(
            Reason.TRAINING_MODE,
            view.label,
            f"{name}: statistics are computed at run time; export the model in eval mode",
        )
    if any(node.output[1:]):
        raise Refused(
            Reason.EXTRA_OUTPUTS,
            view.label,
            "its statistics outputs are used, which makes it a training node; export the model "
            "in eval mode",
        )
    if view.opset < 9 and not attribute(node, "spatial", 1):
        raise Refused(
            Reason.NOT_PER_CHANNEL,
            view.label,
            "spatial=0: it normalises every position on its own, not every channel",
        )


def _parameter(view: NodeView, index: int) -> Float64:
    slot, meaning = index + 1, PARAMETERS[index]
    name = view.name_in(slot)
    info = view.constant(slot)
    if info is None:
        if name in view.graph.overridable:
            raise Refused(Reason.OVERRIDABLE_INITIALIZER, view.label, overridable(name))
        raise Refused(
            Reason.PARAMETERS_NOT_CONSTANT,
            view.label,
            f"its {meaning} {name!r} is not a constant of the model, so it may change from run to "
            "run; export the model with constant parameters",
        )
    if info.data_type not in FLOATS:
        raise Refused(
            Reason.UNSUPPORTED_TYPE, view.label, f"its {meaning} {name!r} is not of a float type"
        )
    values: np.ndarray[Any, Any] = view.constants.value(name)
    return values.astype(np.float64)


def _positive_variance(view: NodeView, total: Float64) -> Float64:
    """Return ``input_var + epsilon``, which must be a positive number."""
    if not np.isfinite(total).all():
        raise Refused(
            Reason.NOT_FINITE, view.label, "its variance is infinite or NaN; repair the model"
        )
    if (total <= 0).any():
        channel = int(np.argmin(total))
        raise Refused(
            Reason.BAD_VARIANCE,
            view.label,
            f"input_var + epsilon is not positive in channel {channel}; repair the model",
        )
    return total
