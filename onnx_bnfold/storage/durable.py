"""Having what was written outlive a power failure.

A system keeps what is written in its memory for a while, and changes of names as well. Either may
reach the disk first: after a power failure a file that was renamed when it was complete may be
empty. So a file is flushed before it gets its name, and its folder afterwards.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from onnx_bnfold.errors import UsageError


def flush_file(path: Path, shown: Path | None = None) -> None:
    """Return when the content of a file is on the disk.

    Args:
        path: of the file.
        shown: what errors call it.

    Raises:
        UsageError: it cannot be flushed.
    """
    # Windows flushes only what may be written; elsewhere a copy may be for reading only.
    _flush(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY, shown or path)


def flush_folder(path: Path) -> None:
    """Return when the names in a folder are on the disk.

    Windows opens no folders, and keeps a journal of names.

    Raises:
        UsageError: they cannot be flushed.
    """
    if os.name != "nt":
        _flush(path, os.O_RDONLY, path)


def flush_store(root: Path, names: Iterable[str]) -> None:
    """Return when files below a folder are on the disk, and all folders that lead to them.

    Args:
        root: the folder.
        names: of the files and of further folders, with slashes.

    Raises:
        UsageError: they cannot be flushed.
    """
    root = Path(os.path.realpath(root))
    folders = {root}
    for name in names:
        path = root / name
        if path.is_file():
            flush_file(path)
        folders |= {path} if path.is_dir() else set()
        folders |= {each for each in path.parents if each.is_relative_to(root)}
    # The run may have made the folder itself, and others above it.
    device = os.stat(root).st_dev
    folders |= {each for each in root.parents if os.stat(each).st_dev == device}
    for folder in sorted(folders, reverse=True):
        if os.access(folder, os.R_OK):  # else it is not ours, and as it was
            flush_folder(folder)


def _flush(path: Path, flags: int, shown: Path) -> None:
    try:
        fd = os.open(path, flags)
        try:
            os.fsync(fd)
            if sys.platform == "darwin":  # where fsync leaves it in the memory of the disk
                import fcntl

                fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        finally:
            os.close(fd)
    except OSError as error:
        raise UsageError(
            f"{shown}: cannot be flushed to the disk: {error.strerror}; write to another file "
            "system, or leave out sync"
        ) from error
