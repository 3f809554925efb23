"""The work on one file of a store, from its source location to its target location.

A file is completed in the claimed folder before it is moved to its name. A data file is moved
before the model that refers to it, and its name depends on the model's content (see
``storage.writer``), so that the output always has either the old pair or the new one. The record of
the work is saved last; if it is missing or does not match the files, the work is done again.
"""

from __future__ import annotations

import os
import posixpath
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, TypeAlias

from onnx_bnfold.api import Outcome as Fold
from onnx_bnfold.api import fold_file, plan_file
from onnx_bnfold.batch import ledger
from onnx_bnfold.batch.file_outcome import FileOutcome, Stamp, counts_of
from onnx_bnfold.batch.locations import Location, Source
from onnx_bnfold.batch.opening import location_at
from onnx_bnfold.errors import BnFoldError, CheckFailed, UsageError, printable
from onnx_bnfold.options import Options
from onnx_bnfold.planning.kept import Patterns
from onnx_bnfold.provenance import sha256_of
from onnx_bnfold.report_text import unmet
from onnx_bnfold.storage.data_files import data_files_of
from onnx_bnfold.version import __version__

if TYPE_CHECKING:  # most runs have no check
    from onnx_bnfold.check import CheckOptions, CheckResult

Action: TypeAlias = Literal["fold", "plan", "copy"]
_DONE: Mapping[Action, str] = {"fold": "folded", "plan": "planned", "copy": "copied"}


@dataclass(frozen=True)
class Batch:
    """What all files of a run have in common.

    Attributes:
        source, target, state: absolute paths or URLs; see ``opening.location_at``.
        options: see ``Options``.
        require_all, check, sync: see ``run.fold_store``.
        require_folded: see ``run.plan_store``.
        version: of the package that started the run.
        run: an identifier that is unique to the run.
    """

    source: str
    target: str
    state: str | None
    options: Options
    require_all: bool = False
    check: CheckOptions | None = None
    require_folded: bool = False
    sync: bool = False
    version: str = __version__
    run: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class Task:
    """An action on a file.

    Attributes:
        action: what to do.
        name: of the file, below the store.
    """

    action: Action
    name: str


def perform(batch: Batch, task: Task) -> FileOutcome:
    """Do the work on one file; every error becomes an outcome that has failed.

    Args:
        batch: the run.
        task: the action and the file.
    """
    try:
        if batch.version != __version__:
            raise UsageError(
                f"this worker has onnx_bnfold {__version__}, the run has {batch.version}; install "
                "one version everywhere"
            )
        if task.action == "plan":
            with TemporaryDirectory() as folder:
                return _plan(batch, task.name, Path(folder))
        target = location_at(batch.target, batch.state, sync=batch.sync)
        key = ledger.key_of(task.name)
        with target.claim(key) as scratch:
            if task.action == "copy":
                return _copy(batch, task.name, target, scratch)
            return _fold(batch, task.name, target, key, scratch)
    except Exception as error:
        return failed(task, error)


def failed(task: Task, error: BaseException) -> FileOutcome:
    """Return the outcome of work that raised an error."""
    if isinstance(error, BnFoldError):
        text = str(error)
        if not text.startswith(printable(task.name)):  # the file comes first, whatever it is about
            text = f"{task.name}: {text}"
    elif isinstance(error, OSError) and error.strerror:
        text = f"{task.name}: cannot be {_DONE[task.action]}: {error.strerror}"
    elif isinstance(error, MemoryError):
        text = f"{task.name}: not enough memory"
    else:
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        text = f"{task.name}: internal error, please report it: {what}"
    return FileOutcome(task.name, "failed", error=text)


def _plan(batch: Batch, name: str, scratch: Path) -> FileOutcome:
    root, _ = fetch_model(location_at(batch.source), name, scratch)
    with naming({root: ""}):
        work = _Work(batch, root / name)
        report = plan_file(root / name, work.options, inspect=work.inspect)
    planned = FileOutcome(name, "planned", counts=counts_of(report))
    return replace(planned, unmatched=work.unmatched("keep"), unmatched_only=work.unmatched("only"))


def _fold(batch: Batch, name: str, target: Location, key: str, scratch: Path) -> FileOutcome:
    origin = location_at(batch.source)
    root, read = fetch_model(origin, name, scratch)
    source, settings = _stamps(root, read), ledger.settings_of(batch.options, batch.check)
    earlier = ledger.load(target, key)
    if (
        earlier is not None
        and earlier.outcome.source == source
        and settings.items() <= earlier.settings.items()  # a check more does no harm
        and not (batch.require_all and earlier.outcome.counts and earlier.outcome.counts.left != 0)
        and _stamps_at(target, earlier.outcome.target, scratch) == earlier.outcome.target
    ):
        # The record is of this run if a process died before it could return the outcome.
        return replace(earlier.outcome, skipped=earlier.run != batch.run)
    parent, base = posixpath.split(name)
    with naming({root: "", scratch: ""}):
        work, out = _Work(batch, root / name), scratch / base
        # One thread: the run has a process for each processor.
        report = fold_file(root / name, out, work.options, inspect=work.inspect, threads=1)
    # The model comes last; its data file has to be there before.
    made = sorted((f for f in os.listdir(scratch) if f.startswith(base)), key=base.__eq__)
    written = {posixpath.join(parent, file): _stamp(scratch / file) for file in made}
    for file, new in zip(made, written, strict=True):
        target.publish(scratch / file, new)
    if earlier is not None:
        for old in earlier.outcome.target.keys() - written.keys():
            target.remove(old)
    outcome = FileOutcome(
        name,
        "folded",
        counts=counts_of(report),
        source=source,
        target=written,
        unmatched=work.unmatched("keep"),
        unmatched_only=work.unmatched("only"),
        check=work.check,
    )
    ledger.save(ledger.Record(outcome, settings, batch.run, origin.address), target, key, scratch)
    return outcome


