"""Counts what goes and what stays on every network of the zoo, as a markdown table.

    python -m tools.count_folds [--models NAME ...] [--cache FOLDER] [--output FILE]

Both exporters, and each module as a local function; gamma positive and of mixed sign. The error is
the largest deviation of an output of a folded model, relative to the output's peak, in onnxruntime
without optimisations; nodes and the plan's processor time (the least of three) are those with
positive gamma.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import onnx
from onnx import ModelProto
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

import onnx_bnfold
from onnx_bnfold import Report
from tests import support, zoo
from tools.peers.tables import head, row, write

HEAD = (
    "network",
    "exporter",
    "BN",
    "removed, γ > 0",
    "kept",
    "removed, γ mixed",
    "kept",
    "error",
    "nodes",
    "plan, s",
)
REPEATS = 3


@dataclass(frozen=True)
class Counted:
    """One fold: its report, the error of its outputs, and the seconds of its plan.

    The error is NaN where onnxruntime does not load the original.
    """

    report: Report
    error: float
    seconds: float


def main() -> None:
    """Count and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", metavar="NAME", default=list(zoo.ENTRIES))
    parser.add_argument("--cache", type=Path, help="folder that keeps the exported networks")
    parser.add_argument("--output", type=Path, help="file for the table; default: stdout")
    options = parser.parse_args()
    lines = head(HEAD)
    for name, exporter in product(options.models, zoo.FORMS):
        lines.append(_line(name, exporter, options.cache))
        print(lines[-1], file=sys.stderr)
    write(lines, options.output)


def _line(name: str, exporter: str, cache: Path | None) -> str:
    positive, mixed = (
        _counted(onnx.load(zoo.exported(name, exporter, mixed=mixed, folder=cache)))
        for mixed in (False, True)
    )
    report = positive.report
    cells = [
        name,
        exporter,
        str(len(report.norms)),
        str(len(report.folded)),
        _reasons(report),
        str(len(mixed.report.folded)),
        _reasons(mixed.report),
        f"{max(positive.error, mixed.error):.0e}",
        f"{report.nodes_before} → {report.nodes_after}",
        f"{positive.seconds:.2f}",
    ]
    return row(cells)


def _counted(model: ModelProto) -> Counted:
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        onnx_bnfold.plan(model)
        seconds.append(time.process_time() - start)
    folded, report = onnx_bnfold.fold(model)
    feeds = support.feeds_for(model)
    try:
        expected = support.run(model, feeds)
    except Fail:
        return Counted(report, math.nan, min(seconds))
    outputs = zip(expected, support.run(folded, feeds), strict=True)
    error = max(support.error(before, after) for before, after in outputs)
    return Counted(report, error, min(seconds))


def _reasons(report: Report) -> str:
    reasons = Counter(record.refusal.reason.value for record in report.kept if record.refusal)
    return ", ".join(f"{number} {reason}" for reason, number in reasons.most_common()) or "–"


if __name__ == "__main__":
    main()
