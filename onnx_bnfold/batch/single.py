"""One model at a URL: it is downloaded with its data files, and folded here."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from onnx_bnfold.batch.file_outcome import is_model
from onnx_bnfold.batch.locations import Source
from onnx_bnfold.batch.remote import RemoteLocation
from onnx_bnfold.batch.task import fetch_model, naming
from onnx_bnfold.batch.web import SCHEMES, WebFolder
from onnx_bnfold.errors import UsageError


def is_single(url: str) -> bool:
    """Return whether there is one model at a URL, and not a folder of them.

    Raises:
        UsageError: the URL cannot be opened.
    """
    folder, name = posixpath.split(url)
    if not is_model(urlsplit(url).path):
        return False
    return url.startswith(SCHEMES) or RemoteLocation(folder).holds(name)


@contextmanager
def downloaded(url: str) -> Iterator[Path]:
    """Yield a copy of a model on this machine, in a folder that goes again; a context manager.

    Errors within name the URL and not the copy.

    Raises:
        UsageError: the model cannot be downloaded.
    """
    source, folder, name = _source(url)
    with TemporaryDirectory(prefix="onnx_bnfold.", ignore_cleanup_errors=True) as scratch:
        try:
            root, _ = fetch_model(source, name, Path(scratch))
        except OSError as error:
            why = error.strerror or " ".join(str(error).split())
            raise UsageError(f"{url}: cannot be downloaded: {why}") from error
        with naming({root: f"{folder}/"}):
            yield root / name


def _source(url: str) -> tuple[Source, str, str]:
    """Return where files are fetched from, its address, and the name of the model there."""
    folder, name = posixpath.split(url)
    if url.startswith(SCHEMES):
        web = WebFolder(url)
        return web, folder, web.name
    return RemoteLocation(folder), folder, name
