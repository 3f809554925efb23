"""The fold command for a store: what it does if its model is a folder or a URL."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, main_thread

from onnx_bnfold.batch.report import StoreReport
from onnx_bnfold.batch.run import fold_store, plan_store
from onnx_bnfold.cli.console import show_progress, tell
from onnx_bnfold.errors import UsageError
from onnx_bnfold.interrupts import EXIT_CODE
from onnx_bnfold.options import Options
from onnx_bnfold.storage.files import OutputFile


def run(args: argparse.Namespace, options: Options) -> int:
    """Fold a store.

    Args:
        args: model, output, dry_run, require_all, quiet, report (paths), and the options of
            ``store_arguments``.
        options: of each fold.

    Returns:
        The exit code: 0 if everything is done, 1 if a file failed, 130 after Ctrl-C or SIGTERM.

    Raises:
        UsageError: input or output cannot be used.
    """
    try:
        return _run(args, options)
    except KeyboardInterrupt:
        print("onnx-bnfold: interrupted; run the same command again to continue", file=sys.stderr)
        return EXIT_CODE


def _run(args: argparse.Namespace, options: Options) -> int:
    if args.check or args.require_folded or args.ranges or len(args.report) > 1:
        raise UsageError(
            "a store takes no --check, --require-folded or --ranges, and one --report FILE.json"
        )
    args.report = next(iter(args.report), None)
    show_progress(quiet=args.quiet)
    if args.report is not None:
        _check_report(args.report)
    with _terminated_like_interrupted():
        report = _report(args, options)
    code = _tell(report, args)
    if args.report is not None:
        with OutputFile(Path(args.report)) as file:
            file.write(report.to_json().encode())
            file.commit(Path(args.report))
    return code


def _check_report(path: str) -> None:
    from onnx_bnfold.reports import require_writable

    if not path.lower().endswith(".json"):
        raise UsageError(f"{path}: the report of a store is JSON; give a name that ends in .json")
    require_writable([path])


def _report(args: argparse.Namespace, options: Options) -> StoreReport:
    if args.dry_run:
        return plan_store(
            args.model, options, jobs=args.jobs, dask=args.dask, require_all=args.require_all
        )
    return fold_store(
        args.model,
        args.output,
        options,
        jobs=args.jobs,
        dask=args.dask,
        state=args.state,
        require_all=args.require_all,
    )


def _tell(report: StoreReport, args: argparse.Namespace) -> int:
    if not args.quiet:
        tell("\n".join([*report.lines(), report.summary()]))
    for error in report.errors():
        print(f"onnx-bnfold: {error}", file=sys.stderr)
    return 1 if report.failed else 0


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
