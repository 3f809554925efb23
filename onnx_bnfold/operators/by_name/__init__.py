"""Operators that have a file of their own, which is found by its name.

It is named as the operator is, in small letters (``centercroppad`` is CenterCropPad), and holds
``ENTRIES``, as a table does. It is imported when a model has a node of the operator.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec

from onnx_bnfold.operators.entries import Operator


@cache
def entry_of(operator: str) -> Operator | None:
    """Return the entry of an operator that has a file here, None if it has none."""
    file = operator.lower()
    if not operator.isalnum() or find_spec(f"{__name__}.{file}") is None:
        return None
    return _entries(file).get(operator)


def every_entry() -> dict[str, Operator]:
    """Return the entries of all files, by operator."""
    from pkgutil import iter_modules  # a fold asks for single operators

    files = sorted(file.name for file in iter_modules(__path__))
    return {operator: entry for file in files for operator, entry in _entries(file).items()}


def _entries(file: str) -> dict[str, Operator]:
    entries: dict[str, Operator] = import_module(f"{__name__}.{file}").ENTRIES
    return entries
