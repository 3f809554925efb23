"""What the commands share: options as they were given, and printing results."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

from onnx_bnfold import progress
from onnx_bnfold.cli.fold_arguments import flag
from onnx_bnfold.errors import UsageError, printable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from onnx_bnfold.check.options import CheckOptions

Settings = TypeVar("Settings", bound="DataclassInstance")


def options_of(kind: type[Settings], args: argparse.Namespace) -> Settings:
    """Return parsed arguments as the options that they are: one for each field, by its name.

    Fields that are not among the arguments have their defaults. An error that begins with the name
    of a field names the option instead, which is left out where the field is None.

    Raises:
        UsageError: a value is invalid, or options contradict each other.
    """
    given = vars(args)
    names = {f.name for f in fields(kind)} & given.keys()
    try:
        return kind(**{name: given[name] for name in names})
    except UsageError as error:
        name, _, rest = str(error).partition(" ")
        if name not in names:
            raise
        raise UsageError(f"{flag(name)} {rest.removesuffix(' or None')}") from error


def check_options_of(args: argparse.Namespace) -> CheckOptions | None:
    """Return the options of the check that a fold asks for, None if it asks for none.

    Raises:
        UsageError: they contradict each other, or name files that are not there.
    """
    if not args.check:
        return None
    from onnx_bnfold.check.options import CheckOptions, require_files  # loads onnxruntime

    options = options_of(CheckOptions, args)
    require_files(options)
    return options


def tell(text: str) -> None:
    """Print to stdout; ignore that a reader has closed the pipe (``| head -1``).

    Args:
        text: characters that the terminal's encoding lacks become escape sequences.
    """
    if sys.stdout is None:  # the process was started with stdout closed
        return
    encoding = sys.stdout.encoding or "utf-8"
    shown = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(shown, flush=True)
    except BrokenPipeError:  # redirect stdout, or Python would report the error again at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell_reports(paths: Iterable[str], *, quiet: bool) -> None:
    """Say which reports were written."""
    if not quiet:
        for path in paths:
            tell(printable(f"report: {path}"))


def show_progress(*, quiet: bool) -> None:
    """Let the process show its progress, in a pipe a line now and then; nothing if quiet."""
    progress.show("nothing" if quiet else "bars and lines")
