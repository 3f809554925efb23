"""The report of a store as one HTML page: what became of each model, and why BNs stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

from onnx_bnfold.batch.file_outcome import FileOutcome
from onnx_bnfold.batch.report import StoreReport
from onnx_bnfold.check.options import CheckOptions
from onnx_bnfold.options import Options
from onnx_bnfold.reports.figures_section import card, cards
from onnx_bnfold.reports.files_section import given_options, save_button
from onnx_bnfold.reports.html import document
from onnx_bnfold.reports.later import Later
from onnx_bnfold.reports.markup import Element, el, pill, spaced, table
from onnx_bnfold.reports.reasons_section import Stays, reasons_list

_KINDS = {"failed": "bad", "gone": "kept", "folded": "good", "planned": "good"}


def page(report: StoreReport) -> str:
    """Return the page of a report."""
    body = list(_sections(report))
    return document("fold of a folder of models", body, report.to_data(), Later())


def _sections(report: StoreReport) -> Iterator[Element]:
    yield _header(report)
    if errors := report.errors():
        title = el("h2", f"Failed: {len(errors)}")
        failures = (el("li", text.removeprefix("failed  ")) for text in errors)
        yield el("section", title, el("ul", *failures), id="failures")
    yield _models(report)
    if kept := report.reasons():
        reasons = [Stays(code, number) for code, number in kept.most_common()]
        title = el("h2", "Why BatchNormalizations stay")
        yield el("section", title, reasons_list(reasons, "BN"), id="reasons")
    yield _footer(report)


def _header(report: StoreReport) -> Element:
    number = len(report.models)
    outcomes = Counter((outcome.said, _kind(outcome)) for outcome in report.models)
    pills = [pill(f"{count} {said}", kind) for (said, kind), count in sorted(outcomes.items())]
    title = el("h1", f"{number} model{'' if number == 1 else 's'}")
    kicker = el("p", "BatchNormalization fold of a folder", class_="kicker")
    return el("header", kicker, title, el("p", *spaced(pills), class_="pills"))


def _models(report: StoreReport) -> Element:
    counts = [outcome.counts for outcome in report.models if outcome.counts]
    figures = []
    if counts:
        norms, folded = sum(c.norms for c in counts), sum(c.folded for c in counts)
        figures.append(card("BatchNormalizations", norms, norms - folded))
        for what in ("nodes", "bytes"):
            pairs = [(getattr(c, f"{what}_before"), getattr(c, f"{what}_after")) for c in counts]
            if all(before is not None for before, _ in pairs):
                figures.append(card(what, *map(sum, zip(*pairs, strict=True))))
    is_checked = any(outcome.check for outcome in report.models)
    heads = ["model", "outcome", "BatchNormalizations", "nodes", "bytes", "why they stay"]
    heads += ["check"] if is_checked else []
    rows = [_row(outcome)[: len(heads)] for outcome in report.models]
    return el(
        "section", el("h2", "Models"), cards(figures), table(heads, rows, {2, 3, 4}), id="models"
    )


def _footer(report: StoreReport) -> Element:
    settings = report.settings
    notes = [
        given_options(settings["options"], asdict(Options())),
        f"onnx_bnfold {settings['version']}.",
    ]
    if settings.get("check") is not None:
        told = given_options(settings["check"], asdict(CheckOptions()))
        notes.insert(1, f"Check: {told[0].lower()}{told[1:]}")
    return el(
        "footer", el("h2", "Versions"), *(el("p", note, class_="note") for note in notes),
        save_button(), id="files",
    )  # fmt: skip


def _kind(outcome: FileOutcome) -> str:
    return "quiet" if outcome.skipped else _KINDS.get(outcome.status, "quiet")


def _row(outcome: FileOutcome) -> list[Element | str]:
    start: list[Element | str] = [el("code", outcome.name), pill(outcome.said, _kind(outcome))]
    counts = outcome.counts
    if counts is None:
        return [*start, *[""] * 5]
    reasons = Counter(outcome.reasons).most_common()
    return [
        *start,
        f"{counts.norms} → {counts.norms - counts.folded if counts.left is None else counts.left}",
        _change(counts.nodes_before, counts.nodes_after),
        _change(counts.bytes_before, counts.bytes_after),
        ", ".join(f"{number} {code}" for code, number in reasons),
        outcome.check or "",
    ]


def _change(before: int | None, after: int | None) -> str:
    return "" if before is None else f"{before:,} → {after:,}"
