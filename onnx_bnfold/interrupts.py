"""Delay interrupts (Ctrl-C, SIGINT) where an exception would do harm."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

EXIT_CODE = 130  # what shells report for a process that SIGINT ended


@contextmanager
def held_back() -> Iterator[None]:
    """Delay an interrupt until the end of the context.

    An interrupt during the import of an extension module may crash the process, and a process that
    was just forked has not set its own signal handlers yet.
    """
    if current_thread() is not main_thread() or (
        signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if came:  # the interrupt takes precedence over an error in the context
            raise KeyboardInterrupt
