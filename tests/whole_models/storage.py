"""Folds a case in memory or from file to file: two ways that have to come to the same."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

import onnx_bnfold
from onnx_bnfold.provenance import KEY

from .engine import every_node, graphs
from .models import Case

_EXAMPLES = "examples.npz"


def fold(case: Case, model: ModelProto) -> tuple[ModelProto, onnx_bnfold.Report]:
    """Fold a model as the case says: the case's own, or what became of it.

    The record of the source file is left out: a fold in memory has none to name.
    """
    if case.storage == "memory":
        return onnx_bnfold.fold(model, case.options)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, target = folder / "source.onnx", folder / "folded.onnx"
        _save(model, source, case.storage)
        options = case.options
        if case.measured:
            np.savez(folder / _EXAMPLES, **case.feeds[0])
            options = replace(options, ranges=str(folder / _EXAMPLES))
        report = onnx_bnfold.fold_file(source, target, options)
        return _loaded(target), report


def _loaded(path: Path) -> ModelProto:
    model = onnx.load(path)
    kept = [entry for entry in model.metadata_props if entry.key != KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    given = [t for graph in graphs(model) for t in graph.initializer]
    held = [a.t for node in every_node(model) for a in node.attribute if a.HasField("t")]
    for tensor in (*given, *held):
        tensor.ClearField("data_location")  # as a tensor is that was never elsewhere
    return model


def _save(model: ModelProto, path: Path, storage: str) -> None:
    if storage == "file":
        onnx.save(model, path)
        return
    copy = ModelProto()
    copy.CopyFrom(model)
    onnx.save_model(
        copy,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=storage == "external",
        location="weights.bin" if storage == "external" else None,
        size_threshold=0 if storage == "external" else 200,
        convert_attribute=storage == "external",
    )
