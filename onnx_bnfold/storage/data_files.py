"""The data files that belong to a model."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from onnx import ModelProto

from onnx_bnfold.storage import tensors
from onnx_bnfold.storage.files import InputFile
from onnx_bnfold.storage.skeleton import Skeleton


def data_files(model: ModelProto) -> list[str]:
    """Return the names of a model's data files, as the model gives them.

    Args:
        model: a skeleton or any model whose external data is not loaded.

    Returns:
        Paths from the model's folder, sorted.
    """
    entries = [list(t.external_data) for _, t in tensors.tensors(model, tensors.elsewhere())]
    # A tensor with its values in the model's own file may name another one without using it.
    used = [e for each in entries if all(e.key != tensors.REFERENCE for e in each) for e in each]
    return sorted({entry.value for entry in used if entry.key == tensors.LOCATION})


def data_files_of(path: Path) -> list[str]:
    """Return the names of the data files of a model file; see ``data_files``.

    Raises:
        ValueError: it is not an ONNX model, or is cut off.
        OSError: it cannot be read.
    """
    file = InputFile(os.fspath(path))
    try:
        return data_files(Skeleton(file).model)
    finally:
        file.close()


def files(model: Path, names: Iterable[str]) -> list[Path]:
    """Return the paths of a model's file and of its data files."""
    return [model, *(model.parent / name for name in names)]


def total_bytes(paths: Iterable[Path]) -> int:
    """Return the length of some files together."""
    return sum(path.stat().st_size for path in paths)
