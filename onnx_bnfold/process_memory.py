"""Memory settings for a process that folds models; for programs, not for libraries."""

import atexit
import ctypes
import gc
from collections.abc import Callable

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt(3)
_trim: Callable[[int], int] | None = None  # malloc_trim(3), where freed blocks are kept


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 32 MiB instead of returning them to the system.

    Otherwise each layer's new weights would be new pages, which the system has to clear. With other
    C libraries this does nothing.
    """
    global _trim
    try:
        library = ctypes.CDLL(None)
        mallopt, _trim = library.mallopt, library.malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, 1 << 25)
    mallopt(_TRIM_THRESHOLD, 1 << 28)


def give_back_freed_memory() -> None:
    """Return the freed blocks that are kept to the system, behind a step that took the most.

    Threads that follow have blocks of their own and would not use them. It takes milliseconds.
    """
    if _trim is not None:
        _trim(0)


def collect_rarely() -> None:
    """Run the garbage collector after a million new objects instead of some hundred.

    A graph is about a dozen objects per node, none of them garbage; scanning them takes a quarter
    of the time of a fold. The scans at the end of the process, three of all imported modules, are
    skipped as well.
    """
    gc.set_threshold(1_000_000, 10, 10)
    atexit.register(gc.freeze)


def keep_to_the_end(thing: object) -> None:
    """Keep an object alive to the end of the process, when the system frees all memory at once.

    Freeing a graph of ten thousand nodes object by object takes 3 % of the time of its fold.
    """
    cycle: list[object] = [thing]
    cycle.append(cycle)  # only the collector could free it; ``collect_rarely`` stops it at the end
