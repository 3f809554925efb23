"""The public functions: ``plan``, ``fold`` and ``fold_file``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto

from onnx_bnfold.errors import UsageError
from onnx_bnfold.folding import Folding, Options
from onnx_bnfold.graph import bodies_of
from onnx_bnfold.metadata import Recorder
from onnx_bnfold.new_constants import Unrepresentable, compute_all
from onnx_bnfold.rewrite import Pending
from onnx_bnfold.storage import ModelFile, read_tensor
from onnx_bnfold.storage.tensors import (
    REFERENCE,
    byte_length,
    elsewhere,
    fill,
    is_external,
    tensors,
)
from onnx_bnfold.validation import require_at_least, require_value

if TYPE_CHECKING:
    from onnx_bnfold.ranges import Ranges
    from onnx_bnfold.report import Report

PathLike = str | os.PathLike[str]
_DEFAULT = Options()
# Elements up to which a constant is held in memory until the model is written.
SMALL = 1024


@dataclass
class Outcome:
    """A fold whose result is finished.

    Attributes:
        source: the file that was folded.
        path: the model: under a temporary path where it is inspected; None for a plan.
        original: the model before the fold, its nodes in order; large tensors carry no values.
        folding: how; the source is open while this is inspected, so that its tensors can be read.
        folded: the folded model; large tensors, and those that changed, carry no values.
    """

    source: Path
    path: Path | None
    original: ModelProto
    folding: Folding
    folded: ModelProto

    @cached_property
    def report(self) -> Report:
        """What was folded; who does not ask for it saves a twentieth of the time of a fold."""
        if self.path is None:
            return _report(self.folding)
        sizes = bytes_of(self.source, data_files(self.original)), bytes_of(self.path, None)
        return _report(self.folding, self.folded, sizes)


Inspect = Callable[[Outcome], None]


def plan(
    model: ModelProto, options: Options = _DEFAULT, *, base_dir: PathLike | None = None
) -> Report:
    """Say which BatchNormalizations would be folded and why the others stay.

    Args:
        model: any ONNX model; it is not changed.
        options: see ``Options``.
        base_dir: folder of its external data, if it has any that is not loaded.

    Returns:
        The report; its node counts are None.

    Raises:
        ModelError: the model is unusable.
        UsageError: ``options.ranges`` is given; a model in memory cannot be run.

    Example:
        >>> for line in plan(onnx.load("model.onnx")).lines():
        ...     print(line)
    """
    _require_in_memory(model, options, base_dir)
    folding = Folding(model, lambda tensor: read_tensor(tensor, base_dir), options)
    folding.planned()
    return _report(folding)


def fold(
    model: ModelProto, options: Options = _DEFAULT, *, base_dir: PathLike | None = None
) -> tuple[ModelProto, Report]:
    """Fold every BatchNormalization that can be removed exactly.

    Args:
        model: any ONNX model; it is not changed.
        options: see ``Options``.
        base_dir: folder of its external data, if it has any that is not loaded; the new constants
            are held in the result itself.

    Returns:
        The folded copy, and the report.

    Raises:
        ModelError: the model is unusable.
        UsageError: ``options.ranges`` is given; a model in memory cannot be run.

    Example:
        >>> folded, report = fold(onnx.load("model.onnx"))
        >>> onnx.save(folded, "folded.onnx")
    """
    _require_in_memory(model, options, base_dir)
    folding = Folding(model, lambda tensor: read_tensor(tensor, base_dir), options)
    while True:
        folding.plan()
        copy = ModelProto()
        copy.CopyFrom(folding.model)
        try:
            for tensor, _, compute in _fill_small(folding.apply(copy)).values():
                if is_external(tensor):
                    tensor.ClearField("data_location")
                    tensor.ClearField("external_data")
                fill(tensor, np.asarray(compute()))
        except Unrepresentable as failed:
            _learn(folding, failed)
        else:
            return copy, _report(folding, copy, (_bytes_in_memory(model), _bytes_in_memory(copy)))


def fold_file(
    source: PathLike,
    target: PathLike,
    options: Options = _DEFAULT,
    *,
    inspect: Inspect | None = None,
    threads: int | None = None,
) -> Report:
    """Fold a model file of any size into another file.

    Weights that do not change go from file to file; those that do are folded in blocks of about
    4 MiB, in a few threads.
    External data stays external, in a new file beside the target.

    Args:
        source: the model; it is not changed.
        target: where the folded model goes; written whole or not at all.
        options: see ``Options``.
        inspect: called with the outcome when all is written but not yet in its place; an
            exception it raises, ``CheckFailed`` for example, keeps it from there.
        threads: that fold weights; by default one per processor, up to four.

    Returns:
        The report.

    Raises:
        ModelError: the model is unusable.
        UsageError: the target is the source, or cannot be written; or ``options.ranges`` cannot be
            read or does not fit.
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
    """Do what ``fold_file`` does, and make a report only where one is asked for.

    Returns:
        The outcome, in its place.
    """
    _require_call(source, options)
    require_value("target", target, str | os.PathLike[str])
    require_value("threads", threads, int | None)
    require_at_least("threads", threads, 1)
    with ModelFile.open(source) as file:
        recorder = Recorder(source) if options.metadata else None
        folding = Folding(file.model, file.read, options, _measured(source, options), file.stored)
        while True:
            folding.plan()
            copy = ModelProto()
            copy.CopyFrom(folding.model)
            outcome = Outcome(Path(source), Path(target), folding.original, folding, copy)
            try:
                large = _fill_small(folding.apply(copy))
                late = recorder.late(copy, folding.counts) if recorder and folding.alters else {}
                blocks = {name: new.compute.blocks for name, new in large.items()}
                look = partial(_show, inspect, outcome, report) if inspect or report else None
                file.write(copy, blocks, target, late=late, inspect=look, threads=threads)
            except Unrepresentable as failed:
                _learn(folding, failed)
            else:
                outcome.path = Path(target)
                return outcome


