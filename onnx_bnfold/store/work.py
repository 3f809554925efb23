"""The work on one file, wherever it is done: from a source place to a target place.

A file is complete in the claimed folder before it is moved to its name. A data file is moved before
the model that refers to it, and its name depends on the model's content (see `storage.writer`): at
every moment the output has the old pair or the new one. The record of what was done is saved last;
without it, or if it is not true of the files that are there, the work is done again.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeAlias

from onnx_bnfold.api import Inspect, fold_file, plan_file
from onnx_bnfold.api import Outcome as Fold
from onnx_bnfold.errors import BnFoldError, CheckFailed, UsageError
from onnx_bnfold.folding import Options
from onnx_bnfold.metadata import sha256_of
from onnx_bnfold.storage import skeleton, tensors
from onnx_bnfold.storage.files import InputFile
from onnx_bnfold.store import records
from onnx_bnfold.store.outcome import FileOutcome, Stamp, counts_of
from onnx_bnfold.store.places import Place, place_at
from onnx_bnfold.version import __version__

Action: TypeAlias = Literal["fold", "plan", "copy"]


@dataclass(frozen=True)
class Job:
    """What is the same for all files of a run.

    Attributes:
        source, target, state: absolute paths or URLs; see `places.place_at`.
        options: see `Options`.
        require_all: fail a model of which a BatchNormalization stays, and do not write it.
        version: of the package that asks for the work.
        run: tells apart what this run has done and what earlier ones have.
    """

    source: str
    target: str
    state: str | None
    options: Options
    require_all: bool = False
    version: str = __version__
    run: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class Task:
    """A file, and what is to be done with it."""

    action: Action
    name: str


def perform(job: Job, task: Task) -> FileOutcome:
    """Does the work on one file; every error becomes an outcome."""
    try:
        if job.version != __version__:
            raise UsageError(
                f"{task.name}: this worker has onnx_bnfold {__version__}, the run has "
                f"{job.version}; install one version everywhere"
            )
        if task.action == "plan":
            with TemporaryDirectory() as folder:
                return _plan(job, task.name, Path(folder))
        target = place_at(job.target, job.state)
        key = hashlib.sha256(task.name.encode(errors="surrogateescape")).hexdigest()[:32]
        with target.claim(key) as scratch:
            if task.action == "copy":
                return _copy(job, task.name, target, scratch)
            return _fold(job, task.name, target, key, scratch)
    except Exception as error:
        return failed(task, error)


def failed(task: Task, error: BaseException) -> FileOutcome:
    """Returns the outcome of work that raised an error."""
    if isinstance(error, BnFoldError):
        text = str(error)
    elif isinstance(error, OSError) and error.strerror:
        text = f"{task.name}: {error.strerror}"
    elif isinstance(error, MemoryError):
        text = f"{task.name}: not enough memory"
    else:
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        text = f"{task.name}: internal error, please report it: {what}"
    return FileOutcome(task.name, "failed", error=text)


def _plan(job: Job, name: str, scratch: Path) -> FileOutcome:
    root, _ = _fetch(place_at(job.source), name, scratch)
    with _naming(root):
        report = plan_file(root / name, job.options, inspect=_gate(job, name))
    return FileOutcome(name, "planned", counts=counts_of(report))


def _fold(job: Job, name: str, target: Place, key: str, scratch: Path) -> FileOutcome:
    root, read = _fetch(place_at(job.source), name, scratch)
    source, settings = _stamps(root, read), records.settings_of(job.options)
    earlier = records.load(target, key)
    if (
        earlier is not None
        and (earlier.settings, earlier.outcome.source) == (settings, source)
        and not (job.require_all and earlier.outcome.counts and earlier.outcome.counts.kept)
        and _stamps_at(target, earlier.outcome.target, scratch) == earlier.outcome.target
    ):
        # It is of this run if a process died with the result.
        return replace(earlier.outcome, skipped=earlier.run != job.run)
    parent, base = posixpath.split(name)
    with _naming(root, scratch):
        look, out = _gate(job, name), scratch / base
        # The processes of the run share the machine.
        report = fold_file(root / name, out, job.options, inspect=look, threads=1)
    # The model last: its data must be there before it.
    made = sorted((f for f in os.listdir(scratch) if f.startswith(base)), key=base.__eq__)
    written = {posixpath.join(parent, file): _stamp(scratch / file) for file in made}
    for file, new in zip(made, written, strict=True):
        target.publish(scratch / file, new)
    if earlier is not None:
        for old in earlier.outcome.target.keys() - written.keys():
            target.remove(old)
    outcome = FileOutcome(name, "folded", counts=counts_of(report), source=source, target=written)
    records.save(records.Record(outcome, settings, job.run), target, key, scratch)
    return outcome


def _gate(job: Job, name: str) -> Inspect:
    def inspect(fold: Fold) -> None:
        if job.require_all and fold.report.kept:
            stay = f"{len(fold.report.kept)} BatchNormalization stay"
            raise CheckFailed(f"{name}: --require-all: {stay}")

    return inspect


def _copy(job: Job, name: str, target: Place, scratch: Path) -> FileOutcome:
    root = place_at(job.source).fetch(name, scratch)
    if _stamps_at(target, [name], scratch) == _stamps(root, [name]):
        return FileOutcome(name, "copied", skipped=True)
    shutil.copy2(root / name, scratch / "copy")
    target.publish(scratch / "copy", name)
    return FileOutcome(name, "copied")


def _fetch(source: Place, name: str, scratch: Path) -> tuple[Path, list[str]]:
    """Makes a model and its data files readable; returns their folder and their names."""
    scratch = scratch / "source"
    root = source.fetch(name, scratch)
    data = [posixpath.join(posixpath.dirname(name), file) for file in _data_files(root / name)]
    for file in data:
        with suppress(FileNotFoundError):  # the fold says what is missing, and for which tensor
            source.fetch(file, scratch)
    return root, [name, *data]


def _data_files(model: Path) -> list[str]:
    """Returns the data files that a model names, as paths from its folder with slashes."""
    try:
        file = InputFile(os.fspath(model))
        try:
            message = skeleton.Skeleton(file).model
        finally:
            file.close()
    except (OSError, ValueError):
        return []  # the fold says what is wrong with it
    locations = {
        posixpath.normpath(entry.value)
        for _, tensor in tensors.tensors(message)
        for entry in tensor.external_data
        if entry.key == "location" and entry.value
    }
    return sorted(path for path in locations if path.partition("/")[0] not in ("", ".."))


def _stamps(root: Path, names: Iterable[str]) -> dict[str, Stamp]:
    """Returns the content of those files that are there."""
    stamps: dict[str, Stamp] = {}
    for name in names:
        with suppress(FileNotFoundError):
            stamps[name] = _stamp(root / name)
    return stamps


def _stamp(path: Path) -> Stamp:
    return Stamp(path.stat().st_size, sha256_of(path))


def _stamps_at(target: Place, names: Iterable[str], scratch: Path) -> dict[str, Stamp]:
    stamps: dict[str, Stamp] = {}
    for name in names:
        with suppress(FileNotFoundError):
            stamps |= _stamps(target.fetch(name, scratch / "target"), [name])
    return stamps


@contextmanager
def _naming(*roots: Path) -> Iterator[None]:
    """Lets errors name files as the store has them, not as this machine does."""
    try:
        yield
    except BnFoldError as error:
        text = str(error)
        for root in roots:
            text = text.replace(f"{root}{os.sep}", "")
        raise type(error)(text) from error
