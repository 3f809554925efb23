"""Run work in processes of this machine; a process that dies does not end the run."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from threading import Thread
from typing import TypeVar

from onnx_bnfold import progress
from onnx_bnfold.interrupts import held_back
from onnx_bnfold.process_memory import collect_rarely, keep_freed_memory

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 2  # items per process that are submitted at a time


def thread_safe_start(preload: str = "onnx_bnfold.batch.task") -> str:
    """Return the fastest start method for a process that may have threads.

    Args:
        preload: name of a module that the processes need.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    multiprocessing.set_forkserver_preload([preload])  # imported once for all processes
    return "forkserver"


def in_processes(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    jobs: int,
    died: Callable[[Item], Result],
    start_method: str | None = None,
) -> Iterator[Result]:
    """Yield the results of all items as they arrive.

    Args:
        work: called with each item, in one of the processes.
        items: the items, started in this order.
        jobs: number of processes.
        died: returns the result of an item whose process has died twice.
        start_method: of the processes (see ``multiprocessing``); by default that of the platform.
    """
    waiting = deque(items)
    while waiting:
        begun: dict[Future[Result], Item] = {}
        try:
            with _pool(min(jobs, len(waiting)), start_method) as pool:
                while waiting or begun:
                    while waiting and len(begun) < _AHEAD * jobs:
                        with held_back():  # it may start a process
                            future = pool.submit(work, waiting[0])
                        begun[future] = waiting.popleft()
                    for future in wait(begun, return_when=FIRST_COMPLETED).done:
                        result = future.result()
                        del begun[future]
                        yield result
        except BrokenProcessPool:
            # It is not known which item was to blame, so run each one in a process of its own.
            for item in begun.values():
                yield _alone(work, item, died, start_method)


def _alone(
    work: Callable[[Item], Result],
    item: Item,
    died: Callable[[Item], Result],
    start_method: str | None,
) -> Result:
    try:
        with _pool(1, start_method) as pool:
            with held_back():
                future = pool.submit(work, item)
            return future.result()
    except BrokenProcessPool:
        return died(item)


@contextmanager
def _pool(jobs: int, start_method: str | None) -> Iterator[ProcessPoolExecutor]:
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context(start_method)
    pool = ProcessPoolExecutor(jobs, context, initializer=_start)
    try:
        yield pool
    except BaseException:
        # Kill the processes: there is no point in waiting for models that will be dropped.
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start() -> None:
    # Ctrl-C reaches all processes of a terminal; the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    keep_freed_memory()
    collect_rarely()
    progress.show("nothing")  # the parent shows how many models are done
    Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
