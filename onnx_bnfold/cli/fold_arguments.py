"""The options of a fold; those that say how it is done are the fields of ``Options``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Any, Literal, get_args, get_origin

from onnx_bnfold.errors import UsageError
from onnx_bnfold.options import FORMS, LIMITS, Options, without_effect
from onnx_bnfold.validation import types_of


def add_fold_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a fold to a parser, in groups."""
    _add_outputs(parser.add_argument_group("what is written and required").add_argument)
    for group in (LIMITS, FORMS):
        add = parser.add_argument_group(group).add_argument
        for option in fields(Options):
            if option.metadata["group"] == group:
                _add_option(add, option, types_of(Options)[option.name])


def require_effect(args: argparse.Namespace) -> None:
    """See that each option is given that another one needs.

    Raises:
        UsageError: one is not.
    """
    for given, needed in without_effect(args):
        raise UsageError(f"{flag(given)} has no effect without {flag(needed)}; give both")


def _add_outputs(add: Callable[..., object]) -> None:
    """Add what is written, printed and required."""
    add("-o", "--output", metavar="FILE", help="where the folded model goes")
    add("--dry-run", action="store_true", help="say what would be folded; write nothing")
    add(
        "--sync",
        action="store_true",
        help="end when everything written is on the disk, where it outlives a power failure",
    )
    add(
        "--report",
        action="append",
        default=[],
        metavar="FILE",
        help="write what was folded, and why the rest stays, as .json or .html; repeatable",
    )
    add(
        "--check",
        action="store_true",
        help="compare with the original first, and write no model if a gate does not hold; takes "
        "the options of a check below",
    )
    add("--require-all", action="store_true", help="exit 1 if a BatchNormalization is left")
    add(
        "--require-folded",
        action="store_true",
        help="exit 1 if there is anything to fold; for models that should be folded already",
    )
    add("-q", "--quiet", action="store_true", help="print nothing but errors")
    add("-v", "--verbose", action="store_true", help="print a line for each BatchNormalization")


def _add_option(add: Callable[..., object], option: Field[Any], kind: Any) -> None:
    """Add an option that is a field of ``Options``."""
    text, metavar = option.metadata["help"], option.metadata["metavar"]
    if kind is bool:
        prefix, action = ("no-", "store_false") if option.default else ("", "store_true")
        text = f"do not {text}" if option.default else text
        add(flag(prefix + option.name), dest=option.name, action=action, help=text)
    elif get_origin(kind) is Literal:
        text = f"{text} (default: {option.default})"
        add(flag(option.name), choices=get_args(kind), default=option.default, help=text)
    elif get_origin(kind) is tuple:
        add(flag(option.name), action="append", default=[], metavar=metavar, help=text)
    else:
        number = next((each for each in (float, int) if each in (kind, *get_args(kind))), None)
        add(flag(option.name), type=number, default=option.default, metavar=metavar, help=text)


def flag(name: str) -> str:
    """Return the option of the command line that sets a field of this name."""
    return f"--{name.replace('_', '-')}"
