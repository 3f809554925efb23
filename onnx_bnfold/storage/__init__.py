"""Read and write ONNX files at the speed of the disk: unchanged weights are never decoded."""

from __future__ import annotations

import os

import numpy as np
from onnx import TensorProto

from onnx_bnfold.errors import ModelError
from onnx_bnfold.storage import external, tensors
from onnx_bnfold.storage.files import InputFile
from onnx_bnfold.storage.model_file import ModelFile, PendingValues

__all__ = ["ModelFile", "PendingValues", "read_tensor"]


def read_tensor(tensor: TensorProto, base_dir: str | os.PathLike[str] | None) -> np.ndarray:
    """Return the values of a tensor of a model in memory.

    Args:
        tensor: holds its values, or names the file that does.
        base_dir: the folder that the locations of data files are relative to, if any.

    Returns:
        The values, of shape ``dims`` and the tensor's own type; the array may be read-only.

    Raises:
        ModelError: the values cannot be read or do not fit the shape.
    """
    with tensors.naming(tensor):
        if not tensors.is_external(tensor):
            return tensors.decode_inline(tensor)
        location, offset, length = external.external_range(tensor)
        if base_dir is None:
            raise ModelError(
                f"tensor {tensor.name!r} has its values in the file {location!r}, external data "
                "that is not loaded; give the path of the model, or its folder as base_dir"
            )
        file = InputFile(external.resolve(os.fspath(base_dir), location), follow=False)
        try:
            return tensors.decode(file.read(offset, length), tensor)
        finally:
            file.close()
