"""The public functions for models in memory: ``plan`` and ``fold``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto

from onnx_bnfold.applying import fill_small, learn, measured, report_of
from onnx_bnfold.errors import UsageError
from onnx_bnfold.given import Given, ModelLike, PathLike, opened
from onnx_bnfold.model.graph import copy_of
from onnx_bnfold.options import Options
from onnx_bnfold.pipeline import Pipeline
from onnx_bnfold.rewriting.new_constants import Unrepresentable
from onnx_bnfold.storage import data_files
from onnx_bnfold.storage.tensors import fill, is_external
from onnx_bnfold.validation import require_value

if TYPE_CHECKING:
    from onnx_bnfold.planning.ranges import Ranges
    from onnx_bnfold.report import Report

_DEFAULT = Options()


def plan(
    model: ModelLike, options: Options = _DEFAULT, *, base_dir: PathLike | None = None
) -> Report:
    """Report which BatchNormalizations would be folded and why the others stay.

    Args:
        model: the path of a file, its bytes, an ``onnx.ModelProto``, a ``torch.onnx.ONNXProgram``
            or an ``onnx_ir.Model``; it is not changed.
        options: see ``Options``.
        base_dir: folder of the external data of bytes or a message, if any is not loaded.

    Returns:
        The report; its node counts are None.

    Raises:
        ModelError: the model cannot be read or is invalid.
        UsageError: the model is of another type, or ``options.ranges`` is given, which needs a
            model in a file.

    Example:
        >>> for line in plan("model.onnx").lines():
        ...     print(line)
    """
    ranges = _ranges_for(model, options)
    with opened(model, base_dir) as given:
        pipeline = Pipeline(given.model, given.read, options, ranges)
        pipeline.planned()
        return report_of(pipeline, model, base_dir=base_dir)


def fold(
    model: ModelLike, options: Options = _DEFAULT, *, base_dir: PathLike | None = None
) -> tuple[ModelProto, Report]:
    """Fold every BatchNormalization that can be removed exactly.

    Args:
        model: see ``plan``; it is not changed.
        options: see ``Options``.
        base_dir: folder of the external data of bytes or a message, if any is not loaded. New
            constants are stored in the folded model itself.

    Returns:
        The folded copy, and the report. The copy holds all its values, but for external data that
        bytes or a message refer to.

    Raises:
        ModelError: the model cannot be read or is invalid.
        UsageError: the model is of another type, or ``options.ranges`` is given, which needs a
            model in a file.

    Example:
        >>> folded, report = fold("model.onnx")
        >>> onnx.save(folded, "folded.onnx")
    """
    ranges = _ranges_for(model, options)
    with opened(model, base_dir) as given:
        copy, report = folded_of(given, model, options, ranges, base_dir)
        if given.is_open:
            given.complete(copy)
        return copy, report


def folded_of(
    given: Given,
    model: ModelLike,
    options: Options,
    ranges: Ranges | None = None,
    base_dir: PathLike | None = None,
) -> tuple[ModelProto, Report]:
    """Return a folded copy of a message, which lacks the values that it does not change.

    Args:
        given: the message.
        model: what the user gave.
        options, base_dir: see ``fold``.
        ranges: of its tensors, if they were measured.
    """
    pipeline = Pipeline(given.model, given.read, options, ranges)
    while True:
        pipeline.plan()
        copy = copy_of(pipeline.model)
        try:
            for new in fill_small(pipeline.apply(copy)).values():
                tensor = new.tensor
                if is_external(tensor):
                    tensor.ClearField("data_location")
                    tensor.ClearField("external_data")
                fill(tensor, np.asarray(new.compute()))
        except Unrepresentable as failed:
            learn(pipeline, failed)
        else:
            sizes = data_files.bytes_in_memory(given.model), data_files.bytes_in_memory(copy)
            return copy, report_of(pipeline, model, copy, sizes, base_dir=base_dir)


def require_in_memory(options: Options) -> None:
    """Raise UsageError if options are none, or none for a model in memory."""
    require_value("options", options, Options)
    if options.ranges is not None:
        raise UsageError("ranges need a model in a file; give its path")


def _ranges_for(model: ModelLike, options: Options) -> Ranges | None:
    if isinstance(model, (str, os.PathLike)):
        require_value("options", options, Options)
        return measured(model, options)
    require_in_memory(options)
    return None
