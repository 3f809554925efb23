"""The command line of a store: what `onnx_bnfold` does when its model is a folder or a URL."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, main_thread

from onnx_bnfold.errors import BnFoldError, UsageError
from onnx_bnfold.folding import Options
from onnx_bnfold.storage.files import OutputFile
from onnx_bnfold.store.places import is_url
from onnx_bnfold.store.report import StoreReport
from onnx_bnfold.store.run import fold_store, plan_store

INTERRUPTED = 130  # the exit code that shells give Ctrl-C


def is_store(model: str) -> bool:
    """Tells whether what a user calls the model is a store."""
    return is_url(model) or os.path.isdir(model)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that only a store has."""
    group = parser.add_argument_group(
        "a store", "MODEL and -o may be folders or URLs (s3://..., any that fsspec can open)"
    )
    group.add_argument(
        "--jobs", type=_number, metavar="N", help="processes (default: one per processor)"
    )
    group.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="let the workers of this Dask scheduler do the work; they must see the same paths",
    )
    group.add_argument(
        "--state",
        metavar="DIR",
        help="folder of records and unfinished files, on the file system of the output "
        "(default: OUTPUT.onnx_bnfold)",
    )


def run(args: argparse.Namespace, options: Options) -> int:
    """Folds a store.

    Args:
        args: model, output, dry_run, require_all, quiet, report, and those of `add_arguments`.
        options: of each fold.

    Returns:
        0 if all is done; 1 if a file failed, or a BatchNormalization stays with `require_all`;
        130 after Ctrl-C or SIGTERM.

    Raises:
        UsageError: input or output cannot be used.
    """
    if args.report is not None and not Path(args.report).absolute().parent.is_dir():
        raise UsageError(f"{args.report}: its folder does not exist; create it first")
    try:
        with _terminated_like_interrupted():
            if args.dry_run:
                report = plan_store(args.model, options, jobs=args.jobs, dask=args.dask)
            else:
                report = fold_store(
                    args.model,
                    args.output,
                    options,
                    jobs=args.jobs,
                    dask=args.dask,
                    state=args.state,
                )
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    if args.report is not None:
        with OutputFile(Path(args.report)) as file:
            file.write(report.to_json().encode())
            file.commit(Path(args.report))
    return _tell(report, args)


def _tell(report: StoreReport, args: argparse.Namespace) -> int:
    if not args.quiet:
        print(*report.lines(), report.summary(), sep="\n", flush=True)
    errors = report.errors()
    if args.require_all and report.kept:
        errors.append(f"--require-all: {report.kept} BatchNormalization stay")
    print(*(f"onnx-bnfold: {error}\n" for error in errors), sep="", end="", file=sys.stderr)
    return 1 if errors else 0


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    if current_thread() is not main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _number(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("give at least 1")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line for stores alone; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m onnx_bnfold.store.cli")
    parser.add_argument("model")
    parser.add_argument("-o", "--output")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--require-all", action="store_true")
    parser.add_argument("--freeze-initializers", action="store_true")
    parser.add_argument("--report", metavar="FILE")
    parser.add_argument("-q", "--quiet", action="store_true")
    add_arguments(parser)
    args = parser.parse_args(argv)
    if not args.dry_run and args.output is None:
        parser.error("give -o DIR for the folded models, or --dry-run")
    try:
        return run(args, Options(freeze_initializers=args.freeze_initializers))
    except BnFoldError as error:
        print(f"onnx-bnfold: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
