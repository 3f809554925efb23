"""Reports of a fold or a check, as JSON for programs and as one HTML page for people."""

from onnx_bnfold.reports.data import FoldReport, fold_report
from onnx_bnfold.reports.files import require_writable, write

__all__ = ["FoldReport", "fold_report", "require_writable", "write"]
