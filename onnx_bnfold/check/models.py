"""The two models of a check, as files."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx

from onnx_bnfold.errors import ModelError, UsageError
from onnx_bnfold.given import ModelLike, opened
from onnx_bnfold.storage import ModelFile, tensors

_PROTOBUF_LIMIT = 2**31 - 1  # bytes in one protobuf message


@dataclass(frozen=True)
class CheckedModel:
    """A model on disk.

    Attributes:
        path: of the file.
        label: its name in messages.
        custom_ops: libraries that onnxruntime needs for it.
    """

    path: Path
    label: str
    custom_ops: tuple[str | os.PathLike[str], ...] = ()

    @cached_property
    def skeleton(self) -> onnx.ModelProto:
        """The model without the values of its large tensors."""
        with ModelFile.open(self.path) as file:
            return file.model


@contextmanager
def open_model(
    source: ModelLike, role: str, custom_ops: Sequence[str | os.PathLike[str]] = ()
) -> Iterator[CheckedModel]:
    """Yield a model as a file, from which onnxruntime needs the least memory; a context manager.

    Args:
        source: a path, or a model in memory, which is written to a temporary folder.
        role: "original" or "folded", the label of a model in memory.
        custom_ops: libraries that onnxruntime needs for it.

    Raises:
        UsageError: there is no such file, or it is none of what ``given.ModelLike`` names.
        ModelError: the file is not a model that can be read, or the model in memory cannot be
            written to a single file.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not os.path.lexists(path):
            raise UsageError(f"there is no file {path}; give the path of the {role} model")
        model = CheckedModel(path, str(path), tuple(custom_ops))
        _ = model.skeleton  # what cannot be read is an error, and no failure of a fold
        yield model
        return
    with opened(source) as given:
        message = given.whole() if given.is_open else given.model
    if message.ByteSize() > _PROTOBUF_LIMIT:
        raise ModelError(f"the {role} model is larger than 2 GiB; save it and give its path")
    if any(True for _ in tensors.tensors(message, tensors.elsewhere())):
        raise ModelError(
            f"the {role} model refers to external data that is not loaded; give its path, or load "
            "it with onnx.load_external_data_for_model(model, folder)"
        )
    with tempfile.TemporaryDirectory(prefix="onnx_bnfold-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(message.SerializeToString())
        yield CheckedModel(path, f"the {role} model", tuple(custom_ops))