def _show(inspect: Inspect | None, outcome: Outcome, report: bool, path: Path) -> None:
    """Let ``inspect`` see an outcome that is not in its place yet, and make the report of it."""
    outcome.path = path
    if report:
        _ = outcome.report  # what may fail fails before the file gets its place
    if inspect is not None:
        inspect(outcome)


def plan_file(
    source: PathLike, options: Options = _DEFAULT, *, inspect: Inspect | None = None
) -> Report:
    """Do what ``plan`` does for a model file of any size.

    Args:
        source: the model.
        options: see ``Options``.
        inspect: called with what would be the outcome; it has no path.

    Returns:
        The report; its node counts are None.

    Raises:
        ModelError: the model is unusable.
        UsageError: ``options.ranges`` cannot be read or does not fit.
    """
    _require_call(source, options)
    with ModelFile.open(source) as file:
        folding = Folding(file.model, file.read, options, _measured(source, options))
        folding.planned()
        if inspect is None:
            return _report(folding)
        copy = ModelProto()
        copy.CopyFrom(folding.model)
        folding.apply(copy)
        outcome = Outcome(Path(source), None, folding.original, folding, copy)
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
            f"the model is of type {type(model).__name__}, no ModelProto; use fold_file or "
            "plan_file for the path of a file"
        )
    require_value("options", options, Options)
    require_value("base_dir", base_dir, str | os.PathLike[str] | None)
    if options.ranges is not None:
        raise UsageError("ranges are measured on models in files: use fold_file or plan_file")


def _measured(source: PathLike, options: Options) -> Ranges | None:
    if options.ranges is None:
        return None
    from onnx_bnfold.check.ranges import measured

    return measured(Path(source), Path(options.ranges))


def _learn(folding: Folding, failed: Unrepresentable) -> None:
    """Find everything that does not fit its type at once, not one constant an attempt."""
    try:
        folding.verify()
    except Unrepresentable as found:
        folding.exclude(failed.failures | found.failures)
    else:  # whatever the reason, no attempt is made twice
        folding.exclude(failed.failures)


def _fill_small(pending: dict[str, Pending]) -> dict[str, Pending]:
    """Compute the small constants at once: to stream each would cost more than to hold all.

    Returns:
        The others.
    """
    small, large = [], {}
    for name, new in pending.items():
        if new.size <= SMALL and not is_external(new.tensor):
            small.append(new)
        else:
            large[name] = new
    for new, values in zip(small, compute_all([new.compute for new in small]), strict=True):
        fill(new.tensor, values)
    return large


def data_files(model: ModelProto) -> list[str]:
    """Return the locations of the data files of a model, whose large tensors carry no values."""
    entries = [list(tensor.external_data) for _, tensor in tensors(model, elsewhere())]
    # What lies in the model's own file may name another one without any use.
    used = [e for of_one in entries if all(e.key != REFERENCE for e in of_one) for e in of_one]
    return sorted({entry.value for entry in used if entry.key == "location"})


def files_of(model: Path, others: Sequence[str] | None) -> list[Path]:
    """Return a model's file and its data files: all others of its folder, if it has one alone."""
    if others is None:
        others = sorted(path.name for path in model.parent.iterdir() if path.name != model.name)
    return [model, *(model.parent / name for name in others)]


def bytes_of(model: Path, others: Sequence[str] | None) -> int:
    """Return the length of these files together."""
    return sum(path.stat().st_size for path in files_of(model, others))


def _bytes_in_memory(model: ModelProto) -> int:
    """Return the bytes of a model and of its values that lie in files."""
    outside = sum(byte_length(tensor) for _, tensor in tensors(model, elsewhere()))
    return int(model.ByteSize()) + outside


def _report(
    folding: Folding,
    folded: ModelProto | None = None,
    sizes: tuple[int | None, int | None] = (None, None),
) -> Report:
    from onnx_bnfold.report import Report, copied_bytes  # a quiet fold makes none

    before = after = None
    if folded is not None:
        before, after = folding.nodes_before, sum(len(body.node) for body in bodies_of(folded))
    copied = copied_bytes(folding.plans)
    return Report(
        folding.records(), before, after, folding.equalized, folding.rescaled, *sizes, copied
    )
