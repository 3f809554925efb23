"""Rounding new constants to their data type, once, and refusing what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

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
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    with np.errstate(over="ignore"):
        result = values.astype(dtype)
    if not np.isfinite(result).all():
        raise _not_finite(values, dtype, data_type, view)
    if sums_over is not None:
        _require_precision(values, result, data_type, view, sums_over)
    return result


def _not_finite(
    values: NDArray[np.float64], dtype: np.dtype[Any], data_type: int, view: NodeView
) -> Refused:
    if not np.isfinite(values).all():
        return Refused(
            Reason.NOT_FINITE,
            view.label,
            "one of its constants is infinite or NaN; repair the model",
        )
    return Refused(
        Reason.OVERFLOW,
        view.label,
        f"a folded constant would be {float(np.abs(values).max()):.3g}, beyond the range of its "
        f"type {dtype.name} (at most {_FORMATS[data_type][0]:.6g}); convert the model to float32 "
        "before folding",
    )


def _require_precision(
    values: NDArray[np.float64],
    result: Array,
    data_type: int,
    view: NodeView,
    axes: tuple[int, ...],
) -> None:
    _, smallest, unit = _FORMATS[data_type]
    small = np.abs(result) < smallest
    if not small.any() or not (small & (values != 0)).any():
        return
    error = np.abs(result.astype(np.float64) - values).sum(axis=axes)
    if (error > 2 * unit * np.abs(values).sum(axis=axes)).any():
        raise Refused(
            Reason.PRECISION,
            view.label,
            "a folded constant would lose precision below the smallest normal number of its type "
            f"({smallest:.3g}); convert the model to float32 before folding",
        )
