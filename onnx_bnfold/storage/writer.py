"""Writes a model from its message and from values that lie elsewhere.

The values that the model holds inline are spliced into the serialised message, where protobuf
itself would put them. External ones go one after another into one data file beside the model.

The two files must change together, though only one file can be renamed at a time. So the data
file's name carries a hash of the model file, taken while the name's own digits are zeros:
`model.onnx.<16 hex digits>.data`.

- Another model file under the same name has another data file. The new data file is renamed first
  and the model last: until then the old model has its old data, from then on the new its new.
- The same model file has the same data file. Renaming the data file is then the moment at which
  the old pair becomes the new one; renaming the model changes nothing.

Thus no data byte is hashed, and equal input still gives equal output, names included. This holds
when the process dies; after a power failure it is up to the file system, as nothing is synced.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from onnx import ModelProto, StringStringEntryProto, TensorProto

from onnx_bnfold.errors import ModelError, UsageError
from onnx_bnfold.storage import skeleton, tensors, wire
from onnx_bnfold.storage.crew import Job, run
from onnx_bnfold.storage.files import InputFile, OutputFile, Span

PROTOBUF_LIMIT = (1 << 31) - 1  # protobuf reads no longer message
# From 1 MiB on, data begins on a border from which every system can map memory: the rule of
# onnxruntime and onnx_ir. Smaller data begins on a cache line.
_MAPPED, _MAP_ALIGNMENT, _ALIGNMENT = 1 << 20, 1 << 16, 64
_NO_DIGEST = "0" * 16
_COPIED_LATER = 1 << 16  # from this many bytes on, a copy is a job of its own
_AT_ONCE = 1 << 24  # bytes that one job copies: several share a large tensor


@dataclass(frozen=True, eq=False)
class Computed:
    """Bytes that a function gives, part by part, when they are written."""

    compute: Callable[[], Iterable[bytes | memoryview]]
    length: int

    def __len__(self) -> int:
        return self.length


Values: TypeAlias = "Span | Computed"
Inspect: TypeAlias = Callable[[Path], None]
OpenInput: TypeAlias = Callable[["str | None"], InputFile]


@dataclass(frozen=True)
class Slot:
    """A tensor of the message to write, and the values that belong to it."""

    path: tensors.Path
    tensor: TensorProto
    values: Values
    field: str
    external: bool


@dataclass
class _Layout:
    """Where all values go: into the message (`marks`) or to an offset in the data file."""

    marks: wire.Marks = field(default_factory=dict)
    offsets: dict[Values, int] = field(default_factory=dict)
    external: list[TensorProto] = field(default_factory=list)
    end: int = 0

    def add_inline(self, slot: Slot) -> None:
        """Lets one value hold the place of all of them."""
        if slot.field == "raw_data":
            slot.tensor.raw_data = b"\0"
        else:
            getattr(slot.tensor, slot.field).append(0)
        marks: Any = self.marks
        for number, index in slot.path:
            marks = marks.setdefault(number, {}).setdefault(index, {})
        marks[tensors.field_number(TensorProto, slot.field)] = {0: slot.values}

    def add_late(self, model: ModelProto, late: Mapping[str, Computed]) -> None:
        """Leaves room for metadata whose values are computed when they are written."""
        number = tensors.field_number(ModelProto, "metadata_props")
        value = tensors.field_number(StringStringEntryProto, "value")
        for index, entry in enumerate(model.metadata_props):
            if entry.key in late:
                entry.value = "\0"
                self.marks.setdefault(number, {})[index] = {value: {0: late[entry.key]}}

    def add_external(self, slot: Slot, location: str) -> None:
        """Gives the values a place in the data file; equal spans of a file share one."""
        length = len(slot.values)
        if slot.values not in self.offsets:
            border = _MAP_ALIGNMENT if length >= _MAPPED else _ALIGNMENT
            self.offsets[slot.values] = -(-self.end // border) * border
            self.end = self.offsets[slot.values] + length
        offset = self.offsets[slot.values]
        tensors.set_external_range(slot.tensor, location, offset, length)
        self.external.append(slot.tensor)


def write_model(
    model: ModelProto,
    slots: list[Slot],
    late: Mapping[str, Computed],
    target: Path,
    open_input: OpenInput,
    source: set[str],
    inspect: Inspect | None,
    threads: int | None,
) -> Path | None:
    """Writes a model file, and a data file beside it if some values are external.

    Args:
        model: the message; its tensors in `slots` are changed.
        slots: the tensors whose values are not in the message.
        late: values of `metadata_props`, by key, that are computed when they are written.
        target: the model file to write.
        open_input: opens the file of a Span.
        source: the paths of files that must stay as they are.
        inspect: called with the path of the finished model before it gets its final place; an
            exception it raises keeps it from there.
        threads: that compute values, see `crew.run`.

    Returns:
        The path of the data file.
    """
    layout, pieces = _lay_out(model, slots, late, target)
    jobs: list[Job] = []
    with ExitStack() as stack:
        file = stack.enter_context(OutputFile(target))
        data = stack.enter_context(OutputFile(target)) if layout.external else None
        if data:
            for values, offset in layout.offsets.items():
                data.pad(offset - data.position)
                jobs += _emit(values, data, open_input)
        for piece in pieces:
            jobs += _emit(piece, file, open_input)
        for out in filter(None, (data, file)):
            out.complete()
        run(jobs, threads)
        path = _data_path(file, target, source) if data else target
        if data:
            _rename_data(file, model, layout, path.name)
        if inspect:
            _show(inspect, target, {target.name: file} | ({path.name: data} if data else {}))
        if not data:
            file.commit(target)
            return None
        existed = path.exists()
        try:
            data.commit(path)
            file.commit(target)
        except BaseException:
            if not existed and not file.is_committed():
                path.unlink(missing_ok=True)
            raise
        return path


def _show(inspect: Inspect, target: Path, files: Mapping[str, OutputFile]) -> None:
    """Lets `inspect` see the files, which are complete, in a folder of their own."""
    prefix = f".{target.name[:40]}."
    with ExitStack() as stack:
        try:
            folder = tempfile.TemporaryDirectory(".tmp", prefix, target.parent)
        except OSError as error:
            raise UsageError(f"{target}: cannot be written: {error.strerror}") from error
        place = Path(stack.enter_context(folder))
        for name, file in files.items():
            stack.enter_context(file.lent(place / name))
        inspect(place / target.name)


def check_target(target: Path, source: set[str]) -> None:
    """Raises UsageError if `target` cannot be a new file, or is one of the paths in `source`."""
    if not target.parent.is_dir():
        raise UsageError(f"{target}: the folder {target.parent} does not exist; create it first")
    if not target.exists():
        return
    if not target.is_file():
        raise UsageError(f"{target}: is not a regular file; give the name of a file to write")
    if any(os.path.exists(path) and os.path.samefile(target, path) for path in source):
        raise UsageError(f"{target}: is the model that is read; give another name to write")


def _lay_out(
    model: ModelProto, slots: list[Slot], late: Mapping[str, Computed], target: Path
) -> tuple[_Layout, list[Sized]]:
    location = _data_name(target, _NO_DIGEST)
    for everything in (False, True):
        layout = _Layout()
        layout.add_late(model, late)
        for slot in slots:
            if slot.external or (everything and len(slot.values) >= skeleton.SMALL):
                layout.add_external(slot, location)
            else:
                layout.add_inline(slot)
        pieces = _serialize(model, layout)
        if sum(map(len, pieces)) <= PROTOBUF_LIMIT:
            return layout, pieces
    raise ModelError(f"{target}: the graph without its weights is larger than 2 GiB")


def _serialize(model: ModelProto, layout: _Layout) -> list[Sized]:
    content = model.SerializeToString(deterministic=True)
    return wire.splice(wire.Blob(content), 0, len(content), layout.marks)


def _emit(piece: Sized, out: OutputFile, open_input: OpenInput) -> Iterator[Job]:
    """Writes a piece; one that must be computed gets its place, and a job that fills it."""
    if isinstance(piece, Span):
        if piece.length < _COPIED_LATER:
            with _reading(piece):
                out.write(open_input(piece.path).read(piece.offset, piece.length))
            return
        place = out.reserve(piece.length)
        for start in range(0, piece.length, _AT_ONCE):
            length = min(_AT_ONCE, piece.length - start)
            yield partial(_copy, piece, open_input, start, length, out, place)
    elif isinstance(piece, Computed):
        place = out.reserve(piece.length)
        yield lambda: out.fill(place, piece.compute())
    elif isinstance(piece, (bytes, memoryview)):
        out.write(piece)


def _copy(
    span: Span, open_input: OpenInput, start: int, length: int, out: OutputFile, place: int
) -> None:
    with _reading(span):
        out.copy(place + start, open_input(span.path), span.offset + start, length)


@contextmanager
def _reading(span: Span) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"{error.filename or span.path or 'the model'}: cannot be read: {error.strerror}"
        ) from error


def _data_name(target: Path, digest: str) -> str:
    # A file name may hold bytes that are no text; the message can hold text only.
    return f"{target.name}.{digest}.data".encode("utf-8", "replace").decode()


def is_data_name(name: str, target: Path) -> bool:
    """Tells whether a file name is one that `write_model` gives to a data file of `target`."""
    digest = name.removesuffix(".data")[-len(_NO_DIGEST) :]
    return name == _data_name(target, digest) and set(digest) <= set("0123456789abcdef")


def _data_path(file: OutputFile, target: Path, source: set[str]) -> Path:
    digest = file.hash()
    while True:
        path = target.with_name(_data_name(target, digest.hexdigest()))
        if os.path.realpath(path) not in source:
            return path
        digest.update(b"\0")


def _rename_data(file: OutputFile, model: ModelProto, layout: _Layout, location: str) -> None:
    for tensor in layout.external:
        tensor.external_data[0].value = location
    position = 0
    for piece in _serialize(model, layout):
        if isinstance(piece, (bytes, memoryview)):
            file.overwrite(position, piece)
        position += len(piece)
