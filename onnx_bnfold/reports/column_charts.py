"""Charts of a column per layer or tensor: what it was, and what it is.

They fill the page, and are wider than it, and scroll, where the columns would become too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_bnfold.reports.charts import Axis
from onnx_bnfold.reports.markup import Data, Element, el, scrolling

_LARGEST_SPAN = 14  # most decades in a chart
_HEIGHT = 220  # pixels
_FEWEST, _LEAST_WIDTH, _WIDEST = 20, 6, 4000  # columns, pixels of one, pixels of all
_MOST_TITLES = 300  # columns that say what they are when they are pointed at
_KINDS = ("before", "after")
_SLOT = 10  # units of a column, of which a bar has 3.4
_CENTRES = (3, 7)  # of its two bars

Span = tuple[float, float]


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: what it is, and its values.
        before, after: lowest and highest value; None if there is none.
    """

    title: str
    before: Span | None
    after: Span | None


def weights_chart(layers: Sequence[Data]) -> Element:
    """Draw, per layer, the span from the smallest to the largest of its channels' peaks.

    Args:
        layers: at least one; their peaks must not be None.
    """
    columns = [_of_layer(layer) for layer in layers]
    ends = [value for c in columns for span in (c.before, c.after) if span for value in span]
    low = max(min(ends), max(ends) / 10**_LARGEST_SPAN)
    return _drawn(
        columns, low, max(ends), "layers that took a scale or a shift, in the order of the graph"
    )


def _of_layer(layer: Data) -> Column:
    spans = [(layer[f"quietest_{time}"], layer[f"largest_{time}"]) for time in _KINDS]
    told = (
        f"{time} {low:.3g} to {high:.3g}" for time, (low, high) in zip(_KINDS, spans, strict=True)
    )
    return Column(f"{layer['op']} {layer['name']}: {', '.join(told)}", *spans)


def ranges_chart(ranges: Sequence[Data]) -> Element:
    """Draw, per quantised activation, the span of its int8 codes in both models.

    Args:
        ranges: at least one.
    """
    widths = [
        {k: each[k][1] - each[k][0] for k in ("original", "folded") if each[k]} for each in ranges
    ]
    values = [value for width in widths for value in width.values() if value > 0] or [1.0]
    low = max(min(values) / 2, max(values) / 10**_LARGEST_SPAN)
    columns = []
    for each, width in zip(ranges, widths, strict=True):
        told = ", ".join(f"{key} {value:.3g}" for key, value in width.items())
        spans = [(low, width[k]) if k in width else None for k in ("original", "folded")]
        columns.append(Column(f"{each['tensor']}: {told}", *spans))
    return _drawn(columns, low, max(values), "quantised activations, in the order of the graph")


# --- drawing --------------------------------------------------------------------------------


def _drawn(columns: Sequence[Column], low: float, high: float, what: str) -> Element:
    axis = Axis(low / 1.3, high * 1.3, _HEIGHT, 0)
    slots = max(len(columns), _FEWEST)
    decades = list(axis.decades())
    lines = [el("line", x1="0%", x2="100%", y1=y, y2=y, class_="grid") for _, y in decades]
    bars = el(
        "svg", *_bars(columns, axis), x="0", y="0", width="100%", height=_HEIGHT,
        viewBox=f"0 0 {slots * _SLOT} {_HEIGHT}", preserveAspectRatio="none",
    )  # fmt: skip
    drawn = el(
        "svg", *lines, bars, width=min(slots * _LEAST_WIDTH, _WIDEST), height=_HEIGHT,
        class_="chart", role="img", aria_label=f"{what}, from {low:.3g} to {high:.3g}",
    )  # fmt: skip
    plot = el("div", _scale(decades), scrolling(drawn, what), class_="plot")
    return el("figure", plot, el("figcaption", f"{len(columns)} {what}"))


def _scale(decades: Sequence[tuple[float, float]]) -> Element:
    """Return the labels of the axis, which stay where they are when the chart scrolls."""
    labels = (
        el("text", f"{value:g}", x="100%", y=min(max(y, 6), _HEIGHT - 6), class_="tick end")
        for value, y in decades
    )
    return el("svg", *labels, width=36, height=_HEIGHT, class_="scale", aria_hidden="true")


def _bars(columns: Sequence[Column], axis: Axis) -> list[Element]:
    if len(columns) <= _MOST_TITLES:
        return [
            el("g", el("title", column.title), *_paths([(i, column)], axis))
            for i, column in enumerate(columns)
        ]
    return _paths(list(enumerate(columns)), axis)


def _paths(columns: Sequence[tuple[int, Column]], axis: Axis) -> list[Element]:
    """Return a path per kind; a bar is a line as broad as it."""
    drawn = []
    for kind, centre in zip(_KINDS, _CENTRES, strict=True):
        spans = ((i * _SLOT + centre, getattr(column, kind)) for i, column in columns)
        lines = "".join(f"M{x} {_ends(span, axis)}" for x, span in spans if span is not None)
        drawn.append(el("path", d=lines, class_=f"bars {kind}"))
    return drawn


def _ends(span: Span, axis: Axis) -> str:
    top, bottom = round(axis.at(span[1])), round(axis.at(span[0]))
    return f"{top}V{max(bottom, top + 2)}"
