"""Tensors of a model: finding them, and their values as bytes and as arrays."""

from __future__ import annotations

import math
import os
import re
import sys
from bisect import bisect_right
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from operator import attrgetter
from types import TracebackType
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_bnfold.errors import ModelError

# The way from a model to a tensor: (field number, index) of every message on it.
Path: TypeAlias = "tuple[tuple[int, int], ...]"
# Some of the tensors of a field, each with its index there.
Pick: TypeAlias = "Callable[[Sequence[TensorProto]], Iterable[tuple[int, TensorProto]]]"

# The fields through which a message leads to tensors; initializers first, as files are laid out so.
_ROUTES: dict[Any, tuple[str, ...]] = {
    onnx.ModelProto: ("graph", "training_info", "functions"),
    onnx.TrainingInfoProto: ("initialization", "algorithm"),
    onnx.FunctionProto: ("node", "attribute_proto"),
    onnx.GraphProto: ("initializer", "sparse_initializer", "node"),
    onnx.NodeProto: ("attribute",),
    onnx.AttributeProto: ("t", "g", "sparse_tensor", "tensors", "graphs", "sparse_tensors"),
    onnx.SparseTensorProto: ("values", "indices"),
}
_EXTERNAL = TensorProto.EXTERNAL  # protobuf takes long to look it up
_LOCATION_OF = attrgetter("data_location")
_TOGETHER = 1024  # values up to which tensors are decoded together
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
# The key of an `external_data` entry that says where values lie: in another file ...
_LOCATION = "location"
# ... or in the model's own file (see model_file.py). `tensors` relies on both containing MARK.
REFERENCE = "onnx_bnfold.location"
MARK = _LOCATION.encode()
_DECIMAL = re.compile(r"[0-9]{1,18}")


def field_number(message: Any, name: str) -> int:
    """Returns the number of a field of a protobuf message class."""
    number: int = message.DESCRIPTOR.fields_by_name[name].number
    return number


# message class -> field number -> (field name, class of the field's messages)
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
    """Tells whether the values lie in a file, not in the message."""
    return bool(tensor.data_location == _EXTERNAL)


