"""Check values that users give against the type annotations of the parameters.

A wrong value must be reported, not mistaken for another one: ``profile="int-8"`` is not int8, and
``equalize="no"`` would be true.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import os
import reprlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from onnx_bnfold.errors import UsageError


def require_types(settings: Any) -> None:
    """Check every field of a dataclass against its type; for its ``__post_init__``.

    numpy numbers are replaced by Python's, and paths in fields of type ``str`` by text.

    Args:
        settings: the instance.

    Raises:
        UsageError: a field has another type, is not one of the allowed values, or is a number that
            is not finite.
    """
    of: Any = type(settings)
    for name, kind in types_of(of).items():
        value = getattr(settings, name)
        require_value(name, value, kind)
        plain = _plain(value, kind)
        if plain is not value:
            object.__setattr__(settings, name, plain)


def require_value(name: str, value: object, kind: Any) -> None:
    """Check one value against a type.

    Args:
        name: of the parameter, for the message.
        value: its value.
        kind: a class, or a type made of Literal, unions, tuples, mappings and sequences.

    Raises:
        UsageError: see ``require_types``.
    """
    if not _is_of(value, kind):
        raise UsageError(f"{name} is {reprlib.repr(value)}; give {_described(kind)}")


def require_at_least(name: str, value: float | None, least: float) -> None:
    """Raise UsageError if a number is less than ``least``; None is allowed."""
    if value is not None and value < least:
        raise UsageError(f"{name} is {value}; it must be at least {least}")


@cache
def types_of(kind: Any) -> dict[str, Any]:
    """Return name → type of the fields of a dataclass."""
    hints = get_type_hints(kind)
    return {each.name: hints[each.name] for each in dataclasses.fields(kind)}


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union; of any other type itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _is_of(value: object, kind: Any) -> bool:
    return any(_is_one_of(value, each) for each in _alternatives(kind))


def _is_one_of(value: object, kind: Any) -> bool:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            return False
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return len(value) == len(kinds) and all(map(_is_of, value, kinds))
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            _is_of(key, args[0]) and _is_of(item, args[1]) for key, item in value.items()
        )
    if origin is Sequence:
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            return False
        return all(_is_of(item, args[0]) for item in value)
    if kind in _CHECKS:
        return _CHECKS[kind](value)
    return isinstance(value, origin or kind)


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond the range of float
        return False


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_path(value: object) -> bool:
    return isinstance(value, os.PathLike) and isinstance(os.fspath(value), str)


_CHECKS: dict[Any, Callable[[object], bool]] = {
    float: _is_number,
    int: _is_whole,
    os.PathLike[str]: _is_path,
    str: lambda value: isinstance(value, str) or _is_path(value),
}
_NAMES: dict[Any, str] = {
    bool: "True or False",
    float: "a finite number",
    int: "a whole number",
    str: "text",
    NoneType: "None",
    os.PathLike[str]: "a path",
}


def _described(kind: Any) -> str:
    return " or ".join(dict.fromkeys(map(_describe, _alternatives(kind))))


def _describe(kind: Any) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(args)}"
    if origin is tuple and args[-1] is not Ellipsis:
        return f"({', '.join(map(_described, args))})"
    if origin in (tuple, Sequence):
        return f"a sequence whose items are {_described(args[0])}"
    if origin is Mapping:
        return f"a mapping from {_described(args[0])} to {_described(args[1])}"
    return _NAMES.get(kind) or str(getattr(kind, "__name__", kind))


def _plain(value: Any, kind: Any) -> Any:
    """Return a valid value as one of the types that JSON has."""
    allowed = _alternatives(kind)
    if isinstance(value, os.PathLike) and str in allowed and os.PathLike[str] not in allowed:
        return os.fspath(value)
    if isinstance(value, Integral) and not isinstance(value, (bool, int)):
        return operator.index(value)
    if isinstance(value, Real) and not isinstance(value, (int, float)):
        return float(value)
    return value
