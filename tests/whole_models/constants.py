"""Float constants, as exporters write them: plain, shared, or behind nodes that compute them."""

import ml_dtypes
import numpy as np
from onnx import helper, numpy_helper

from .builder import Builder
from .draw import Unfit
from .floats import BFLOAT16


def constant(b: Builder, values, dtype: np.dtype, role: str = "") -> str:
    """Return the name of a constant.

    Args:
        b: the model.
        values: what it should hold; a guise may round it.
        dtype: its type.
        role: what it is for; an earlier constant of the same role and shape may be taken instead.
    """
    with np.errstate(over="ignore"):
        array = np.asarray(values).astype(dtype)
    pool = b.scope.shared.setdefault((role, dtype, array.shape), []) if role else []
    if pool and b.draw.chance(0.06):
        return b.draw.pick(pool)
    if role and b.scope.outer is not None and b.draw.chance(0.25):
        captured = b.scope.outer.shared.get((role, dtype, array.shape))
        if captured:
            return b.draw.pick(captured)
    name = _disguised(b, array) if b.draw.chance(b.guises) else b.initializer(array)
    pool.append(name)
    return name


def _disguised(b: Builder, array: np.ndarray) -> str:
    try:
        with b.attempt():
            return b.draw.weighted(_GUISES)(b, array)
    except Unfit:
        return b.initializer(array)


def _node(b: Builder, array: np.ndarray) -> str:
    (name,) = b.add("Constant", [], value=numpy_helper.from_array(array))
    return name


def _literal(b: Builder, array: np.ndarray) -> str:
    b.need(b.opset >= 12 and array.dtype == np.float32 and array.ndim < 2)
    key = "value_floats" if array.ndim else "value_float"
    return b.add("Constant", [], **{key: array.tolist()})[0]


def _identity(b: Builder, array: np.ndarray) -> str:
    return b.add("Identity", [b.initializer(array)])[0]


def _cast(b: Builder, array: np.ndarray) -> str:
    other = b.draw.pick([np.dtype(np.float64), np.dtype(np.float32), np.dtype(np.float16)])
    b.need(other != array.dtype)
    with np.errstate(over="ignore"):
        before = b.initializer(array.astype(other))
    return b.add("Cast", [before], to=helper.np_dtype_to_tensor_dtype(array.dtype))[0]


def _transpose(b: Builder, array: np.ndarray) -> str:
    b.need(array.ndim > 1)
    order = b.draw.shuffled(range(array.ndim))
    before = b.initializer(np.ascontiguousarray(array.transpose(np.argsort(order))))
    return b.add("Transpose", [before], perm=order)[0]


def _reshape(b: Builder, array: np.ndarray) -> str:
    return b.add("Reshape", [b.initializer(array.reshape(-1)), b.integers(*array.shape)])[0]


def _expand(b: Builder, array: np.ndarray) -> str:
    b.need(array.size > 0)
    shape = [1 if b.draw.chance(0.5) else n for n in array.shape]
    small = array[tuple(slice(0, n) for n in shape)]
    return b.add("Expand", [b.initializer(small), b.integers(*array.shape)])[0]


def _filled(b: Builder, array: np.ndarray) -> str:
    b.need(array.size > 0 and array.dtype != BFLOAT16)
    value = numpy_helper.from_array(array.reshape(-1)[:1])
    return b.add("ConstantOfShape", [b.integers(*array.shape)], value=value)[0]


def _unsqueeze(b: Builder, array: np.ndarray) -> str:
    b.need(array.ndim > 0 and array.shape[0] == 1)
    before = b.initializer(array[0])
    if b.opset < 13:
        return b.add("Unsqueeze", [before], axes=[0])[0]
    return b.add("Unsqueeze", [before, b.integers(0)])[0]


def _concat(b: Builder, array: np.ndarray) -> str:
    b.need(array.ndim > 0 and array.shape[0] > 1)
    cut = b.draw.between(1, array.shape[0] - 1)
    return b.add("Concat", [b.initializer(array[:cut]), b.initializer(array[cut:])], axis=0)[0]


