"""Rules of homogeneous functions: what a scale becomes that goes in, as ``f(s * x) = g(s) * f(x)``.

With the degree ``k`` it comes out as ``s ** k``. So it does of powers and norms, where a negative
scale may lose its sign, or be none that passes. No shift passes.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators import data_movement
from onnx_bnfold.operators.affine import Affine, Float64
from onnx_bnfold.operators.entries import OUT
from onnx_bnfold.operators.rules import Known, Mover, Rule, Step, require, require_divisible
from onnx_bnfold.reasons import Reason, Refused


class Sign(Enum):
    """What becomes of a negative scale."""

    KEPT = auto()
    LOST = auto()
    REFUSED = auto()


class Degree(NamedTuple):
    """How a scale comes out.

    Attributes:
        power: to which its magnitude is raised.
        sign: what becomes of its sign.
    """

    power: float
    sign: Sign

    def raised(self, scale: Float64) -> Float64:
        """Return the scale of the output."""
        return self._with_sign(np.abs(scale) ** self.power, scale)

    def root(self, scale: Float64) -> Float64:
        """Return a scale of the input that comes out as the given one."""
        return self._with_sign(np.abs(scale) ** (1 / self.power) if self.power else scale, scale)

    def _with_sign(self, magnitude: Float64, scale: Float64) -> Float64:
        return np.asarray(np.copysign(magnitude, scale) if self.sign is Sign.KEPT else magnitude)


NORM = Degree(1, Sign.LOST)
SQUARE = Degree(2, Sign.LOST)
SQUARE_ROOT = Degree(0.5, Sign.REFUSED)
RECIPROCAL = Degree(-1, Sign.KEPT)
SIGN = Degree(0, Sign.KEPT)


def homogeneous(
    degree: Degree | Callable[[NodeView], Degree],
    move: Mover = data_movement.unmoved,
    *,
    squares: bool = False,
) -> Rule:
    """Make the rule of an operator that is homogeneous.

    Args:
        degree: of the operator, or of a node.
        move: moves a change from the input to the output, as in ``rules.passes``.
        squares: whether larger numbers stand between input and output.
    """

    def rule(view: NodeView, known: Known) -> Step:
        source = 0 if 0 in known.changes else OUT
        change = known.changes[source]
        found = degree if isinstance(degree, Degree) else degree(view)
        _require(view, change, found, source)
        if squares and view.type_of(view.name_in(0)) == TensorProto.FLOAT16:
            raise Refused(
                Reason.RANGE,
                view.label,
                "squares of a rescaled input may leave the range of float16",
            )
        with np.errstate(over="ignore"):  # the planner refuses what is not finite
            if source == 0:
                other = move(view, _scaled(found.raised, change), True)
            else:
                other = _scaled(found.root, move(view, change, False))
        return Step(({source: change, ~source: other},))

    return rule


def _scaled(function: Callable[[Float64], Float64], change: Affine) -> Affine:
    return Affine.of(function(change.scale), change.shift)


def _require(view: NodeView, change: Affine, degree: Degree, source: int) -> None:
    back = source == OUT
    refused = degree.sign is Sign.REFUSED or (back and degree.sign is Sign.LOST)
    require(view, change, positive=refused, shift=False)
    if degree.power != 1:
        require_divisible(view, change)
    if back and not degree.power and (np.abs(change.scale) != 1).any():
        raise Refused(Reason.OPAQUE, view.label, "whatever its input is, it gives -1, 0 or 1")


def _exponent(view: NodeView) -> Degree:
    """Return the degree of a Pow by one constant exponent.

    Raises:
        Refused: it is computed at run time, is zero or not finite, or is not one number.
    """
    given = view.value(1)
    if given is None or given.size != 1 or given.ndim > len(view.dims_in(0)):
        raise Refused(Reason.OPAQUE, view.label, "its exponent is not one number")
    exponent = float(given.reshape(()))
    if not exponent or not np.isfinite(exponent):
        raise Refused(Reason.OPAQUE, view.label, f"its exponent is {exponent}")
    if exponent % 1:
        return Degree(exponent, Sign.REFUSED)
    return Degree(exponent, Sign.KEPT if exponent % 2 else Sign.LOST)


def _reduced(view: NodeView, change: Affine, forward: bool) -> Affine:
    """Move a change through a node that reduces axes.

    Raises:
        Refused: it has none to reduce. onnxruntime 1.23 hands its input on as it is then.
    """
    if view.attribute("noop_with_empty_axes", 0) and not data_movement.reduced_axes(view):
        raise Refused(
            Reason.OPAQUE,
            view.label,
            "it has no axes to reduce, and runtimes disagree on what else it does; take it out, or "
            "write what it is to do",
        )
    return data_movement.reduced(view, change, forward)


# The rules of the table.
magnitude = homogeneous(NORM)
norm = homogeneous(NORM, _reduced, squares=True)
norm_of_windows = homogeneous(NORM, data_movement.windowed, squares=True)
power = homogeneous(_exponent)
reciprocal = homogeneous(RECIPROCAL)
sign = homogeneous(SIGN)
square_root = homogeneous(SQUARE_ROOT)
sum_of_magnitudes = homogeneous(NORM, _reduced)
sum_of_squares = homogeneous(SQUARE, _reduced)
