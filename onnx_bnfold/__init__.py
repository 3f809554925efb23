"""Removes BatchNormalization layers from ONNX models by re-parametrising the tensors around them.

>>> folded, report = onnx_bnfold.fold("model.onnx")
"""

from __future__ import annotations

from importlib import import_module

from onnx_bnfold.version import __version__

TYPE_CHECKING = False  # that of ``typing`` is the same to type checkers, and has to be imported
if TYPE_CHECKING:
    from typing import Any

    from onnx_bnfold.api import fold_file, plan_file
    from onnx_bnfold.errors import BnFoldError, CheckFailed, ModelError, UsageError
    from onnx_bnfold.in_memory import fold, plan
    from onnx_bnfold.options import Options
    from onnx_bnfold.planning.ways import Way
    from onnx_bnfold.reasons import Reason, Refusal
    from onnx_bnfold.report import Record, Report

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
    "Way",
    "__version__",
    "fold",
    "fold_file",
    "plan",
    "plan_file",
]

# Imported when asked for: the command line has something to do before it loads onnx and numpy.
_MODULES = {
    "api": ("fold_file", "plan_file"),
    "errors": ("BnFoldError", "CheckFailed", "ModelError", "UsageError"),
    "in_memory": ("fold", "plan"),
    "options": ("Options",),
    "reasons": ("Reason", "Refusal"),
    "planning.ways": ("Way",),
    "report": ("Record", "Report"),
}
_PUBLIC_MODULES = ("batch", "check", "reports")


def __getattr__(name: str) -> Any:
    if name in _MODULES or name in _PUBLIC_MODULES:
        return import_module(f"{__name__}.{name}")
    for module, names in _MODULES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES, *_PUBLIC_MODULES})
