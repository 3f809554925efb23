"""External data of a tensor: the entries that say where its values are."""

from __future__ import annotations

import os
import re

from onnx import TensorProto

from onnx_bnfold.storage.tensors import LOCATION, byte_length, clear_values

_DECIMAL = re.compile(r"[0-9]{1,18}")


def external_range(tensor: TensorProto) -> tuple[str, int, int]:
    """Return ``(location, offset, length)`` of the values of an external tensor, in bytes.

    Raises:
        ValueError: an entry is not a number, or does not fit the tensor's shape.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    needed = byte_length(tensor)
    numbers = {"offset": 0, "length": needed}
    for key in numbers.keys() & entries.keys():
        if not _DECIMAL.fullmatch(entries[key]):
            raise ValueError(f"has the {key} {entries[key][:40]!r}, which is not a number of bytes")
        numbers[key] = int(entries[key])
    if numbers["length"] != needed:
        raise ValueError(
            f"has {numbers['length']} bytes of values where its shape {list(tensor.dims)} "
            f"needs {needed}"
        )
    return entries.get(LOCATION, ""), numbers["offset"], needed


def set_external_range(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Make a tensor's message refer to values in a file, and drop those it holds."""
    clear_values(tensor)
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in ((LOCATION, location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def resolve(folder: str, location: str) -> str:
    """Return the path of a data file.

    Args:
        folder: the model's folder.
        location: as the model gives it, relative to that folder.

    Raises:
        ValueError: the file is not below the folder.
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
