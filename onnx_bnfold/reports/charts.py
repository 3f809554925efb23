"""Charts of one row per output or model; they are as wide as the page is.

A row is a name, a track in which the value is drawn, and the value. Positions in the track are
percentages, so nothing is scaled that is to be read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from onnx_bnfold.reports.markup import Data, Element, el

_EDGE = 6  # per cent of the track; a label that is nearer to its end begins or ends there


@dataclass(frozen=True)
class Axis:
    """Maps values to positions, in per cent of the track or in pixels.

    Attributes:
        low, high: values at the ends.
        start, stop: positions of the ends.
        is_log: whether the axis is logarithmic.
    """

    low: float
    high: float
    start: float = 0
    stop: float = 100
    is_log: bool = True

    def at(self, value: float) -> float:
        """Return the position of a value, clamped to the axis."""
        low, high, here = (self._scaled(v) for v in (self.low, self.high, value))
        part = (here - low) / (high - low) if high > low else 0.5
        return round(self.start + min(max(part, 0.0), 1.0) * (self.stop - self.start), 2)

    def decades(self) -> Iterator[tuple[float, float]]:
        """Yield up to ten powers of ten within the axis, with their positions."""
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        step = -(-(last - first + 1) // 10) or 1
        for exponent in range(first, last + 1, step):
            yield 10.0**exponent, self.at(10.0**exponent)

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.is_log else value


def noise_chart(outputs: Sequence[Data], factor: float) -> Element:
    """Draw, per output, the difference of both models in units of the rounding noise.

    Args:
        outputs: of the check.
        factor: the least limit; an output may have a larger one.
    """
    limits = [factor if output["limit"] is None else output["limit"] for output in outputs]
    largest = max([*(output["times_noise"] or 0 for output in outputs), *limits])
    axis = Axis(0.01, max(100.0, 2 * largest), 1.5, 98.5)
    rows = [_noise_row(*pair, axis) for pair in zip(outputs, limits, strict=True)]
    limit = f"limit = {factor:g}" + (" or more" if max(limits) > factor else "")
    ticks = [
        *(_label(f"{value:g}", x, 10) for value, x in axis.decades()),
        _label("rounding noise = 1", axis.at(1), 28),
        _label(limit, axis.at(factor), 45, "tick over"),
    ]
    return _rows([*rows, _axis(ticks, 54)])


def _noise_row(output: Data, limit: float, axis: Axis) -> Element:
    times = math.inf if output["times_noise"] is None else output["times_noise"]
    kind = "good" if output["holds"] else "bad"
    text = f"{times:.2g} × noise" if times else "exact"
    at, far, noise = axis.at(times), axis.at(limit), axis.at(1)
    parts = [
        _rect(0, far, 0, 34, class_="safe"),
        _rect(far, 100 - far, 0, 34, class_="unsafe"),
        *(_line(x, 0, 34, class_="grid") for _, x in axis.decades()),
        _line(noise, 0, 34, class_="grid strong"),
        _line(far, 0, 34, class_="limit"),
        el("line", x1="0%", x2=f"{at}%", y1=17, y2=17, class_=f"stem {kind}"),
        el("circle", cx=f"{at}%", cy=17, r=6, class_=kind),
    ]
    track = _track(parts, 34, f"{output['name']}: {text}, limit {limit:.3g}")
    return _row(output["name"], track, text, kind)


def latency_chart(mode: Data) -> Element:
    """Draw the timed runs of both models in one mode, with medians and 10 to 90 % ranges."""
    models = [("original", mode["original"]), ("folded", mode["folded"])]
    runs = [ms for _, timing in models for ms in timing["samples_ms"]]
    last = sorted(runs)[int(0.98 * (len(runs) - 1))]
    axis = Axis(min(runs), last, 1, 99, is_log=False)
    rows = [_timing_row(name, timing, axis) for name, timing in models]
    values = (axis.low, (axis.low + axis.high) / 2, axis.high)
    ticks = [_label(f"{ms:.3g} ms", axis.at(ms), 10) for ms in dict.fromkeys(values)]
    return _rows([*rows, _axis(ticks, 18)])


def _timing_row(name: str, timing: Data, axis: Axis) -> Element:
    low, high, median = (axis.at(timing[key]) for key in ("low_ms", "high_ms", "median_ms"))
    parts = [_rect(low, round(max(high - low, 0.1), 2), 2, 30, rx=3, class_=f"spread {name}")]
    for i, ms in enumerate(timing["samples_ms"]):
        if ms <= axis.high:
            y = round(17 + (i * 7 % 11 - 5) * 2.2, 2)  # so that equal times do not hide each other
            parts.append(el("circle", cx=f"{axis.at(ms)}%", cy=y, r=1.8, class_=f"run {name}"))
    parts.append(_line(median, 0, 34, class_=f"median {name}"))
    text = f"{timing['median_ms']:.3g} ms"
    spread = f"10 to 90 % of the runs from {timing['low_ms']:.3g} to {timing['high_ms']:.3g} ms"
    return _row(name, _track(parts, 34, f"{name}: median {text}, {spread}"), text, "")


# --- parts ----------------------------------------------------------------------------------


def _rows(rows: Sequence[Element]) -> Element:
    return el("div", *rows, class_="rows")


def _row(name: str, track: Element, value: str, kind: str) -> Element:
    return el(
        "div", el("code", name), track, el("strong", value, class_=f"value {kind}"), class_="row"
    )


def _axis(ticks: Sequence[Element], height: int) -> Element:
    track = el("svg", *ticks, width="100%", height=height, class_="track")
    return el("div", track, class_="row axis", aria_hidden="true")


def _track(parts: Sequence[Element], height: int, spoken: str) -> Element:
    title = el("title", spoken)
    return el(
        "svg", title, *parts, width="100%", height=height, class_="track", role="img",
        aria_label=spoken,
    )  # fmt: skip


def _rect(x: float, width: float, y: float, height: float, **attributes: object) -> Element:
    return el("rect", x=f"{x}%", width=f"{width:.5g}%", y=y, height=height, **attributes)


def _line(x: float, y: float, end: float, **attributes: object) -> Element:
    return el("line", x1=f"{x}%", x2=f"{x}%", y1=y, y2=end, **attributes)


def _label(text: str, x: float, y: float, kind: str = "tick") -> Element:
    """Return a label of an axis that stays within the track."""
    anchor = "middle"
    if len(text) > 9:
        anchor = "start" if x < 50 else "end"
    elif not _EDGE <= x <= 100 - _EDGE:
        anchor = "start" if x < _EDGE else "end"
    return el("text", text, x=f"{x}%", y=y, class_=f"{kind} {anchor}")
