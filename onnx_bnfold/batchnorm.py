"""Reading a BatchNormalization node: every version of the operator, and the arithmetic once.

In inference ``y = scale * (x - input_mean) / sqrt(input_var + epsilon) + B`` (ONNX
BatchNormalization-15), per channel on axis 1: the affine map ``y = a * x + b`` with
``a = scale / sqrt(input_var + epsilon)`` and ``b = B - input_mean * a``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import helper

from onnx_bnfold.affine import AGREEMENT, Float64
from onnx_bnfold.reasons import Reason, Refusal, Refused
from onnx_bnfold.view import FLOATS, NodeView, overridable

Array = np.ndarray[Any, Any]

OPERATOR = "BatchNormalization"
# In the ``doc_string`` of a node whose ``input_var`` holds what ``scale`` was: see ``Norm.evened``.
EVENED = "onnx_bnfold: input_var holds the sizes of scale, not the variance of the input"
PARAMETERS = ("scale", "B", "input_mean", "input_var")
# The specification's default, as the float32 an attribute holds.
DEFAULT_EPSILON = float(np.float32(1e-5))
_DTYPES = frozenset(map(helper.tensor_dtype_to_np_dtype, FLOATS))
_LEAST = 2.0**-60  # of the variances that ``evened`` makes; float32 has room on both sides


class Norm(NamedTuple):
    """A BatchNormalization as numbers, ``(C,)`` float64 each.

    Attributes:
        a, b: its affine map ``y = a * x + b``.
        mean, deviation: what it says of its input: ``input_mean`` and ``sqrt(input_var + eps)``.
        spread: the standard deviation of its input, ``sqrt(input_var)``.
        bias: ``B``.
        epsilon: the attribute.
        cancellation: largest ratio of what the mean contributes to a channel's output and that
            output.
    """

    a: Float64
    b: Float64
    mean: Float64
    deviation: Float64
    spread: Float64
    bias: Float64
    epsilon: float
    cancellation: float

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


class _Parameters(NamedTuple):
    """What a node gives: vectors of one length in any float type, and the attribute."""

    scale: Array
    bias: Array
    mean: Array
    variance: Array
    epsilon: float


def read_norms(views: Sequence[NodeView]) -> list[Norm | Refusal]:
    """Read BatchNormalizations; thousands of short vectors at a time are as soon done as one.

    Args:
        views: of the nodes.

    Returns:
        For each node its coefficients, or why it has none: it is in training mode, not per
        channel, or its parameters are unusable.
    """
    usable: dict[int, _Parameters] = {}
    found: dict[int, Norm | Refusal] = {}
    for position, view in enumerate(views):
        try:
            usable[position] = _parameters(view)
        except Refused as refused:
            found[position] = refused.refusal
    for position, norm in zip(usable, _norms([*usable.values()]), strict=True):
        found[position] = norm or _unusable(views[position], usable[position])
    return [found[position] for position in range(len(views))]


def _norms(parameters: Sequence[_Parameters]) -> Iterator[Norm | None]:
    """Yield the coefficients of each set of parameters, None where they are no finite numbers."""
    if not parameters:
        return
    counts = [len(p.scale) for p in parameters]
    scale, bias, mean, variance = (
        np.concatenate([p[i] for p in parameters], dtype=np.float64, casting="unsafe")
        for i in range(4)
    )
    with np.errstate(all="ignore"):
        deviation = np.sqrt(variance + np.repeat([p.epsilon for p in parameters], counts))
        a = scale / deviation
        b = bias - mean * a
        spread = np.sqrt(np.maximum(variance, 0))
        offset, peak = np.abs(a * mean), np.abs(bias) + np.abs(a) * spread
        cancelled = np.where(offset > 0, offset / peak, 0)
    good = np.isfinite(deviation) & (deviation > 0) & np.isfinite(a) & np.isfinite(b)
    # reduceat takes an empty norm for its successor; the last one needs an element behind it.
    some, starts = np.array(counts) > 0, np.cumsum([0, *counts[:-1]])
    usable = np.logical_and.reduceat(np.append(good, True), starts) | ~some
    worst = np.where(some, np.maximum.reduceat(np.append(cancelled, 0.0), starts), 0.0)
    parts = zip(starts.tolist(), usable.tolist(), worst.tolist(), strict=True)
    for p, count, (start, is_usable, cancellation) in zip(parameters, counts, parts, strict=True):
        if not is_usable:
            yield None
            continue
        where = slice(start, start + count)
        yield Norm(
            a[where],
            b[where],
            mean[where],
            deviation[where],
            spread[where],
            bias[where],
            p.epsilon,
            cancellation,
        )


def _parameters(view: NodeView) -> _Parameters:
    _require_inference(view)
    if str(view.node.doc_string).endswith(EVENED):
        raise Refused(
            Reason.EQUALIZED,
            view.label,
            "--equalize has put its scale into its variance, which says no more how its input is "
            "spread; fold the original model",
        )
    values = view.constants.at_hand(view.reads[1:5])
    if values is None or not _DTYPES.issuperset([v.dtype for v in values]):
        values = [_parameter(view, i) for i in range(4)]  # says what is wrong, if anything is
    scale, bias, mean, variance = values
    if not scale.shape == bias.shape == mean.shape == variance.shape or scale.ndim != 1:
        raise Refused(
            Reason.INCONSISTENT_SHAPES,
            view.label,
            "its four parameters are not vectors of one length; repair the model",
        )
    epsilon = float(view.attribute("epsilon", DEFAULT_EPSILON))
    return _Parameters(scale, bias, mean, variance, epsilon)


def _unusable(view: NodeView, parameters: _Parameters) -> Refusal:
    """Say which of the parameters of a node are no usable numbers."""
    total = parameters.variance.astype(np.float64) + parameters.epsilon
    if not np.isfinite(total).all():
        return Refusal(
            Reason.NOT_FINITE, view.label, "its variance is infinite or NaN; repair the model"
        )
    if (total <= 0).any():
        channel = int(np.argmin(total))
        return Refusal(
            Reason.BAD_VARIANCE,
            view.label,
            f"input_var + epsilon is not positive in channel {channel}; repair the model",
        )
    return Refusal(
        Reason.NOT_FINITE,
        view.label,
        "a parameter is infinite or NaN; retrain or repair the model",
    )


def _require_inference(view: NodeView) -> None:
    if view.opset < 7:
        training = not view.attribute("is_test", 0)
    else:
        training = bool(view.attribute("training_mode", 0))
    if training:
        name = "is_test=0" if view.opset < 7 else "training_mode=1"
        raise Refused(
            Reason.TRAINING_MODE,
            view.label,
            f"{name}: statistics are computed at run time; export the model in eval mode",
        )
    if any(view.writes[1:]):
        raise Refused(
            Reason.EXTRA_OUTPUTS,
            view.label,
            "its statistics outputs are used, which makes it a training node; export the model "
            "in eval mode",
        )
    if view.opset < 9 and not view.attribute("spatial", 1):
        raise Refused(
            Reason.NOT_PER_CHANNEL,
            view.label,
            "spatial=0: it normalises every position on its own, not every channel",
        )


def _parameter(view: NodeView, index: int) -> Array:
    meaning, name = PARAMETERS[index], view.name_in(index + 1)
    data_type = view.constants.data_type(name)
    if data_type is None:
        if name in view.graph.overridable:
            raise Refused(Reason.OVERRIDABLE_INITIALIZER, view.label, overridable(name))
        raise Refused(
            Reason.PARAMETERS_NOT_CONSTANT,
            view.label,
            f"its {meaning} {name!r} is not a constant of the model, so it may change from run to "
            "run; export the model with constant parameters",
        )
    if data_type not in FLOATS:
        raise Refused(
            Reason.UNSUPPORTED_TYPE, view.label, f"its {meaning} {name!r} is not of a float type"
        )
    return view.constants.value(name)
