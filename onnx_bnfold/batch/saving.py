"""Write the report of a run over a store, as a page or as JSON."""

from __future__ import annotations

import os
from pathlib import Path

from onnx_bnfold.batch.page import page
from onnx_bnfold.batch.report import StoreReport
from onnx_bnfold.reports.files import put, require_writable
from onnx_bnfold.validation import require_value


def save(report: StoreReport, path: str | os.PathLike[str]) -> None:
    """Write a report; see ``StoreReport.save``."""
    require_value("path", path, str | os.PathLike[str])
    require_writable([os.fspath(path)])
    write(report, path)


def write(report: StoreReport, path: str | os.PathLike[str], *, sync: bool = False) -> None:
    """Write a report to a path that is one for reports; see ``reports.files.write``."""
    target = Path(path)
    is_json = target.suffix.lower() == ".json"
    put(target, report.to_json() if is_json else page(report), sync=sync)
