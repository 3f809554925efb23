"""The fold command for a store: what it does if its model is a folder or a URL."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread

from onnx_bnfold.batch.locations import STATE
from onnx_bnfold.batch.report import StoreReport, listed
from onnx_bnfold.batch.run import fold_store, plan_store
from onnx_bnfold.cli.console import check_options_of, show_progress, tell, tell_reports
from onnx_bnfold.errors import UsageError, printable
from onnx_bnfold.interrupts import EXIT_CODE
from onnx_bnfold.options import Options
from onnx_bnfold.reasons import Reason
from onnx_bnfold.report_text import advice


def run(args: argparse.Namespace, options: Options) -> int:
    """Fold a store.

    Args:
        args: model, output, dry_run, sync, require_all, require_folded, quiet, verbose, report
            (paths), check, and the options of ``store_arguments``.
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
    if args.ranges:
        raise UsageError("a folder of models takes no --ranges, which fit one model")
    if args.require_folded and not args.dry_run:
        raise UsageError("--require-folded asks for nothing to fold; give --dry-run with it")
    if args.report:
        from onnx_bnfold.reports.files import require_writable

        require_writable(args.report)
    show_progress(quiet=args.quiet)
    with _terminated_like_interrupted():
        report = _report(args, options)
    _tell(report, args)
    for path in args.report:
        from onnx_bnfold.batch.saving import write

        write(report, path, sync=args.sync)
    tell_reports(args.report, quiet=args.quiet)
    if report.failed and not args.quiet and (what := _next(args)):
        tell(f"next: {what}")
    return 1 if report.failed else 0


def _next(args: argparse.Namespace) -> str | None:
    """Return what to do if something has failed."""
    if not args.dry_run:
        return "put right what failed and run the same command again; it does what is not done yet"
    if args.require_folded:  # what is to be folded has failed
        return None
    return "put right what failed; a fold does the rest all the same"


def _report(args: argparse.Namespace, options: Options) -> StoreReport:
    if args.dry_run:
        return plan_store(
            args.model,
            options,
            jobs=args.jobs,
            dask=args.dask,
            require_all=args.require_all,
            require_folded=args.require_folded,
        )
    return fold_store(
        args.model,
        args.output,
        options,
        jobs=args.jobs,
        dask=args.dask,
        state=args.state,
        require_all=args.require_all,
        check=check_options_of(args),
        prune=args.prune,
        sync=args.sync,
    )


def _lines(report: StoreReport, args: argparse.Namespace) -> Iterator[str]:
    yield from report.lines(reasons=args.verbose)
    if kept := report.reasons():
        yield f"kept    {sum(kept.values())} BatchNormalization: {listed(kept)}"
        yield from advice(map(Reason, sorted(kept)))
    if args.dry_run:
        yield "nothing is written in a dry run"
    elif all(outcome.status in ("failed", "gone") for outcome in report.outcomes):
        yield printable(f"nothing was written: {args.output}")
    else:
        state = args.state or f"{args.output.rstrip('/')}{STATE}"
        yield printable(f"written: {args.output}; what is done is recorded in {state}")


def _tell(report: StoreReport, args: argparse.Namespace) -> None:
    if not args.quiet:
        tell("\n".join([*_lines(report, args), report.summary()]))
    for error in report.errors():
        print(f"onnx-bnfold: {error}", file=sys.stderr)


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
