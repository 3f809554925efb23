"""The process's memory, as suits one that folds models; for programs, not for libraries."""

import atexit
import ctypes
import gc

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
    the time of a fold. At its end a process has nothing left but what was imported, among which
    Python would look three times.
    """
    gc.set_threshold(1_000_000, 10, 10)
    atexit.register(gc.freeze)


def keep_to_the_end(thing: object) -> None:
    """Let a thing live as long as the process, which the system frees all at once.

    A graph of ten thousand nodes takes a thirtieth of its fold to be freed, object by object.
    """
    circle: list[object] = [thing]
    circle.append(circle)  # only the collector could free it, and that looks no more at the end
