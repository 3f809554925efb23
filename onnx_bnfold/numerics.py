"""Rounding new constants to their data type, once, and refusing what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnx_bnfold.affine import VANISHED
from onnx_bnfold.reasons import Reason, Refused
from onnx_bnfold.view import NodeView

Array = np.ndarray[Any, Any]

# (largest finite value, smallest normal value, unit roundoff) of the float types.
_FORMATS: dict[int, tuple[float, float, float]] = {
    TensorProto.FLOAT: (float(np.finfo(np.float32).max), 2.0**-126, 2.0**-24),
    TensorProto.DOUBLE: (float(np.finfo(np.float64).max), 2.0**-1022, 2.0**-53),
    TensorProto.FLOAT16: (65504.0, 2.0**-14, 2.0**-11),
    TensorProto.BFLOAT16: (float(2.0**128 * (1 - 2.0**-8)), 2.0**-126, 2.0**-8),
}


def unit_roundoff(data_type: int) -> float:
    """Return the largest relative error of rounding to a float type, float32's for others."""
    return _FORMATS.get(data_type, _FORMATS[TensorProto.FLOAT])[2]


def rounded(
    values: NDArray[np.float64],
    data_type: int,
    view: NodeView,
    *,
    sums_over: tuple[int, ...] | None = None,
) -> Array:
    """Round float64 values to a float type.

    Args:
        values: of any shape.
        data_type: ONNX element type of the result.
        view: the node that reads the constant, for messages.
        sums_over: for factors, the axes over which one output sums; None for summands, whose
            absolute error is what counts.

    Raises:
        Refused: a value is not finite or overflows the type, or so much of an output's factors is
            lost below the smallest normal number that ordinary rounding would be better.
    """
    return product(values, np.ones(()), data_type, view, sums_over=sums_over)


def product(
    values: Array,
    factor: NDArray[np.float64],
    data_type: int,
    view: NodeView,
    *,
    sums_over: tuple[int, ...] | None = None,
) -> Array:
    """Multiply in float64 and round once to a float type; else like ``rounded``.

    Args:
        values: of any float type and shape; the result has its shape.
        factor: broadcasts against ``values``.
    """
    if data_type not in _FORMATS:
        name = TensorProto.DataType.Name(data_type).lower()
        raise Refused(
            Reason.UNSUPPORTED_TYPE, view.label, f"one of its constants is of the type {name}"
        )
    result = as_type(values, data_type, factor)
    _, smallest, unit = _FORMATS[data_type]
    peaks = _peaks(result, sums_over or ())
    if not np.isfinite(peaks).all():
        raise _not_finite(values, factor, data_type, view)
    # Beside a largest factor of this size, what a sum loses below the smallest normal is nothing.
    enough = smallest / unit if sums_over else smallest
    if sums_over is not None and not (peaks >= enough).all():
        _require_precision(values, factor, result, data_type, view, sums_over)
    return result


def _peaks(result: Array, axes: tuple[int, ...]) -> Array:
    """Return the largest magnitude in each sum; NaN where one of its factors is."""
    if not axes:
        return np.asarray(np.abs(result))
    return np.asarray(np.maximum(result.max(axis=axes), -result.min(axis=axes)))


def as_type(values: Array, data_type: int, factor: NDArray[np.float64] | float = 1.0) -> Array:
    """Multiply in float64 and round once; what overflows becomes infinite."""
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if data_type == TensorProto.BFLOAT16:
            return _to_bfloat16(values.astype(np.float64) * factor, dtype)
        # Computed in float64 in small blocks: no copy of the whole tensor in float64.
        result = np.empty(values.shape, dtype)
        np.multiply(values, factor, out=result, dtype=np.float64, casting="unsafe")
    return result


def _to_bfloat16(values: NDArray[np.float64], dtype: np.dtype[Any]) -> Array:
    """Round float64 to bfloat16 once: the cast goes by way of float32 and would round twice.

    Rounding to float32 "to odd" in between (Boldo and Melquiond 2008) keeps the last rounding
    exact.
    """
    single = values.astype(np.float32)
    wide = single.astype(np.float64)
    single = np.where(np.abs(wide) > np.abs(values), np.nextafter(single, np.float32(0)), single)
    bits = single.view(np.uint32) | (wide != values)
    rounded_once: Array = bits.astype(np.uint32).view(np.float32).astype(dtype)
    return rounded_once


def _not_finite(
    values: Array, factor: NDArray[np.float64], data_type: int, view: NodeView
) -> Refused:
    if not (np.isfinite(values).all() and np.isfinite(factor).all()):
        return Refused(
            Reason.NOT_FINITE,
            view.label,
            "one of its constants is infinite or NaN; repair the model",
        )
    with np.errstate(over="ignore"):
        largest = float(np.abs(values.astype(np.float64) * factor).max())
    name = TensorProto.DataType.Name(data_type).lower()
    return Refused(
        Reason.OVERFLOW,
        view.label,
        f"a folded constant would be {largest:.3g}, beyond the range of its type {name} (at most "
        f"{_FORMATS[data_type][0]:.6g}); convert the model to a wider type before folding",
    )


def _require_precision(
    values: Array,
    factor: NDArray[np.float64],
    result: Array,
    data_type: int,
    view: NodeView,
    axes: tuple[int, ...],
) -> None:
    _, smallest, unit = _FORMATS[data_type]
    exact = values.astype(np.float64) * np.where(np.abs(factor) <= 1 / VANISHED, 0, factor)
    error = np.abs(result.astype(np.float64) - exact).sum(axis=axes)
    if (error > 2 * unit * np.abs(exact).sum(axis=axes)).any():
        raise Refused(
            Reason.PRECISION,
            view.label,
            "a folded constant would lose precision below the smallest normal number of its type "
            f"({smallest:.3g}); convert the model to float32 before folding",
        )
