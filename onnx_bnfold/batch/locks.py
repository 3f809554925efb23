"""Locks between processes: lock files that are removed when they are released."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def hold(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock, which the system releases if the process dies; a context manager.

    Args:
        path: the lock file; created and removed here.
        wait: wait until no other process holds the lock.

    Yields:
        Whether the lock is held. It is not if another process holds it and ``wait`` is not set, or
        if the system or the file system has no locks.
    """
    fd = _acquire(path, wait)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            path.unlink(missing_ok=True)
            os.close(fd)


def _acquire(path: Path, wait: bool) -> int | None:
    if fcntl is None:
        return None
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        if _is_at(fd, path):
            return fd
        os.close(fd)  # the previous holder has removed the file; create it anew


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
