"""Interrupts (Ctrl-C, SIGINT) that come where an exception would do harm."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

EXIT_CODE = 130  # what shells report for a process that SIGINT ended


@contextmanager
def held_back() -> Iterator[None]:
    """Let an interrupt wait until the end of the context.

    Extension modules that are interrupted while they are imported may end the process; a process
    that was just forked has not been told yet who decides what an interrupt means.
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
        if came:  # who asks for an end is not answered with another error
            raise KeyboardInterrupt
