"""Write a model from its message and from values that are elsewhere.

Inline values are spliced into the serialised message where protobuf itself would put them.
External values go one after another into one data file beside the model.

The two files must change together, but only one file can be renamed at a time. So the name of the
data file contains a hash of the model file, computed with zeros in place of the hash itself:
``model.onnx.<16 hex digits>.data``.

- If the new model file differs from the old one, so does the name of its data file. The data file
  is renamed first and the model last: before that the old model has its old data, afterwards the
  new model has its new data.
- If the model files are equal, so are the names. Renaming the data file then replaces the old pair
  by the new one, and renaming the model changes nothing.

Thus no byte of the data has to be hashed, and equal input still gives equal output, names included.
All this holds if the process dies, and with ``sync`` after a power failure, too: both files are
flushed before the first is renamed, and their folder after each (``durable``). Without it the file
system decides what is left of the new pair; the input is never touched.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from onnx import ModelProto, StringStringEntryProto, TensorProto

from onnx_bnfold.errors import ModelError, UsageError
from onnx_bnfold.storage import external, skeleton, tensors, wire
from onnx_bnfold.storage.durable import flush_folder
from onnx_bnfold.storage.files import InputFile, OutputFile, Span
from onnx_bnfold.storage.thread_pool import Job, run

PROTOBUF_LIMIT = (1 << 31) - 1  # bytes; protobuf reads no longer messages
# Data of at least 1 MiB begins at an offset that every system can map into memory, as onnxruntime
# and onnx_ir have it. Smaller data begins on a cache line.
_MAPPED, _MAP_ALIGNMENT, _ALIGNMENT = 1 << 20, 1 << 16, 64
_NO_DIGEST = "0" * 16
_COPIED_LATER = 1 << 16  # from this many bytes on, a copy is a job of its own
_AT_ONCE = 1 << 24  # bytes that one job copies; a large tensor is divided among several


class ComputedBytes:
    """Bytes that a function computes, part by part, when they are written.

    Attributes:
        compute: returns the parts.
        length: number of bytes of all parts.
    """

    def __init__(self, compute: Callable[[], Iterable[bytes | memoryview]], length: int) -> None:
        self.compute = compute
        self.length = length

    def __len__(self) -> int:
        return self.length


Values: TypeAlias = "Span | ComputedBytes"
InspectFile: TypeAlias = Callable[[Path], None]
OpenInput: TypeAlias = Callable[["str | None"], InputFile]


class Slot(NamedTuple):
    """A tensor of the message to write, and its values.

    Attributes:
        path: from the model to the tensor.
        tensor: the message, without values.
        values: where they come from.
        field: of the tensor that gets them if they are inline.
        external: whether they go into the data file.
    """

    path: tensors.Path
    tensor: TensorProto
    values: Values
    field: str
    external: bool


class _Layout:
    """Where the values go: into the message (``marks``) or to an offset in the data file.

    Attributes:
        marks: values that go into the message.
        offsets: values → offset in the data file.
        external: the tensors whose values go there.
        end: size of the data file.
    """

    def __init__(self) -> None:
        self.marks: wire.Marks = {}
        self.offsets: dict[Values, int] = {}
        self.external: list[TensorProto] = []
        self.end = 0

    def add_inline(self, slot: Slot) -> None:
        """Put one value into the message as a placeholder, and mark it for replacement."""
        if slot.field == "raw_data":
            slot.tensor.raw_data = b"\0"
        else:
            getattr(slot.tensor, slot.field).append(0)
        marks: Any = self.marks
        for number, index in slot.path:
            marks = marks.setdefault(number, {}).setdefault(index, {})
        marks[tensors.field_number(TensorProto, slot.field)] = {0: slot.values}

    def add_late(self, model: ModelProto, late: Mapping[str, ComputedBytes]) -> None:
        """Mark metadata whose values are computed when they are written."""
        number = tensors.field_number(ModelProto, "metadata_props")
        value = tensors.field_number(StringStringEntryProto, "value")
        for index, entry in enumerate(model.metadata_props):
            if entry.key in late:
                entry.value = "\0"
                self.marks.setdefault(number, {})[index] = {value: {0: late[entry.key]}}

    def add_external(self, slot: Slot, location: str) -> None:
        """Assign an offset in the data file; equal spans of a file share one."""
        length = len(slot.values)
        if slot.values not in self.offsets:
            alignment = _MAP_ALIGNMENT if length >= _MAPPED else _ALIGNMENT
            self.offsets[slot.values] = -(-self.end // alignment) * alignment
            self.end = self.offsets[slot.values] + length
        offset = self.offsets[slot.values]
        external.set_external_range(slot.tensor, location, offset, length)
        self.external.append(slot.tensor)


def write_model(
    model: ModelProto,
    slots: list[Slot],
    late: Mapping[str, ComputedBytes],
    target: Path,
    open_input: OpenInput,
    source: set[str],
    inspect: InspectFile | None,
    threads: int | None,
    sync: bool,
    whole: Span | None = None,
) -> Path | None:
    """Write a model file, and a data file beside it if some values are external.

    Args:
        model: the message; its tensors in ``slots`` are changed.
        slots: the tensors whose values are not in the message.
        late: key of ``metadata_props`` → value that is computed when it is written.
        target: the model file to write.
        open_input: opens the file of a ``Span``.
        source: paths of files that must not be overwritten.
        inspect: called with the path of the finished model before it is moved to ``target``; an
            exception it raises keeps the model from there.
        threads: see ``thread_pool.run``.
        sync: whether what is written is to outlive a power failure.
        whole: a file that holds the model as it is.

    Returns:
        The path of the data file, None if there is none.

    Raises:
        ModelError: values cannot be read, or the message exceeds protobuf's limit.
        UsageError: a file cannot be written.
    """
    layout, pieces = _Layout(), list[Sized]()
    if whole is None:
        layout, pieces = _lay_out(model, slots, late, target)
    else:
        pieces.append(whole)
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
        complete = [(data, path), (file, target)] if data else [(file, target)]
        for out, _ in complete if sync else ():
            out.sync()
        existed = path.exists()
        try:
            for out, name in complete:
                out.commit(name)
                if sync:
                    flush_folder(target.parent)
        except BaseException:
            if data and not existed and not file.is_committed():
                path.unlink(missing_ok=True)
            raise
        return path if data else None


def _show(inspect: InspectFile, target: Path, files: Mapping[str, OutputFile]) -> None:
    """Call ``inspect`` while the complete files are in a folder of their own."""
    prefix = f".{target.name[:40]}."
    with ExitStack() as stack:
        try:
            # That it cannot be taken away afterwards is no reason to fail: it is empty then.
            folder = tempfile.TemporaryDirectory(
                ".tmp", prefix, target.parent, ignore_cleanup_errors=True
            )
        except OSError as error:
            raise UsageError(f"{target}: cannot be written: {error.strerror}") from error
        own = Path(stack.enter_context(folder))
        for name, file in files.items():
            stack.enter_context(file.lent(own / name))
        inspect(own / target.name)


def require_place(path: Path) -> None:
    """Raise UsageError if no file can be put at a path, for its name, folder, or what is there."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # a name may be too long for a file
        raise UsageError(
            f"{path}: cannot be written: {error.strerror}; give another name"
        ) from error
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist; create it first")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: is not a regular file; give the name of a file to write")
    if not os.access(path.parent, os.W_OK):  # a file beside it is written first, and renamed
        raise UsageError(f"{path}: the folder {path.parent} cannot be written to; give another one")


