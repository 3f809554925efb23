"""The check command."""

from __future__ import annotations

import argparse

from onnx_bnfold.check.api import check
from onnx_bnfold.check.options import CheckOptions
from onnx_bnfold.check.results import CheckResult
from onnx_bnfold.check.text import render_text
from onnx_bnfold.cli.console import options_of, show_progress, tell, tell_reports
from onnx_bnfold.errors import CheckFailed


def run(args: argparse.Namespace) -> None:
    """Compare two models.

    Args:
        args: original, folded, report (paths), quiet and the options of the check.

    Raises:
        CheckFailed: a gate does not hold; the reports are written.
        ModelError, UsageError: a model, a file or an option cannot be used.
    """
    show_progress(quiet=args.quiet)
    result = _checked(args)
    if not args.quiet:
        tell(render_text(result).rstrip())
    tell_reports(args.report, quiet=args.quiet)
    if not result.holds:
        raise CheckFailed("; ".join(result.failures))


def _checked(args: argparse.Namespace) -> CheckResult:
    options = options_of(CheckOptions, args)
    if not args.report:
        return check(args.original, args.folded, options)
    from onnx_bnfold.reports.data import check_report
    from onnx_bnfold.reports.files import require_writable, write

    require_writable(args.report, taken=(args.original, args.folded))
    result = check(args.original, args.folded, options)
    data = check_report(result).to_dict()
    for path in args.report:
        write(path, data)
    return result
