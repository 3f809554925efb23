"""The options of a fold; those that say how it is done become fields of an ``Options``."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def add_fold_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a fold to a parser, in groups."""
    _add_outputs(parser.add_argument_group("what is written and required").add_argument)
    _add_limits(parser.add_argument_group("what may be folded, and how far").add_argument)
    _add_forms(parser.add_argument_group("what becomes of the model besides").add_argument)


def _add_outputs(add: Callable[..., object]) -> None:
    """Add what is written, printed and required."""
    add("-o", "--output", metavar="FILE", help="where the folded model goes")
    add("--dry-run", action="store_true", help="say what would be folded; write nothing")
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


def _add_limits(add: Callable[..., object]) -> None:
    """Add what may be folded, and how far."""
    add(
        "--freeze-initializers",
        action="store_true",
        help="treat initializers that are also graph inputs as constants, and drop those inputs",
    )
    add(
        "--merge-branches",
        action="store_true",
        help="merge parallel Convs, identities and BatchNormalizations that meet in an Add "
        "(RepVGG, MobileOne) into one Conv",
    )
    add(
        "--keep",
        action="append",
        default=[],
        metavar="REGEX",
        help="leave each BatchNormalization as it is whose name, or whose first output's, matches "
        "(re.search); repeatable",
    )
    add(
        "--only",
        action="append",
        default=[],
        metavar="REGEX",
        help="fold only BatchNormalizations whose name, or whose first output's, matches, and "
        "nothing else; repeatable",
    )
    add(
        "--keep-shared-weights",
        action="store_true",
        help="keep each BatchNormalization whose fold would copy a weight that other nodes read",
    )
    add(
        "--profile",
        choices=["float", "fp16", "int8"],
        default="float",
        help="number format that the folded model will run in: int8 does not change the ranges of "
        "remaining tensors, fp16 limits rescaling for float16 (default: float)",
    )
    add(
        "--max-rescale",
        type=float,
        metavar="R",
        help="largest factor by which a channel of a remaining tensor may be rescaled "
        "(default: by data type; 32 for float16)",
    )


def _add_forms(add: Callable[..., object]) -> None:
    """Add what becomes of the model besides."""
    add(
        "--standalone",
        choices=["keep", "mul-add", "conv"],
        default="keep",
        help="write each BatchNormalization that stays as itself, as Mul and Add, or as a "
        "depthwise Conv (default: keep)",
    )
    add(
        "--bn-free",
        action="store_true",
        help="let no BatchNormalization stay that has an exact form without one: a Max or Min with "
        "constants for a Relu or Clip, what --standalone says, or Mul and Add",
    )
    add(
        "--target",
        choices=["any", "onnxruntime"],
        default="any",
        help="for --bn-free: what its forms are to be cheap for (default: any)",
    )
    add(
        "--equalize",
        action="store_true",
        help="equalize the channel ranges of tensors between linear layers, where int8 gains by it",
    )
    add(
        "--ranges",
        metavar="FILE",
        help="for --equalize: an .npz with examples of each input, to measure ranges on "
        "(default: estimated from the BatchNormalizations)",
    )
    add(
        "--no-metadata",
        dest="metadata",
        action="store_false",
        help="do not record version, counts and the source's SHA-256 in the model, nor at each "
        "node what it took",
    )
