"""The process's memory: what is freed is kept for the next layer's weights."""

import ctypes

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt(3)


def keep_freed_memory() -> None:
    """Tell glibc not to give freed blocks of up to 32 MiB back to the system after each layer.

    A layer's new weights would be fresh pages otherwise, which the system has to clear. Other
    allocators are left as they are. To be called by a program, not by a library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, 1 << 25)
    mallopt(_TRIM_THRESHOLD, 1 << 28)
