"""Applying a plan to a model: what folds of files and of models in memory have in common."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from onnx import ModelProto

from onnx_bnfold.model.graph import bodies_of
from onnx_bnfold.options import Options
from onnx_bnfold.pipeline import Pipeline
from onnx_bnfold.rewriting.computed_elements import Pending, compute_all
from onnx_bnfold.rewriting.new_constants import Unrepresentable
from onnx_bnfold.storage.tensors import fill, is_external

if TYPE_CHECKING:
    from onnx_bnfold.given import ModelLike, PathLike
    from onnx_bnfold.planning.ranges import Ranges
    from onnx_bnfold.report import Report

# New constants of up to this many elements are computed together and held in memory.
MOST_AT_ONCE = 1024


def measured(source: PathLike, options: Options) -> Ranges | None:
    """Return the ranges of a model's tensors if the options say what to measure them on."""
    if options.ranges is None:
        return None
    from onnx_bnfold.check.ranges import measured

    return measured(Path(source), Path(options.ranges))


def learn(pipeline: Pipeline, failed: Unrepresentable) -> None:
    """Exclude from the plan what led to constants that do not fit their type.

    All new constants are computed once more, so that one attempt finds all that do not fit.
    """
    try:
        pipeline.verify()
    except Unrepresentable as others:
        pipeline.exclude(failed.failures | others.failures)
    else:  # exclude it all the same: the same attempt must not be made twice
        pipeline.exclude(failed.failures)


def fill_small(pending: dict[str, Pending]) -> dict[str, Pending]:
    """Compute the small constants together, which costs less than streaming each of them.

    Returns:
        The large ones.
    """
    small, large = [], {}
    for name, new in pending.items():
        if new.size <= MOST_AT_ONCE and not is_external(new.tensor):
            small.append(new)
        else:
            large[name] = new
    for new, values in zip(small, compute_all([new.compute for new in small]), strict=True):
        fill(new.tensor, values, new.size)
    return large


def report_of(
    pipeline: Pipeline,
    source: ModelLike,
    folded: ModelProto | None = None,
    sizes: tuple[int | None, int | None] = (None, None),
    *,
    target: Path | None = None,
    base_dir: PathLike | None = None,
) -> Report:
    """Return the report of a plan, or of a fold if its result is given.

    Args:
        pipeline: the plan.
        source: the model as it was given.
        folded: the result.
        sizes: bytes of both.
        target: the result's file.
        base_dir: see ``fold``.
    """
    from onnx_bnfold.record_details import records_of
    from onnx_bnfold.report import Origin, Report, copied_bytes  # a quiet fold makes none

    before = after = None
    if folded is not None:
        before, after = pipeline.nodes_before, sum(len(body.node) for body in bodies_of(folded))
    rescaled, (records, kept_affine) = pipeline.rescaled, records_of(pipeline)
    if isinstance(source, (str, os.PathLike)):
        source = Path(source).absolute()
    target = None if target is None else target.absolute()
    return Report(
        records, before, after, pipeline.equalized, rescaled, *sizes,
        sum(map(copied_bytes, pipeline.rounds)), pipeline.inlined, kept_affine,
        pipeline.int8_loss(rescaled), pipeline.coarser_in_float16, pipeline.open_choices,
        Origin(source, pipeline.options, base_dir, target),
    )  # fmt: skip
