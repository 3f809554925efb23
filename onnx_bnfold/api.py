"""The public functions: ``plan``, ``plan_file``, ``fold`` and ``fold_file``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto

from onnx_bnfold.errors import UsageError
from onnx_bnfold.model.graph import bodies_of
from onnx_bnfold.options import Options
from onnx_bnfold.pipeline import Pipeline
from onnx_bnfold.provenance import Recorder
from onnx_bnfold.rewriting.graph_editor import Pending
from onnx_bnfold.rewriting.new_constants import Unrepresentable, compute_all
from onnx_bnfold.storage import ModelFile, data_files, read_tensor
from onnx_bnfold.storage.tensors import fill, is_external
from onnx_bnfold.validation import require_at_least, require_value

if TYPE_CHECKING:
    from onnx_bnfold.planning.value_ranges import Ranges
    from onnx_bnfold.report import Report

PathLike = str | os.PathLike[str]
_DEFAULT = Options()
# New constants of up to this many elements are computed together and held in memory.
_MOST_AT_ONCE = 1024


@dataclass(eq=False, repr=False)
class Outcome:
    """A finished fold.

    Attributes:
        source: the file that was folded.
        path: the folded model; a temporary path while it is inspected, None for a plan.
        original: the model before the fold, its nodes in order; large tensors carry no values.
        pipeline: the plan and its records; it can read tensors of the source during the inspection.
        folded: the folded model; large tensors, and those that changed, carry no values.
    """

    source: Path
    path: Path | None
    original: ModelProto
    pipeline: Pipeline
    folded: ModelProto
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
            return _report(self.pipeline)
        sizes = data_files.total_bytes(self.source_files), data_files.total_bytes(self.files)
        return _report(self.pipeline, self.folded, sizes)


Inspect = Callable[[Outcome], None]


def plan(
    model: ModelProto, options: Options = _DEFAULT, *, base_dir: PathLike | None = None
) -> Report:
    """Report which BatchNormalizations would be folded and why the others stay.

    Args:
        model: any ONNX model; it is not changed.
        options: see ``Options``.
        base_dir: folder of the model's external data, if any is not loaded.

    Returns:
        The report; its node counts are None.

    Raises:
        ModelError: the model cannot be read or is invalid.
        UsageError: ``options.ranges`` is given, which needs a model in a file.

    Example:
        >>> for line in plan(onnx.load("model.onnx")).lines():
        ...     print(line)
    """
    _require_in_memory(model, options, base_dir)
    pipeline = Pipeline(model, lambda tensor: read_tensor(tensor, base_dir), options)
    pipeline.planned()
    return _report(pipeline)


def fold(
    model: ModelProto, options: Options = _DEFAULT, *, base_dir: PathLike | None = None
) -> tuple[ModelProto, Report]:
    """Fold every BatchNormalization that can be removed exactly.

    Args:
        model: any ONNX model; it is not changed.
        options: see ``Options``.
        base_dir: folder of the model's external data, if any is not loaded. New constants are
            stored in the folded model itself.

    Returns:
        The folded copy, and the report.

    Raises:
        ModelError: the model cannot be read or is invalid.
        UsageError: ``options.ranges`` is given, which needs a model in a file.

    Example:
        >>> folded, report = fold(onnx.load("model.onnx"))
        >>> onnx.save(folded, "folded.onnx")
    """
    _require_in_memory(model, options, base_dir)
    pipeline = Pipeline(model, lambda tensor: read_tensor(tensor, base_dir), options)
    while True:
        pipeline.plan()
        copy = ModelProto()
        copy.CopyFrom(pipeline.model)
        try:
            for tensor, _, compute in _fill_small(pipeline.apply(copy)).values():
                if is_external(tensor):
                    tensor.ClearField("data_location")
                    tensor.ClearField("external_data")
                fill(tensor, np.asarray(compute()))
        except Unrepresentable as failed:
            _learn(pipeline, failed)
        else:
            sizes = data_files.bytes_in_memory(model), data_files.bytes_in_memory(copy)
            return copy, _report(pipeline, copy, sizes)


def fold_file(
    source: PathLike,
    target: PathLike,
    options: Options = _DEFAULT,
    *,
    inspect: Inspect | None = None,
    threads: int | None = None,
) -> Report:
    """Fold a model file of any size into another file.

    Weights that do not change are copied from file to file; the others are folded in blocks of
    about 4 MiB, in a few threads. External data stays external, in a new file beside the target.

    Args:
        source: the model; it is not changed.
        target: the file to write or replace; it appears complete or not at all.
        options: see ``Options``.
        inspect: called with the outcome when everything is written but not yet moved to the
            target; an exception it raises, such as ``CheckFailed``, leaves the target as it was.
        threads: number of threads that fold weights; by default one per processor, at most four.

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
    outcome = write_folded(source, target, options, inspect, threads, report=True)
    return outcome.report


