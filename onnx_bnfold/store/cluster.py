"""Work on a Dask cluster. Scheduling, and doing again what a dead worker had, are Dask's."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from onnx_bnfold.errors import UsageError

if TYPE_CHECKING:
    from distributed import Client

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """Yields a client of a scheduler.

    Args:
        address: of the scheduler, such as `tcp://host:8786`.

    Raises:
        UsageError: `distributed` is not installed, or there is no scheduler.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError("--dask needs Dask; pip install 'onnx_bnfold[dask]'") from error
    try:
        client = Client(address)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, AssertionError) as error:  # a loop of it asserts, now and then
        raise UsageError(f"{address}: there is no Dask scheduler: {error}") from error
    with client:
        yield client


def on_dask(
    client: Client,
    work: Callable[[Item], Result],
    items: Iterable[Item],
    failed: Callable[[Item, BaseException], Result],
) -> Iterator[Result]:
    """Yields the results of all items, as they come.

    Args:
        client: of the scheduler.
        work: what to do with an item, on one of the workers.
        items: what there is to do.
        failed: gives the result of an item that Dask gives up.
    """
    from distributed import as_completed

    suspects: list[tuple[Item, BaseException]] = []
    items = list(items)
    if client.status != "running":  # a closed client would wait forever
        yield from (failed(item, ConnectionError("the Dask scheduler is gone")) for item in items)
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
    # Dask gives up all that dying workers had, not only what killed them.
    for item, first in suspects:
        try:
            if client.status != "running":
                raise first
            result = client.submit(work, item, pure=False).result()
        except (Exception, CancelledError) as error:
            result = failed(item, error)
        yield result
