"""Files of a web server, read with what Python brings along."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from urllib.request import urlopen

from onnx_bnfold.errors import UsageError
from onnx_bnfold.progress import progress

SCHEMES = ("http://", "https://")
_CHUNK = 1 << 20  # bytes read at once
_PATIENCE = 60  # seconds without a byte, after which a download is given up


class WebFolder:
    """The folder of a file on a web server, from which files are fetched as from a ``Location``.

    Args:
        url: of the file.

    Attributes:
        name: of the file.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        parts = urlsplit(url)
        folder, name = posixpath.split(parts.path)
        self.name = unquote(name)
        self._folder = urlunsplit((parts.scheme, parts.netloc, folder, "", ""))

    def fetch(self, name: str, scratch: Path) -> Path:
        """See ``locations.Location``."""
        url = self._url if name == self.name else f"{self._folder}/{quote(name)}"
        path = scratch / "fetched" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("wb") as file:
                for chunk in _chunks(url):
                    file.write(chunk)
        except (OSError, ValueError, HTTPException) as error:
            why = (
                error.reason if type(error) is URLError else error
            )  # no HTTPError, which has a code
            raise UsageError(
                f"{url}: cannot be downloaded: {why}; check the address and the connection"
            ) from error
        return scratch / "fetched"


def _chunks(url: str) -> Iterator[bytes]:
    with urlopen(url, timeout=_PATIENCE) as answer:
        total = -(-int(answer.headers.get("Content-Length") or 0) // _CHUNK)
        chunks = iter(lambda: answer.read(_CHUNK), b"")
        yield from progress(chunks, total=total, label="downloading, MiB", after=1.0)
