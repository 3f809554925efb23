"""What differs between two model files, by name."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto

from onnx_bnfold.model.graph import copy_of
from onnx_bnfold.reports.changes import Changes, changes_of
from onnx_bnfold.storage import ModelFile
from onnx_bnfold.storage.tensors import clear_place, clear_values, tensors


def changes_between(original: Path, folded: Path) -> Changes:
    """Compare a model with its fold by name, wherever their values are.

    Args:
        original, folded: the files; each tensor is read once.

    Raises:
        ModelError: one of them, or a tensor in it, cannot be read.
    """
    with ModelFile.open(original) as before, ModelFile.open(folded) as after:
        return changes_of(_with_digests(before), _with_digests(after), ())


def _with_digests(file: ModelFile) -> ModelProto:
    """Return a model whose tensors hold the digests of their values, however these are stored."""
    model = copy_of(file.model)
    for _, tensor in tensors(model):
        if tensor.data_type == TensorProto.STRING:  # no file holds these but the model's own
            continue
        values = np.ascontiguousarray(file.read(tensor)).reshape(-1).view(np.uint8)
        clear_values(tensor)
        clear_place(tensor)
        tensor.ClearField("data_location")
        tensor.raw_data = hashlib.sha256(values.data).digest()
    return model
