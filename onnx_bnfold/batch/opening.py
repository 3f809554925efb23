"""Opening the location at a path or URL."""

from __future__ import annotations

from onnx_bnfold.batch.local import LocalLocation
from onnx_bnfold.batch.locations import Location, is_url
from onnx_bnfold.errors import UsageError


def location_at(where: str, state: str | None = None, *, sync: bool = False) -> Location:
    """Return the location at a path or URL.

    Args:
        where: the path or URL.
        state: path or URL of its state; by default beside it.
        sync: whether what is published there is to outlive a power failure of this machine.

    Raises:
        UsageError: a URL cannot be opened, or there is nothing to flush at one.
    """
    if is_url(where):
        if sync:
            raise UsageError(
                f"{where}: sync flushes folders of this machine alone; a store at a URL keeps what "
                "it has taken by itself, so leave it out"
            )
        from onnx_bnfold.batch.remote import RemoteLocation

        return RemoteLocation(where, state)
    return LocalLocation(where, state, sync=sync)
