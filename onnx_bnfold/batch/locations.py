"""Where a store is: in a folder of this machine, or anywhere that ``fsspec`` can open.

A name is the path of a file below the location, with slashes. The location of an output also has a
state: another folder on the same file system, with the records of what is done and with unfinished
files. It is outside of the output, since a server whose model repository is the output may take
every folder in it for a model (Triton does, hidden or not).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

STATE = ".onnx_bnfold"  # added to the name of the output, it is the name of the state


@dataclass
class Listing:
    """What is below a location.

    Attributes:
        files: name → number of bytes.
        folders: names of all folders.
        links: name of a link to a folder below the location → its target, relative to the link.
        problems: name → why it can be neither folded nor copied.
    """

    files: dict[str, int] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


class Source(Protocol):
    """A folder whose files can be read."""

    def fetch(self, name: str, scratch: Path) -> Path:
        """Make a file readable on this machine.

        Args:
            name: of the file.
            scratch: a folder that may be used for it.

        Returns:
            The folder below which the file can be read under its name.
        """


class Location(Source, Protocol):
    """A folder of files.

    Attributes:
        address: a URL; equal for equal locations, and a prefix for those inside.
        state: the address of the state.
        given, given_state: the same as users know them.
    """

    address: str
    state: str
    given: str
    given_state: str

    def listing(self) -> Listing:
        """Return what is below the location.

        Raises:
            UsageError: there is no such folder.
        """

    def prepare(self) -> None:
        """Create the folders of the output and of its state.

        Raises:
            UsageError: they cannot be created, or are on different file systems.
        """

    def sweep(self) -> None:
        """Remove unfinished files of runs that were killed."""

    def claim(self, key: str) -> AbstractContextManager[Path]:
        """Wait until no other process works on ``key``; a context manager.

        Yields:
            An empty folder on this machine.
        """

    def publish(self, path: Path, name: str) -> None:
        """Move a file from the claimed folder to ``name``, replacing any file there."""

    def link(self, name: str, text: str) -> None:
        """Make ``name`` a link to the folder ``text``, relative to the link."""

    def make_folder(self, name: str) -> None:
        """Create a folder, unless it exists."""

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""

    def load(self, name: str) -> bytes | None:
        """Return the content of a file of the state, None if there is none."""

    def save(self, path: Path, name: str) -> None:
        """Move a file from the claimed folder to ``name`` in the state."""

    def saved(self, folder: str) -> list[str]:
        """Return the names of the files in a folder of the state, sorted."""

    def discard(self, name: str) -> None:
        """Remove a file of the state, if it exists."""


def is_url(text: str) -> bool:
    """Return whether a location is a URL, which ``fsspec`` has to open."""
    return "://" in text


def lies_in(inner: str, outer: str) -> bool:
    """Return whether an address equals another one or is below it."""
    return f"{inner}/".startswith(f"{outer.rstrip('/')}/")
