"""Labelled data, read in batches: an .npz, or a folder of IDX files such as MNIST's."""

import gzip
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeAlias, cast

import numpy as np

from onnx_bnfold.check.inputs import convert
from onnx_bnfold.check.sessions import Array, Feed, InputSpec
from onnx_bnfold.errors import UsageError

Batch: TypeAlias = tuple[Feed, Array]

LABELS = "labels"
# Type codes of the IDX format (yann.lecun.com/exdb/mnist): big-endian elements.
_IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


@dataclass(frozen=True)
class Rows:
    """An array in a stream, read row by row: ``shape[0]`` rows of shape ``shape[1:]``."""

    stream: IO[bytes]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    origin: str

    def read(self, count: int) -> Array:
        """Return the next ``count`` rows.

        Raises:
            UsageError: the stream ends before.
        """
        row = self.shape[1:]
        wanted = count * int(np.prod(row)) * self.dtype.itemsize
        data = self.stream.read(wanted)
        if len(data) < wanted:
            raise UsageError(f"{self.origin} ends too early; it is truncated")
        return np.frombuffer(data, self.dtype).reshape(count, *row)


class Dataset:
    """Arrays for a model's inputs and one class per example; a context manager.

    Args:
        path: .npz with arrays named like the inputs and ``labels``, or a folder with
            ``*images-idx3-ubyte`` and ``*labels-idx1-ubyte`` (with or without .gz; if there are
            several, those that begin with t10k), whose pixels are scaled to 0..1 for a float input.
        inputs: the model's inputs.

    Attributes:
        path: as given.
        examples: their number.

    Raises:
        UsageError: the data cannot be read or do not fit the inputs.
    """

    def __init__(self, path: str | os.PathLike[str], inputs: Sequence[InputSpec]) -> None:
        self.path = Path(path)
        self._inputs = inputs
        self._stack = ExitStack()
        try:
            self._rows = self._open()
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            self._stack.close()
            raise UsageError(f"cannot read data from {self.path}: {error}") from error
        except UsageError:
            self._stack.close()
            raise
        self.examples = self._rows[LABELS].shape[0]

    def __enter__(self) -> "Dataset":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its files."""
        self._stack.close()

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield feeds of at most ``size`` examples with their classes, ``(n,)``; call it only once.

        Raises:
            UsageError: the data cannot be read.
        """
        for begin in range(0, self.examples, size):
            count = min(size, self.examples - begin)
            try:
                arrays = {name: rows.read(count) for name, rows in self._rows.items()}
            except (OSError, EOFError, zipfile.BadZipFile) as error:
                raise UsageError(f"cannot read data from {self.path}: {error}") from error
            labels = arrays.pop(LABELS).reshape(count).astype(np.int64)
            yield {spec.name: self._fit(arrays[spec.name], spec) for spec in self._inputs}, labels

    def _open(self) -> dict[str, Rows]:
        rows = self._open_idx() if self.path.is_dir() else self._open_npz()
        if any(spec.name == LABELS for spec in self._inputs):
            raise UsageError(f"the model's own input {LABELS!r} clashes with the array of labels")
        labels = rows[LABELS]
        if labels.dtype.kind not in "iu" or int(np.prod(labels.shape[1:])) != 1:
            raise UsageError(
                f"{labels.origin}: labels must be integers of shape (n,), "
                f"not {labels.dtype} {list(labels.shape)}"
            )
        for name, item in rows.items():
            if item.shape[0] != labels.shape[0]:
                raise UsageError(
                    f"{self.path}: {name!r} has {item.shape[0]} rows, "
                    f"but there are {labels.shape[0]} labels"
                )
        if labels.shape[0] == 0:
            raise UsageError(f"{self.path} has no examples")
        return rows

    def _open_npz(self) -> dict[str, Rows]:
        if self.path.is_file() and not zipfile.is_zipfile(self.path):
            raise ValueError("it is neither an .npz nor a folder of IDX files")
        archive = self._stack.enter_context(zipfile.ZipFile(self.path))
        members = {name.removesuffix(".npy"): name for name in archive.namelist()}
        rows = {}
        for name in [*(spec.name for spec in self._inputs), LABELS]:
            if name not in members:
                raise UsageError(
                    f"{self.path} has no array {name!r}; it has {', '.join(sorted(members))}"
                )
            stream = self._stack.enter_context(archive.open(members[name]))
            rows[name] = _npy_rows(stream, f"{self.path}: {name!r}")
        return rows

    def _open_idx(self) -> dict[str, Rows]:
        if len(self._inputs) != 1:
            raise UsageError(f"IDX data feed one input, the model has {len(self._inputs)}")
        images = self._open_idx_file("images-idx3-ubyte")
        labels = self._open_idx_file("labels-idx1-ubyte")
        return {self._inputs[0].name: images, LABELS: labels}

    def _open_idx_file(self, ending: str) -> Rows:
        paths = [
            path
            for path in sorted(self.path.iterdir())
            if path.name.removesuffix(".gz").replace(".", "-").endswith(ending)
        ]
        if not paths:
            raise UsageError(f"{self.path} has no file *{ending}")
        path = next((p for p in paths if p.name.startswith("t10k")), paths[0])
        stream: IO[bytes] = self._stack.enter_context(path.open("rb"))
        if path.suffix == ".gz":
            stream = cast("IO[bytes]", gzip.GzipFile(fileobj=stream))
        return _idx_rows(stream, str(path))

    def _fit(self, array: Array, spec: InputSpec) -> Array:
        if self.path.is_dir() and spec.dtype.kind == "f":
            array = array.astype(spec.dtype) / spec.dtype.type(255)
        row = spec.shape[1:]
        if array.shape[1:] != row and all(isinstance(dim, int) for dim in row):
            wanted = tuple(int(dim) for dim in row if dim is not None)
            if np.prod(wanted) == np.prod(array.shape[1:]):
                array = array.reshape(len(array), *wanted)
        # The last batch may be shorter than the model's batch size; only the rows have to fit.
        rows_of = InputSpec(spec.name, spec.type, (None, *row) if spec.shape else ())
        return convert(array, rows_of, self.path)


def _npy_rows(stream: IO[bytes], origin: str) -> Rows:
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0}
    reader = readers.get(version, np.lib.format.read_array_header_2_0)
    shape, fortran, dtype = reader(stream)
    if dtype.hasobject:
        raise UsageError(f"{origin} holds Python objects, not numbers")
    if not shape:
        raise UsageError(f"{origin} is a single number; it needs one row per example")
    if fortran and len(shape) > 1:
        raise UsageError(f"{origin} is stored in Fortran order; save np.ascontiguousarray of it")
    return Rows(stream, dtype, shape, origin)


def _idx_rows(stream: IO[bytes], origin: str) -> Rows:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_TYPES:
        raise UsageError(f"{origin} is not an IDX file")
    rank = magic[3]
    shape = np.frombuffer(stream.read(4 * rank), ">i4")
    if len(shape) != rank or rank == 0:
        raise UsageError(f"{origin} ends within its header; it is truncated")
    return Rows(stream, np.dtype(_IDX_TYPES[magic[2]]), tuple(int(n) for n in shape), origin)
