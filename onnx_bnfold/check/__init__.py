"""Check a folded model against its original: same function, same accuracy, no slower.

``compare`` documents how rounding is told from a fault, ``noise`` where the rounding noise comes
from, and ``locate`` how the first tensor that differs is found.
"""

from onnx_bnfold.check.api import check
from onnx_bnfold.check.options import CheckOptions
from onnx_bnfold.check.results import (
    Accuracy,
    CheckResult,
    Difference,
    FirstDifference,
    InputUsed,
    Int8Output,
    Int8Range,
    Latency,
    LatencyMode,
    Numerics,
    Quantized,
    Timing,
)
from onnx_bnfold.check.text import render_text

__all__ = [
    "Accuracy",
    "CheckOptions",
    "CheckResult",
    "Difference",
    "FirstDifference",
    "InputUsed",
    "Int8Output",
    "Int8Range",
    "Latency",
    "LatencyMode",
    "Numerics",
    "Quantized",
    "Timing",
    "check",
    "render_text",
]
