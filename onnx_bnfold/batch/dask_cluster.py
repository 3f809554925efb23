"""Run work on a Dask cluster. Dask schedules it, and repeats what a dead worker was doing."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from onnx_bnfold.errors import UsageError
from onnx_bnfold.progress import note

if TYPE_CHECKING:
    from distributed import Client

Item = TypeVar("Item")
Result = TypeVar("Result")

_PATIENCE = 30  # seconds between two notes of what is waited for


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """Yield a client of a scheduler; a context manager.

    Args:
        address: of the scheduler, such as ``tcp://host:8786``.

    Raises:
        UsageError: ``distributed`` is not installed, or no scheduler answers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError("--dask needs Dask; pip install dask distributed") from error
    try:
        client = Client(address)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, AssertionError) as error:  # its event loop asserts sometimes
        raise UsageError(f"{address}: no Dask scheduler answers: {error}") from error
    with client:
        _wait_for_workers(client, address)
        yield client


def _wait_for_workers(client: Client, address: str) -> None:
    """Wait until there is a worker; without one nothing would happen, and nobody would know why."""
    while client.status == "running" and not client.scheduler_info()["workers"]:
        note(f"{address} has no workers yet; waiting for the first (dask worker {address})")
        with suppress(TimeoutError):
            client.wait_for_workers(1, timeout=_PATIENCE)


def on_dask(
    client: Client,
    work: Callable[[Item], Result],
    items: Iterable[Item],
    failed: Callable[[Item, BaseException], Result],
) -> Iterator[Result]:
    """Yield the results of all items as they arrive.

    Args:
        client: of the scheduler.
        work: called with each item, on one of the workers.
        items: the items.
        failed: returns the result of an item that Dask has given up.
    """
    from distributed import as_completed

    suspects: list[tuple[Item, BaseException]] = []
    items = list(items)
    if client.status != "running":  # a closed client would wait forever
        gone = ConnectionError("the connection to the Dask scheduler is closed")
        yield from (failed(item, gone) for item in items)
        return
    futures = dict(zip(client.map(work, items, pure=False), items, strict=True))
    for future in as_completed(futures):  # type: ignore[no-untyped-call]
        item = futures.pop(future)
        try:
            result = future.result()
        except (Exception, CancelledError) as error:
            suspects.append((item, error))
        else:
            yield result
    # Dask gives up every item of a dying worker, not only the one that killed it.
    for item, first in suspects:
        try:
            if client.status != "running":
                raise first
            result = client.submit(work, item, pure=False).result()
        except (Exception, CancelledError) as error:
            result = failed(item, error)
        yield result
