"""Clamps: operators that cut their data off at bounds, which can be constants per channel.

``y = min(max(x, low), high)`` holds for ``x' = s * x + h`` and ``y' = s * y + h`` with the bounds
``s * low + h`` and ``s * high + h``, which change places where ``s`` is negative. So a Relu lets
any change pass if it may be written as a Max, a Min, or both, with constants. And a clamp is
monotone: behind a pool of maxima it does what it did in front, on fewer elements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from onnx_bnfold.model.float_formats import FORMATS
from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators.affine import Affine, Float64
from onnx_bnfold.reasons import Reason, Refused


class Bounds(NamedTuple):
    """What a clamp cuts its data off at.

    Attributes:
        low, high: scalars; infinite where it does not.
    """

    low: float
    high: float


# What cuts data off at a lower and at an upper constant; the opset from which they broadcast, and
# that from which runtimes have them for other types than float32 and float64.
OPERATORS = ("Max", "Min")
FIRST_OPSET, FIRST_FOR_NARROW = 8, 12

# Returns the bounds of a node, or refuses one whose bounds are not known.
BoundsOf = Callable[[NodeView], Bounds]

# Before opset 11 a bound that is left out is float32's largest number, whatever the tensor's type.
_DEFAULT_BOUND = float(np.finfo(np.float32).max)


def of_relu(view: NodeView) -> Bounds:
    """Return the bounds of a Relu."""
    return Bounds(0.0, np.inf)


def of_clip(view: NodeView) -> Bounds:
    """Return the bounds of a Clip; one that no number of the tensor's type exceeds is infinite.

    Raises:
        Refused: a bound is computed at run time, the lower is above the upper, or no number lies
            between.
    """
    low, high = -clip_bound(view, 1, "min", -1.0), clip_bound(view, 2, "max", 1.0)
    if not (low <= high and low < np.inf and high > -np.inf):
        raise Refused(Reason.OPAQUE, view.label, "no number lies between its bounds")
    return Bounds(low, high)


def clip_bound(view: NodeView, slot: int, name: str, sign: float) -> float:
    """Return a bound of a Clip times ``sign``, infinity if no number of its type exceeds it.

    Args:
        view: the node.
        slot, name: of the input (opset 11 on) or the attribute.
        sign: 1 for the upper bound, -1 for the lower.

    Raises:
        Refused: it is computed at run time, or the type of the tensor is not known.
    """
    if view.opset >= 11:
        given = view.value(slot)
        if given is None:
            return np.inf
        bound = float(given.astype(np.float64).reshape(()))
    else:
        bound = float(view.attribute(name, sign * _DEFAULT_BOUND))
    if bound == 0:
        return 0.0
    known = FORMATS.get(view.type_of(view.name_in(0)))
    if known is None:
        raise Refused(Reason.UNSUPPORTED_TYPE, view.label, "its input is not known to be a float")
    return np.inf if sign * bound >= known[0] else sign * bound


def require_bounds(view: NodeView, change: Affine) -> None:
    """Refuse a change after which a clamp's bounds are nothing that the data can be compared with.

    A channel whose scale stands for the inverse of zero was constant: what it holds is taken back
    without asking whether the clamp has cut it off.
    """
    if not change.is_ordinary:
        raise Refused(
            Reason.PRECISION,
            view.label,
            "a scale in front of it is zero or so small that its bounds cannot be divided by it",
        )


class Constant(NamedTuple):
    """A constant that a clamp is written with.

    Attributes:
        operator: that cuts the data off at it.
        values: broadcast against the data; infinite where it does not.
    """

    operator: str
    values: Float64


def constants(bounds: Bounds, change: Affine) -> tuple[Constant, ...]:
    """Return what a clamp is to be written with after a change of both its sides.

    Args:
        bounds: of the clamp.
        change: of its input and its output.

    Returns:
        Nothing if it stays what it is.
    """
    scales_along = not any(np.isfinite(bound) and bound for bound in bounds)
    if change.is_identity or (
        scales_along and not change.has_shift and bool((change.scale >= 0).all())
    ):
        return ()
    scale, shift = np.broadcast_arrays(change.scale, change.shift)
    with np.errstate(invalid="ignore"):  # 0 * inf, which is not taken
        ends = [np.where(scale == 0, shift, scale * bound + shift) for bound in bounds]
    values = np.minimum(*ends), np.maximum(*ends)
    return tuple(
        Constant(operator, each)
        for operator, each in zip(OPERATORS, values, strict=True)
        if np.isfinite(each).any()
    )
