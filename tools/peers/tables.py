"""Markdown tables."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path


def row(cells: Sequence[str]) -> str:
    """Return a row."""
    return f"| {' | '.join(cells)} |"


def head(cells: Sequence[str]) -> list[str]:
    """Return the first two rows."""
    return [row(cells), row(["---"] * len(cells))]


def write(lines: Iterable[str], path: Path | None) -> None:
    """Write lines to a file, or to stdout."""
    text = "\n".join(lines) + "\n"
    if path is None:
        sys.stdout.write(text)
    else:
        path.write_text(text, encoding="utf-8")
