"""An ONNX file whose weights stay in the file until they are needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from onnx import ModelProto, TensorProto

from onnx_bnfold.errors import ModelError
from onnx_bnfold.storage import external, tensors, writer
from onnx_bnfold.storage.files import InputFile, Span
from onnx_bnfold.storage.skeleton import Skeleton
from onnx_bnfold.storage.writer import ComputedBytes, InspectFile, Slot

StrPath: TypeAlias = "str | os.PathLike[str]"
# Name of an initializer of the main graph → a function that computes its values. It returns flat
# arrays, to be joined; each is valid until the next is taken.
PendingValues: TypeAlias = Mapping[str, Callable[[], Iterable[np.ndarray]]]
# Key of ``metadata_props`` → length of its value in bytes, and a function that returns the value.
Late: TypeAlias = Mapping[str, tuple[int, Callable[[], bytes]]]

_MOST_OPEN = 64  # data files at a time


class ModelFile:
    """An ONNX file, open for reading; a context manager that closes it.

    Attributes:
        model: the skeleton: the model, but large tensors carry no values; ``read`` returns them.
            Changes to the skeleton do not change the file.
        path: the file.
    """

    model: ModelProto
    path: Path

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)
        self._paths: dict[str, str] = {}  # location of a data file -> its path
        self._inputs: dict[str, InputFile] = {}
        self._opening = Lock()
        try:
            self._file = InputFile(os.fspath(path))
        except OSError as error:
            named = path or "''"
            if os.path.isdir(path):
                raise ModelError(
                    f"{named}: is a folder; give the path of an ONNX file (onnx_bnfold.batch folds "
                    "all models below a folder)"
                ) from error
            raise ModelError(
                f"{named}: cannot be opened: {error.strerror}; give the path of an ONNX file"
            ) from error
        try:
            self._skeleton = self._parse()
            self.model = self._skeleton.model
            # Held, so that protobuf makes an object of each once and not whenever one is looked at.
            self._initializers = list(self.model.graph.initializer)
            for _, tensor in self._tensors(self.model, tensors.elsewhere()):
                self._span(tensor)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, path: StrPath) -> ModelFile:
        """Open an ONNX file without reading its weights.

        Args:
            path: an ONNX file of any size, with or without external data.

        Returns:
            The open file.

        Raises:
            ModelError: it cannot be read, is not an ONNX model, or a data file is missing or does
                not match.
        """
        return cls(path)

    def read(self, tensor: TensorProto) -> np.ndarray:
        """Return the values of a tensor of the skeleton, or of a copy of one.

        Args:
            tensor: its values may be in the message, in the model's file or in a data file.

        Returns:
            The values, of shape ``dims`` and the tensor's own type; the array may be read-only.

        Raises:
            ModelError: the values cannot be read or do not fit the shape.
        """
        with tensors.naming(tensor, self.path):
            if not tensors.is_external(tensor):
                return tensors.decode_inline(tensor)
            span = self._span(tensor)
            content = self._input(span.path).read(span.offset, span.length)
            return tensors.decode(content, tensor)

    def stored(self, tensor: TensorProto) -> FileValues | None:
        """Return a reader of a tensor's values in the file.

        Args:
            tensor: see ``read``.

        Returns:
            The reader; None unless the values are in a file, as numpy has them in memory.

        Raises:
            ModelError: see ``read``.
        """
        with tensors.naming(tensor, self.path):
            if not tensors.is_external(tensor) or not tensors.is_plain(tensor):
                return None
            span = self._span(tensor)
            tensors.require_length(span.length, tensor)
            return FileValues(self._input(span.path), span.offset, tensor, self.path)

    def refer(self, model: ModelProto) -> None:
        """Turn a copy of the skeleton into a model that any reader of ONNX files understands.

        Args:
            model: the copy; changed in place. Values that it lacks become external data in the
                model's own file. Load it from the folder of that file (of the file itself, not of
                a link to it).
        """
        for _, tensor in self._tensors(model, tensors.elsewhere()):
            reference = self._skeleton.restore(tensor)
            if reference:
                span = reference.span
                name = os.path.basename(os.path.realpath(self.path))
                external.set_external_range(tensor, name, span.offset, span.length)

    def write(
        self,
        model: ModelProto,
        pending: PendingValues,
        target: StrPath,
        *,
        late: Late = MappingProxyType({}),
        inspect: InspectFile | None = None,
        threads: int | None = None,
        sync: bool = False,
        use_up: bool = False,
        as_it_is: bool = False,
    ) -> None:
        """Write an edited skeleton with all its values; ``target`` appears complete or not at all.

        The file has the bytes of protobuf's deterministic serialisation, or, where the model is as
        it was and has no external data, those that it had. External tensors stay
        external, in one data file beside ``target``. If the model file would exceed protobuf's
        2 GiB, all large tensors become external.

        Args:
            model: the edited skeleton; it is not changed without ``use_up``. Values of tensors that
                still refer to the source are copied from there.
            pending: computes the values of initializers of the main graph that are not copied, in
                the initializer's data type. Each function is called once, in one of a few threads;
                its result is dropped before that thread calls the next.
            target: the file to write or replace.
            late: computes values of ``metadata_props``, whose keys ``model`` has. Protobuf puts
                them behind the weights, so that they can be computed while those are written.
            inspect: called with the path of the finished model, in a temporary folder beside
                ``target``; an exception it raises leaves ``target`` as it was.
            threads: number of threads that call ``pending``; by default one per processor, at most
                four.
            sync: return when everything is on the disk; see ``durable``.
            use_up: whether ``model`` may be changed, which saves a copy of it.
            as_it_is: whether ``model`` is the skeleton as it was.

        Raises:
            ModelError: values cannot be read.
            UsageError: ``target`` cannot be written, or is a file that this model is read from.
        """
        target = Path(target)
        source = {os.path.realpath(self.path), *self._paths.values()}
        writer.check_target(target, source)
        replaced = _data_files_to_replace(target)
        out, slots, whole = model, list[Slot](), None
        if as_it_is and self._skeleton.is_whole:
            whole = Span(None, 0, self._file.size)
        else:
            if not use_up:
                out = ModelProto()
                out.CopyFrom(model)
            slots = list(self._slots(out, pending))
        computed = {
            key: ComputedBytes(_in_one_part(c), length) for key, (length, c) in late.items()
        }
        data = writer.write_model(
            out, slots, computed, target, self._input, source, inspect, threads, sync, whole
        )
        for path in replaced:
            if path != data and os.path.realpath(path) not in source:
                with suppress(OSError):
                    path.unlink()

    def close(self) -> None:
        """Close the model file and its data files."""
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

    def _parse(self) -> Skeleton:
        try:
            return Skeleton(self._file)
        except ValueError as error:
            what = _what_is(self._file) or f"{error}; fetch or export it again"
            raise ModelError(f"{self.path}: {what}") from error
        except OSError as error:
            raise ModelError(f"{self.path}: cannot be read: {error.strerror}") from error

    def _tensors(
        self, model: ModelProto, pick: tensors.Pick
    ) -> Iterator[tuple[tensors.Path, TensorProto]]:
        return tensors.tensors(model, pick, in_nodes=self._skeleton.may_refer)

    def _span(self, tensor: TensorProto) -> Span:
        reference = self._skeleton.reference(tensor)
        if reference:
            return reference.span
        with tensors.naming(tensor, self.path):
            location, offset, length = external.external_range(tensor)
            if location not in self._paths:
                self._paths[location] = external.resolve(os.fspath(self.path.parent), location)
            path = self._paths[location]
            data = self._input(path)
            if offset + length > data.size and (what := _what_is(data)):
                raise ModelError(f"{path}: {what}; tensor {tensor.name!r} has its values there")
            data.require(offset + length)
        return Span(path, offset, length)

    def _input(self, path: str | None) -> InputFile:
        if path is None:
            return self._file
        with self._opening:
            if path not in self._inputs:
                if len(self._inputs) == _MOST_OPEN:
                    # The oldest closes itself when the last thread that reads it drops it.
                    del self._inputs[next(iter(self._inputs))]
                # The path was resolved before; a link there is new and may lead anywhere.
                self._inputs[path] = InputFile(path, follow=False)
            return self._inputs[path]

    def _slots(self, model: ModelProto, pending: PendingValues) -> Iterator[Slot]:
        missing = set(pending)
        for path, tensor in self._tensors(model, tensors.elsewhere(pending)):
            # Only initializers of the main graph have a path of two steps.
            if len(path) == 2 and tensor.name in pending:
                if tensor.name not in missing:
                    raise ModelError(f"{self.path}: two initializers are named {tensor.name!r}")
                missing.remove(tensor.name)
                yield self._computed(path, tensor, pending[tensor.name])
            elif tensors.is_external(tensor):
                span = self._span(tensor)
                reference = self._skeleton.restore(tensor)
                field = reference.field if reference else "raw_data"
                yield Slot(path, tensor, span, field, external=reference is None)
        if missing:
            raise ValueError(f"the model has no initializers named {sorted(missing)}")

    def _computed(
        self, path: tensors.Path, tensor: TensorProto, compute: Callable[[], Iterable[np.ndarray]]
    ) -> Slot:
        with tensors.naming(tensor, self.path):
            length = tensors.byte_length(tensor)
        self._skeleton.restore(tensor)
        tensors.clear_values(tensor)
        values = ComputedBytes(lambda: tensors.encode(compute(), tensor), length)
        return Slot(path, tensor, values, "raw_data", tensors.is_external(tensor))


class FileValues(NamedTuple):
    """Reads a tensor's values from a file, which stays open as long as this object exists.

    Attributes:
        file: that holds the values.
        offset: of the first one, in bytes.
        tensor: the message that refers to them.
        model: path of the model, for errors.
    """

    file: InputFile
    offset: int
    tensor: TensorProto
    model: Path

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return tensors.element(self.tensor.data_type)[0]

    def read_into(self, start: int, out: np.ndarray) -> None:
        """Fill ``out``, of shape ``(n,)``, with the ``n`` elements from number ``start`` on.

        Raises:
            ModelError: they cannot be read.
        """
        with tensors.naming(self.tensor, self.model):
            offset = self.offset + start * out.itemsize
            self.file.read_into(offset, out.view(np.uint8).data)


def _what_is(file: InputFile) -> str | None:
    """Return what a file is that is not what it should be, and what to do, if that is known."""
    from onnx_bnfold.storage import signatures  # of no use for what is sound

    kind = signatures.kind_of(file.read(0, min(signatures.HEAD, file.size)), file.size)
    return kind and f"{kind.what}; {kind.advice}"


def _in_one_part(compute: Callable[[], bytes]) -> Callable[[], Iterable[bytes]]:
    return lambda: (compute(),)


def _data_files_to_replace(target: Path) -> list[Path]:
    """Return the data files that ``write`` has made for an earlier model at ``target``."""
    try:
        names = [name for name in os.listdir(target.parent) if writer.is_data_name(name, target)]
        if not names or not target.exists():
            return []
        with ModelFile.open(target) as earlier:
            used = set(earlier._paths.values())
    except (ModelError, OSError):
        return []
    return [path for path in map(target.with_name, names) if os.path.realpath(path) in used]
