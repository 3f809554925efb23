"""Why nodes stay: each reason with how many there are, an example, and what one can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_bnfold.advice import ADVICE
from onnx_bnfold.reasons import Reason
from onnx_bnfold.reports.markup import Element, el, spaced

_WIDTH = 120  # of the longest bar, in pixels


@dataclass(frozen=True)
class Stays:
    """A reason for which nodes stay.

    Attributes:
        reason: its code.
        count: how many nodes.
        example: what is in the way of one of them, if that is known.
        link: to the nodes, if the page lists them.
    """

    reason: str
    count: int
    example: Sequence[Element | str] = ()
    link: str | None = None


def reasons_list(reasons: Sequence[Stays], what: str) -> Element:
    """Return the list of reasons.

    Args:
        reasons: at least one, the most frequent first.
        what: such a node is called.
    """
    most = max(each.count for each in reasons)
    return el("ul", *(_entry(each, most, what) for each in reasons), class_="reasons")


def _entry(stays: Stays, most: int, what: str) -> Element:
    length = max(round(_WIDTH * stays.count / most), 2)
    bar = el("svg", el("rect", width=length, height=8, rx=2), class_="bar", width=length, height=8,
             aria_hidden="true")  # fmt: skip
    parts = [
        el("code", stays.reason, class_="reason"),
        el("strong", f"{stays.count:,} {what}{'' if stays.count == 1 else 's'}"),
        bar,
    ]
    if stays.link is not None:
        parts.append(el("a", f"show {stays.count:,} in the list", href=stays.link))
    lines = [el("p", *spaced(parts), class_="head")]
    if stays.example:
        lines.append(el("p", "For example, ", *stays.example, "."))
    advice = ADVICE[Reason(stays.reason)]
    lines.append(el("p", el("strong", "What you can do: "), f"{advice}.", class_="advice"))
    return el("li", *lines)
