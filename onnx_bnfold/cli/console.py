"""Printing results."""

from __future__ import annotations

import os
import sys


def tell(text: str) -> None:
    """Print to stdout; ignore that a reader has closed the pipe (``| head -1``).

    Args:
        text: characters that the terminal's encoding lacks become escape sequences.
    """
    if sys.stdout is None:  # the process was started with stdout closed
        return
    encoding = sys.stdout.encoding or "utf-8"
    shown = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(shown, flush=True)
    except BrokenPipeError:  # redirect stdout, or Python would report the error again at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