class _ForOneOfMany(Options):
    """Options whose patterns may be meant for other models."""

    must_match = False


class _Work:
    """What is asked of the fold of one model.

    Attributes:
        options: of the fold.
        check: what its check has found.
    """

    def __init__(self, batch: Batch, source: Path) -> None:
        self.options = _ForOneOfMany(**vars(batch.options))
        self.check: str | None = None
        self._batch = batch
        self._source = source
        self._unmatched: Patterns = {}

    def unmatched(self, option: str) -> tuple[str, ...]:
        """Return the patterns of an option that match nothing in the model."""
        return tuple(self._unmatched.get(option, ()))

    def inspect(self, fold: Fold) -> None:
        """Note the patterns that match nothing, and see that the gates hold.

        Raises:
            CheckFailed: one does not.
        """
        self._unmatched = fold.pipeline.unmatched
        batch = self._batch
        if failures := [
            *unmet(fold.report, all_go=batch.require_all, none_goes=batch.require_folded)
        ]:
            raise CheckFailed("; ".join(failures))
        if self._batch.check is not None and fold.path is not None:
            from onnx_bnfold.check import check  # loads onnxruntime

            changes = fold.pipeline.changes()
            result = check(self._source, fold.path, self._batch.check, changes=changes)
            if not result.holds:
                raise CheckFailed("; ".join(result.failures))
            self.check = _found(result)


def _found(result: CheckResult) -> str:
    outputs = result.numerics.outputs if result.numerics else ()
    worst = max((output.times_noise for output in outputs), default=0.0)
    return f"the check holds: at most {worst:.2g} times the rounding noise"


def take_away(record: ledger.Record, key: str, target: Location) -> None:
    """Remove what was made of a model, and its record; a file that has changed since stays."""
    made = record.outcome.target
    with target.claim(key) as scratch:
        for name, now in _stamps_at(target, made, scratch).items():
            if now == made[name]:
                target.remove(name)
        ledger.forget(target, key)


def _copy(batch: Batch, name: str, target: Location, scratch: Path) -> FileOutcome:
    root = location_at(batch.source).fetch(name, scratch)
    if _stamps_at(target, [name], scratch) == _stamps(root, [name]):
        return FileOutcome(name, "copied", skipped=True)
    shutil.copy2(root / name, scratch / "copy")
    target.publish(scratch / "copy", name)
    return FileOutcome(name, "copied")


def fetch_model(source: Source, name: str, scratch: Path) -> tuple[Path, list[str]]:
    """Make a model and its data files readable; return their folder and their names."""
    scratch = scratch / "source"
    root = source.fetch(name, scratch)
    data = [posixpath.join(posixpath.dirname(name), file) for file in _data_inside(root / name)]
    for file in data:
        with suppress(FileNotFoundError):  # the fold reports what is missing, and for which tensor
            source.fetch(file, scratch)
    return root, [name, *data]


def _data_inside(model: Path) -> list[str]:
    """Return the data files of a model that are below its folder, as paths with slashes."""
    try:
        names = {posixpath.normpath(name) for name in data_files_of(model) if name}
    except (OSError, ValueError):
        return []  # the fold reports what is wrong with the model
    return sorted(name for name in names if name.partition("/")[0] not in ("", ".."))


def _stamps(root: Path, names: Iterable[str]) -> dict[str, Stamp]:
    """Return name → content of those files that exist."""
    stamps: dict[str, Stamp] = {}
    for name in names:
        with suppress(FileNotFoundError):
            stamps[name] = _stamp(root / name)
    return stamps


def _stamp(path: Path) -> Stamp:
    return Stamp(path.stat().st_size, sha256_of(path))


def _stamps_at(target: Location, names: Iterable[str], scratch: Path) -> dict[str, Stamp]:
    stamps: dict[str, Stamp] = {}
    for name in names:
        with suppress(FileNotFoundError):
            stamps |= _stamps(target.fetch(name, scratch / "target"), [name])
    return stamps


@contextmanager
def naming(shown: Mapping[Path, str]) -> Iterator[None]:
    """Make errors name files as users know them, not by paths of copies; a context manager.

    Args:
        shown: folder of copies → what stands in front of their names in its place.
    """
    try:
        yield
    except BnFoldError as error:
        text = str(error)
        for folder, start in shown.items():
            text = text.replace(f"{folder}{os.sep}", start)
        error.args = (text,)
        raise
