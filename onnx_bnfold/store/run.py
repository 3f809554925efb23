"""A run over a store: first the models, then the other files, last the links and the report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from onnx_bnfold.errors import UsageError
from onnx_bnfold.folding import Options
from onnx_bnfold.progress import progress
from onnx_bnfold.store.outcome import FileOutcome, is_model
from onnx_bnfold.store.places import Listing, Place, is_url, lies_in, place_at
from onnx_bnfold.store.processes import in_processes, thread_safe_start
from onnx_bnfold.store.records import settings_of
from onnx_bnfold.store.report import StoreReport
from onnx_bnfold.store.work import Action, Job, Task, failed, perform
from onnx_bnfold.validation import require_at_least, require_value

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
) -> StoreReport:
    """Fold every model below a folder into another folder, and copy all other files.

    What is done already, from the same content with the same options, is not done again.

    Args:
        source: the folder, or any URL that fsspec can open; it is not changed.
        target: the folder or URL of the output; made if it is not there.
        options: see ``Options``.
        jobs: number of processes; by default as many as there are processors.
        dask: address of a Dask scheduler, whose workers do the work instead.
        state: folder or URL of the records and of unfinished files, on the file system of the
            target; by default the target's name with ``.onnx_bnfold`` behind it.
        require_all: fail a model of which a BatchNormalization stays, and do not write it.

    Returns:
        The report; what failed is in it. It is also in the state, as ``report.json``.

    Raises:
        UsageError: source or target cannot be used, or there is no model.
    """
    _require_call(source, options, jobs, dask, require_all)
    require_value("target", target, str | os.PathLike[str])
    require_value("state", state, str | os.PathLike[str] | None)
    job = Job(
        _absolute(source),
        _absolute(target),
        None if state is None else _absolute(state),
        options,
        require_all,
    )
    origin, output = place_at(job.source), place_at(job.target, job.state)
    _check_apart(origin, output)
    listing, models = _listed(origin)
    with _runner(job, jobs, dask) as run, _prepared(output):
        outcomes = [*_problems(listing), *_all(run, "fold", models)]
        # A model's data has gone into the data file of the folded model.
        taken = models.keys() | {name for o in outcomes for name in (*o.source, *o.target)}
        others = {name: size for name, size in listing.files.items() if name not in taken}
        outcomes += [*_all(run, "copy", others), *_lay_out(listing, output)]
    report = StoreReport(_sorted(outcomes), settings_of(options))
    try:
        with output.claim("report") as scratch:
            (scratch / REPORT).write_text(report.to_json(), encoding="ascii")
            output.save(scratch / REPORT, REPORT)
    except (OSError, UsageError) as error:  # what became of the files is said all the same
        why = error.strerror if isinstance(error, OSError) else error
        unsaved = UsageError(f"{output.state}/{REPORT}: cannot be written: {why}")
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
) -> StoreReport:
    """Do what ``fold_store`` does for models, but write nothing."""
    _require_call(source, options, jobs, dask, require_all)
    job = Job(_absolute(source), "", None, options, require_all)
    listing, models = _listed(place_at(job.source))
    with _runner(job, jobs, dask) as run:
        outcomes = [*_problems(listing), *_all(run, "plan", models)]
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


def _check_apart(source: Place, target: Place) -> None:
    for place in (target.address, target.state):
        if lies_in(place, source.address):
            raise UsageError(f"{place}: lies in the input; give an output outside of it")
    if lies_in(source.address, target.address) or lies_in(source.address, target.state):
        raise UsageError(f"{source.address}: lies in the output; give another output")


def _listed(source: Place) -> tuple[Listing, dict[str, int]]:
    listing = source.listing()
    models = {name: size for name, size in listing.files.items() if is_model(name)}
    if not models and not listing.problems:
        raise UsageError(f"{source.address}: no .onnx file lies below it")
    return listing, models


@contextmanager
def _runner(job: Job, jobs: int | None, dask: str | None) -> Iterator[_Run]:
    work = partial(perform, job)
    if dask is not None:
        from onnx_bnfold.store.cluster import connected, on_dask

        with connected(dask) as client:
            yield lambda tasks: on_dask(client, work, tasks, failed)
    else:
        # The clients of object stores have threads, which must not be forked.
        method = thread_safe_start() if is_url(job.source) or is_url(job.target) else None
        number = _processors() if jobs is None else jobs
        yield lambda tasks: in_processes(work, tasks, number, _died, method)


@contextmanager
def _prepared(output: Place) -> Iterator[None]:
    output.prepare()
    output.sweep()
    try:
        yield
    finally:
        output.sweep()


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _died(task: Task) -> FileOutcome:
    why = "the process that worked on it died, twice; it may need more memory than there is"
    return failed(task, UsageError(f"{task.name}: {why}"))


def _all(run: _Run, action: Action, files: dict[str, int]) -> Iterator[FileOutcome]:
    # The largest first: at the end no process is left alone with it.
    names = sorted(files, key=lambda name: (-files[name], name))
    return progress(run([Task(action, n) for n in names]), total=len(names), label=action)


def _problems(listing: Listing) -> Iterator[FileOutcome]:
    for name, why in listing.problems.items():
        yield failed(Task("copy", name), UsageError(f"{name}: {why}"))


def _lay_out(listing: Listing, output: Place) -> Iterator[FileOutcome]:
    """Makes the folders, of which some may be empty, and the links to them."""
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


def _sorted(outcomes: Iterable[FileOutcome]) -> tuple[FileOutcome, ...]:
    return tuple(sorted(outcomes, key=lambda outcome: outcome.name))