def elsewhere(names: Container[str] = ()) -> Pick:
    """Returns what picks the tensors whose values lie in a file, and those of some names."""

    def pick(found: Sequence[TensorProto]) -> list[tuple[int, TensorProto]]:
        if not names and _EXTERNAL not in map(_LOCATION_OF, found):  # as soon as may be
            return []
        return [
            (index, tensor)
            for index, tensor in enumerate(found)
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
    """Yields the tensors below a message, with the way to them.

    Tensors in nodes are left out when no value in the node lies in a file: looking at the
    attributes of ten thousand nodes one by one takes longer than all the rest of a copy.

    Args:
        message: any message that leads to tensors.
        pick: of the tensors in a field of a message those that are wanted; all by default.
        path: the way to the message.
        in_nodes: whether values of nodes may lie in a file.
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
    """Tells whether a value in a node may lie in a file."""
    return bool(node.attribute) and MARK in node.SerializeToString()


@cache
def _element(data_type: int) -> tuple[np.dtype[Any], int]:
    """Returns the numpy type of an ONNX element type, and its size in a file in bits."""
    if data_type not in TensorProto.DataType.values() or data_type == TensorProto.UNDEFINED:
        raise ValueError(f"has the unknown element type {data_type}")
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    if dtype.isbuiltin == 1:
        return dtype, 8 * dtype.itemsize
    try:
        return dtype, ml_dtypes.finfo(dtype).bits  # type: ignore[no-untyped-call]
    except ValueError:
        return dtype, ml_dtypes.iinfo(dtype).bits  # type: ignore[no-untyped-call]


def byte_length(tensor: TensorProto) -> int:
    """Returns the number of bytes of a tensor's values in a file; ValueError if it has none."""
    return _byte_length(tuple(tensor.dims), tensor.data_type)


@lru_cache(maxsize=1024)  # the tensors of a model are of few shapes
def _byte_length(dims: tuple[int, ...], data_type: int) -> int:
    if data_type == TensorProto.STRING:
        raise ValueError("holds strings, which cannot lie in a file of their own")
    if min(dims, default=0) < 0:
        raise ValueError(f"has a negative dimension in its shape {list(dims)}")
    return -(-math.prod(dims) * _element(data_type)[1] // 8)


def require_length(given: int, tensor: TensorProto) -> None:
    """Raises ValueError unless a tensor's values take `given` bytes in a file."""
    dims, data_type = tuple(tensor.dims), tensor.data_type
    if given != _byte_length(dims, data_type):
        raise _wrong_length(given, dims, data_type)


def _wrong_length(given: int, dims: tuple[int, ...], data_type: int) -> ValueError:
    needed = _byte_length(dims, data_type)
    return ValueError(f"has {given} bytes of values where its shape {list(dims)} needs {needed}")


def decode(content: bytes, tensor: TensorProto) -> np.ndarray:
    """Returns the values that `content` holds in the layout of `TensorProto.raw_data`.

    Args:
        content: the bytes.
        tensor: gives the shape and the element type.

    Raises:
        ValueError: the bytes are too many or too few.
    """
    dims, data_type = tuple(tensor.dims), tensor.data_type
    if len(content) != _byte_length(dims, data_type):
        raise _wrong_length(len(content), dims, data_type)
    if not _is_plain(data_type):
        return numpy_helper.to_array(TensorProto(dims=dims, data_type=data_type, raw_data=content))
    values = np.frombuffer(content, _element(data_type)[0])
    return values if len(dims) == 1 else values.reshape(dims)


def encode(arrays: Iterable[np.ndarray], tensor: TensorProto) -> Iterator[bytes | memoryview]:
    """Yields the bytes that `onnx.numpy_helper.from_array` would put into `raw_data`.

    Args:
        arrays: the values, as one array, or as flat ones that follow each other.
        tensor: the shape and the element type that they must have.

    Raises:
        ValueError: they do not have them.
    """
    dims, (dtype, bits) = tuple(tensor.dims), _element(tensor.data_type)
    left = math.prod(dims)
    for array in arrays:
        shape, size = array.shape, array.size
        # Elements of less than a byte share bytes with others.
        fits = shape == dims or (shape == (size,) and size <= left and bits >= 8)
        if array.dtype != dtype or not fits or size > left:
            raise ValueError(
                f"initializer {tensor.name!r} is {dtype} {list(dims)}, its new values are "
                f"{array.dtype} {list(shape)}, where {left} are missing"
            )
        left -= size
        if is_plain(tensor):
            yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        else:
            content: bytes = numpy_helper.from_array(array).raw_data
            yield content
    if left:
        raise ValueError(f"got {left} new values too few")


def fill(tensor: TensorProto, values: np.ndarray) -> None:
    """Puts values into a tensor's message; ValueError if they do not fit, see `encode`."""
    data_type, dims, shape = tensor.data_type, tuple(tensor.dims[:]), values.shape
    fits = shape == dims or shape == (math.prod(dims),)
    dtype, bits = _element(data_type)
    if fits and values.dtype == dtype and bits >= 8 and sys.byteorder == "little":
        tensor.raw_data = values.tobytes()
    else:
        tensor.raw_data = b"".join(encode((values,), tensor))


def is_plain(tensor: TensorProto) -> bool:
    """Tells whether the elements lie in a file as numpy has them in memory."""
    return _is_plain(tensor.data_type)


def _is_plain(data_type: int) -> bool:
    return _element(data_type)[1] >= 8 and sys.byteorder == "little"


def decode_inline(tensor: TensorProto) -> np.ndarray:
    """Returns the values that the message itself holds; ValueError or TypeError if it does not."""
    if tensor.data_type != TensorProto.STRING:
        if tensor.HasField("raw_data") and not tensor.HasField("segment"):
            return decode(tensor.raw_data, tensor)
        needed = byte_length(tensor)
        if _element(tensor.data_type)[1] < 8 and len(tensor.int32_data) < needed:
            raise ValueError(f"has too few values for its shape {list(tensor.dims)}")
    return numpy_helper.to_array(tensor)


class SmallTensors:
    """Thousands of small tensors, decoded together: those of one shape and type are one array.

    It has the values, as `decode_inline` gives them, of those that hold them in their `raw_data`,
    have axes, and have as many values as they should. What is wrong with others, that says.

    Args:
        tensors: by name.
        dims: their shapes, by name.
    """

    def __init__(
        self, tensors: Mapping[str, TensorProto], dims: Mapping[str, tuple[int, ...]]
    ) -> None:
        self._numbers: dict[str, int] = {}  # counts through all arrays, one after another
        self._arrays: list[np.ndarray] = []
        self._starts: list[int] = []
        for (shape, data_type), (names, contents) in _alike(tensors, dims).items():
            try:
                needed = _byte_length(shape, data_type)
            except ValueError:
                continue
            if not _is_plain(data_type):
                continue
            if {needed} != set(map(len, contents)):
                whole = [i for i, content in enumerate(contents) if len(content) == needed]
                names, contents = [names[i] for i in whole], [contents[i] for i in whole]
            start = len(self._numbers)
            self._numbers.update(zip(names, range(start, start + len(names)), strict=True))
            self._starts.append(start)
            joined = np.frombuffer(b"".join(contents), _element(data_type)[0])
            self._arrays.append(joined.reshape(len(names), *shape))

    def get(self, name: str) -> np.ndarray | None:
        """Returns the values of a tensor, None if it is not among these."""
        number = self._numbers.get(name)
        if number is None:
            return None
        place = bisect_right(self._starts, number) - 1
        values: np.ndarray = self._arrays[place][number - self._starts[place]]
        return values

    def rows(self, names: Sequence[Sequence[str]]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yields the values of many rows of tensors, those of one shape and type at once.

        Args:
            names: as many in each row.

        Yields:
            The indices of some rows, and an array `(rows, names per row, *shape)`. Rows whose
            tensors are not all among these, or not all alike, are left out.
        """
        known = self._numbers
        numbers = np.array([[known.get(name, -1) for name in row] for row in names], np.int64)
        if not numbers.size or not self._starts:
            return
        places = np.searchsorted(self._starts, numbers, side="right") - 1
        common = np.where((places == places[:, :1]).all(axis=1), places[:, 0], -1)
        for place in sorted({*common.tolist()} - {-1}):  # np.unique imports masked arrays
            found = np.flatnonzero(common == place)
            yield found.tolist(), self._arrays[place][numbers[found] - self._starts[place]]


def _alike(
    tensors: Mapping[str, TensorProto], dims: Mapping[str, tuple[int, ...]]
) -> dict[tuple[tuple[int, ...], int], tuple[list[str], list[bytes]]]:
    """Collects names and contents of small tensors by shape and type."""
    # Larger ones are not asked for their bytes: protobuf copies them.
    small = {
        shape
        for shape in set(dims.values())
        if 0 < len(shape) < MOST_AXES and 0 < math.prod(shape) <= _TOGETHER
    }
    alike: dict[tuple[tuple[int, ...], int], tuple[list[str], list[bytes]]] = {}
    has_field = TensorProto.HasField  # protobuf looks for a field of that name first, every time
    for name, tensor in tensors.items():
        shape = dims[name]
        if (
            shape in small
            and tensor.data_location != _EXTERNAL
            and not has_field(tensor, "segment")
        ):
            kind = shape, tensor.data_type
            if kind not in alike:
                alike[kind] = [], []
            names, contents = alike[kind]
            names.append(name)
            contents.append(tensor.raw_data)
    return alike


def external_range(tensor: TensorProto) -> tuple[str, int, int]:
    """Returns `(location, offset, length)`: where the values of an external tensor lie.

    Raises:
        ValueError: an entry is missing, is no number, or does not fit the tensor's shape.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    needed = byte_length(tensor)
    numbers = {"offset": 0, "length": needed}
    for key in numbers.keys() & entries.keys():
        if not _DECIMAL.fullmatch(entries[key]):
            raise ValueError(f"has the {key} {entries[key][:40]!r}, which is no number of bytes")
        numbers[key] = int(entries[key])
    if numbers["length"] != needed:
        raise ValueError(
            f"has {numbers['length']} bytes of values where its shape {list(tensor.dims)} "
            f"needs {needed}"
        )
    return entries.get(_LOCATION, ""), numbers["offset"], needed


def clear_values(tensor: TensorProto) -> None:
    """Drops the values that a tensor's message holds itself."""
    clear = tensor.ClearField  # protobuf looks for a field of that name first, every time
    for name in _VALUE_FIELDS:
        clear(name)


def set_external_range(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Makes a tensor's message refer to values in a file, and drops those it holds itself."""
    clear_values(tensor)
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in ((_LOCATION, location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def resolve(folder: str, location: str) -> str:
    """Returns the path of a data file; ValueError unless it lies inside the model's folder.

    Args:
        folder: the model's folder.
        location: where the model says the file is.
    """
    root = os.path.realpath(folder)
    path = os.path.realpath(os.path.join(root, location))
    inside = os.path.commonpath((root, path)) == root and path != root
    if (
        not location
        or os.path.isabs(location)
        or ".." in re.split(r"[/\\]", location)
        or not inside
    ):
        raise ValueError(
            f"has its values in {location!r}; they must be in a file below the model's folder"
        )
    return path


class naming:  # noqa: N801 - a context manager; a generator would take twice as long
    """Turns what is wrong with a tensor into a ModelError that names it."""

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
