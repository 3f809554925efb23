"""The models that users give: a path, bytes, a message, or what torch and onnx_ir hand out."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from onnx import ModelProto

from onnx_bnfold.errors import ModelError, UsageError
from onnx_bnfold.model.graph import ReadTensor, copy_of
from onnx_bnfold.storage import ModelFile, read_tensor
from onnx_bnfold.storage.tensors import elsewhere, fill, tensors
from onnx_bnfold.validation import require_value

if TYPE_CHECKING:
    import onnx_ir


class Program(Protocol):
    """What holds a model of onnx_ir, as ``torch.onnx.ONNXProgram`` does."""

    @property
    def model(self) -> onnx_ir.Model:
        """The model."""


PathLike: TypeAlias = "str | os.PathLike[str]"
ModelLike: TypeAlias = "PathLike | bytes | ModelProto | Program | onnx_ir.Model"


class Given(NamedTuple):
    """A model as a message, and where its values are.

    Attributes:
        model: the message, which is not to be changed. Large tensors may carry no values.
        read: returns the values of a tensor of the message, or of a copy of one.
        is_open: whether values that the message lacks can be read; else they are for its owner, who
            has not loaded them.
    """

    model: ModelProto
    read: ReadTensor
    is_open: bool

    def whole(self) -> ModelProto:
        """Return a copy of the message with all of its values."""
        copy = copy_of(self.model)
        self.complete(copy)
        return copy

    def complete(self, copy: ModelProto) -> None:
        """Put the values that lie elsewhere into a copy of the message."""
        for _, tensor in tensors(copy, elsewhere()):
            values = self.read(tensor)
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
            fill(tensor, values)


@contextmanager
def opened(model: ModelLike, base_dir: PathLike | None = None) -> Iterator[Given]:
    """Yield a model that a user gives; a context manager.

    Args:
        model: see ``ModelLike``.
        base_dir: folder of its external data, if any is not loaded and it is no path.

    Raises:
        ModelError: it cannot be read.
        UsageError: it is nothing of that.
    """
    require_value("base_dir", base_dir, str | os.PathLike[str] | None)
    if isinstance(model, (str, os.PathLike)):
        if base_dir is not None:
            raise UsageError("base_dir is for models in memory; the data of a file is beside it")
        with ModelFile.open(model) as file:
            yield Given(file.model, file.read, is_open=True)
    elif isinstance(model, (bytes, ModelProto)):
        message = model if isinstance(model, ModelProto) else _parsed(model)
        yield Given(message, partial(read_tensor, base_dir=base_dir), is_open=False)
    else:
        found = _ir_model(model)
        from onnx_bnfold import ir_messages  # whoever has such a model has onnx_ir loaded

        message, held = ir_messages.message_of(found)
        yield Given(message, partial(ir_messages.read, held), is_open=True)


def _parsed(content: bytes) -> ModelProto:
    try:
        message: ModelProto = ModelProto.FromString(content)
        if message.HasField("graph"):
            return message
        raise ValueError("it has no graph")
    except Exception as error:  # protobuf raises its own, which is not always the same
        from onnx_bnfold.storage import signatures  # of no use for what is sound

        kind = signatures.kind_of(content[: signatures.HEAD], len(content))
        what = f"are not an ONNX model or were cut off ({error}); give those of a whole file"
        if kind is not None:
            what = f"are none of a model: the file {kind.what}; {kind.advice}"
        raise ModelError(f"the bytes {what}") from error


def _ir_model(model: object) -> onnx_ir.Model:
    """Return a model of onnx_ir that is one, or what a program holds.

    Raises:
        UsageError: it is neither.
    """
    ir: Any = sys.modules.get("onnx_ir")
    for each in (model, getattr(model, "model", None)) if ir is not None else ():
        if isinstance(each, ir.Model):
            found: onnx_ir.Model = each
            return found
    raise UsageError(
        f"the model is of type {type(model).__name__}; give the path of a file, its bytes, an "
        "onnx.ModelProto, a torch.onnx.ONNXProgram or an onnx_ir.Model"
    )
