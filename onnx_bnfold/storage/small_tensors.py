"""Small tensors of a model, decoded many at a time."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, repeat
from operator import attrgetter

import numpy as np
from onnx import TensorProto

from onnx_bnfold.storage.tensors import MOST_AXES, bytes_needed, element, is_plain_type

_EXTERNAL = TensorProto.EXTERNAL  # looking it up in protobuf takes long
_LOCATION_OF, _TYPE_OF = attrgetter("data_location"), attrgetter("data_type")
_CONTENT_OF = attrgetter("raw_data")
_TOGETHER = 1024  # tensors of up to this many values are decoded together


class SmallTensors:
    """The values of small tensors, decoded together: those of one shape and type are one array.

    A model may hold thousands of them; one array per shape and type takes a fraction of the time
    that ``decode_inline`` takes for each tensor. Only tensors that hold the right number of values
    in ``raw_data`` and have at least one axis are included; the values are those of
    ``decode_inline``. Read any other tensor with ``decode_inline``, which reports what is wrong.

    Args:
        tensors: by name.
        dims: name → shape.
    """

    def __init__(
        self, tensors: Mapping[str, TensorProto], dims: Mapping[str, tuple[int, ...]]
    ) -> None:
        self._numbers: dict[str, int] = {}  # counts through all arrays, one after another
        self._arrays: list[np.ndarray] = []
        self._starts: list[int] = []
        for (shape, data_type), (names, contents) in _alike(tensors, dims).items():
            try:
                needed = bytes_needed(shape, data_type)
            except ValueError:
                continue
            if not is_plain_type(data_type):
                continue
            if {needed} != set(map(len, contents)):
                complete = [i for i, content in enumerate(contents) if len(content) == needed]
                names, contents = [names[i] for i in complete], [contents[i] for i in complete]
            start = len(self._numbers)
            self._numbers.update(zip(names, range(start, start + len(names)), strict=True))
            self._starts.append(start)
            joined = np.frombuffer(b"".join(contents), element(data_type)[0])
            self._arrays.append(joined.reshape(len(names), *shape))

    def get(self, name: str) -> np.ndarray | None:
        """Return the values of a tensor; None if it is not included."""
        number = self._numbers.get(name)
        if number is None:
            return None
        index = bisect_right(self._starts, number) - 1
        values: np.ndarray = self._arrays[index][number - self._starts[index]]
        return values

    def rows(self, names: Sequence[Sequence[str]]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield the values of many rows of tensors, all rows of one shape and type at once.

        Args:
            names: rows of tensor names, all rows of the same length.

        Yields:
            The indices of some rows, and their values ``(rows, names per row, *shape)``. Rows with
            a tensor that is not included, or with tensors of several shapes or types, are left out.
        """
        known = self._numbers
        flat = list(map(known.get, chain.from_iterable(names), repeat(-1)))
        if not flat or not self._starts:
            return
        numbers = np.array(flat, np.int64).reshape(len(names), -1)
        # For each name the index of its array, -1 if it is not included.
        indices = np.searchsorted(self._starts, numbers, side="right") - 1
        common = np.where((indices == indices[:, :1]).all(axis=1), indices[:, 0], -1)
        for index in sorted({*common.tolist()} - {-1}):  # np.unique imports masked arrays
            rows = np.flatnonzero(common == index)
            yield rows.tolist(), self._arrays[index][numbers[rows] - self._starts[index]]


def _alike(
    tensors: Mapping[str, TensorProto], dims: Mapping[str, tuple[int, ...]]
) -> dict[tuple[tuple[int, ...], int], tuple[list[str], list[bytes]]]:
    """Collect names and contents of small tensors by shape and type."""
    # Do not ask larger tensors for their bytes: protobuf would copy them.
    small = {
        shape
        for shape in set(dims.values())
        if 0 < len(shape) < MOST_AXES and 0 < math.prod(shape) <= _TOGETHER
    }
    chosen = [name for name in tensors if dims[name] in small]
    found = [tensors[name] for name in chosen]
    # A field of all tensors at a time: thousands of them are not asked one by one in Python.
    places, types = map(_LOCATION_OF, found), map(_TYPE_OF, found)
    segments = map(TensorProto.HasField, found, repeat("segment"))
    facts = zip(chosen, places, segments, types, map(_CONTENT_OF, found), strict=True)
    alike: dict[tuple[tuple[int, ...], int], tuple[list[str], list[bytes]]]
    alike = defaultdict(lambda: ([], []))
    for name, place, is_segment, data_type, content in facts:
        if place != _EXTERNAL and not is_segment:
            names, contents = alike[dims[name], data_type]
            names.append(name)
            contents.append(content)
    return alike
