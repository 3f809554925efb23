"""A location in the file system of this machine."""

from __future__ import annotations

import os
import posixpath
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from onnx_bnfold.batch.locations import STATE, Listing, lies_in
from onnx_bnfold.batch.locks import hold
from onnx_bnfold.errors import UsageError
from onnx_bnfold.storage.durable import flush_file, flush_folder


class LocalLocation:
    """See ``locations.Location``.

    Links to files are followed and links to folders are copied as links. A link that leads out of
    the folder is a problem: following it could copy files that are not meant to be in the output.

    Args:
        where: the folder.
        state: the folder of the state; by default beside it.
        sync: see ``opening.location_at``.
    """

    def __init__(self, where: str, state: str | None = None, *, sync: bool = False) -> None:
        self._sync = sync
        self.given = where
        self.given_state = state or f"{where.rstrip(os.sep)}{STATE}"
        self._root = Path(os.path.realpath(where))
        self._state = Path(os.path.realpath(state) if state else f"{self._root}{STATE}")
        self._unfinished = self._state / "unfinished"
        self.address = self._root.as_uri()
        self.state = self._state.as_uri()

    def listing(self) -> Listing:
        """See ``locations.Location``."""
        if self._root.is_file():
            raise UsageError(
                f"{self.given}: is one file; give the folder of models, or fold it by fold_file"
            )
        if not self._root.is_dir():
            raise UsageError(f"{self.given}: there is no such folder; give the folder of models")
        listing = Listing()

        def unreadable(error: OSError) -> None:
            listing.problems[self._name(error.filename)] = f"cannot be read: {error.strerror}"

        for parent, folders, files in os.walk(self._root, onerror=unreadable):
            for name in (*folders, *files):
                self._add(os.path.join(parent, name), listing)
        return listing

    def prepare(self) -> None:
        """See ``locations.Location``."""
        _create(self.given, self._root)
        for folder in (self._state, self._unfinished, self._state / "records"):
            _create(self.given_state, folder)
        if os.stat(self._root).st_dev != os.stat(self._state).st_dev:
            raise UsageError(
                f"{self.given_state}: is on another file system than {self.given}, but files have "
                "to be moved between them; give a folder on the file system of the output as "
                "--state"
            )

    def sweep(self) -> None:
        """See ``locations.Location``."""
        for key in {name.partition(".")[0] for name in os.listdir(self._unfinished)}:
            # On a full disk no lock file can be created; leave it to the next run.
            with suppress(OSError), hold(self._lock(key), wait=False) as held:
                if held:
                    for path in self._unfinished.glob(f"{key}.*/"):
                        shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def claim(self, key: str) -> Iterator[Path]:
        """See ``locations.Location``."""
        # A new folder every time: without locks, two processes may have the same key.
        with (
            hold(self._lock(key)),
            TemporaryDirectory(
                ".d", f"{key}.", self._unfinished, ignore_cleanup_errors=True
            ) as folder,
        ):
            yield Path(folder)

    def fetch(self, name: str, scratch: Path) -> Path:
        """See ``locations.Location``."""
        return self._root

    def publish(self, path: Path, name: str) -> None:
        """See ``locations.Location``."""
        if self._sync:
            flush_file(path)
        parent = self._parent(name)
        with _into_output(name):
            os.replace(path, parent / posixpath.basename(name))
        if self._sync:
            flush_folder(parent)

    def link(self, name: str, text: str) -> None:
        """See ``locations.Location``."""
        path = self._parent(name) / posixpath.basename(name)
        if path.is_symlink() and os.readlink(path) == text:
            return
        with self.claim("link") as scratch:
            os.symlink(text, scratch / "link")
            os.replace(scratch / "link", path)

    def make_folder(self, name: str) -> None:
        """See ``locations.Location``."""
        self._parent(f"{name}/")

    def remove(self, name: str) -> None:
        """See ``locations.Location``."""
        with suppress(FileNotFoundError):
            (self._root / name).unlink()

    def load(self, name: str) -> bytes | None:
        """See ``locations.Location``."""
        try:
            return (self._state / name).read_bytes()
        except FileNotFoundError:
            return None

    def save(self, path: Path, name: str) -> None:
        """See ``locations.Location``."""
        os.replace(path, self._state / name)

    def saved(self, folder: str) -> list[str]:
        """See ``locations.Location``."""
        return sorted(os.listdir(self._state / folder))

    def discard(self, name: str) -> None:
        """See ``locations.Location``."""
        (self._state / name).unlink(missing_ok=True)

    def _lock(self, key: str) -> Path:
        return self._unfinished / f"{key}.lock"

    def _name(self, path: str) -> str:
        return Path(path).relative_to(self._root).as_posix()

    def _parent(self, name: str) -> Path:
        parent = self._root / posixpath.dirname(name)
        if os.path.realpath(parent) != os.fspath(parent):
            raise UsageError(f"{posixpath.dirname(name)}: is a link in the output; remove it")
        with _into_output(name):
            parent.mkdir(parents=True, exist_ok=True)
        return parent

    def _add(self, path: str, listing: Listing) -> None:
        name = self._name(path)
        try:
            status = os.stat(path)
        except OSError as error:
            listing.problems[name] = (
                "is a broken link" if os.path.islink(path) else f"cannot be read: {error.strerror}"
            )
            return
        real = os.path.realpath(path)
        if not lies_in(real, os.fspath(self._root)):
            listing.problems[name] = (
                "is a link that leads out of the store; replace it by the file itself"
            )
        elif stat.S_ISDIR(status.st_mode):
            if os.path.islink(path):
                listing.links[name] = os.path.relpath(real, os.path.dirname(path))
            else:
                listing.folders.append(name)
        elif stat.S_ISREG(status.st_mode):
            listing.files[name] = status.st_size
        else:
            listing.problems[name] = "is neither a file nor a folder"


@contextmanager
def _into_output(name: str) -> Iterator[None]:
    """Let errors say that it is the output that takes no file of a name; a context manager."""
    try:
        yield
    except OSError as error:
        why = f"cannot be written into the output: {error.strerror}"
        raise UsageError(f"{name.rstrip('/')}: {why}") from error


def _create(given: str, folder: Path) -> None:
    """Create a folder and those around it.

    Args:
        given: how errors name it.
        folder: the same or one in it, without links.

    Raises:
        UsageError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if isinstance(error, FileExistsError | NotADirectoryError):
            why = "a file is there; give the name of a folder"
        else:
            parent = _as_given(given, os.path.dirname(os.fsdecode(error.filename)))
            why = f"the folder {parent} takes no new one ({error.strerror}); give another one"
            if given.endswith(STATE):
                why += " as --state, on the file system of the output"
        raise UsageError(f"{given}: cannot be created: {why}") from error


def _as_given(given: str, folder: str) -> str:
    """Return a folder around a path as the path has it, if it has."""
    places = (given, *map(str, Path(given).parents))
    return next((place for place in places if os.path.realpath(place) == folder), folder)
