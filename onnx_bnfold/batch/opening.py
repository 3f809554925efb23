"""Opening the location at a path or URL."""

from __future__ import annotations

from onnx_bnfold.batch.local import LocalLocation
from onnx_bnfold.batch.locations import Location, is_url


def location_at(where: str, state: str | None = None) -> Location:
    """Return the location at a path or URL.

    Args:
        where: the path or URL.
        state: path or URL of its state; by default beside it.

    Raises:
        UsageError: a URL cannot be opened.
    """
    if is_url(where):
        from onnx_bnfold.batch.remote import RemoteLocation

        return RemoteLocation(where, state)
    return LocalLocation(where, state)
