"""Find the tensors of a model, and convert their values between bytes and arrays."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from functools import cache, lru_cache
from operator import attrgetter
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnx_bnfold.arrays import dtype_of
from onnx_bnfold.errors import ModelError

# The path from a model to a tensor: (field number, index) of every message on it.
Path: TypeAlias = "tuple[tuple[int, int], ...]"
# Selects tensors of a field, each with its index there.
Pick: TypeAlias = "Callable[[Sequence[TensorProto]], Iterable[tuple[int, TensorProto]]]"

# The fields of each message that lead to tensors; initializers first, in the order of the file.
_ROUTES: dict[Any, tuple[str, ...]] = {
    onnx.ModelProto: ("graph", "training_info", "functions"),
    onnx.TrainingInfoProto: ("initialization", "algorithm"),
    onnx.FunctionProto: ("node", "attribute_proto"),
    onnx.GraphProto: ("initializer", "sparse_initializer", "node"),
    onnx.NodeProto: ("attribute",),
    onnx.AttributeProto: ("t", "g", "sparse_tensor", "tensors", "graphs", "sparse_tensors"),
    onnx.SparseTensorProto: ("values", "indices"),
}
_EXTERNAL = TensorProto.EXTERNAL  # looking it up in protobuf takes long
_LOCATION_OF = attrgetter("data_location")
MOST_AXES = 32  # of an array: the limit of numpy 1
_VALUE_FIELDS = (
    "raw_data",
    "float_data",
    "int32_data",
    "string_data",
    "int64_data",
    "double_data",
    "uint64_data",
)
# The key of the ``external_data`` entry that says where values are: in another file ...
LOCATION = "location"
# ... or in the model's own file (see skeleton.py). ``tensors`` relies on both containing MARK.
REFERENCE = "onnx_bnfold.location"
MARK = LOCATION.encode()


def field_number(message: Any, name: str) -> int:
    """Return the number of a field of a protobuf message class."""
    number: int = message.DESCRIPTOR.fields_by_name[name].number
    return number


# message class → field number → (field name, class of the field's messages)
ROUTES: dict[Any, dict[int, tuple[str, Any]]] = {
    kind: {
        field_number(kind, name): (
            name,
            getattr(onnx, kind.DESCRIPTOR.fields_by_name[name].message_type.name),
        )
        for name in names
    }
    for kind, names in _ROUTES.items()
}


def is_external(tensor: TensorProto) -> bool:
    """Return whether the values are in a file, not in the message."""
    return bool(tensor.data_location == _EXTERNAL)


def elsewhere(names: Container[str] = ()) -> Pick:
    """Return a ``Pick`` of the tensors whose values are in a file, and of tensors by name."""

    def pick(field: Sequence[TensorProto]) -> list[tuple[int, TensorProto]]:
        # Without a loop in Python: most fields of most models have no such tensor.
        if not names and _EXTERNAL not in map(_LOCATION_OF, field):
            return []
        return [
            (index, tensor)
            for index, tensor in enumerate(field)
            if tensor.data_location == _EXTERNAL or tensor.name in names
        ]

    return pick


def tensors(
    message: Any,
    pick: Pick = enumerate,
    path: Path = (),
    *,
    in_nodes: bool = True,
) -> Iterator[tuple[Path, TensorProto]]:
    """Yield the tensors below a message, with the paths to them.

    Tensors in a node are skipped when none of the node's values is in a file: looking at the
    attributes of ten thousand nodes one by one takes longer than the rest of a copy.

    Args:
        message: any message that leads to tensors.
        pick: selects tensors of a field; all by default.
        path: to the message.
        in_nodes: whether values in nodes may be in a file.
    """
    for number, (name, kind) in ROUTES[type(message)].items():
        if kind is onnx.NodeProto and not in_nodes:
            continue
        value = getattr(message, name)
        if isinstance(value, kind):
            value = (value,) if message.HasField(name) else ()
        if kind is TensorProto:
            for index, child in pick(value):
                yield (*path, (number, index)), child
            continue
        for index, child in enumerate(value):
            if kind is not onnx.NodeProto or _may_refer(child):
                yield from tensors(child, pick, (*path, (number, index)), in_nodes=in_nodes)


def _may_refer(node: onnx.NodeProto) -> bool:
    """Return whether a value in a node may be in a file."""
    return bool(node.attribute) and MARK in node.SerializeToString()


@cache
def element(data_type: int) -> tuple[np.dtype[Any], int]:
    """Return the numpy type of an ONNX element type, and the bits that an element has in a file."""
    if data_type not in TensorProto.DataType.values() or data_type == TensorProto.UNDEFINED:
        raise ValueError(f"has the unknown element type {data_type}")
    dtype = dtype_of(data_type)
    if dtype.isbuiltin == 1:
        return dtype, 8 * dtype.itemsize
    import ml_dtypes  # newer versions take a second

    try:
        return dtype, ml_dtypes.finfo(dtype).bits  # type: ignore[no-untyped-call]
    except ValueError:
        return dtype, ml_dtypes.iinfo(dtype).bits  # type: ignore[no-untyped-call]


def byte_length(tensor: TensorProto) -> int:
    """Return the number of bytes that a tensor's values take in a file.

    Raises:
        ValueError: see ``bytes_needed``.
    """
    return bytes_needed(tuple(tensor.dims), tensor.data_type)


@lru_cache(maxsize=1024)  # a model has tensors of few shapes
def bytes_needed(dims: tuple[int, ...], data_type: int) -> int:
    """Return the number of bytes that values of a shape and type take in a file.

    Raises:
        ValueError: a size is negative, or the type is unknown or strings.
    """
    if data_type == TensorProto.STRING:
        raise ValueError("holds strings, which cannot be stored as external data")
    if min(dims, default=0) < 0:
        raise ValueError(f"has a negative dimension in its shape {list(dims)}")
    return -(-math.prod(dims) * element(data_type)[1] // 8)


def require_length(given: int, tensor: TensorProto) -> None:
    """Raise ValueError unless a tensor's values take exactly ``given`` bytes in a file."""
    dims, data_type = tuple(tensor.dims), tensor.data_type
    if given != bytes_needed(dims, data_type):
        raise _wrong_length(given, dims, data_type)


