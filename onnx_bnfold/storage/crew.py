"""Jobs that are done by a few threads: numpy and the file system do not hold Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from threading import Lock, Thread
from typing import TypeAlias

Job: TypeAlias = Callable[[], None]

_LARGEST = 4  # threads by default; more only wait for memory and for each other's writes


def run(jobs: Sequence[Job], threads: int | None = None) -> None:
    """Does all jobs in this thread and in others.

    They begin in their order. After one has failed, no other begins.

    Args:
        jobs: to be done.
        threads: how many; by default one per processor, up to four.

    Raises:
        BaseException: what the first job, in their order, that failed has raised; an interrupt goes
            before errors.
    """
    crew = _Crew(jobs)
    threads = threads or min(_LARGEST, _processors())
    helpers: list[Thread] = []
    try:
        for _ in range(min(threads, len(jobs)) - 1):
            helper = Thread(target=crew.work, daemon=True)
            try:
                helper.start()
            except RuntimeError:  # the system has no more threads for us: fewer will do
                break
            helpers.append(helper)
        crew.work()
    finally:  # an interrupt, too, leaves no thread behind that still writes
        crew.stop()
        for helper in helpers:
            helper.join()
    if crew.failures:
        failure = min(crew.failures.items(), key=_rank)[1]
        try:
            raise failure
        finally:  # an exception that its own frames refer to would stay, and the model with it
            crew.failures.clear()
            del failure


def _rank(failure: tuple[int, BaseException]) -> tuple[bool, int]:
    """Interrupts first: who asks for an end is not answered with another error."""
    return isinstance(failure[1], Exception), failure[0]


class _Crew:
    def __init__(self, jobs: Sequence[Job]) -> None:
        self.failures: dict[int, BaseException] = {}
        self._todo = enumerate(jobs)
        self._lock = Lock()
        self._stopped = False

    def stop(self) -> None:
        """Lets no further job begin."""
        self._stopped = True

    def work(self) -> None:
        """Does one job after another until none is left or one has failed."""
        while True:
            with self._lock:
                index, job = next(self._todo, (0, None))
            if job is None or self.failures or self._stopped:
                return
            try:
                job()
            except BaseException as error:  # raised again by `run`
                self.failures[index] = error


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
