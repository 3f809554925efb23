"""An ONNX file whose weights stay in the file until they are asked for.

`ModelFile.open` walks over the file's bytes and leaves out the values of large tensors. What is
left, the skeleton, is parsed as usual. A tensor whose values were left out says so itself, in its
`external_data`, so it can be copied, renamed or dropped like any other. `ModelFile.write` puts the
values back, straight from file to file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
from onnx import ModelProto, TensorProto

from onnx_bnfold.errors import ModelError
from onnx_bnfold.storage import tensors, wire, writer
from onnx_bnfold.storage.files import InputFile
from onnx_bnfold.storage.writer import Computed, Slot, Span, Values

StrPath: TypeAlias = "str | os.PathLike[str]"
# The name of an initializer of the main graph -> a function that computes its values.
Pending: TypeAlias = Mapping[str, Callable[[], np.ndarray]]

_MAX_DEPTH = 100  # protobuf refuses messages nested deeper
_MAX_OPEN = 64  # data files open at a time
# The fields whose bytes in the file are those of `raw_data`: name, bytes per item, element types
# (None for any).
_FIXED_WIDTH: dict[int, tuple[str, int, tuple[int, ...] | None]] = {
    tensors.field_number(TensorProto, name): (name, width, types)
    for name, width, types in (
        ("raw_data", 1, None),
        ("float_data", 4, (TensorProto.FLOAT, TensorProto.COMPLEX64)),
        ("double_data", 8, (TensorProto.DOUBLE, TensorProto.COMPLEX128)),
    )
}


class _Reference(NamedTuple):
    """Where the skeleton's tensor has its values, and what it said about that."""

    field: str
    span: Span
    location_was_set: bool


