"""The charts of the page, as SVG; names from the model appear as labels and tool tips only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from onnx_bnfold.reports.markup import Data, Element, el, shortened

_LARGEST_SPAN = 14  # most decades of weights in a chart
_RANGES_CAPTION = "quantised activations, in the order of the graph"
_WEIGHTS_CAPTION = "layers that took a scale or a shift, in the order of the graph"


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels.

    Attributes:
        low, high: values at the ends.
        start, stop: pixels of the ends.
        is_log: whether the axis is logarithmic.
    """

    low: float
    high: float
    start: float
    stop: float
    is_log: bool = True

    def at(self, value: float) -> float:
        """Return the pixel of a value, clamped to the axis."""
        low, high, here = (self._scaled(v) for v in (self.low, self.high, value))
        part = (here - low) / (high - low) if high > low else 0.5
        return round(self.start + min(max(part, 0.0), 1.0) * (self.stop - self.start), 2)

    def decades(self) -> Iterator[tuple[float, float]]:
        """Yield up to ten powers of ten within the axis, with their pixels."""
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        step = -(-(last - first + 1) // 10) or 1
        for exponent in range(first, last + 1, step):
            yield 10.0**exponent, self.at(10.0**exponent)

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.is_log else value


def svg(*parts: Element, width: int, height: int, label: str) -> Element:
    """Return an SVG element; ``label`` describes it to screen readers."""
    return el(
        "svg", *parts, class_="chart", viewBox=f"0 0 {width} {height}", width=width, role="img",
        aria_label=label,
    )  # fmt: skip


def noise_chart(outputs: Sequence[Data], factor: float) -> Element:
    """Draw, per output, the difference of both models in units of the rounding noise.

    Args:
        outputs: of the check.
        factor: the least limit; an output may have a larger one.
    """
    width, left, row = 1036, 210, 34
    height = row * len(outputs) + 52
    limits = [factor if output["limit"] is None else output["limit"] for output in outputs]
    largest = max([*(output["times_noise"] or 0 for output in outputs), *limits])
    axis = Axis(0.01, max(100.0, 2 * largest), left, width - 90)
    noise, bottom = axis.at(1), height - 40
    parts = [
        *(_limit(axis, limit, 6 + row * i, row) for i, limit in enumerate(limits)),
        el("line", x1=noise, x2=noise, y1=6, y2=bottom, class_="grid strong"),
        *_ticks(axis, bottom),
        el("text", "rounding noise = 1", x=noise - 4, y=height - 9, class_="tick end"),
        el(
            "text",
            f"limit = {factor:g}" + (" or more" if max(limits) > factor else ""),
            x=axis.at(factor) + 4,
            y=height - 9,
            class_="tick start over",
        ),
    ]
    for i, (output, limit) in enumerate(zip(outputs, limits, strict=True)):
        parts += _noise_row(output, limit, axis, 6 + row * (i + 0.5))
    return svg(*parts, width=width, height=height, label="difference in units of rounding noise")


def _limit(axis: Axis, limit: float, y: float, height: float) -> Element:
    """Draw the ranges below and above the limit of one output."""
    at = axis.at(limit)
    return el(
        "g",
        el("rect", x=axis.start, y=y, width=at - axis.start, height=height, class_="safe"),
        el("rect", x=at, y=y, width=axis.stop - at, height=height, class_="unsafe"),
        el("line", x1=at, x2=at, y1=y, y2=y + height, class_="limit"),
    )


def _noise_row(output: Data, limit: float, axis: Axis, y: float) -> Iterator[Element]:
    times = math.inf if output["times_noise"] is None else output["times_noise"]
    kind = "good" if output["holds"] else "bad"
    at = axis.at(times)
    text = f"{times:.2g} × noise" if times else "exact"
    title = f"{output['name']}: {text}, limit {limit:.3g}"
    yield el("text", shortened(output["name"], 26), x=axis.start - 10, y=y, class_="label end")
    yield el("line", x1=axis.start, x2=at, y1=y, y2=y, class_=f"stem {kind}")
    yield el("circle", el("title", title), cx=at, cy=y, r=6, class_=kind)
    yield el("text", text, x=axis.stop + 10, y=y, class_=f"value start {kind}")


def latency_chart(mode: Data) -> Element:
    """Draw the timed runs of both models in one mode, with medians and 10 to 90 % ranges."""
    width, left, height = 1036, 210, 108
    models = [("original", mode["original"]), ("folded", mode["folded"])]
    runs = [ms for _, timing in models for ms in timing["samples_ms"]]
    axis = Axis(min(runs), sorted(runs)[int(0.98 * (len(runs) - 1))], left, width - 90, False)
    parts = [
        el("text", f"{ms:.3g} ms", x=axis.at(ms), y=height - 8, class_="tick middle")
        for ms in (axis.low, (axis.low + axis.high) / 2, axis.high)
    ]
    for i, (name, timing) in enumerate(models):
        parts += _strip(name, timing, axis, 24 + 44 * i)
    return svg(*parts, width=width, height=height, label=f"latency, optimisations {mode['mode']}")


def _strip(name: str, timing: Data, axis: Axis, y: float) -> Iterator[Element]:
    low, high, median = (axis.at(timing[key]) for key in ("low_ms", "high_ms", "median_ms"))
    yield el("text", name, x=axis.start - 10, y=y, class_="label end")
    box = {"x": low, "y": y - 15, "width": max(high - low, 1), "height": 30, "rx": 3}
    yield el("rect", **box, class_=f"spread {name}")
    for i, ms in enumerate(timing["samples_ms"]):
        if ms <= axis.high:
            offset = (i * 7 % 11 - 5) * 2.2  # so that runs of equal time do not hide each other
            yield el("circle", cx=axis.at(ms), cy=round(y + offset, 2), r=1.8, class_=f"run {name}")
    yield el("line", x1=median, x2=median, y1=y - 17, y2=y + 17, class_=f"median {name}")
    median_text = f"{timing['median_ms']:.3g} ms"
    yield el("text", median_text, x=axis.stop + 10, y=y, class_="value start")


def weights_chart(layers: Sequence[Data]) -> Element:
    """Draw, per layer, the span from the smallest to the largest of its channels' peaks.

    Args:
        layers: at least one; their peaks must not be None.
    """
    ends = [value for layer in layers for value in _ends(layer)]
    low = max(min(ends), max(ends) / 10**_LARGEST_SPAN)

    def candles(number: int, axis: Axis, x: float, step: float) -> Element:
        return _candles(layers[number], axis, x, step)

    return _columns(
        len(layers), low, max(ends), candles, _WEIGHTS_CAPTION, "range of weights before and after"
    )


def ranges_chart(ranges: Sequence[Data]) -> Element:
    """Draw, per quantised activation, the span of its int8 codes in both models.

    Args:
        ranges: at least one.
    """
    kinds = {"original": "before", "folded": "after"}
    spans = [{k: each[k][1] - each[k][0] for k in kinds if each[k]} for each in ranges]
    values = [value for span in spans for value in span.values() if value > 0] or [1.0]
    low = max(min(values) / 2, max(values) / 10**_LARGEST_SPAN)

    def bars(number: int, axis: Axis, x: float, step: float) -> Element:
        wide = step * 0.34
        text = ", ".join(f"{key} {value:.3g}" for key, value in spans[number].items())
        starts = {"original": x - wide - 0.5, "folded": x + 0.5}
        drawn = (
            _bar(axis, starts[key], wide, low, value, kinds[key])
            for key, value in spans[number].items()
        )
        return el("g", el("title", f"{ranges[number]['tensor']}: {text}"), *drawn)

    return _columns(
        len(ranges), low, max(values), bars, _RANGES_CAPTION, "range of activations in int8"
    )


def _columns(
    count: int,
    low: float,
    high: float,
    column: Callable[[int, Axis, float, float], Element],
    caption: str,
    label: str,
) -> Element:
    step, left, height = max(4.0, min(26.0, 946 / count)), 70, 250
    width = max(int(left + step * count + 20), 460)
    axis = Axis(low / 1.3, high * 1.3, height - 30, 10)
    parts = []
    for value, y in axis.decades():
        parts.append(el("line", x1=left, x2=width - 10, y1=y, y2=y, class_="grid"))
        parts.append(el("text", f"{value:g}", x=left - 8, y=y, class_="tick end middle-line"))
    parts.append(el("text", caption, x=left, y=height - 6, class_="tick start"))
    parts += [column(i, axis, left + step * (i + 0.5), step) for i in range(count)]
    return svg(*parts, width=width, height=height, label=label)


def _ends(layer: Data) -> list[float]:
    ends = ("quietest", "largest")
    return [layer[f"{end}_{time}"] for time in ("before", "after") for end in ends]


def _candles(layer: Data, axis: Axis, x: float, step: float) -> Element:
    quiet_before, loud_before, quiet_after, loud_after = _ends(layer)
    wide = step * 0.34
    text = (
        f"{layer['op']} {layer['name']}: before {quiet_before:.3g} to {loud_before:.3g}, "
        f"after {quiet_after:.3g} to {loud_after:.3g}"
    )
    bars = [
        _bar(axis, x - wide - 0.5, wide, quiet_before, loud_before, "before"),
        _bar(axis, x + 0.5, wide, quiet_after, loud_after, "after"),
    ]
    return el("g", el("title", text), *bars)


def _bar(axis: Axis, x: float, wide: float, low: float, high: float, kind: str) -> Element:
    top, bottom = axis.at(high), axis.at(low)
    return el(
        "rect", x=round(x, 2), y=top, width=round(wide, 2), height=round(max(bottom - top, 2), 2),
        rx=1, class_=f"candle {kind}",
    )  # fmt: skip


def _ticks(axis: Axis, y: float) -> Iterator[Element]:
    for value, x in axis.decades():
        yield el("line", x1=x, x2=x, y1=6, y2=y, class_="grid")
        yield el("text", f"{value:g}", x=x, y=y + 14, class_="tick middle")
