"""Progress: a bar on a terminal; in a pipe nothing, or a line now and then for commands."""

import os
import sys
import time
from collections.abc import Generator, Iterable
from typing import Literal, TextIO, TypeVar

Item = TypeVar("Item")
Mode = Literal["bars", "bars and lines", "nothing"]

_WIDTH = 30  # characters of the bar itself
_INTERVAL = 0.1  # seconds between two drawings
_BETWEEN_LINES = 30.0  # seconds between two lines in a pipe
_LEAST = 1.0  # seconds of work from which the rest can be estimated
_mode: Mode = "bars"


def show(mode: Mode) -> None:
    """Set what this process shows of its progress, from now on; at first that is bars alone."""
    global _mode
    _mode = mode


def progress(
    iterable: Iterable[Item],
    *,
    total: int,
    label: str,
    after: float = 0.0,
    stream: TextIO | None = None,
) -> Generator[Item, None, None]:
    """Yield the items unchanged, and show how far they are and how long the rest will take.

    Args:
        iterable: the items.
        total: number of items expected.
        label: a word or two in front of the bar.
        after: seconds of work before a bar is drawn.
        stream: where to draw; standard error by default.
    """
    stream = sys.stderr if stream is None else stream
    if _mode == "nothing" or stream is None:  # a process may have no standard error
        yield from iterable
    elif stream.isatty() and os.environ.get("TERM") != "dumb":
        yield from _with_bar(iterable, total, label, after, stream)
    elif _mode == "bars and lines":
        yield from _with_lines(iterable, total, label, stream)
    else:
        yield from iterable


def note(text: str) -> None:
    """Tell what is waited for, on standard error, if progress is shown there."""
    if sys.stderr is not None and (
        _mode == "bars and lines" or (_mode == "bars" and sys.stderr.isatty())
    ):
        print(f"onnx-bnfold: {text}", file=sys.stderr, flush=True)


def _with_bar(
    iterable: Iterable[Item], total: int, label: str, after: float, stream: TextIO
) -> Generator[Item, None, None]:
    begun = time.monotonic()
    due = begun + after
    line = ""
    try:
        for done, item in enumerate(iterable):
            if (now := time.monotonic()) >= due:
                new = f"{_bar(label, done, total)}{_rest(done, total, now - begun)}"
                stream.write(f"\r{new.ljust(len(line))}")
                stream.flush()
                due, line = now + _INTERVAL, new
            yield item
    finally:
        if line:
            stream.write("\r" + " " * len(line) + "\r")
            stream.flush()


def _with_lines(
    iterable: Iterable[Item], total: int, label: str, stream: TextIO
) -> Generator[Item, None, None]:
    begun = time.monotonic()
    due = begun + _BETWEEN_LINES
    for done, item in enumerate(iterable):
        if (now := time.monotonic()) >= due:
            rest = _rest(done, total, now - begun)
            stream.write(f"onnx-bnfold: {label}: {done} of {total}{rest}\n")
            stream.flush()
            due = now + _BETWEEN_LINES
        yield item


def _bar(label: str, done: int, total: int) -> str:
    part = min(1.0, done / total) if total > 0 else 0.0
    filled = round(part * _WIDTH)
    return f"{label} [{'#' * filled}{'-' * (_WIDTH - filled)}] {part:4.0%} {done}/{total}"


def _rest(done: int, total: int, seconds: float) -> str:
    """Return how long the rest will take, as a part of a sentence; nothing if that is not known."""
    if seconds < _LEAST or not 0 < done < total:
        return ""
    left = max(1, round(seconds / done * (total - done)))
    if left < 60:
        return f", about {left} s left"
    if left < 3600:
        return f", about {left // 60} min left"
    return f", about {left // 3600} h {left % 3600 // 60} min left"
