"""Nodes that numpy computes, as the evaluators do that would be asked: see ``evaluate``.

Importing onnx's reference evaluator takes 0.3 s and 14 MB, and onnxruntime takes 30 MB for a first
session; they copy what they are given. They are left what has an unusual form here, and what is
wrong: they say why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto

from onnx_bnfold.arrays import Array, dtype_of
from onnx_bnfold.model.messages import value_of
from onnx_bnfold.storage.tensors import decode_inline, is_external

# Operators whose output has the elements of the first input, in the same order or another one; and
# those of them for which numpy copies what does not lie in order.
MOVING = frozenset({"Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
COPYING = frozenset({"Reshape"})

# Computes an operator's output; None where an evaluator is to be asked.
_Compute = Callable[[Sequence[Array], Mapping[str, Any], int], "Array | None"]


def by_numpy(node: NodeProto, opset: int, feeds: Mapping[str, Array]) -> Array | None:
    """Return the only output of a node; it may be a view of an input.

    Args:
        node: of the standard domain, without attributes of an enclosing function.
        opset: version of the operator set.
        feeds: input name → values.

    Returns:
        None if the node is to be computed by others, who may find that it cannot be.
    """
    compute = _TABLE.get(node.op_type)
    if compute is None or len(node.output) != 1 or not all(node.input):
        return None
    inputs = [feeds[name] for name in node.input]
    if not all(_is_of_numpy(each.dtype) for each in inputs):
        return None
    try:
        attributes = {item.name: value_of(item) for item in node.attribute}
        with np.errstate(all="ignore"):
            made = compute(inputs, attributes, opset)
    except Exception:  # numpy raises several types; the evaluator says what is wrong
        return None
    return None if made is None else np.asarray(made)


def _is_of_numpy(dtype: np.dtype[Any]) -> bool:
    return dtype.isbuiltin == 1 and dtype.kind in "biuf"


def _constant(inputs: Sequence[Array], attributes: Mapping[str, Any], opset: int) -> Array | None:
    ((name, value),) = attributes.items()
    dtype = {"value_float": "f4", "value_floats": "f4", "value_int": "i8", "value_ints": "i8"}
    return np.array(value, dtype[name]) if opset >= 12 else None


def _shape(inputs: Sequence[Array], attributes: Mapping[str, Any], opset: int) -> Array | None:
    dims = inputs[0].shape
    start, end = attributes.get("start", 0), attributes.get("end", len(dims))
    return np.array(dims[start:end], np.int64) if 0 <= start <= end else None


def _identity(inputs: Sequence[Array], attributes: Mapping[str, Any], opset: int) -> Array:
    return inputs[0]


def _size(inputs: Sequence[Array], attributes: Mapping[str, Any], opset: int) -> Array:
    return np.array(inputs[0].size, np.int64)


def _filled(inputs: Sequence[Array], attributes: Mapping[str, Any], opset: int) -> Array | None:
    (shape,), held = inputs, attributes.get("value")
    if held is not None and is_external(held):
        return None  # onnx would look for its file in the folder where the process runs
    value = np.zeros((), np.float32) if held is None else decode_inline(held).reshape(())
    return np.broadcast_to(value, shape.tolist()) if _is_of_numpy(value.dtype) else None


def _gather(inputs: Sequence[Array], attributes: Mapping[str, Any], opset: int) -> Array:
    data, indices = inputs
    return np.take(data, indices, attributes.get("axis", 0))


def _slice(inputs: Sequence[Array], attributes: Mapping[str, Any], opset: int) -> Array | None:
    data, (starts, ends, *others) = inputs[0], (each.tolist() for each in inputs[1:])
    axes = others[0] if others else [*range(len(starts))]
    steps = others[1] if len(others) > 1 else [1] * len(starts)
    if opset < 10:
        return None
    bounds = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 0 and (start < -data.shape[axis] or end >= data.shape[axis]):
            return None  # runtimes read bounds beyond the ends as numpy does not
        bounds[axis] = slice(start, end, step)
    return data[tuple(bounds)]


def _cast(inputs: Sequence[Array], attributes: Mapping[str, Any], opset: int) -> Array | None:
    dtype = dtype_of(attributes["to"])
    return inputs[0].astype(dtype, copy=False) if _is_of_numpy(dtype) else None


def _cast_like(inputs: Sequence[Array], attributes: Mapping[str, Any], opset: int) -> Array:
    return inputs[0].astype(inputs[1].dtype, copy=False)


def _reshape(inputs: Sequence[Array], attributes: Mapping[str, Any], opset: int) -> Array:
    data, shape = inputs
    if attributes.get("allowzero"):
        return data.reshape(shape.tolist())
    return data.reshape([size or data.shape[axis] for axis, size in enumerate(shape.tolist())])


def _expand(inputs: Sequence[Array], attributes: Mapping[str, Any], opset: int) -> Array:
    data, shape = inputs
    return np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(shape.tolist())))


def _transpose(inputs: Sequence[Array], attributes: Mapping[str, Any], opset: int) -> Array:
    return inputs[0].transpose(attributes.get("perm"))


def _squeeze(inputs: Sequence[Array], attributes: Mapping[str, Any], opset: int) -> Array | None:
    axes = _axes(inputs, attributes)
    return None if axes is None else np.squeeze(inputs[0], axes)


def _unsqueeze(inputs: Sequence[Array], attributes: Mapping[str, Any], opset: int) -> Array | None:
    axes = _axes(inputs, attributes)
    return None if axes is None else np.expand_dims(inputs[0], axes)


def _axes(inputs: Sequence[Array], attributes: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return the axes that an attribute or an input gives, in any order: onnx misreads some."""
    axes = inputs[1].reshape(-1).tolist() if len(inputs) > 1 else attributes.get("axes")
    return tuple(axes) if axes else None


