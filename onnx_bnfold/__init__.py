"""Removes BatchNormalization layers from ONNX models by re-parametrising the tensors around them.

>>> folded, report = onnx_bnfold.fold(onnx.load("model.onnx"))
"""

from onnx_bnfold.api import fold, fold_file, plan, plan_file
from onnx_bnfold.errors import BnFoldError, CheckFailed, ModelError, UsageError
from onnx_bnfold.folding import Options
from onnx_bnfold.reasons import Reason, Refusal
from onnx_bnfold.report import Record, Report
from onnx_bnfold.version import __version__

__all__ = [
    "BnFoldError",
    "CheckFailed",
    "ModelError",
    "Options",
    "Reason",
    "Record",
    "Refusal",
    "Report",
    "UsageError",
    "__version__",
    "fold",
    "fold_file",
    "plan",
    "plan_file",
]
