"""Models in int8, by onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import ModelProto

from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.quantize import quantised, snr
from onnx_bnfold.check.sessions import Feed, Session, join


def int8_db(feeds: Sequence[Feed], models: Sequence[ModelProto], folder: Path) -> list[float]:
    """Return the signal-to-noise of models in int8, against the first of them in float.

    Args:
        feeds: the first half calibrates, the second is what is compared.
        models: with one output.
        folder: where their files go.
    """
    half = len(feeds) // 2
    found = []
    for number, model in enumerate(models):
        path = folder / f"{number}.onnx"
        onnx.save(model, path)
        if number == 0:
            (name,) = (output.name for output in model.graph.output)
            session = Session(CheckedModel(path, "float"))
            reference = join(session.run(feed) for feed in feeds[half:])[name]
        int8 = quantised(CheckedModel(path, "int8"), folder / str(number), feeds[:half])
        found.append(snr(reference, join(Session(int8).run(feed) for feed in feeds[half:])[name]))
    return found
