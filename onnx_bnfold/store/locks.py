"""Locks between processes, held by files that are gone when nobody holds them."""

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
    """Holds a lock, which the system releases if the process dies.

    Args:
        path: its file; made and removed here.
        wait: wait until nobody else holds it.

    Yields:
        Whether it is held: without `wait` somebody else may hold it, and some systems and network
        file systems have no locks.
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
        os.close(fd)  # who held it before has removed the file


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
