"""The command line: results go to stdout, messages to stderr; the exit code is 0, 1, 2 or 130."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from onnx_bnfold.errors import BnFoldError, CheckFailed, printable
from onnx_bnfold.interrupts import EXIT_CODE, held_back
from onnx_bnfold.process_memory import collect_rarely, keep_freed_memory
from onnx_bnfold.provenance import begin_hashing
from onnx_bnfold.version import __version__

EPILOG = """\
other commands:
  %(prog)s check original.onnx folded.onnx    compare two models (see check --help)
  %(prog)s models/ -o folded/                 fold every model below a folder; takes --jobs N,
                                              --dask ADDRESS and --state DIR, too

exit codes:
  0  done
  1  a check or gate (--require-all, --require-folded) did not hold; no model was written
  2  bad usage or bad input; no model was written
  130  interrupted
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the fold command."""
    result = argparse.ArgumentParser(
        prog="onnx-bnfold",
        description="Fold BatchNormalization layers out of an ONNX model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("model", help="the ONNX model; it is never changed")
    for add in (_add_outputs, _add_limits, _add_forms):
        add(result.add_argument)
    result.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return result


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
        help="compare with the original first, and write no model if a gate does not hold; accepts "
        "the options of the check command (see check --help)",
    )
    add("--require-all", action="store_true", help="exit 1 if a BatchNormalization is left")
    add(
        "--require-folded",
        action="store_true",
        help="exit 1 if there is anything to fold; for models that should be folded already",
    )
    add("-q", "--quiet", action="store_true", help="print nothing but errors")


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
        help="do not record version, counts and the source's SHA-256 in the model",
    )


def main(argv: Sequence[str] | None = None, *, keep: Callable[[object], None] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; by default those of the process.
        keep: called with an object that need not be freed if the process is about to end.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["check"]:
            with held_back():
                from onnx_bnfold.cli.check import main as check

            return check(words[1:])
        return _fold(words, keep)
    except CheckFailed as failed:
        print(f"onnx-bnfold: {failed}", file=sys.stderr)
        return 1
    except BnFoldError as error:
        print(f"onnx-bnfold: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("onnx-bnfold: interrupted; no incomplete file was written", file=sys.stderr)
        return EXIT_CODE
    except MemoryError:
        print("onnx-bnfold: not enough memory; no model was written", file=sys.stderr)
        return 2
    except Exception as error:  # the last resort: whatever gets here is a bug
        what = printable(" ".join(str(error).split()))
        print(
            f"onnx-bnfold: internal error, please report it: {type(error).__name__}: {what}",
            file=sys.stderr,
        )
        return 2


def _fold(words: Sequence[str], keep: Callable[[object], None] | None) -> int:
    args = _arguments(words)
    _begin(args)
    with held_back():
        from onnx_bnfold.cli.console import options_of
        from onnx_bnfold.cli.fold import run
        from onnx_bnfold.options import Options

    options = options_of(Options, args)
    if _is_store(args.model):
        with held_back():
            from onnx_bnfold.cli.batch import run as run_store

        return run_store(args, options)
    outcome = run(args, options)
    if keep:
        keep(outcome)
    return 0


def _begin(args: argparse.Namespace) -> None:
    """Prepare the process, and start hashing the source, before numpy and onnx are imported."""
    keep_freed_memory()
    collect_rarely()
    if not args.check:
        # A fold multiplies no matrices, so starting OpenBLAS's threads would be wasted time.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    writes = args.output and not args.dry_run
    if writes and args.metadata and not _is_store(args.model):
        begin_hashing(args.model)


def _is_store(model: str) -> bool:
    return os.path.isdir(model) or "://" in model


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; load the options of a check or a store only where they apply."""
    options = parser()
    args, unknown = options.parse_known_args(words)
    if args.check:
        with held_back():
            from onnx_bnfold.cli.check import add_arguments

        add_arguments(options)
        args = options.parse_args(words)
    # The parser may have taken the value of an option that it does not know yet for the model.
    elif any(map(_is_store, [args.model, *unknown])):
        with held_back():
            from onnx_bnfold.cli.batch import add_arguments as add_store_arguments

        add_store_arguments(options)
        args = options.parse_args(words)
    elif unknown:
        options.error(
            f"unrecognized arguments: {' '.join(unknown)}; options of the check need --check"
        )
    _require_compatible(args, options)
    return args


def _require_compatible(args: argparse.Namespace, options: argparse.ArgumentParser) -> None:
    if not args.dry_run and args.output is None:
        options.error("give -o FILE for the folded model, or --dry-run")
    if args.dry_run and args.check:
        options.error("a dry run makes no model to check; leave out --dry-run or --check")
    if args.ranges and not args.equalize:
        options.error("--ranges has no effect without --equalize; give both")
    if args.target != "any" and not args.bn_free:
        options.error("--target has no effect without --bn-free; give both")
    if _is_store(args.model):
        if args.check or args.require_folded or args.ranges or len(args.report) > 1:
            options.error(
                "a store takes no --check, --require-folded or --ranges, and one --report FILE.json"
            )
        args.report = next(iter(args.report), None)
