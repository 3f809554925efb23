"""Read an ONNX file without the values of its large tensors.

A tensor whose values were left out has a note of that in its own ``external_data``. So it can be
copied, renamed or dropped like any other tensor, and nothing else has to keep track of it.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
from onnx import ModelProto, TensorProto

from onnx_bnfold.storage import tensors, wire
from onnx_bnfold.storage.files import InputFile, Span

SMALL = 4096  # values of fewer bytes stay in the message

_MAX_DEPTH = 100  # protobuf refuses messages that are nested deeper
# Fields whose bytes in the file are those of ``raw_data``: number → name, bytes per item, element
# types (None for any).
_FIXED_WIDTH: dict[int, tuple[str, int, tuple[int, ...] | None]] = {
    tensors.field_number(TensorProto, name): (name, width, types)
    for name, width, types in (
        ("raw_data", 1, None),
        ("float_data", 4, (TensorProto.FLOAT, TensorProto.COMPLEX64)),
        ("double_data", 8, (TensorProto.DOUBLE, TensorProto.COMPLEX128)),
    )
}


class Reference(NamedTuple):
    """Where the values of a tensor of the skeleton are.

    Attributes:
        field: of the tensor's message that held them.
        span: their bytes in the file.
        location_was_set: whether ``data_location`` was set, if only to its default.
    """

    field: str
    span: Span
    location_was_set: bool


class Skeleton:
    """A model without the values of its large tensors, and where these values are.

    Args:
        file: the model's file.

    Attributes:
        model: the message.
        may_refer: whether any tensor may have its values in a file.
        is_whole: whether it is certain that all values are in the model's own file.

    Raises:
        ValueError: the file is not an ONNX model, or is cut off.
        OSError: it cannot be read.
    """

    def __init__(self, file: InputFile) -> None:
        self._file = file
        self._references: dict[str, Reference] = {}
        try:
            pieces = self._strip(ModelProto, 0, file.size) or [file.slice(0, file.size)]
            content = b"".join(pieces)
            self.model: ModelProto = ModelProto.FromString(content)
        except (wire.MalformedError, DecodeError) as error:
            raise ValueError(f"is not an ONNX model or was cut off ({error})") from error
        if not self.model.HasField("graph"):
            raise ValueError("has no graph and so is not an ONNX model")
        self.may_refer = tensors.MARK in content
        self.is_whole = content.count(tensors.MARK) == len(self._references)

    def reference(self, tensor: TensorProto) -> Reference | None:
        """Return where the values of a tensor are, None if they were not left out."""
        last = tensor.external_data[-1] if tensor.external_data else None
        if last is None or last.key != tensors.REFERENCE:
            return None
        return self._references.get(last.value)

    def restore(self, tensor: TensorProto) -> Reference | None:
        """Undo what marks a tensor as one without values.

        Returns:
            Where the values are; None if they were not left out.
        """
        reference = self.reference(tensor)
        if reference:
            del tensor.external_data[-1]
            tensor.data_location = TensorProto.DEFAULT
            if not reference.location_was_set:
                tensor.ClearField("data_location")
        return reference

    def _strip(self, kind: Any, start: int, end: int, depth: int = 0) -> list[Any] | None:
        routes = tensors.ROUTES[kind]

        def edit(number: int, body: int, stop: int) -> list[Sized] | None:
            if number not in routes or depth == _MAX_DEPTH:
                return None
            child = routes[number][1]
            if child is TensorProto:
                return self._strip_tensor(body, stop)
            return self._strip(child, body, stop, depth + 1)

        return wire.rewrite(self._file, start, end, edit, SMALL)

    def _strip_tensor(self, start: int, end: int) -> list[Sized] | None:
        values = [f for f in wire.fields(self._file, start, end) if f[0] in _FIXED_WIDTH]
        if len(values) != 1:
            return None
        number, head, body, stop = values[0]
        if stop - body < SMALL:
            return None
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
        self._references[key] = Reference(name, Span(None, body, stop - body), was_set)
        return [tensor.SerializeToString()]
