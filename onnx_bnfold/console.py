"""Printing results."""

from __future__ import annotations

import os
import sys


def tell(text: str) -> None:
    """Print on stdout; a reader that has left (``| head -1``) is no failure.

    Args:
        text: lines; what the terminal's encoding lacks becomes an escape sequence.
    """
    if sys.stdout is None:  # it was closed
        return
    encoding = sys.stdout.encoding or "utf-8"
    shown = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(shown, flush=True)
    except BrokenPipeError:  # Python would complain once more when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