class ModelFile:
    """An ONNX file, open for reading; a context manager that closes it.

    Attributes:
        model: the skeleton. Large tensors carry no values and `read` gives them; whatever is done
            to the skeleton, the file stays as it is.
        path: the file.
    """

    model: ModelProto
    path: Path

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)
        self._references: dict[str, _Reference] = {}
        self._paths: dict[str, str] = {}  # location of a data file -> its path
        self._inputs: dict[str, InputFile] = {}
        try:
            self._file = InputFile(os.fspath(path))
        except OSError as error:
            raise ModelError(f"{path}: cannot be opened: {error.strerror}") from error
        try:
            self.model = self._parse()
            for _, tensor in tensors.tensors(self.model):
                if tensors.is_external(tensor):
                    self._span(tensor)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, path: StrPath) -> ModelFile:
        """Opens an ONNX file without reading its weights.

        Args:
            path: an ONNX file of any size, with or without external data.

        Returns:
            The open file.

        Raises:
            ModelError: it cannot be read, is no ONNX model, or its data files are not as it says.
        """
        return cls(path)

    def read(self, tensor: TensorProto) -> np.ndarray:
        """Returns the values of a tensor of the skeleton, or of a copy of one.

        Args:
            tensor: one whose values are in the message, in the model's file or in a data file.

        Returns:
            The values, shaped as `dims`, in the tensor's own type; they may be read-only.

        Raises:
            ModelError: the values cannot be read or do not fit the shape.
        """
        with tensors.naming(tensor, self.path):
            if not tensors.is_external(tensor):
                return tensors.decode_inline(tensor)
            span = self._span(tensor)
            content = self._input(span.path).read(span.offset, span.length)
            return tensors.decode(content, tensor)

    def write(self, model: ModelProto, pending: Pending, target: StrPath) -> None:
        """Writes a changed skeleton with all its values; `target` appears whole or not at all.

        The file has the bytes that protobuf's deterministic serialisation would give it. External
        tensors stay external, in one data file beside `target`. If the model file would exceed
        protobuf's 2 GiB, all large tensors become external.

        Args:
            model: the skeleton, as edited; it is not changed. Tensors that still refer to values
                in the source are copied from there.
            pending: gives the values of those initializers of the main graph which are not
                copied, in the shape and type that the initializer has. Each function is called
                once, and its result is dropped before the next is called.
            target: the file to write or replace.

        Raises:
            ModelError: values cannot be read.
            UsageError: `target` cannot be written, or is a file that this model is read from.
        """
        target = Path(target)
        source = {os.path.realpath(self.path), *self._paths.values()}
        writer.check_target(target, source)
        replaced = _data_files(target)
        out = ModelProto()
        out.CopyFrom(model)
        slots = list(self._slots(out, pending))
        data = writer.write_model(out, slots, target, self._input, source)
        kept = source | ({os.path.realpath(data)} if data else set())
        for path in replaced - kept:
            with suppress(OSError):
                os.unlink(path)

    def close(self) -> None:
        """Closes the file and its data files."""
        for file in (self._file, *self._inputs.values()):
            file.close()
        self._inputs.clear()

    def __enter__(self) -> ModelFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _parse(self) -> ModelProto:
        try:
            pieces = self._strip(ModelProto, 0, self._file.size)
            model: ModelProto = ModelProto.FromString(
                b"".join(pieces or [self._file.slice(0, self._file.size)])
            )
        except OSError as error:
            raise ModelError(f"{self.path}: cannot be read: {error.strerror}") from error
        except (wire.MalformedError, DecodeError) as error:
            raise ModelError(
                f"{self.path}: is not an ONNX model or was cut off ({error}); "
                "fetch or export it again"
            ) from error
        if not model.HasField("graph"):
            what = "has no graph and so is not an ONNX model" if self._file.size else "is empty"
            raise ModelError(f"{self.path}: {what}; fetch or export it again")
        return model

    def _strip(self, kind: Any, start: int, end: int, depth: int = 0) -> list[Any] | None:
        """Rewrites a message of the file so that its large tensors are references."""
        routes = tensors.ROUTES[kind]

        def edit(number: int, body: int, stop: int) -> list[Sized] | None:
            if number not in routes or stop - body < writer.SMALL or depth == _MAX_DEPTH:
                return None
            child = routes[number][1]
            if child is TensorProto:
                return self._strip_tensor(body, stop)
            return self._strip(child, body, stop, depth + 1)

        return wire.rewrite(self._file, start, end, edit)

    def _strip_tensor(self, start: int, end: int) -> list[Sized] | None:
        found = [field for field in wire.fields(self._file, start, end) if field[0] in _FIXED_WIDTH]
        if len(found) != 1 or found[0][3] - found[0][2] < writer.SMALL:
            return None
        number, head, body, stop = found[0]
        rest = self._file.slice(start, head) + self._file.slice(stop, end)
        tensor = TensorProto.FromString(rest)
        name, width, types = _FIXED_WIDTH[number]
        fits = (stop - body) % width == 0 and (types is None or tensor.data_type in types)
        if tensors.is_external(tensor) or not fits:
            return None
        was_set = tensor.HasField("data_location")
        tensor.data_location = TensorProto.EXTERNAL
        key = str(len(self._references))
        tensor.external_data.add(key=tensors.REFERENCE, value=key)
        self._references[key] = _Reference(name, Span(None, body, stop - body), was_set)
        return [tensor.SerializeToString()]

    def _reference(self, tensor: TensorProto) -> _Reference | None:
        last = tensor.external_data[-1] if tensor.external_data else None
        if last is None or last.key != tensors.REFERENCE:
            return None
        return self._references.get(last.value)

    def _span(self, tensor: TensorProto) -> Span:
        reference = self._reference(tensor)
        if reference:
            return reference.span
        with tensors.naming(tensor, self.path):
            location, offset, length = tensors.external_range(tensor)
            if location not in self._paths:
                self._paths[location] = tensors.resolve(os.fspath(self.path.parent), location)
            path = self._paths[location]
            self._input(path).require(offset + length)
        return Span(path, offset, length)

    def _input(self, path: str | None) -> InputFile:
        if path is None:
            return self._file
        if path not in self._inputs:
            if len(self._inputs) == _MAX_OPEN:
                self._inputs.pop(next(iter(self._inputs))).close()
            # The path is resolved: a link in its place came later and may lead anywhere.
            self._inputs[path] = InputFile(path, follow=False)
        return self._inputs[path]

    def _slots(self, model: ModelProto, pending: Pending) -> Iterator[Slot]:
        missing = set(pending)
        for path, tensor in tensors.tensors(model):
            # Two steps lead to initializers of the main graph only.
            computed = len(path) == 2 and tensor.name in pending
            if not computed and not tensors.is_external(tensor):
                continue
            reference = self._reference(tensor)
            field = reference.field if reference and not computed else "raw_data"
            values: Values
            if computed:
                if tensor.name not in missing:
                    raise ModelError(f"{self.path}: two initializers are named {tensor.name!r}")
                missing.remove(tensor.name)
                with tensors.naming(tensor, self.path):
                    length = tensors.byte_length(tensor)
                values = Computed(tensor, pending[tensor.name], length)
                tensors.clear_values(tensor)
            else:
                values = self._span(tensor)
            if reference:
                del tensor.external_data[-1]
                tensor.data_location = TensorProto.DEFAULT
                if not reference.location_was_set:
                    tensor.ClearField("data_location")
            yield Slot(path, tensor, values, field, tensors.is_external(tensor))
        if missing:
            raise ValueError(f"these are no initializers of the model: {sorted(missing)}")


def _data_files(target: Path) -> set[str]:
    """Returns the paths of the data files that an earlier output at `target` was written with."""
    names = [name for name in os.listdir(target.parent) if writer.is_data_name(name, target)]
    if not names or not target.exists():
        return set()
    try:
        with ModelFile.open(target) as earlier:
            used = set(earlier._paths.values())
    except ModelError:
        return set()
    return used & {os.path.realpath(target.with_name(name)) for name in names}
