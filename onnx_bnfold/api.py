"""The public functions for models in files: ``plan_file`` and ``fold_file``."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from onnx import ModelProto

from onnx_bnfold.applying import fill_small, learn, measured, report_of
from onnx_bnfold.errors import UsageError
from onnx_bnfold.model.graph import copy_of
from onnx_bnfold.options import Options
from onnx_bnfold.pipeline import Pipeline
from onnx_bnfold.provenance import Recorder
from onnx_bnfold.rewriting.new_constants import Unrepresentable
from onnx_bnfold.storage import ModelFile, data_files
from onnx_bnfold.validation import require_at_least, require_value

if TYPE_CHECKING:
    from onnx_bnfold.given import PathLike
    from onnx_bnfold.report import Report

_DEFAULT = Options()


@dataclass(eq=False, repr=False)
class Outcome:
    """A finished fold.

    Attributes:
        source: the file that was folded.
        path: the folded model; a temporary path while it is inspected, None for a plan.
        original: the model before the fold, its nodes in order; large tensors carry no values.
        pipeline: the plan and its records; it can read tensors of the source during the inspection.
        folded: the folded model; large tensors, and those that changed, carry no values. If nobody
            inspects it, the writer uses it up: only its nodes are as they were.
        target: where the folded model goes.
        computed: names of the initializers of ``folded`` whose values the fold computes.
    """

    source: Path
    path: Path | None
    original: ModelProto
    pipeline: Pipeline
    folded: ModelProto
    target: Path | None = None
    computed: Collection[str] = ()
    _data_files: list[str] | None = field(default=None, init=False, repr=False)

    @property
    def source_files(self) -> list[Path]:
        """The source and its data files."""
        return data_files.files(self.source, data_files.data_files(self.original))

    @property
    def files(self) -> list[Path]:
        """The folded model and its data files; empty for a plan."""
        if self.path is None:
            return []
        if self._data_files is None:
            self._data_files = data_files.data_files_of(self.path)
        return data_files.files(self.path, self._data_files)

    def is_staged(self, path: Path) -> None:
        """Take note of the temporary path of the folded model, in a folder of its own."""
        self.path = path
        self._data_files = sorted(each.name for each in path.parent.iterdir() if each != path)

    @cached_property
    def report(self) -> Report:
        """What was folded; not computed before it is needed: it takes 5 % of the time of a fold."""
        if self.path is None:
            return report_of(self.pipeline, self.source)
        sizes = data_files.total_bytes(self.source_files), data_files.total_bytes(self.files)
        return report_of(self.pipeline, self.source, self.folded, sizes, target=self.target)


Inspect = Callable[[Outcome], None]


def fold_file(
    source: PathLike,
    target: PathLike,
    options: Options = _DEFAULT,
    *,
    inspect: Inspect | None = None,
    threads: int | None = None,
    sync: bool = False,
) -> Report:
    """Fold a model file of any size into another file.

    Weights that do not change are copied from file to file; the others are folded in blocks of
    about 1 MiB, in a few threads. External data stays external, in a new file beside the target.

    Args:
        source: the model; it is not changed.
        target: the file to write or replace; it appears complete or not at all.
        options: see ``Options``.
        inspect: called with the outcome when everything is written but not yet moved to the
            target; an exception it raises, such as ``CheckFailed``, leaves the target as it was.
        threads: number of threads that fold weights; by default one per processor, at most four.
        sync: return when the target is on the disk, where it outlives a power failure; without it,
            the target may be lost or damaged by one, but never the source.

    Returns:
        The report.

    Raises:
        ModelError: the model cannot be read or is invalid.
        UsageError: the target is the source or cannot be written, or ``options.ranges`` cannot be
            read or does not fit the model.

    Example:
        >>> report = fold_file("model.onnx", "folded.onnx")
        >>> print(report.summary())
    """
    outcome = write_folded(source, target, options, inspect, threads, report=True, sync=sync)
    return outcome.report


def write_folded(
    source: PathLike,
    target: PathLike,
    options: Options = _DEFAULT,
    inspect: Inspect | None = None,
    threads: int | None = None,
    *,
    report: bool = False,
    sync: bool = False,
) -> Outcome:
    """Fold a model file as ``fold_file`` does, but compute the report only if it is asked for.

    Args:
        source, target, options, inspect, threads, sync: see ``fold_file``.
        report: compute the report before the model is moved to the target, so that an error in it
            leaves the target as it was.

    Returns:
        The outcome; its path is the target.

    Raises:
        ModelError, UsageError: see ``fold_file``.
    """
    _require_call(source, options, inspect)
    require_value("target", target, str | os.PathLike[str])
    require_value("threads", threads, int | None)
    require_at_least("threads", threads, 1)
    require_value("sync", sync, bool)
    with ModelFile.open(source) as file:
        recorder = Recorder(source) if options.metadata else None
        pipeline = Pipeline(file.model, file.read, options, measured(source, options), file.stored)
        while True:
            pipeline.plan()
            copy = copy_of(pipeline.model)
            place = Path(target)
            outcome = Outcome(Path(source), place, pipeline.original, pipeline, copy, place)
            try:
                pending = pipeline.apply(copy)
                outcome.computed = pending.keys()
                large = fill_small(pending)
                late = recorder.late(copy, pipeline.counts) if recorder and pipeline.alters else {}
                blocks = {name: new.compute.blocks for name, new in large.items()}
                look = partial(_show, inspect, outcome, report) if inspect or report else None
                file.write(
                    copy,
                    blocks,
                    target,
                    late=late,
                    inspect=look,
                    threads=threads,
                    sync=sync,
                    use_up=look is None,
                    as_it_is=_is_as_it_was(pipeline, file),
                )
            except Unrepresentable as failed:
                learn(pipeline, failed)
            else:
                outcome.path = Path(target)
                return outcome


def _is_as_it_was(pipeline: Pipeline, file: ModelFile) -> bool:
    """Whether a fold changes nothing, not even the order of nodes."""
    changes = pipeline.alters or pipeline.options.freeze_initializers
    return pipeline.model is file.model and not changes


def _show(inspect: Inspect | None, outcome: Outcome, report: bool, path: Path) -> None:
    """Show ``inspect`` an outcome that is still at a temporary path, and compute its report."""
    outcome.is_staged(path)
    if report:
        _ = outcome.report  # a failure here leaves the target as it was
    if inspect is not None:
        inspect(outcome)


def plan_file(
    source: PathLike, options: Options = _DEFAULT, *, inspect: Inspect | None = None
) -> Report:
    """Report which BatchNormalizations of a model file would be folded; see ``plan``.

    Args:
        source: the model, of any size.
        options: see ``Options``.
        inspect: called with the outcome that a fold would have, without a path.

    Returns:
        The report; its node counts are None.

    Raises:
        ModelError: the model cannot be read or is invalid.
        UsageError: ``options.ranges`` cannot be read or does not fit the model.
    """
    _require_call(source, options, inspect)
    with ModelFile.open(source) as file:
        pipeline = Pipeline(file.model, file.read, options, measured(source, options), file.stored)
        pipeline.planned()
        if inspect is None:
            return report_of(pipeline, source)
        copy = copy_of(pipeline.model)
        computed = pipeline.apply(copy).keys()
        outcome = Outcome(Path(source), None, pipeline.original, pipeline, copy, computed=computed)
        inspect(outcome)
        return outcome.report


def _require_call(source: PathLike, options: Options, inspect: Inspect | None) -> None:
    if not isinstance(source, (str, os.PathLike)):
        raise UsageError(
            f"the source is of type {type(source).__name__}; give the path of a file, or use fold "
            "or plan"
        )
    require_value("source", source, str | os.PathLike[str])
    require_value("options", options, Options)
    if inspect is not None and not callable(inspect):
        raise UsageError(f"inspect is of type {type(inspect).__name__}; give a function or None")
