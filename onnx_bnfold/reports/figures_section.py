"""Figures of a model or of many, before and after, as cards."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_bnfold.reports.markup import Element, el


def cards(figures: Sequence[Element]) -> Element:
    """Return cards side by side."""
    return el("div", *figures, class_="cards")


def card(label: str, before: int | None, after: int | None) -> Element:
    """Return the card of a figure; None if it is not known."""
    if before is None or after is None:
        return el("div", el("h3", label), el("p", "not known", class_="now"), class_="card")
    text = "unchanged" if before == after else f"from {_short(before)} ({_change(before, after)})"
    return el(
        "div", el("h3", label), el("p", _short(after), class_="now"), el("p", text, class_="was"),
        class_="card", title=f"{before:,} → {after:,}",
    )  # fmt: skip


def _change(before: int, after: int) -> str:
    percent = 100 * (after - before) / max(before, 1)
    text = f"{percent:+.1f} %" if abs(percent) >= 0.05 else f"{after - before:+,}"
    return text.replace("-", "−")


def _short(number: int) -> str:
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number:,}"
