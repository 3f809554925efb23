"""Write reports; the ending of the file's name determines the format."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from onnx_bnfold.errors import UsageError
from onnx_bnfold.reports.markup import Data
from onnx_bnfold.storage.durable import flush_folder
from onnx_bnfold.storage.files import OutputFile
from onnx_bnfold.storage.writer import require_place


def _json(data: Data) -> str:
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def _html(data: Data) -> str:
    from onnx_bnfold.reports.html import page

    return page(data)


FORMATS: Mapping[str, Callable[[Data], str]] = {".html": _html, ".json": _json}


def _format_of(path: Path) -> Callable[[Data], str]:
    if path.suffix.lower() not in FORMATS:
        endings = " or ".join(FORMATS)
        raise UsageError(f"{path}: give a name that ends in {endings} for the report")
    return FORMATS[path.suffix.lower()]


def require_writable(paths: Sequence[str], *, taken: Sequence[str | None] = ()) -> None:
    """Check that reports can be written, before the work that they are about.

    Args:
        paths: of the reports.
        taken: paths that they must not replace.

    Raises:
        UsageError: a name has no known ending or is used twice, or its folder does not exist.
    """
    used = {os.path.realpath(path) for path in taken if path is not None}
    for path in map(Path, paths):
        _format_of(path)
        require_place(path)
        if os.path.realpath(path) in used:
            raise UsageError(f"{path}: is the name of another file; give another name to write")
        used.add(os.path.realpath(path))


def write(path: str | os.PathLike[str], data: Data, *, sync: bool = False) -> None:
    """Write a report, completely or not at all.

    Args:
        path: ends in ``.json`` or ``.html``.
        data: ``FoldReport.to_dict()`` or ``CheckResult.to_dict()``.
        sync: return when the report is on the disk, where it outlives a power failure.

    Raises:
        UsageError: its name has no known ending, or the file cannot be written.
    """
    target = Path(path)
    put(target, _format_of(target)(data), sync=sync)


def put(target: Path, text: str, *, sync: bool = False) -> None:
    """Write a text, completely or not at all; see ``write``.

    Raises:
        UsageError: the file cannot be written.
    """
    with OutputFile(target) as file:
        file.write(text.encode())
        if sync:
            file.sync()
        file.commit(target)
    if sync:
        flush_folder(target.parent)
