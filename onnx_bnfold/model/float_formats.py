"""The float types that constants are rounded to, and rounding to them once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnx_bnfold.arrays import Array, dtype_of

# (largest finite value, smallest normal value, unit roundoff) of the float types.
FORMATS: dict[int, tuple[float, float, float]] = {
    TensorProto.FLOAT: (float(np.finfo(np.float32).max), 2.0**-126, 2.0**-24),
    TensorProto.DOUBLE: (float(np.finfo(np.float64).max), 2.0**-1022, 2.0**-53),
    TensorProto.FLOAT16: (65504.0, 2.0**-14, 2.0**-11),
    TensorProto.BFLOAT16: (float(2.0**128 * (1 - 2.0**-8)), 2.0**-126, 2.0**-8),
}


def largest(data_type: int) -> float:
    """Return the largest finite value of a float type, float32's for others."""
    return FORMATS.get(data_type, FORMATS[TensorProto.FLOAT])[0]


def unit_roundoff(data_type: int) -> float:
    """Return the largest relative error of rounding to a float type, float32's for others."""
    return FORMATS.get(data_type, FORMATS[TensorProto.FLOAT])[2]


def as_type(values: Array, data_type: int, factor: NDArray[np.float64] | None = None) -> Array:
    """Multiply in float64, if by anything, and round once; what overflows becomes infinite."""
    dtype = dtype_of(data_type)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        exact = values.astype(np.float64, copy=False)
        if factor is not None:
            exact = exact * factor
        if data_type == TensorProto.BFLOAT16:
            return _to_bfloat16(exact, dtype)
        return np.asarray(exact, dtype)


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