def _concat(inputs: Sequence[Array], attributes: Mapping[str, Any], opset: int) -> Array | None:
    alike = len({each.dtype for each in inputs}) == 1
    return np.concatenate(inputs, attributes["axis"]) if alike else None


def _summed(of: Callable[[Array], Array], then: Callable[[Array], Array] = np.positive) -> _Compute:
    """Return what adds up elements one after another, as onnxruntime does for these operators.

    It computes in other types for half precision, and adds up all elements in another order.
    """

    def compute(inputs: Sequence[Array], attributes: Mapping[str, Any], opset: int) -> Array | None:
        data = inputs[0]
        axes = [range(data.ndim)[axis] for axis in _axes(inputs, attributes) or ()]
        kept = [axis for axis in range(data.ndim) if axis not in axes]
        dims = [data.shape[axis] for axis in kept]
        alone = math.prod(dims) <= 1 or not data.size
        if data.dtype not in ("f4", "f8") or not axes or len({*axes}) < len(axes) or alone:
            return None
        # In the order of C, and the sums in the innermost axis: numpy adds up row after row.
        rows = np.ascontiguousarray(data.transpose(*axes, *kept)).reshape(-1, math.prod(dims))
        made = then(np.add.reduce(of(rows), axis=0)).reshape(dims)
        return np.expand_dims(made, tuple(sorted(axes))) if attributes.get("keepdims", 1) else made

    return compute


def _of_numbers(function: Callable[..., Any], kinds: str = "iuf") -> _Compute:
    def compute(inputs: Sequence[Array], attributes: Mapping[str, Any], opset: int) -> Any:
        (dtype,) = {each.dtype for each in inputs}
        # Before opset 7, attributes say how the second input is broadcast.
        return function(*inputs) if dtype.kind in kinds and opset >= 7 else None

    return compute


_TABLE: dict[str, _Compute] = {
    "Add": _of_numbers(np.add),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Div": _of_numbers(np.divide, "f"),
    "Expand": _expand,
    "Gather": _gather,
    "Identity": _identity,
    "Mul": _of_numbers(np.multiply),
    "ReduceL1": _summed(np.abs),
    "ReduceL2": _summed(np.square, np.sqrt),
    "ReduceSumSquare": _summed(np.square),
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Sqrt": _of_numbers(np.sqrt, "f"),
    "Squeeze": _squeeze,
    "Sub": _of_numbers(np.subtract),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
