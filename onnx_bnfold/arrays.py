"""Arrays of any shape and data type, and numpy's types of ONNX's element types."""

from functools import cache
from typing import Any, TypeAlias

import numpy as np
from onnx import TensorProto, helper

Array: TypeAlias = np.ndarray[Any, Any]

# Those of numpy itself; ``helper`` knows them, too, but has to import ml_dtypes first.
_OF_NUMPY: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.DOUBLE: np.dtype(np.float64),
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.INT8: np.dtype(np.int8),
    TensorProto.INT16: np.dtype(np.int16),
    TensorProto.INT32: np.dtype(np.int32),
    TensorProto.INT64: np.dtype(np.int64),
    TensorProto.UINT8: np.dtype(np.uint8),
    TensorProto.UINT16: np.dtype(np.uint16),
    TensorProto.UINT32: np.dtype(np.uint32),
    TensorProto.UINT64: np.dtype(np.uint64),
    TensorProto.BOOL: np.dtype(np.bool_),
}
_TO_ONNX = {dtype: data_type for data_type, dtype in _OF_NUMPY.items()}


@cache
def dtype_of(data_type: int) -> np.dtype[Any]:
    """Return numpy's type for an element type of ONNX, that of ml_dtypes where numpy has none.

    Raises:
        KeyError: there is no such element type.
    """
    found = _OF_NUMPY.get(data_type)
    return helper.tensor_dtype_to_np_dtype(data_type) if found is None else found


def data_type_of(dtype: np.dtype[Any]) -> int:
    """Return ONNX's element type for a type of numpy or ml_dtypes.

    Raises:
        ValueError: ONNX has no such element type.
    """
    found = _TO_ONNX.get(dtype)
    return helper.np_dtype_to_tensor_dtype(dtype) if found is None else found
