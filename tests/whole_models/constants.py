"""Float constants, as exporters write them: plain, shared, or behind nodes that compute them."""

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


def _quantized(b: Builder, array: np.ndarray) -> str:
    b.need(array.ndim > 0 and array.size > 0 and b.opset >= 13 and array.dtype == np.float32)
    axis = b.draw.between(0, array.ndim - 1)
    per_axis = b.draw.chance(0.6)
    over = tuple(i for i in range(array.ndim) if i != axis) if per_axis else None
    step = (np.abs(array).max(over) / 100 + 1e-3).astype(np.float32)
    scale = b.initializer(step)
    kind = b.draw.pick([np.int8, np.uint8])
    middle = 0 if kind is np.int8 else 128
    zero = b.initializer(np.full(step.shape, middle + b.draw.between(-3, 3), kind))
    extra = {"axis": axis} if per_axis else {}
    if b.draw.chance(0.3):
        (whole,) = b.add("QuantizeLinear", [b.initializer(array), scale, zero], **extra)
    else:
        shape = [-1 if i == axis else 1 for i in range(array.ndim)] if per_axis else []
        whole = b.initializer(
            np.clip(np.rint(array / step.reshape(shape)) + middle, *_bounds(kind)).astype(kind)
        )
    return b.add("DequantizeLinear", [whole, scale, zero], **extra)[0]


def _bounds(kind: type) -> tuple[int, int]:
    return int(np.iinfo(kind).min), int(np.iinfo(kind).max)


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
    _quantized: 1.5,
}
