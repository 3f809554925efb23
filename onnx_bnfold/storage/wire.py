"""Replace parts of a serialised protobuf message without parsing all of it.

A message is a sequence of fields, each ``tag, [length,] body``; a submessage is a body that is
again a sequence of fields. A new body of another length changes the lengths of all messages around
it and nothing else; ``rewrite`` updates these and copies every other byte unchanged.
Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from itertools import count
from typing import Protocol, TypeAlias

_VARINT, _FIXED64, _LENGTH, _GROUP, _END_GROUP, _FIXED32 = range(6)
_HEADER = 20  # a tag and a length, of at most ten bytes each
_CONTINUED = 0x80  # a byte of a number is followed by another one if it is at least this
# For each byte, whether it is the complete tag of a length-delimited field.
_ONE_BYTE_TAG = [byte < _CONTINUED and byte >> 3 > 0 and byte & 7 == _LENGTH for byte in range(256)]

Edit: TypeAlias = Callable[[int, int, int], "list[Sized] | None"]
# field number → index among the fields of that number → the new body, or the marks within it
Marks: TypeAlias = "dict[int, dict[int, Marks | Sized]]"


class MalformedError(ValueError):
    """The bytes are not a protobuf message, or end too early."""


class Data(Protocol):
    """Bytes with random access."""

    def window(self, start: int) -> tuple[bytes, int]:
        """Return bytes that include position ``start``, and the position of their first byte."""

    def slice(self, start: int, stop: int) -> bytes | memoryview:
        """Return the bytes from ``start`` to ``stop``."""


class Blob:
    """Data in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._view = memoryview(content)

    def window(self, start: int) -> tuple[bytes, int]:
        """Return the whole content, which begins at position 0."""
        return self._content, 0

    def slice(self, start: int, stop: int) -> memoryview:
        """Return a view, not a copy."""
        return self._view[start:stop]


def fields(data: Data, start: int, end: int, least: int = 0) -> Iterator[tuple[int, int, int, int]]:
    """Yield the length-delimited fields of the message in ``data[start:end]``.

    Args:
        data: holds the message.
        start: position of the message's first byte.
        end: position behind its last byte.
        least: bodies of fewer bytes are skipped.

    Yields:
        ``(number, head, body, stop)``: the field's number and the positions of its tag, of its
        body and behind its body. Fields of other wire types and whole groups are skipped.

    Raises:
        MalformedError: a field is broken or exceeds the message. Groups are not checked; protobuf
            does that.
    """
    window, base, position, groups = b"", 0, start, 0
    shortest, one_byte_tag = min(least, _CONTINUED), _ONE_BYTE_TAG
    while position < end:
        at = position - base
        if at + _HEADER > len(window):
            window, base = data.window(position)
            at = position - base
        # A short cut for most of a graph, nodes and small tensors, whose tag and length take a
        # byte each. It spares the calls of ``_read_varint`` below, which give the same.
        first, room = at, min(len(window) - _HEADER, end - base)
        while at < room and one_byte_tag[window[at]] and (length := window[at + 1]) < shortest:
            at += 2 + length
        if at > first:
            position = base + at
            continue
        tag, at = _read_varint(window, at)
        kind, number, head = tag & 7, tag >> 3, position
        if kind == _LENGTH:
            length, at = _read_varint(window, at)
            position = base + at + length
        elif kind == _VARINT:
            position = base + _read_varint(window, at)[1]
        elif kind in (_FIXED64, _FIXED32):
            position = base + at + (8 if kind == _FIXED64 else 4)
        elif kind in (_GROUP, _END_GROUP):
            groups += 1 if kind == _GROUP else -1
            position = base + at
        if kind > _FIXED32 or number == 0 or position > end:
            raise MalformedError(f"byte {head} does not begin a field that fits")
        if kind == _LENGTH and groups == 0 and length >= least:
            yield number, head, base + at, position
    if position > end:
        raise MalformedError(f"byte {end} is within a field")


def rewrite(data: Data, start: int, end: int, edit: Edit, least: int = 0) -> list[Sized] | None:
    """Replace bodies of fields of the message in ``data[start:end]``.

    Args:
        data: holds the message.
        start: position of the message's first byte.
        end: position behind its last byte.
        edit: called with ``(number, body, stop)`` for every length-delimited field; returns the
            pieces of its new body, or None to keep it.
        least: bodies of fewer bytes are kept without a call.

    Returns:
        The pieces of the new message, whose ``len`` is their number of bytes: bytes, views of
        ``data`` and whatever ``edit`` returned. None if ``edit`` kept every field.

    Raises:
        MalformedError: the bytes break the wire format.
    """
    pieces: list[Sized] = []
    kept = start
    for number, head, body, stop in fields(data, start, end, least):
        new = edit(number, body, stop)
        if new is not None:
            header = _varint(number << 3 | _LENGTH) + _varint(sum(map(len, new)))
            pieces += (data.slice(kept, head), header, *new)
            kept = stop
    return [*pieces, data.slice(kept, end)] if pieces else None


def splice(data: Data, start: int, end: int, marks: Marks) -> list[Sized]:
    """Replace the bodies of the fields that ``marks`` names.

    Args:
        data: holds the message.
        start: position of the message's first byte.
        end: position behind its last byte.
        marks: field number → index among the fields of that number → the field's new body, or
            the marks within it.

    Returns:
        The pieces of the new message, as for ``rewrite``.
    """
    seen = {number: count() for number in marks}

    def edit(number: int, body: int, stop: int) -> list[Sized] | None:
        mark = marks[number].get(next(seen[number])) if number in marks else None
        if mark is None:
            return None
        return splice(data, body, stop, mark) if isinstance(mark, dict) else [mark]

    return rewrite(data, start, end, edit) or [data.slice(start, end)]


def _read_varint(window: bytes, at: int) -> tuple[int, int]:
    try:
        value = window[at]
        at += 1
        if value < _CONTINUED:
            return value, at
        value &= 0x7F
        for shift in range(7, 70, 7):
            byte = window[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < _CONTINUED:
                return value, at
    except IndexError:
        raise MalformedError("the data ends within a field") from None
    raise MalformedError("a number is too long")


def _varint(value: int) -> bytes:
    coded = bytearray()
    while value > 0x7F:
        coded.append(value & 0x7F | 0x80)
        value >>= 7
    coded.append(value)
    return bytes(coded)