def _wrong_length(given: int, dims: tuple[int, ...], data_type: int) -> ValueError:
    needed = bytes_needed(dims, data_type)
    return ValueError(f"has {given} bytes of values where its shape {list(dims)} needs {needed}")


def decode(content: bytes, tensor: TensorProto) -> np.ndarray:
    """Return the values that ``content`` holds in the layout of ``TensorProto.raw_data``.

    Args:
        content: the bytes.
        tensor: has the shape and the element type.

    Returns:
        The values, of shape ``dims``; the array may be read-only.

    Raises:
        ValueError: there are too many bytes or too few.
    """
    dims, data_type = tuple(tensor.dims), tensor.data_type
    if len(content) != bytes_needed(dims, data_type):
        raise _wrong_length(len(content), dims, data_type)
    if not is_plain_type(data_type):
        return numpy_helper.to_array(TensorProto(dims=dims, data_type=data_type, raw_data=content))
    values = np.frombuffer(content, element(data_type)[0])
    return values if len(dims) == 1 else values.reshape(dims)


def encode(arrays: Iterable[np.ndarray], tensor: TensorProto) -> Iterator[bytes | memoryview]:
    """Yield the bytes that ``onnx.numpy_helper.from_array`` would put into ``raw_data``.

    Args:
        arrays: the values: one array of the tensor's shape, or flat arrays to be joined.
        tensor: has the shape and the element type.

    Raises:
        ValueError: the arrays do not fit the shape or the element type.
    """
    dims, (dtype, bits) = tuple(tensor.dims), element(tensor.data_type)
    left = math.prod(dims)
    for array in arrays:
        shape, size = array.shape, array.size
        # Types of less than a byte come as one array: two of their elements share a byte.
        fits = shape == dims or (shape == (size,) and size <= left and bits >= 8)
        if array.dtype != dtype or not fits or size > left:
            raise ValueError(
                f"initializer {tensor.name!r} is {dtype} {list(dims)} and lacks {left} values, "
                f"its new values are {array.dtype} {list(shape)}"
            )
        left -= size
        if is_plain(tensor):
            yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        else:
            content: bytes = numpy_helper.from_array(array).raw_data
            yield content
    if left:
        raise ValueError(f"initializer {tensor.name!r} lacks {left} of its new values")


