"""Run jobs in a few threads, which pays since numpy and file access release Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from threading import Lock, Thread
from typing import TypeAlias

from onnx_bnfold.progress import progress

Job: TypeAlias = Callable[[], None]

_LONG = 1.0  # seconds of work from which on a user wants to see how far it is
_MOST_BY_DEFAULT = 4  # more threads only wait for memory and for each other's writes


def run(jobs: Sequence[Job], threads: int | None = None) -> None:
    """Run all jobs, in this thread and in others.

    Jobs start in the given order. Once one has failed, no further job starts.

    Args:
        jobs: the jobs.
        threads: number of threads, this one included; by default one per processor, at most four.

    Raises:
        BaseException: the exception of the first job in order that failed; an interrupt takes
            precedence over errors.
    """
    pool = _Pool(jobs)
    threads = threads or min(_MOST_BY_DEFAULT, available_processors())
    helpers: list[Thread] = []
    try:
        for _ in range(min(threads, len(jobs)) - 1):
            helper = Thread(target=pool.work, daemon=True)
            try:
                helper.start()
            except RuntimeError:  # the system allows no more threads; go on with fewer
                break
            helpers.append(helper)
        pool.work()
    finally:  # after an interrupt, too, no thread may go on writing
        pool.stop()
        for helper in helpers:
            helper.join()
        pool.close()
    if pool.failures:
        failure = min(pool.failures.items(), key=_rank)[1]
        try:
            raise failure
        finally:  # break the cycle exception → frame → exception, which would keep the model alive
            pool.failures.clear()
            del failure


def _rank(failure: tuple[int, BaseException]) -> tuple[bool, int]:
    """Return the sort key of a failure: interrupts first, then by the order of the jobs."""
    return isinstance(failure[1], Exception), failure[0]


class _Pool:
    def __init__(self, jobs: Sequence[Job]) -> None:
        self.failures: dict[int, BaseException] = {}
        shown = progress(jobs, total=len(jobs), label="writing", after=_LONG)
        self._todo = enumerate(shown)
        self._shown = shown
        self._lock = Lock()
        self._stopped = False

    def stop(self) -> None:
        """Start no further job."""
        self._stopped = True

    def close(self) -> None:
        """Take the progress from the screen; no thread may work any more."""
        self._shown.close()

    def work(self) -> None:
        """Run one job after another until none is left or one has failed."""
        while True:
            with self._lock:
                index, job = next(self._todo, (0, None))
            if job is None or self.failures or self._stopped:
                return
            try:
                job()
            except BaseException as error:  # raised again by ``run``
                self.failures[index] = error


def available_processors() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
