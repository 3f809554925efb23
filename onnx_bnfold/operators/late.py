"""Functions of entries that few models need, imported when one is called.

Every start reads the whole table. What an entry asks of its nodes need not be there by then.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any


def late(module: str, name: str) -> Callable[..., Any]:
    """Return a function of a module of this package, which is imported when it is called.

    Args:
        module: without the package.
        name: of the function.
    """
    return partial(_call, module, name)


def _call(module: str, name: str, *asked: Any) -> Any:
    return getattr(import_module(f"onnx_bnfold.operators.{module}"), name)(*asked)
