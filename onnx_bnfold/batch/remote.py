"""A location that ``fsspec`` opens: object stores, network file systems, archives.

Whole files are downloaded and uploaded. An upload is moved to its final name when it is complete;
object stores implement the move as a copy. There are no locks: runs with the same options write
the same bytes, and runs with different options should not share an output.
"""

from __future__ import annotations

import os
import posixpath
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from onnx_bnfold.batch.locations import STATE, Listing
from onnx_bnfold.errors import UsageError


class RemoteLocation:
    """See ``locations.Location``.

    Args:
        where: the URL of the folder.
        state: the URL of the state, in the same file system.
    """

    def __init__(self, where: str, state: str | None = None) -> None:
        self._fs, root = _open(where.rstrip("/"))
        self._root: str = root
        if state is None:
            self._state = f"{root}{STATE}"
        else:
            fs, self._state = _open(state.rstrip("/"))
            if fs != self._fs:
                raise UsageError(
                    f"{state}: is on another file system than {where}; give a URL on that one"
                )
        self.given = where
        self.given_state = state or f"{where.rstrip('/')}{STATE}"
        self._fs.invalidate_cache()
        self.address = self._address(self._root)
        self.state = self._address(self._state)

    def listing(self) -> Listing:
        """See ``locations.Location``."""
        if not self._fs.isdir(self._root):
            raise UsageError(f"{self.given}: there is no such folder; give the URL of a folder")
        listing = Listing()
        entries: dict[str, dict[str, Any]] = self._fs.find(self._root, withdirs=True, detail=True)
        for path, info in entries.items():
            name = path[len(self._root) :].strip("/")
            if name:
                _add(name, info, listing)
        return listing

    def holds(self, name: str) -> bool:
        """Return whether there is a file of a name."""
        return bool(self._fs.isfile(f"{self._root}/{name}"))

    def prepare(self) -> None:
        """See ``locations.Location``."""
        try:
            for folder in (self._root, f"{self._state}/unfinished", f"{self._state}/records"):
                self._fs.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self.given}: cannot be created: {error}") from error

    def sweep(self) -> None:
        """Do nothing: an abandoned upload cannot be told from a slow one."""

    @contextmanager
    def claim(self, key: str) -> Iterator[Path]:
        """See ``locations.Location``."""
        with TemporaryDirectory(prefix="onnx_bnfold.", ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def fetch(self, name: str, scratch: Path) -> Path:
        """See ``locations.Location``."""
        folder = scratch / "fetched"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fs.get_file(f"{self._root}/{name}", os.fspath(path))
        return folder

    def publish(self, path: Path, name: str) -> None:
        """See ``locations.Location``."""
        target = f"{self._root}/{name}"
        self._fs.makedirs(posixpath.dirname(target), exist_ok=True)
        self._upload(path, target)

    def link(self, name: str, text: str) -> None:
        """See ``locations.Location``."""
        raise UsageError(f"{name}: is a link to a folder, which cannot be written to a URL")

    def make_folder(self, name: str) -> None:
        """See ``locations.Location``."""
        self._fs.makedirs(f"{self._root}/{name}", exist_ok=True)

    def remove(self, name: str) -> None:
        """See ``locations.Location``."""
        with suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{name}")

    def load(self, name: str) -> bytes | None:
        """See ``locations.Location``."""
        try:
            content: bytes = self._fs.cat_file(f"{self._state}/{name}")
        except FileNotFoundError:
            return None
        return content

    def save(self, path: Path, name: str) -> None:
        """See ``locations.Location``."""
        self._upload(path, f"{self._state}/{name}")

    def saved(self, folder: str) -> list[str]:
        """See ``locations.Location``."""
        try:
            paths: list[str] = self._fs.ls(f"{self._state}/{folder}", detail=False)
        except FileNotFoundError:  # an object store keeps no empty folders
            return []
        return sorted(posixpath.basename(path) for path in paths)

    def discard(self, name: str) -> None:
        """See ``locations.Location``."""
        with suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._state}/{name}")

    def _upload(self, path: Path, target: str) -> None:
        temporary = f"{self._state}/unfinished/{uuid.uuid4().hex}"
        self._fs.put_file(os.fspath(path), temporary)
        self._fs.mv(temporary, target)

    def _address(self, path: str) -> str:
        if "file" in self._fs.protocol:
            return Path(os.path.realpath(path)).as_uri()
        address: str = self._fs.unstrip_protocol(path)
        return address


def _open(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise UsageError(f"{url}: such a URL needs fsspec; pip install fsspec") from error
    try:
        fs, path = url_to_fs(url)
    except (ImportError, ValueError, OSError) as error:
        raise UsageError(f"{url}: cannot be opened: {error}") from error
    return fs, path.rstrip("/")


def _add(name: str, info: dict[str, Any], listing: Listing) -> None:
    if not {"", ".", ".."}.isdisjoint(name.split("/")):
        listing.problems[name] = "is not a name that a file in a folder can have"
    elif info.get("islink"):
        listing.problems[name] = "is a link, which is not followed at a URL; give the folder's path"
    elif info["type"] == "directory":
        listing.folders.append(name)
    elif info["type"] == "file":
        listing.files[name] = int(info["size"] or 0)
    else:
        listing.problems[name] = "is neither a file nor a folder"
