"""A progress bar on a terminal, nothing in a pipe."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

Item = TypeVar("Item")

_WIDTH = 30  # characters of the bar itself
_INTERVAL = 0.1  # seconds between two drawings


def progress(
    iterable: Iterable[Item], *, total: int, label: str, stream: TextIO | None = None
) -> Iterator[Item]:
    """Yield the items unchanged, and draw a progress bar if the stream is a terminal.

    Args:
        iterable: the items.
        total: number of items expected.
        label: a word or two in front of the bar.
        stream: where to draw; standard error by default.
    """
    stream = sys.stderr if stream is None else stream
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        yield from iterable
        return
    drawn = 0.0
    line = ""
    try:
        for done, item in enumerate(iterable):
            if time.monotonic() - drawn >= _INTERVAL:
                line = _bar(label, done, total)
                stream.write("\r" + line)
                stream.flush()
                drawn = time.monotonic()
            yield item
    finally:
        stream.write("\r" + " " * len(line) + "\r")
        stream.flush()


def _bar(label: str, done: int, total: int) -> str:
    part = min(1.0, done / total) if total > 0 else 0.0
    filled = round(part * _WIDTH)
    return f"{label} [{'#' * filled}{'-' * (_WIDTH - filled)}] {part:4.0%} {done}/{total}"
