"""The process's memory, as suits one that folds models; for programs, not for libraries."""

import ctypes
import gc
import os
import sys
from typing import NoReturn

_ORDERLY = {"distributed", "multiprocessing", "onnxruntime"}
_HELD: list[object] = []
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt(3)


def keep_freed_memory() -> None:
    """Tell glibc not to give freed blocks of up to 32 MiB back to the system after each layer.

    A layer's new weights would be fresh pages otherwise, which the system has to clear. Other
    allocators are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, 1 << 25)
    mallopt(_TRIM_THRESHOLD, 1 << 28)


def collect_rarely() -> None:
    """Let Python look for garbage in cycles after a million new objects, not some hundred.

    A graph is some dozen objects per node, none of them garbage; looking at them takes a quarter of
    the time of a fold.
    """
    gc.set_threshold(1_000_000, 10, 10)


def hold(thing: object) -> None:
    """Keep a thing until the process ends, or another is held.

    A graph of ten thousand nodes takes a thirtieth of its fold to be freed, object by object.
    """
    _HELD[:] = [thing]


def leave(code: int) -> NoReturn:
    """End the process, and let the system free what it has, all at once.

    Python would look among everything that was imported for what else has to be ended. Libraries
    with threads and processes of their own ask for that.

    Args:
        code: the exit code.
    """
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except (OSError, ValueError):  # Python says what it always says of that
        sys.exit(code)
    if not _ORDERLY.isdisjoint(sys.modules):
        sys.exit(code)
    os._exit(code)
