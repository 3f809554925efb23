"""Writing reports; the ending of a file's name is its format."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx_bnfold.errors import UsageError
from onnx_bnfold.storage.files import OutputFile

Data = Mapping[str, Any]


def _json(data: Data) -> str:
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def _html(data: Data) -> str:
    from onnx_bnfold.reports.html import page

    return page(data)


FORMATS: Mapping[str, Callable[[Data], str]] = {".html": _html, ".json": _json}


def require_writable(paths: Sequence[str], *, taken: Sequence[str | None] = ()) -> None:
    """Find out, before hours of work, that reports could not be written.

    Args:
        paths: where the reports shall go.
        taken: files that they must not replace.

    Raises:
        UsageError: a name has no known ending or is used twice, or its folder does not exist.
    """
    used = {os.path.realpath(path) for path in taken if path is not None}
    for path in map(Path, paths):
        if path.suffix.lower() not in FORMATS:
            endings = " or ".join(FORMATS)
            raise UsageError(f"{path}: a report's name ends in {endings}")
        if not path.parent.is_dir():
            raise UsageError(f"{path}: cannot be written: there is no folder {path.parent}")
        if path.exists() and not path.is_file():
            raise UsageError(f"{path}: is not a regular file; give the name of a file to write")
        if os.path.realpath(path) in used:
            raise UsageError(f"{path}: is used for something else; give another name to write")
        used.add(os.path.realpath(path))


def write(path: str | os.PathLike[str], data: Data) -> None:
    """Write a report, whole or not at all.

    Args:
        path: ends in ``.json`` or ``.html``.
        data: ``FoldReport.to_dict()`` or ``CheckResult.to_dict()``.

    Raises:
        UsageError: the file cannot be written.
    """
    target = Path(path)
    text = FORMATS[target.suffix.lower()](data)
    with OutputFile(target) as file:
        file.write(text.encode())
        file.commit(target)