def fill(tensor: TensorProto, values: np.ndarray, size: int | None = None) -> None:
    """Put values into a tensor's message.

    Args:
        tensor: the message.
        values: of its shape, or flat.
        size: number of its elements, if that is known.

    Raises:
        ValueError: they do not fit, see ``encode``.
    """
    data_type, shape = tensor.data_type, values.shape
    if shape == (size,):
        fits = True  # without asking protobuf for the dims
    else:
        dims = tuple(tensor.dims[:])
        fits = shape == dims or shape == (math.prod(dims),)
    dtype, bits = element(data_type)
    if fits and values.dtype == dtype and bits >= 8 and sys.byteorder == "little":
        tensor.raw_data = values.tobytes()
    else:
        tensor.raw_data = b"".join(encode((values,), tensor))


def is_plain(tensor: TensorProto) -> bool:
    """Return whether the elements have the same bytes in a file as in a numpy array."""
    return is_plain_type(tensor.data_type)


def is_plain_type(data_type: int) -> bool:
    """Return whether elements of a type have the same bytes in a file as in a numpy array."""
    return element(data_type)[1] >= 8 and sys.byteorder == "little"


def decode_inline(tensor: TensorProto) -> np.ndarray:
    """Return the values that the message itself holds.

    Raises:
        ValueError, TypeError: it does not hold what its shape and type need.
    """
    if tensor.data_type != TensorProto.STRING:
        if tensor.HasField("raw_data") and not tensor.HasField("segment"):
            return decode(tensor.raw_data, tensor)
        needed = byte_length(tensor)
        if element(tensor.data_type)[1] < 8 and len(tensor.int32_data) < needed:
            raise ValueError(f"has too few values for its shape {list(tensor.dims)}")
    return numpy_helper.to_array(tensor)


def clear_values(tensor: TensorProto) -> None:
    """Drop the values that a tensor's message holds."""
    any(map(tensor.ClearField, _VALUE_FIELDS))  # a loop without Python; it returns None


def clear_place(tensor: TensorProto) -> None:
    """Drop where the values of a tensor lie, but not that they belong into another file."""
    if any(entry.key == REFERENCE for entry in tensor.external_data):
        tensor.ClearField("data_location")
    tensor.ClearField("external_data")


class naming:  # noqa: N801 - a context manager; a generator function takes twice as long
    """Turn errors about a tensor into a ModelError that names it, and the model if given."""

    __slots__ = ("_model", "_tensor")

    def __init__(self, tensor: TensorProto, model: os.PathLike[str] | str | None = None) -> None:
        self._tensor = tensor
        self._model = model

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            return
        where = f"{self._model}: " if self._model is not None else ""
        what = f"{where}tensor {self._tensor.name!r}"
        if isinstance(error, OSError):
            file = f" {error.filename!r}" if error.filename else ""
            raise ModelError(
                f"{what}: its data file{file} cannot be read: {error.strerror}; fetch the model "
                "again with all its files"
            ) from error
        if isinstance(error, (ValueError, TypeError, KeyError, OverflowError)):
            raise ModelError(f"{what} {error}; the model is damaged, export it again") from error
