"""A run over a store: first the models, then the other files, then links and the report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_bnfold.batch import ledger
from onnx_bnfold.batch.file_outcome import FileOutcome, is_model
from onnx_bnfold.batch.ledger import settings_of
from onnx_bnfold.batch.locations import Listing, Location, is_url, lies_in
from onnx_bnfold.batch.opening import location_at
from onnx_bnfold.batch.processes import in_processes, thread_safe_start
from onnx_bnfold.batch.report import StoreReport
from onnx_bnfold.batch.task import Action, Batch, Task, failed, perform, take_away
from onnx_bnfold.errors import UsageError
from onnx_bnfold.options import Options
from onnx_bnfold.planning.kept import UnmatchedPatterns
from onnx_bnfold.progress import progress
from onnx_bnfold.storage.durable import flush_store
from onnx_bnfold.storage.thread_pool import available_processors
from onnx_bnfold.validation import require_at_least, require_value

if TYPE_CHECKING:  # most runs have no check
    from onnx_bnfold.check.options import CheckOptions

REPORT = "report.json"  # in the state
_DEFAULT = Options()
_Run = Callable[[Iterable[Task]], Iterator[FileOutcome]]


def fold_store(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    options: Options = _DEFAULT,
    *,
    jobs: int | None = None,
    dask: str | None = None,
    state: str | os.PathLike[str] | None = None,
    require_all: bool = False,
    check: CheckOptions | None = None,
    prune: bool = False,
    sync: bool = False,
) -> StoreReport:
    """Fold every model below a folder into another folder, and copy all other files.

    Files that an earlier run has done, from the same content with the same options, are skipped.

    Args:
        source: the folder, or a URL that fsspec can open; it is not changed.
        target: the folder or URL of the output; created if it does not exist.
        options: see ``Options``.
        jobs: number of processes; by default one per processor.
        dask: address of a Dask scheduler, whose workers do the work instead.
        state: folder or URL of the records and of unfinished files, on the file system of the
            target; by default the target's name followed by ``.onnx_bnfold``.
        require_all: a model with a BatchNormalization that is kept fails and is not written.
        check: compare each model with its original by these options; one that does not hold fails
            and is not written.
        prune: remove the folds of models that an earlier run has found in the source, and that are
            no longer there. Without it they are reported.
        sync: return when the target is on the disk, where it outlives a power failure, with the
            files that an earlier run has done; for a target on this machine.

    Returns:
        The report, failures included. It is also saved in the state, as ``report.json``.

    Raises:
        UsageError: source or target cannot be used, or there is no model.
    """
    _require_call(source, options, jobs, dask, require_all)
    require_value("target", target, str | os.PathLike[str])
    require_value("state", state, str | os.PathLike[str] | None)
    require_value("prune", prune, bool)
    require_value("sync", sync, bool)
    batch = Batch(
        _absolute(source),
        _absolute(target),
        None if state is None else _absolute(state),
        options,
        require_all,
        check,
        sync=sync,
    )
    # By the paths as they were given, which errors name.
    origin = location_at(os.fspath(source))
    output = location_at(os.fspath(target), None if state is None else os.fspath(state), sync=sync)
    _check_apart(origin, output)
    listing, models = _listed(origin)
    with _runner(batch, jobs, dask) as run, _prepared(output):
        outcomes = [*_problems(listing), *_all(run, "fold", models)]
        # A model's data files are not copied: their content is in the folded model's data file.
        done = models.keys() | {name for o in outcomes for name in (*o.source, *o.target)}
        others = {name: size for name, size in listing.files.items() if name not in done}
        outcomes += [*_all(run, "copy", others), *_folders_and_links(listing, output)]
        outcomes += _gone(origin, output, listing, prune)
    outcomes += _unmatched(options, outcomes)
    if sync:
        outcomes += _flushed(batch.target, [*listing.folders, *_written(outcomes)])
    report = StoreReport(_sorted(outcomes), settings_of(options, check))
    try:
        with output.claim("report") as scratch:
            (scratch / REPORT).write_text(report.to_json(), encoding="ascii")
            output.save(scratch / REPORT, REPORT)
    except (OSError, UsageError) as error:  # return the report all the same
        why = error.strerror if isinstance(error, OSError) else error
        unsaved = UsageError(f"{output.given_state}/{REPORT}: cannot be written: {why}")
        outcomes.append(failed(Task("copy", REPORT), unsaved))
        return replace(report, outcomes=_sorted(outcomes))
    return report


def plan_store(
    source: str | os.PathLike[str],
    options: Options = _DEFAULT,
    *,
    jobs: int | None = None,
    dask: str | None = None,
    require_all: bool = False,
    require_folded: bool = False,
) -> StoreReport:
    """Plan every model below a folder, and write nothing; see ``fold_store``.

    Args:
        source: the folder, or a URL that fsspec can open.
        options: see ``Options``.
        jobs: number of processes; by default one per processor.
        dask: address of a Dask scheduler, whose workers do the work instead.
        require_all: a model with a BatchNormalization that is kept fails.
        require_folded: a model with anything to fold fails.

    Returns:
        The report, failures included.

    Raises:
        UsageError: the source cannot be used, or there is no model.
    """
    _require_call(source, options, jobs, dask, require_all)
    require_value("require_folded", require_folded, bool)
    batch = Batch(_absolute(source), "", None, options, require_all, require_folded=require_folded)
    listing, models = _listed(location_at(os.fspath(source)))
    with _runner(batch, jobs, dask) as run:
        outcomes = [*_problems(listing), *_all(run, "plan", models)]
    outcomes += _unmatched(options, outcomes)
    return StoreReport(_sorted(outcomes), settings_of(options))


def _require_call(
    source: object, options: object, jobs: int | None, dask: object, require_all: object
) -> None:
    require_value("source", source, str | os.PathLike[str])
    require_value("options", options, Options)
    require_value("jobs", jobs, int | None)
    require_at_least("jobs", jobs, 1)
    require_value("dask", dask, str | None)
    require_value("require_all", require_all, bool)


def _absolute(where: str | os.PathLike[str]) -> str:
    text = os.fspath(where)
    return text if is_url(text) else os.path.abspath(text)


def _check_apart(source: Location, target: Location) -> None:
    for address, given in (
        (target.address, target.given),
        (target.state, target.given_state),
    ):
        if lies_in(address, source.address):
            raise UsageError(f"{given}: is inside the input; give an output outside of it")
    if lies_in(source.address, target.address) or lies_in(source.address, target.state):
        raise UsageError(f"{source.given}: is inside the output; give another output")


def _listed(source: Location) -> tuple[Listing, dict[str, int]]:
    listing = source.listing()
    models = {name: size for name, size in listing.files.items() if is_model(name)}
    if not models and not listing.problems:
        raise UsageError(f"{source.given}: there is no .onnx file below it")
    return listing, models


@contextmanager
def _runner(batch: Batch, jobs: int | None, dask: str | None) -> Iterator[_Run]:
    work = partial(perform, batch)
    if dask is not None:
        from onnx_bnfold.batch.dask_cluster import connected, on_dask

        with connected(dask) as client:
            yield lambda tasks: on_dask(client, work, tasks, failed)
    else:
        # Clients of object stores have threads, with which a process must not be forked.
        method = thread_safe_start() if is_url(batch.source) or is_url(batch.target) else None
        number = available_processors() if jobs is None else jobs
        yield lambda tasks: in_processes(work, tasks, number, _died, method)


@contextmanager
def _prepared(output: Location) -> Iterator[None]:
    output.prepare()
    output.sweep()
    try:
        yield
    finally:
        output.sweep()


def _died(task: Task) -> FileOutcome:
    why = "the process that worked on it died, twice; it may need more memory than is available"
    return failed(task, UsageError(why))


def _all(run: _Run, action: Action, files: dict[str, int]) -> Iterator[FileOutcome]:
    # The largest first, so that no process is left alone with a large one at the end.
    names = sorted(files, key=lambda name: (-files[name], name))
    return progress(run([Task(action, n) for n in names]), total=len(names), label=action)


def _problems(listing: Listing) -> Iterator[FileOutcome]:
    for name, why in listing.problems.items():
        yield failed(Task("copy", name), UsageError(why))


def _folders_and_links(listing: Listing, output: Location) -> Iterator[FileOutcome]:
    """Create all folders, empty ones as well, and the links to them; yield their outcomes."""
    for name in listing.folders:
        try:
            output.make_folder(name)
        except (OSError, UsageError) as error:
            yield failed(Task("copy", name), error)
    for name, text in listing.links.items():
        try:
            output.link(name, text)
        except (OSError, UsageError) as error:
            yield failed(Task("copy", name), error)
        else:
            yield FileOutcome(name, "linked")


def _gone(
    origin: Location, output: Location, listing: Listing, prune: bool
) -> Iterator[FileOutcome]:
    """Yield the models of earlier runs that are no longer in the source."""
    for key, record in ledger.load_others(output, listing.files):
        name = record.outcome.name
        # What cannot be read, a folder perhaps, may still have it.
        unsure = any(lies_in(name, problem) for problem in listing.problems)
        if record.origin != origin.address or unsure:
            continue
        if prune:
            take_away(record, key, output)
        yield FileOutcome(name, "removed" if prune else "gone")


def _unmatched(options: Options, outcomes: Iterable[FileOutcome]) -> Iterator[FileOutcome]:
    """Yield failures if patterns match in no model, as far as all could be read."""
    models = [o for o in outcomes if o.is_model and o.status not in ("gone", "removed")]
    if not all(outcome.counts for outcome in models):
        return
    for name, given, unmatched in (
        ("keep", options.keep, [outcome.unmatched for outcome in models]),
        ("only", options.only, [outcome.unmatched_only for outcome in models]),
    ):
        common = set(given).intersection(*unmatched)
        if patterns := [pattern for pattern in dict.fromkeys(given) if pattern in common]:
            yield failed(
                Task("copy", f"--{name}"), UnmatchedPatterns({name: patterns}, "any model")
            )


def _written(outcomes: Iterable[FileOutcome]) -> Iterator[str]:
    """Yield the names of all files that are as they should be, and of those that are gone."""
    for outcome in outcomes:
        if outcome.status not in ("failed", "gone"):
            yield from outcome.target or (outcome.name,)


def _flushed(target: str, names: Iterable[str]) -> Iterator[FileOutcome]:
    """Flush a folder, and yield a failure if that fails."""
    try:
        flush_store(Path(target), names)
    except (OSError, UsageError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        yield failed(Task("copy", "--sync"), UsageError(f"--sync: {why}"))


def _sorted(outcomes: Iterable[FileOutcome]) -> tuple[FileOutcome, ...]:
    return tuple(sorted(outcomes, key=lambda outcome: outcome.name))
