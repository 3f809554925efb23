"""Add, Sub, Mul and Div of a constant and one other operand, as affine maps of that one.

The functions are those of ``entries.ConstantOperand``.
"""

from __future__ import annotations

import numpy as np

from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators.affine import Float64
from onnx_bnfold.operators.broadcasting import require_divisor


def plus(view: NodeView, value: Float64, data: int) -> tuple[Float64, Float64]:
    """Return scale and shift of Add."""
    return np.ones((1,) * value.ndim), value


def minus(view: NodeView, value: Float64, data: int) -> tuple[Float64, Float64]:
    """Return scale and shift of Sub, which subtracts the constant or is subtracted from it."""
    one = np.ones((1,) * value.ndim)
    return (one, -value) if data == 0 else (-one, value)


def times(view: NodeView, value: Float64, data: int) -> tuple[Float64, Float64]:
    """Return scale and shift of Mul."""
    return value, np.zeros((1,) * value.ndim)


def over(view: NodeView, value: Float64, data: int) -> tuple[Float64, Float64]:
    """Return scale and shift of Div by the constant."""
    require_divisor(view, value)
    return 1 / value, np.zeros((1,) * value.ndim)
