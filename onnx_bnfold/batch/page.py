"""The report of a store as one HTML page: what became of each model, and why BNs stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from onnx_bnfold.advice import ADVICE
from onnx_bnfold.batch.file_outcome import FileOutcome
from onnx_bnfold.batch.report import StoreReport
from onnx_bnfold.reasons import Reason
from onnx_bnfold.reports.html import document
from onnx_bnfold.reports.markup import Element, el, pill, table

_KINDS = {"failed": "bad", "gone": "kept", "folded": "good", "planned": "good"}


def page(report: StoreReport) -> str:
    """Return the page of a report."""
    return document("fold of a folder of models", list(_sections(report)), report.to_data())


def _sections(report: StoreReport) -> Iterator[Element]:
    kicker = el("p", "BatchNormalization fold", class_="kicker")
    yield el("header", kicker, el("h1", report.summary()))
    if errors := report.errors():
        title = el("h2", f"Failed: {len(errors)}")
        yield el("section", title, el("ul", *(el("li", text) for text in errors)), id="failures")
    heads = ["model", "", "BatchNormalizations", "nodes", "bytes", "why they stay"]
    rows = [_row(outcome) for outcome in report.models]
    yield el("section", el("h2", "Models"), table(heads, rows, {2, 3, 4}))
    if kept := report.reasons():
        heads = ["reason", "BatchNormalizations", "what you can do"]
        lines: list[list[Element | str]] = [
            [el("span", code, class_="reason"), f"{number:,}", ADVICE[Reason(code)]]
            for code, number in kept.most_common()
        ]
        yield el("section", el("h2", "Why BatchNormalizations stay"), table(heads, lines, {1}))
    yield el("footer", f"onnx_bnfold {report.settings['version']}", class_="lead")


def _row(outcome: FileOutcome) -> list[Element | str]:
    kind = "quiet" if outcome.skipped else _KINDS.get(outcome.status, "quiet")
    start: list[Element | str] = [el("code", outcome.name), pill(outcome.said, kind)]
    counts = outcome.counts
    if counts is None:
        return [*start, "", "", "", ""]
    reasons = Counter(outcome.reasons).most_common()
    return [
        *start,
        f"{counts.norms} → {counts.norms - counts.folded if counts.left is None else counts.left}",
        _change(counts.nodes_before, counts.nodes_after),
        _change(counts.bytes_before, counts.bytes_after),
        ", ".join(f"{code} {number}" for code, number in reasons),
    ]


def _change(before: int | None, after: int | None) -> str:
    return "" if before is None else f"{before:,} → {after:,}"
