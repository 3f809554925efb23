"""Clamps: operators that cut their data off at bounds, which can be constants per channel.

``y = min(max(x, low), high)`` holds for ``x' = s * x + h`` and ``y' = s * y + h`` with the bounds
``s * low + h`` and ``s * high + h``, which change places where ``s`` is negative. So a Relu lets
any change pass if it may be written as a Max, a Min, or both, with constants. So does a Max or Min
of data and constants, whose negative scales make the one the other. And a clamp is monotone: behind
a pool of maxima it does what it did in front, on fewer elements.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from onnx_bnfold.model.float_formats import FORMATS, as_type
from onnx_bnfold.model.node_view import FLOATS, NodeView
from onnx_bnfold.operators.affine import Affine, Float64
from onnx_bnfold.reasons import Reason, Refused


class Bounds(NamedTuple):
    """What a clamp cuts its data off at.

    Attributes:
        low, high: broadcast against the data; infinite where it does not.
        data: the input that holds the data.
        own: whether they are constants of the node, which any change of positive scale rewrites.
        front: slope and offset of what is done to the data before it is cut off, if anything is.
    """

    low: Float64 | float
    high: Float64 | float
    data: int = 0
    own: bool = False
    front: tuple[float, float] | None = None

    def in_front(self, rank: int) -> Affine | None:
        """Return what is done to the data before it is cut off, None if nothing is."""
        if self.front is None:
            return None
        return Affine(*(np.full((1,) * rank, value) for value in self.front))


# What cuts data off at a lower and at an upper constant; the opset from which they broadcast, and
# that from which runtimes have them for other types than float32 and float64.
OPERATORS = ("Max", "Min")
FIRST_OPSET, FIRST_FOR_NARROW = 8, 12

# Returns the bounds of a node, or refuses one whose bounds are not known.
BoundsOf = Callable[[NodeView], Bounds]

# The slope and the offset of a HardSigmoid that does not say them; attributes are of float32.
_HARD_SIGMOID = {"alpha": float(np.float32(0.2)), "beta": 0.5}

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
        raise _holds_no_number(view)
    return Bounds(low, high)


def _holds_no_number(view: NodeView) -> Refused:
    return Refused(Reason.OPAQUE, view.label, "no number lies between its bounds")


def of_max(view: NodeView) -> Bounds:
    """Return the bounds of a Max of data and constants; see ``_of_constants``."""
    data, constant = _of_constants(view, np.maximum)
    if (constant == np.inf).any():
        raise _holds_no_number(view)
    return Bounds(constant, np.inf, data, own=True)


def of_min(view: NodeView) -> Bounds:
    """Return the bounds of a Min of data and constants; see ``_of_constants``."""
    data, constant = _of_constants(view, np.minimum)
    if (constant == -np.inf).any():
        raise _holds_no_number(view)
    return Bounds(-np.inf, constant, data, own=True)


def of_hard_sigmoid(view: NodeView) -> Bounds:
    """Return the bounds of a HardSigmoid.

    Raises:
        Refused: its slope is zero or very small.
    """
    alpha, beta = (float(view.attribute(n, d)) for n, d in _HARD_SIGMOID.items())
    bounds = Bounds(0.0, 1.0, front=(alpha, beta))
    front = bounds.in_front(0)
    if front is None or not (front.is_invertible and front.is_finite):
        raise Refused(Reason.OPAQUE, view.label, "its slope cannot be divided by")
    return bounds


def _of_constants(view: NodeView, extreme: np.ufunc) -> tuple[int, Float64]:
    """Return the input of a node that is computed, and the extreme of the others.

    Raises:
        Refused: it is not the only one, the others broadcast it, or they are no float numbers.
    """
    given = [slot for slot, name in enumerate(view.reads) if name]
    constants = [slot for slot in given if view.constant(slot) is not None]
    slots = [slot for slot in given if slot not in constants]
    if len(slots) != 1 or not constants:
        raise Refused(Reason.OPAQUE, view.label, "it is not a clamp of one tensor by constants")
    dims, found = view.dims_in(slots[0]), []
    for slot in constants:
        value = view.value(slot)
        assert value is not None
        if len(value.shape) > len(dims) or any(
            n not in (1, d) for n, d in zip(value.shape[::-1], dims[::-1], strict=False)
        ):
            raise Refused(
                Reason.AXES, view.label, "it broadcasts its data, or may do so at some size"
            )
        laid = value.astype(np.float64).reshape((1,) * (len(dims) - value.ndim) + value.shape)
        if view.type_of(view.name_in(slot)) not in FLOATS or np.isnan(laid).any():
            raise Refused(Reason.UNSUPPORTED_TYPE, view.label, "its constants are no float numbers")
        found.append(laid)
    return slots[0], functools.reduce(extreme, found)


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

    def lets_nothing_through(self, data_type: int) -> bool:
        """Whether a value becomes an infinity that cuts off all numbers of an element type."""
        with np.errstate(over="ignore"):
            rounded = as_type(self.values, data_type)
        nothing = np.inf if self.operator == OPERATORS[0] else -np.inf
        return bool((np.isfinite(self.values) & (rounded == nothing)).any())


def passed(bounds: Bounds, port: int, change: Affine) -> tuple[Affine, Affine]:
    """Return the changes of both sides of a clamp that is to be written with constants.

    Args:
        bounds: of the clamp.
        port: of which the change is known: an input, or an output, which is negative.
        change: of that.
    """
    front = bounds.in_front(change.rank)
    if front is None:
        return change, change
    if port < 0:
        return front.then(change), change
    return change, front.inverse().then(change)


def constants(bounds: Bounds, change: Affine) -> tuple[Constant, ...]:
    """Return what a clamp is to be written with after a change of both its sides.

    Args:
        bounds: of the clamp.
        change: of its output.

    Returns:
        Nothing if it stays what it is.
    """
    if bounds.front is None and (change.is_identity or _stays(bounds, change)):
        return ()
    scale, shift = np.broadcast_arrays(change.scale, change.shift)
    with np.errstate(invalid="ignore"):  # 0 * inf, which is not taken
        ends = [
            np.where(scale == 0, shift, scale * bound + shift)
            for bound in (bounds.low, bounds.high)
        ]
    values = np.minimum(*ends), np.maximum(*ends)
    return tuple(
        Constant(operator, each)
        for operator, each in zip(OPERATORS, values, strict=True)
        if np.isfinite(each).any()
    )


def _stays(bounds: Bounds, change: Affine) -> bool:
    """Whether a clamp stays the operator that it is: its bounds scale along, or are its own."""
    if (change.scale < 0).any():
        return False
    if bounds.own:
        return True
    moved = any(np.any(np.isfinite(bound) & (bound != 0)) for bound in (bounds.low, bounds.high))
    return not moved and not change.has_shift
