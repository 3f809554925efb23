"""Where a store lies. A place is a folder of this machine, or whatever `fsspec` can open.

A name is the path of a file below the place, with slashes. Beside its files the place of an output
has a state: another folder, on the same file system, with the records of what is done and with the
files that are not complete yet. It lies outside of the output because a server that is given the
output as its model repository takes every folder in it for a model (Triton does, hidden or not).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

STATE = ".onnx_bnfold"  # what the name of the state has behind that of the output


@dataclass
class Listing:
    """What lies below a place.

    Attributes:
        files: name -> number of bytes.
        folders: the names of all folders.
        links: name of a link to a folder of the place -> where it leads, relative to its own.
        problems: name -> why it can be neither folded nor copied.
    """

    files: dict[str, int] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


class Place(Protocol):
    """A folder of files.

    Attributes:
        address: tells two places apart, and whether one lies in the other.
        state: the address of the state.
    """

    address: str
    state: str

    def listing(self) -> Listing:
        """Returns what lies below the place; UsageError if there is no such folder."""

    def prepare(self) -> None:
        """Makes the folders of the output and of its state; UsageError if that is impossible."""

    def sweep(self) -> None:
        """Removes the unfinished files of runs that were killed."""

    def claim(self, key: str) -> AbstractContextManager[Path]:
        """Waits until no other process works on `key`; gives an empty folder of this machine."""

    def fetch(self, name: str, scratch: Path) -> Path:
        """Makes a file readable on this machine.

        Args:
            name: the file.
            scratch: a folder that may be used for it.

        Returns:
            The folder below which the file now has its name.
        """

    def publish(self, path: Path, name: str) -> None:
        """Makes a file from the claimed folder the file `name`, in place of what had the name."""

    def link(self, name: str, text: str) -> None:
        """Makes `name` a link to a folder."""

    def make_folder(self, name: str) -> None:
        """Makes a folder, if it is not there."""

    def remove(self, name: str) -> None:
        """Removes a file; it need not exist."""

    def load(self, name: str) -> bytes | None:
        """Returns the content of a file of the state; None if there is none."""

    def save(self, path: Path, name: str) -> None:
        """Makes a file from the claimed folder the file `name` of the state."""


def is_url(text: str) -> bool:
    """Tells whether a place is for `fsspec` to open."""
    return "://" in text


def place_at(where: str, state: str | None = None) -> Place:
    """Returns the place at a path or URL.

    Args:
        where: the path or URL.
        state: path or URL of its state; by default beside it.
    """
    if is_url(where):
        from onnx_bnfold.store.remote import RemotePlace

        return RemotePlace(where, state)
    from onnx_bnfold.store.local import LocalPlace

    return LocalPlace(where, state)


def lies_in(inner: str, outer: str) -> bool:
    """Tells whether an address is another one, or below it."""
    return f"{inner}/".startswith(f"{outer.rstrip('/')}/")
