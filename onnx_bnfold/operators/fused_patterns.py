"""What onnxruntime runs as one operator where a model spells it out in several.

Taking a node out of such a group, or another value for a constant by which it is recognised, costs
more than it saves. What has no constant needs no mention, nor has the Add in front of a Gelu
(BiasGelu) or of a LayerNormalization (SkipLayerNormalization): the rest is recognised without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Constant:
    """A constant operand.

    Attributes:
        value: the one element that it has, to five digits; None for any.
        axes: the most axes that it may have; None for any number.
        is_weight: whether it has one axis, with any number of elements, which may get other values.
    """

    value: float | None = None
    axes: int | None = None
    is_weight: bool = False


DATA = "data"  # what the group reads, the same tensor wherever it stands
# That, a constant, or an operator and its operands.
Pattern: TypeAlias = "str | Constant | tuple[Pattern, ...]"

# The operands of these may stand in any order.
COMMUTATIVE = frozenset(("Add", "Mul"))
# These reduce the last axis, and keep it.
ALONG_THE_LAST_AXIS = frozenset(("ReduceMean",))


def _scalar(value: float | None = None) -> Constant:
    return Constant(value, axes=1)


def _plus_one(pattern: Pattern) -> Pattern:
    return ("Add", pattern, _scalar(1.0))


def _deviation(pattern: Pattern) -> Pattern:
    variance = ("ReduceMean", ("Pow", pattern, Constant(2.0)))
    return ("Sqrt", ("Add", variance, Constant()))


_HALF: Pattern = ("Mul", DATA, _scalar(0.5))
_ERF = _plus_one(("Erf", ("Div", DATA, _scalar(math.sqrt(2)))))
_CUBIC, _ROOT = _scalar(0.044715), _scalar(math.sqrt(2 / math.pi))
_TANH: tuple[Pattern, ...] = (
    ("Mul", ("Mul", DATA, _ROOT), _plus_one(("Mul", DATA, ("Mul", DATA, _CUBIC)))),
    ("Mul", ("Add", DATA, ("Mul", ("Pow", DATA, _scalar(3.0)), _CUBIC)), _ROOT),
)
_CENTRED: Pattern = ("Sub", DATA, ("ReduceMean", DATA))
_WEIGHT = Constant(is_weight=True)

# Fused operator → the groups of nodes that become one; those that hold others come first.
PATTERNS: Mapping[str, tuple[Pattern, ...]] = {
    "Gelu": (("Mul", _HALF, _ERF), ("Mul", ("Mul", DATA, _ERF), _scalar(0.5))),
    "FastGelu": tuple(("Mul", _HALF, _plus_one(("Tanh", inner))) for inner in _TANH),
    "QuickGelu": (("Mul", DATA, ("Sigmoid", ("Mul", DATA, _scalar()))),),
    "LayerNormalization": (
        ("Add", ("Mul", ("Div", _CENTRED, _deviation(_CENTRED)), _WEIGHT), _WEIGHT),
    ),
    "SimplifiedLayerNormalization": (
        ("Mul", ("Div", DATA, _deviation(DATA)), _WEIGHT),
        ("Mul", ("Mul", DATA, ("Div", Constant(1.0), _deviation(DATA))), _WEIGHT),
    ),
}