def write_folded(
    source: PathLike,
    target: PathLike,
    options: Options = _DEFAULT,
    inspect: Inspect | None = None,
    threads: int | None = None,
    *,
    report: bool = False,
) -> Outcome:
    """Fold a model file as ``fold_file`` does, but compute the report only if it is asked for.

    Args:
        source, target, options, inspect, threads: see ``fold_file``.
        report: compute the report before the model is moved to the target, so that an error in it
            leaves the target as it was.

    Returns:
        The outcome; its path is the target.

    Raises:
        ModelError, UsageError: see ``fold_file``.
    """
    _require_call(source, options)
    require_value("target", target, str | os.PathLike[str])
    require_value("threads", threads, int | None)
    require_at_least("threads", threads, 1)
    with ModelFile.open(source) as file:
        recorder = Recorder(source) if options.metadata else None
        pipeline = Pipeline(file.model, file.read, options, _measured(source, options), file.stored)
        while True:
            pipeline.plan()
            copy = ModelProto()
            copy.CopyFrom(pipeline.model)
            outcome = Outcome(Path(source), Path(target), pipeline.original, pipeline, copy)
            try:
                large = _fill_small(pipeline.apply(copy))
                late = recorder.late(copy, pipeline.counts) if recorder and pipeline.alters else {}
                blocks = {name: new.compute.blocks for name, new in large.items()}
                look = partial(_show, inspect, outcome, report) if inspect or report else None
                file.write(copy, blocks, target, late=late, inspect=look, threads=threads)
            except Unrepresentable as failed:
                _learn(pipeline, failed)
            else:
                outcome.path = Path(target)
                return outcome


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
    _require_call(source, options)
    with ModelFile.open(source) as file:
        pipeline = Pipeline(file.model, file.read, options, _measured(source, options))
        pipeline.planned()
        if inspect is None:
            return _report(pipeline)
        copy = ModelProto()
        copy.CopyFrom(pipeline.model)
        pipeline.apply(copy)
        outcome = Outcome(Path(source), None, pipeline.original, pipeline, copy)
        inspect(outcome)
        return outcome.report


def _require_call(source: PathLike, options: Options) -> None:
    if isinstance(source, ModelProto):
        raise UsageError("the source is a ModelProto; use fold or plan, or give the path of a file")
    require_value("source", source, str | os.PathLike[str])
    require_value("options", options, Options)


def _require_in_memory(model: ModelProto, options: Options, base_dir: PathLike | None) -> None:
    if not isinstance(model, ModelProto):
        raise UsageError(
            f"the model is of type {type(model).__name__}, not ModelProto; use fold_file or "
            "plan_file for the path of a file"
        )
    require_value("options", options, Options)
    require_value("base_dir", base_dir, str | os.PathLike[str] | None)
    if options.ranges is not None:
        raise UsageError("ranges need a model in a file; use fold_file or plan_file")


def _measured(source: PathLike, options: Options) -> Ranges | None:
    if options.ranges is None:
        return None
    from onnx_bnfold.check.ranges import measured

    return measured(Path(source), Path(options.ranges))


def _learn(pipeline: Pipeline, failed: Unrepresentable) -> None:
    """Exclude from the plan what led to constants that do not fit their type.

    All new constants are computed once more, so that one attempt finds all that do not fit.
    """
    try:
        pipeline.verify()
    except Unrepresentable as others:
        pipeline.exclude(failed.failures | others.failures)
    else:  # exclude it all the same: the same attempt must not be made twice
        pipeline.exclude(failed.failures)


def _fill_small(pending: dict[str, Pending]) -> dict[str, Pending]:
    """Compute the small constants together, which costs less than streaming each of them.

    Returns:
        The large ones.
    """
    small, large = [], {}
    for name, new in pending.items():
        if new.size <= _MOST_AT_ONCE and not is_external(new.tensor):
            small.append(new)
        else:
            large[name] = new
    for new, values in zip(small, compute_all([new.compute for new in small]), strict=True):
        fill(new.tensor, values)
    return large


def _report(
    pipeline: Pipeline,
    folded: ModelProto | None = None,
    sizes: tuple[int | None, int | None] = (None, None),
) -> Report:
    from onnx_bnfold.report import Report, copied_bytes  # a quiet fold makes none

    before = after = None
    if folded is not None:
        before, after = pipeline.nodes_before, sum(len(body.node) for body in bodies_of(folded))
    rescaled = pipeline.rescaled
    return Report(
        pipeline.records(), before, after, pipeline.equalized, rescaled, *sizes,
        sum(map(copied_bytes, pipeline.rounds)), pipeline.inlined,
        tuple([each.record for each in pipeline.decomposed_bns]), pipeline.int8_loss(rescaled),
    )  # fmt: skip
