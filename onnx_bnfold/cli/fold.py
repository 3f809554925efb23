"""The fold command: fold or plan one file, check the gates, print and write the reports.

The check and the reports are imported where they are used: most folds need neither.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_bnfold.api import Outcome, plan_file, write_folded
from onnx_bnfold.cli.console import check_options_of, show_progress, tell, tell_reports
from onnx_bnfold.errors import CheckFailed, printable
from onnx_bnfold.options import Options
from onnx_bnfold.storage.writer import check_target

if TYPE_CHECKING:
    from onnx_bnfold.check import CheckOptions, CheckResult
    from onnx_bnfold.reports import FoldReport


def run(args: argparse.Namespace, options: Options) -> Outcome | None:
    """Fold one model file, or plan it.

    Args:
        args: model and how it is shown, output, dry_run, sync, require_all, require_folded,
            quiet, verbose, report (paths) and check; if that is set, the options of the check, too.
        options: of the fold.

    Returns:
        The outcome of the fold; None for a plan.

    Raises:
        CheckFailed: a gate does not hold; the reports are written, the model is not.
        ModelError: the model cannot be read or is invalid.
        UsageError: a path or an option cannot be used.
    """
    if args.output is not None and not args.dry_run:
        check_target(Path(args.output), {args.model})
    if args.report:
        from onnx_bnfold.reports import require_writable

        require_writable(args.report, taken=(args.model, args.output))
    show_progress(quiet=args.quiet)
    command = _FoldCommand(args)
    inspect, outcome = command.inspect if command.asks else None, None
    try:
        if args.dry_run:
            plan_file(args.model, options, inspect=inspect)
        else:
            outcome = write_folded(
                args.model, args.output, options, inspect=inspect, sync=args.sync
            )
    except CheckFailed:
        command.finish(written=False)
        raise
    command.finish(written=not args.dry_run)
    return outcome


class _FoldCommand:
    """What one run of the command says about its fold.

    Attributes:
        check: the result of the check, if one ran.
        report: the content of the report files, if any are asked for.
        text: lines to print.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.check: CheckResult | None = None
        self.report: FoldReport | None = None
        self.text: list[str] = []
        self.check_options = check_options_of(args)

    @property
    def asks(self) -> bool:
        """Whether anybody wants to know what was folded."""
        args = self.args
        gates = args.check or args.require_all or args.require_folded
        return bool(gates or args.report or not args.quiet)

    def inspect(self, outcome: Outcome) -> None:
        """Check the outcome, and collect what to print and report.

        Raises:
            CheckFailed: a gate does not hold.
        """
        if not self.args.quiet:
            self.text = list(self._told(outcome))
        failures = self._failures(outcome)
        if self.args.report:
            from onnx_bnfold.reports import fold_report

            sizes = {} if self.check_options is None else self.check_options.shapes
            self.report = fold_report(outcome, sizes, self.check)
        if failures:
            if self.args.output and not self.args.quiet:
                self.text.append(printable(f"not written: {self.args.output}"))
            raise CheckFailed("; ".join(failures))
        if not self.args.quiet:
            from onnx_bnfold.cli.closing import closing

            self.text += closing(outcome, self.args)

    def finish(self, *, written: bool) -> None:
        """Print, and write the reports.

        Args:
            written: whether the model was written.
        """
        if not self.args.quiet:
            tell("\n".join(self.text))
        if self.report is not None:
            from onnx_bnfold.reports import write

            data = replace(self.report, written=written).to_dict()
            for path in self.args.report:
                write(path, data, sync=self.args.sync)
            tell_reports(self.args.report, quiet=self.args.quiet)

    def _told(self, outcome: Outcome) -> Iterator[str]:
        from onnx_bnfold.cli.closing import origin
        from onnx_bnfold.report_text import long_lines, short_lines

        yield from (long_lines if self.args.verbose else short_lines)(outcome.report)
        yield outcome.report.summary()
        yield from origin(outcome)

    def _failures(self, outcome: Outcome) -> list[str]:
        failures = self._unmet_requirements(outcome)
        if self.check_options is not None and not failures:
            self.check = self._checked(outcome, self.check_options)
            failures += self.check.failures
        return failures

    def _unmet_requirements(self, outcome: Outcome) -> list[str]:
        args = self.args
        if not (args.require_all or args.require_folded):
            return []
        from onnx_bnfold.report_text import unmet

        found = unmet(outcome.report, all_go=args.require_all, none_goes=args.require_folded)
        return [f"{args.shown}: {sentence}" for sentence in found]

    def _checked(self, outcome: Outcome, options: CheckOptions) -> CheckResult:
        from onnx_bnfold.check import check, render_text

        assert outcome.path is not None
        changes = outcome.pipeline.changes()
        result = check(self.args.model, outcome.path, options, changes=changes)
        staged, target = str(outcome.path), str(self.args.output)
        failures = tuple(failure.replace(staged, target) for failure in result.failures)
        result = replace(result, original=self.args.shown, folded=target, failures=failures)
        self.text += ["", *render_text(result).splitlines()]
        return result
