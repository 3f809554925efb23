"""Reads the weights that TensorFlow has saved, without TensorFlow.

The index is a table of LevelDB: blocks of entries whose keys leave out what they share with the key
before, and a footer that says where the block of blocks is. Each value is a protobuf message that
says where in the data file a tensor is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

_FOOTER = 48
_DIMS, _OFFSET, _SIZE = 2, 4, 5  # fields of a tensor's message


def checkpoint(index: Path, data: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Return the float32 tensors of a checkpoint by name.

    Args:
        index, data: its files.
    """
    table, content = index.read_bytes(), data.read_bytes()
    place = table[-_FOOTER:]
    for _ in range(2):  # of the block of metadata
        _, place = _number(place)
    blocks = [value for _, value in _entries(table, place)]
    found = {}
    for key, message in (entry for block in blocks for entry in _entries(table, block)):
        fields = dict(_fields(message))
        size = fields.get(_SIZE)
        if not key or not isinstance(size, int):
            continue
        start = fields.get(_OFFSET, 0)
        dims = [n for _, dim in _fields(fields.get(_DIMS, b"")) for _, n in _fields(dim)]
        found[key.decode()] = np.frombuffer(content[start : start + size], "<f4").reshape(dims)
    return found


def _entries(table: bytes, place: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block, whose place is two numbers."""
    start, place = _number(place)
    size, _ = _number(place)
    block = table[start : start + size]
    (restarts,) = struct.unpack("<I", block[-4:])
    block, key = block[: -4 - 4 * restarts], b""
    while block:
        shared, block = _number(block)
        more, block = _number(block)
        length, block = _number(block)
        key = key[:shared] + block[:more]
        yield key, block[more : more + length]
        block = block[more + length :]


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a protobuf message: numbers, and bytes."""
    while message:
        tag, message = _number(message)
        length = 4  # of a checksum
        if tag % 8 == 0:
            value, message = _number(message)
            yield tag // 8, value
            continue
        if tag % 8 == 2:
            length, message = _number(message)
        yield tag // 8, message[:length]
        message = message[length:]


def _number(data: bytes) -> tuple[int, bytes]:
    """Return the variable-length number that data begin with, and the rest."""
    end = next(i for i, byte in enumerate(data) if byte < 128) + 1
    return sum((byte & 127) << 7 * i for i, byte in enumerate(data[:end])), data[end:]
