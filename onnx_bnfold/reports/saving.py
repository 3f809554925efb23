"""Write the report of a fold that is over: its model is planned once more for what it needs."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from onnx_bnfold.api import Outcome, plan_file, write_folded
from onnx_bnfold.errors import UsageError
from onnx_bnfold.given import opened
from onnx_bnfold.report import Origin, Report
from onnx_bnfold.reports.data import FoldReport, fold_report
from onnx_bnfold.reports.files import require_writable, write
from onnx_bnfold.storage.data_files import data_files_of, files
from onnx_bnfold.validation import require_value

_IN_MEMORY = "model-in-memory.onnx"


def save(report: Report, path: str | os.PathLike[str]) -> None:
    """Write a report; see ``Report.save``."""
    require_value("path", path, str | os.PathLike[str])
    origin = report.origin
    if origin is None:
        raise UsageError("this report does not know its model any more; save it where it was made")
    taken = [os.fspath(each) for each in (origin.source, origin.target) if isinstance(each, Path)]
    require_writable([os.fspath(path)], taken=taken)
    with tempfile.TemporaryDirectory(prefix="onnx_bnfold-") as folder:
        source = _source(origin, Path(folder))
        found: list[FoldReport] = []

        def look(outcome: Outcome) -> None:
            if outcome.report.records != report.records:
                raise UsageError(
                    f"the model has changed since it was folded, {_name(origin)}; fold it again"
                )
            found.append(fold_report(outcome, {}, None))

        if report.nodes_after is None or origin.target is not None:
            plan_file(source, origin.options, inspect=look)
        else:
            write_folded(source, Path(folder) / "folded.onnx", origin.options, look)
        [described] = found
        if origin.target is not None:
            described = _with_result(described, origin.target)
        is_written = described.result is not None
        write(path, replace(described, written=is_written).to_dict())


def _source(origin: Origin, folder: Path) -> Path:
    """Return the path of the model; one in memory is written to a folder."""
    if isinstance(origin.source, Path):
        return origin.source
    path = folder / _IN_MEMORY
    with opened(origin.source, origin.base_dir) as given:
        whole = given.whole()
        try:
            path.write_bytes(whole.SerializeToString())
        except Exception as error:  # protobuf's own, for what exceeds its limit
            raise UsageError(
                f"the model cannot be serialised ({error}); fold a file of it, and save that report"
            ) from error
    return path


def _with_result(described: FoldReport, target: Path) -> FoldReport:
    """Return the report with the files of the folded model.

    Raises:
        UsageError: they cannot be read any more.
    """
    try:
        return described.with_result(files(target, data_files_of(target)))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{target}: the folded model, or its data, cannot be read any more; fold it again"
        ) from error


def _name(origin: Origin) -> str:
    return str(origin.source) if isinstance(origin.source, Path) else "in memory"
