"""Work on a Dask cluster. Scheduling, and doing again what a dead worker had, are Dask's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from onnx_bnfold.errors import UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")


def on_dask(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    address: str,
    failed: Callable[[Item, BaseException], Result],
) -> Iterator[Result]:
    """Yields the results of all items, as they come.

    Args:
        work: what to do with an item, on one of the workers.
        items: what there is to do.
        address: of the scheduler, such as `tcp://host:8786`.
        failed: gives the result of an item that Dask gives up.

    Raises:
        UsageError: `distributed` is not installed, or there is no scheduler.
    """
    try:
        from distributed import Client, as_completed
    except ImportError as error:
        raise UsageError("--dask needs Dask; pip install 'onnx_bnfold[dask]'") from error
    try:
        client = Client(address)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise UsageError(f"{address}: there is no Dask scheduler: {error}") from error
    items, suspects = list(items), []
    with client:
        futures = dict(zip(client.map(work, items, pure=False), items, strict=True))
        done = as_completed(futures, with_results=True, raise_errors=False)  # type: ignore[no-untyped-call]
        for future, result in done:
            item = futures.pop(future)
            if future.status == "finished":
                yield result
            else:
                suspects.append(item)
        # Dask gives up all that dying workers had, not only what killed them.
        for item in suspects:
            try:
                yield client.submit(work, item, pure=False).result()
            except Exception as error:
                yield failed(item, error)