def _computed(b: Builder, array: np.ndarray) -> str:
    other = b.initializer((b.draw.uniform(0.5, 2) * np.ones(())).astype(array.dtype))
    return b.add(b.draw.pick(["Mul", "Add", "Sub", "Div"]), [b.initializer(array), other])[0]


def _sparse(b: Builder, array: np.ndarray) -> str:
    b.need(not b.scope.bare and b.ir_version >= 5 and b.opset >= 11 and array.ndim > 0)
    b.need(array.dtype in (np.float32, np.float64) and array.size > 1)
    kept = b.draw.arrays.random(array.shape) < 0.6
    return b.sparse(np.where(kept, array, 0).astype(array.dtype) if b.draw.chance(0.6) else array)


def _quantized(b: Builder, array: np.ndarray) -> str:
    """Write integers of 4, 8 or 16 bits and a DequantizeLinear, or the QuantizeLinear as well."""
    halves = b.opset >= 19 and array.dtype == np.float16
    b.need(array.ndim > 0 and array.size > 0 and b.opset >= 13)
    b.need((array.dtype == np.float32 or halves) and bool(np.isfinite(array).all()))
    kind = np.dtype(b.draw.pick(_INTEGERS if b.opset >= 21 else _INTEGERS[:2]))
    axis = b.draw.between(0, array.ndim - 1)
    granularity = b.draw.weighted({"axis": 4, "tensor": 3, "block": 2 if b.opset >= 21 else 0})
    extra = {"axis": b.axis(array.ndim, axis)} if granularity != "tensor" else {}
    size = array.shape[axis] if granularity == "tensor" else 1
    if granularity == "block":
        size = extra["block_size"] = b.draw.between(1, array.shape[axis])
    lowest, highest = int(ml_dtypes.iinfo(kind).min), int(ml_dtypes.iinfo(kind).max)
    middle = (lowest + highest + 1) // 2 + b.draw.between(-2, 2)
    step = _peaks(array, granularity, axis, size) / (0.45 * (highest - lowest)) + 1e-3
    step = step.astype(array.dtype)
    inputs = [b.initializer(step)]
    if b.draw.chance(0.3):
        middle = 0
    else:
        inputs.append(b.initializer(np.full(step.shape, middle).astype(kind)))
    wide = step
    if granularity == "axis":
        wide = step.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    if granularity == "block":
        wide = np.repeat(step, size, axis).take(range(array.shape[axis]), axis)
    if len(inputs) == 2 and granularity != "block" and b.draw.chance(0.3):
        (whole,) = b.add("QuantizeLinear", [b.initializer(array), *inputs], **extra)
    else:
        codes = np.clip(np.rint(array / wide) + middle, lowest, highest)
        whole = b.initializer(codes.astype(np.float32).astype(kind))
    return b.add("DequantizeLinear", [whole, *inputs], **extra)[0]


_INTEGERS = [np.int8, np.uint8, ml_dtypes.int4, ml_dtypes.uint4, np.int16, np.uint16]


def _peaks(array: np.ndarray, granularity: str, axis: int, size: int) -> np.ndarray:
    """Return the largest magnitude of the tensor, of each slice or of each block."""
    magnitude = np.abs(array.astype(np.float64))
    if granularity == "tensor":
        return np.asarray(magnitude.max())
    if granularity == "axis":
        return magnitude.max(tuple(i for i in range(array.ndim) if i != axis))
    return np.maximum.reduceat(magnitude, range(0, array.shape[axis], size), axis)


_GUISES = {
    _node: 3,
    _literal: 1,
    _identity: 2,
    _cast: 2,
    _transpose: 2,
    _reshape: 2,
    _expand: 1,
    _filled: 0.3,
    _unsqueeze: 1,
    _concat: 1,
    _computed: 1,
    _quantized: 2,
    _sparse: 1.5,
}
