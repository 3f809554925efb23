"""What users build on: every public name and its signature.

A change here is one for CHANGELOG.md.
"""

import dataclasses
import enum
import importlib
import inspect
from pathlib import Path

import pytest

import onnx_bnfold

LISTED = Path(__file__).with_name("public_api.txt")
MODULES = ("onnx_bnfold", "onnx_bnfold.batch", "onnx_bnfold.check", "onnx_bnfold.reports")


def described(value: object) -> str:
    """Describe what a caller can rely on, in one line."""
    if isinstance(value, type) and issubclass(value, enum.Enum):
        return "one of " + ", ".join(member.value for member in value)
    if isinstance(value, type) and issubclass(value, Exception):
        return f"raised, a {value.__base__.__name__}"
    if fields := fields_of(value):
        return f"({', '.join(f'{name}: {written(kind)}' for name, kind in fields.items())})"
    if callable(value):
        return str(inspect.signature(value)).replace(repr(onnx_bnfold.Options()), "Options()")
    return type(value).__name__


def fields_of(value: object) -> dict[str, object]:
    """Return the fields of a dataclass or a named tuple, each with its annotation."""
    if dataclasses.is_dataclass(value):
        return {f.name: f.type for f in dataclasses.fields(value)}
    return dict(value.__annotations__) if hasattr(value, "_fields") else {}


def written(annotation: object) -> str:
    annotation = getattr(annotation, "__forward_arg__", annotation)
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def members(value: object) -> list[str]:
    """Return the public methods and properties of a class that is no enumeration or exception."""
    if not isinstance(value, type) or issubclass(value, enum.Enum | Exception):
        return []
    fields = fields_of(value)
    return [n for n in sorted(vars(value)) if not n.startswith("_") and n not in fields]


def lines() -> list[str]:
    found = []
    for module in map(importlib.import_module, MODULES):
        for name in sorted(module.__all__):
            value = getattr(module, name)
            found.append(f"{module.__name__}.{name}: {described(value)}")
            found += [f"{module.__name__}.{name}.{member}" for member in members(value)]
    return found


def test_every_public_name_and_signature_is_listed():
    how = "to list it on purpose: python tests/test_public_api.py > tests/public_api.txt"
    assert lines() == LISTED.read_text().splitlines(), how


@pytest.mark.parametrize("name", ["batch", "check", "reports"])
def test_public_modules_are_attributes_of_the_package(name):
    assert getattr(onnx_bnfold, name).__name__ == f"onnx_bnfold.{name}"
    assert name in dir(onnx_bnfold)


def test_the_old_name_of_batch_warns_and_works():
    with pytest.warns(DeprecationWarning, match=r"onnx_bnfold\.batch"):
        store = importlib.reload(importlib.import_module("onnx_bnfold.store"))
    assert store.fold_store is onnx_bnfold.batch.fold_store


if __name__ == "__main__":
    print("\n".join(lines()))
