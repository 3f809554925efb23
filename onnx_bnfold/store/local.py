"""A place in the file system of this machine."""

from __future__ import annotations

import os
import posixpath
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from onnx_bnfold.errors import UsageError
from onnx_bnfold.store.locks import hold
from onnx_bnfold.store.places import STATE, Listing, lies_in


class LocalPlace:
    """See `places.Place`.

    Links to files are followed, links to folders are kept, and links that lead out of the place
    are problems: what is not below the place is not its owner's to give.

    Args:
        where: the folder.
        state: the folder of the state.
    """

    def __init__(self, where: str, state: str | None = None) -> None:
        self._root = Path(os.path.realpath(where))
        self._state = Path(os.path.realpath(state) if state else f"{self._root}{STATE}")
        self._unfinished = self._state / "unfinished"
        self.address = self._root.as_uri()
        self.state = self._state.as_uri()

    def listing(self) -> Listing:
        """See `places.Place`."""
        if not self._root.is_dir():
            raise UsageError(f"{self._root}: there is no such folder; give the folder of models")
        found = Listing()

        def unreadable(error: OSError) -> None:
            found.problems[self._name(error.filename)] = f"cannot be read: {error.strerror}"

        for parent, folders, files in os.walk(self._root, onerror=unreadable):
            for name in (*folders, *files):
                self._sort_in(os.path.join(parent, name), found)
        return found

    def prepare(self) -> None:
        """See `places.Place`."""
        try:
            for folder in (self._root, self._unfinished, self._state / "records"):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{error.filename}: cannot be made: {error.strerror}") from error
        if os.stat(self._root).st_dev != os.stat(self._state).st_dev:
            raise UsageError(
                f"{self._state}: lies on another file system than {self._root}, to which files "
                "must be moved from there; name a folder of that file system with --state"
            )

    def sweep(self) -> None:
        """See `places.Place`."""
        for key in {name.partition(".")[0] for name in os.listdir(self._unfinished)}:
            # On a full disk, no lock can be made; the next run sweeps.
            with suppress(OSError), hold(self._lock(key), wait=False) as held:
                if held:
                    for path in self._unfinished.glob(f"{key}.*/"):
                        shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def claim(self, key: str) -> Iterator[Path]:
        """See `places.Place`."""
        # Another folder every time: where there are no locks, two processes may be here.
        with (
            hold(self._lock(key)),
            TemporaryDirectory(
                ".d", f"{key}.", self._unfinished, ignore_cleanup_errors=True
            ) as folder,
        ):
            yield Path(folder)

    def fetch(self, name: str, scratch: Path) -> Path:
        """See `places.Place`."""
        return self._root

    def publish(self, path: Path, name: str) -> None:
        """See `places.Place`."""
        os.replace(path, self._parent(name) / posixpath.basename(name))

    def link(self, name: str, text: str) -> None:
        """See `places.Place`."""
        path = self._parent(name) / posixpath.basename(name)
        if path.is_symlink() and os.readlink(path) == text:
            return
        with self.claim("link") as scratch:
            os.symlink(text, scratch / "link")
            os.replace(scratch / "link", path)

    def make_folder(self, name: str) -> None:
        """See `places.Place`."""
        self._parent(f"{name}/")

    def remove(self, name: str) -> None:
        """See `places.Place`."""
        with suppress(FileNotFoundError):
            (self._root / name).unlink()

    def load(self, name: str) -> bytes | None:
        """See `places.Place`."""
        try:
            return (self._state / name).read_bytes()
        except FileNotFoundError:
            return None

    def save(self, path: Path, name: str) -> None:
        """See `places.Place`."""
        os.replace(path, self._state / name)

    def _lock(self, key: str) -> Path:
        return self._unfinished / f"{key}.lock"

    def _name(self, path: str) -> str:
        return Path(path).relative_to(self._root).as_posix()

    def _parent(self, name: str) -> Path:
        parent = self._root / posixpath.dirname(name)
        if os.path.realpath(parent) != os.fspath(parent):
            raise UsageError(f"{posixpath.dirname(name)}: in the output it is a link; remove it")
        parent.mkdir(parents=True, exist_ok=True)
        return parent

    def _sort_in(self, path: str, found: Listing) -> None:
        name = self._name(path)
        try:
            status = os.stat(path)
        except OSError as error:
            found.problems[name] = (
                "is a link that leads nowhere"
                if os.path.islink(path)
                else f"cannot be read: {error.strerror}"
            )
            return
        real = os.path.realpath(path)
        if not lies_in(real, os.fspath(self._root)):
            found.problems[name] = (
                "is a link that leads out of the store; put the file itself in its place"
            )
        elif stat.S_ISDIR(status.st_mode):
            if os.path.islink(path):
                found.links[name] = os.path.relpath(real, os.path.dirname(path))
            else:
                found.folders.append(name)
        elif stat.S_ISREG(status.st_mode):
            found.files[name] = status.st_size
        else:
            found.problems[name] = "is neither a file nor a folder"