def check_target(target: Path, source: set[str]) -> None:
    """Raise UsageError if ``target`` cannot be written, or is one of the paths in ``source``."""
    require_place(target)
    if not target.exists():
        return
    if any(os.path.exists(path) and os.path.samefile(target, path) for path in source):
        raise UsageError(f"{target}: is a file of the input model; give another name to write")


def _lay_out(
    model: ModelProto, slots: list[Slot], late: Mapping[str, ComputedBytes], target: Path
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
    """Write a piece, or reserve its bytes and yield the jobs that fill them."""
    if isinstance(piece, Span):
        if piece.length < _COPIED_LATER:
            with _reading(piece):
                out.write(open_input(piece.path).read(piece.offset, piece.length))
            return
        position = out.reserve(piece.length)
        for start in range(0, piece.length, _AT_ONCE):
            length = min(_AT_ONCE, piece.length - start)
            yield partial(_copy, piece, open_input, start, length, out, position)
    elif isinstance(piece, ComputedBytes):
        position = out.reserve(piece.length)
        yield lambda: out.fill(position, piece.compute())
    elif isinstance(piece, (bytes, memoryview)):
        out.write(piece)


def _copy(
    span: Span, open_input: OpenInput, start: int, length: int, out: OutputFile, position: int
) -> None:
    with _reading(span):
        out.copy(position + start, open_input(span.path), span.offset + start, length)


@contextmanager
def _reading(span: Span) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"{error.filename or span.path or 'the model'}: cannot be read: {error.strerror}"
        ) from error


def _data_name(target: Path, digest: str) -> str:
    # A file name may hold bytes that are not text, a protobuf string may not.
    return f"{target.name}.{digest}.data".encode("utf-8", "replace").decode()


def is_data_name(name: str, target: Path) -> bool:
    """Return whether ``write_model`` would give this name to a data file of ``target``."""
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
