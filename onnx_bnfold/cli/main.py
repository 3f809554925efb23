"""The command line: results go to stdout, messages to stderr; the exit code is 0, 1, 2 or 130."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from onnx_bnfold.cli.parser import CHECK, is_url, read_check, read_fold
from onnx_bnfold.errors import BnFoldError, CheckFailed, printable
from onnx_bnfold.interrupts import EXIT_CODE, held_back
from onnx_bnfold.process_memory import collect_rarely, keep_freed_memory
from onnx_bnfold.provenance import begin_hashing


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
        if words[:1] == [CHECK]:
            return _check(words[1:])
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


def _check(words: Sequence[str]) -> int:
    args = read_check(words)
    with held_back():
        from onnx_bnfold.cli.check import run

    run(args)
    return 0


def _fold(words: Sequence[str], keep: Callable[[object], None] | None) -> int:
    args = read_fold(words)
    _begin(args)
    with held_back():
        from onnx_bnfold.cli.console import options_of
        from onnx_bnfold.cli.fold import run
        from onnx_bnfold.options import Options

    options = options_of(Options, args)
    is_url_of_one = args.is_store and is_url(args.model) and _is_single(args.model)
    if args.is_store and not is_url_of_one:
        with held_back():
            from onnx_bnfold.cli.batch import run as run_store

        return run_store(args, options)
    if is_url_of_one:
        with held_back():
            from onnx_bnfold.cli.single import run
    outcome = run(args, options)
    if keep:
        keep(outcome)
    return 0


def _is_single(url: str) -> bool:
    with held_back():
        from onnx_bnfold.batch.single import is_single

    return is_single(url)


def _begin(args: argparse.Namespace) -> None:
    """Prepare the process, and start hashing the source, before numpy and onnx are imported."""
    keep_freed_memory()
    collect_rarely()
    if not args.check:
        # A fold multiplies no matrices, so starting OpenBLAS's threads would be wasted time.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    writes = args.output and not args.dry_run
    if writes and args.metadata and not args.is_store:
        begin_hashing(args.model)
