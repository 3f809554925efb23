"""The last lines of a fold: where the model is, and what to do next."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from onnx_bnfold.api import Outcome
from onnx_bnfold.errors import printable
from onnx_bnfold.planning.record import Record
from onnx_bnfold.provenance import KEY
from onnx_bnfold.reasons import Reason

# Exporters that fold a BatchNormalization behind a layer: ``producer_name`` → what they are called.
_FOLDING_EXPORTERS = {"pytorch": "PyTorch", "tf2onnx": "tf2onnx"}
# What keeps a BatchNormalization from any other form.
_WITHOUT_FORM = {
    Reason.TRAINING_MODE,
    Reason.EXTRA_OUTPUTS,
    Reason.NOT_PER_CHANNEL,
    Reason.PARAMETERS_NOT_CONSTANT,
    Reason.OVERRIDABLE_INITIALIZER,
    Reason.FUNCTION_ATTRIBUTE,
    Reason.UNKNOWN_VERSION,
    Reason.NOT_FINITE,
    Reason.BAD_VARIANCE,
    Reason.INCONSISTENT_SHAPES,
    Reason.UNSUPPORTED_TYPE,
    Reason.EXCLUDED,
}


def origin(outcome: Outcome) -> Iterator[str]:
    """Yield why there is nothing to fold, if an earlier fold or the producer explains it."""
    if outcome.report.norms:
        return
    exporter = _FOLDING_EXPORTERS.get(outcome.original.producer_name)
    if any(item.key == KEY for item in outcome.original.metadata_props):
        yield "onnx-bnfold has folded this model before, as its metadata says"
    elif exporter:
        yield f"{exporter}, which has made this model, folds them when it exports one in eval mode"


def closing(outcome: Outcome, args: argparse.Namespace) -> Iterator[str]:
    """Yield the last lines of a fold that is done.

    Args:
        outcome: the fold.
        args: its model, output and options.
    """
    report = outcome.report
    if not args.bn_free and any(map(_may_have_a_form, report.left)):
        yield (
            "next: where a BatchNormalization is not welcome, --bn-free gives what stays another "
            "exact form"
        )
    if args.dry_run:
        yield "nothing is written in a dry run"
        return
    changed = outcome.pipeline.alters
    what = "written" if changed else "written, with nothing changed"
    yield printable(f"{what}: {_and_data(args.output, outcome.files)}")
    if changed and not args.check and args.shown == args.model:  # no temporary copy
        yield printable(f"next: compare both: {_command('check', args.model, args.output)}")


def _and_data(output: str, files: Sequence[Path]) -> str:
    """Return the path of a model, and those of the data files that have to stay beside it."""
    folder = os.path.dirname(output)
    data = [os.path.join(folder, path.name) for path in files[1:]]
    return f"{output} with its data in {', '.join(data)}" if data else output


def _may_have_a_form(record: Record) -> bool:
    refusal = record.refusal
    return refusal is None or not (refusal.reason in _WITHOUT_FORM or record.not_written)


def _command(*words: str) -> str:
    return shlex.join(["onnx-bnfold", *words])
