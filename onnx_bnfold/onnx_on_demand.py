"""onnx with its messages alone, and the rest of it where it is asked for.

``import onnx`` takes longer than all else that a small fold does, and with ml_dtypes 0.7.0 a second
more. A fold needs the classes of onnx's messages, and seldom anything else.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from threading import RLock
from types import ModuleType

from onnx_bnfold.interrupts import held_back

TYPE_CHECKING = False  # see ``onnx_bnfold``
if TYPE_CHECKING:
    from typing import Any

_NAME = "onnx"
_MESSAGES = f"{_NAME}.onnx_pb"
# Bound by modules that need them now and then; the others are imported where they are named.
_SELDOM = ("helper", "numpy_helper")
# What ``onnx.shape_inference`` asks the package for.
_FROM_BYTES = ("load_from_string", "load_model_from_string")
_lock = RLock()


def import_on_demand() -> None:
    """Let this process import no more of onnx than it uses; for programs, not for libraries.

    Nothing changes if onnx is imported already, or is not installed.
    """
    with held_back():
        spec = None if _NAME in sys.modules else find_spec(_NAME)
        if spec is not None:
            sys.modules[_NAME] = module = module_from_spec(spec)
            module.__class__ = _Onnx


class _Onnx(ModuleType):
    """The package before it has run."""

    def __getattr__(self, name: str) -> object:
        with held_back():  # whenever that is: extension modules are imported
            value = self._find(name)
            if value is None:
                _run(self)
                return getattr(self, name)
        setattr(self, name, value)
        return value

    def _find(self, name: str) -> object | None:
        if name.startswith("__"):
            return None
        messages: Any = import_module(_MESSAGES)
        found: object | None = getattr(messages, name, None)
        if name in _FROM_BYTES:
            found = messages.ModelProto.FromString
        if found is None and name in _SELDOM:
            return _Later(f"{_NAME}.{name}")
        if found is None and find_spec(f"{_NAME}.{name}"):
            return import_module(f"{_NAME}.{name}")
        return found


class _Later(ModuleType):
    """A module that is imported when something in it is asked for."""

    def __getattr__(self, name: str) -> object:
        with held_back():
            value = getattr(import_module(self.__name__), name)
        setattr(self, name, value)
        return value


def _run(module: _Onnx) -> None:
    """Run the package as ``import onnx`` would have."""
    with _lock:
        if type(module) is _Onnx:
            spec = module.__spec__
            assert spec is not None
            assert spec.loader is not None
            module.__class__ = ModuleType  # type: ignore[assignment]
            spec.loader.exec_module(module)
