"""The options that only apply to a store."""

from __future__ import annotations

import argparse


def add_store_arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Add the options of a store to a parser.

    Returns:
        The options.
    """
    group = parser.add_argument_group(
        "a store", "MODEL and -o may be folders or URLs (s3://..., any that fsspec can open)"
    )
    return [
        group.add_argument(
            "--jobs", type=_number, metavar="N", help="processes (default: one per processor)"
        ),
        group.add_argument(
            "--dask",
            metavar="ADDRESS",
            help="let the workers of this Dask scheduler do the work; they must see the same paths",
        ),
        group.add_argument(
            "--state",
            metavar="DIR",
            help="folder of records and unfinished files, on the file system of the output "
            "(default: OUTPUT.onnx_bnfold, beside it)",
        ),
        group.add_argument(
            "--prune",
            action="store_true",
            help="remove the folds of models that are no longer in the folder",
        ),
    ]


def _number(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes") from None
    if number < 1:
        raise argparse.ArgumentTypeError("give at least 1")
    return number
