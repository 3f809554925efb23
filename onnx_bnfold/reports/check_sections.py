"""The parts of the page that show a check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from onnx_bnfold.reports.changes_section import changes_section
from onnx_bnfold.reports.charts import latency_chart, noise_chart
from onnx_bnfold.reports.column_charts import ranges_chart
from onnx_bnfold.reports.files_section import footer
from onnx_bnfold.reports.later import Later
from onnx_bnfold.reports.markup import Data, Element, el, pill, swatch, table

_MODELS = ("original", "folded")


def page_of(check: Data, later: Later) -> list[Element]:
    """Return what a page shows of a check alone."""
    names = [el("code", Path(check[model]).name) for model in _MODELS]
    kicker = el("p", "BatchNormalization fold, checked", class_="kicker")
    title = el("h1", names[0], " → ", names[1])
    parts = [el("header", kicker, title, el("p", verdict(check), class_="pills"))]
    parts += sections(check)
    if "tool" in check:  # else its models are not files
        parts.append(changes_section(check["changes"], later))
        files = {model: check[f"{model}_files"] for model in _MODELS}
        parts.append(footer(check, files, ()))
    return parts


def verdict(check: Data | None) -> Element:
    """Return a pill with the outcome of a check; None if none ran."""
    if check is None:
        return pill("not checked", "quiet")
    return pill("check holds", "good") if check["holds"] else pill("check FAILED", "bad")


def sections(check: Data) -> list[Element]:
    """Return the sections of a check: failures, errors per output, accuracy, latency, int8."""
    parts = []
    if check["failures"]:
        failures = (el("li", failure) for failure in check["failures"])
        parts.append(_section("failures", "Gates that do not hold", el("ul", *failures)))
    if check["numerics"] is not None:
        parts.append(_numerics(check["numerics"]))
    if check["accuracy"] is not None:
        parts.append(_accuracy(check["accuracy"]))
    if check["latency"] is not None:
        parts.append(_latency(check["latency"]))
    if check["quantized"] is not None:
        parts.append(_quantized(check["quantized"]))
    return parts


def _section(name: str, title: str, *children: Element) -> Element:
    return el("section", el("h2", title), *children, id=name)


def _numerics(numerics: Data) -> Element:
    by_tolerance = numerics["rtol"] is not None or numerics["atol"] is not None
    limit = (
        f"The limit is atol {numerics['atol'] or 0:g} + rtol {numerics['rtol'] or 0:g}."
        if by_tolerance
        else "Rounding noise is how much the outputs of the original itself change when everything "
        f"in it is rounded differently. A difference of up to {numerics['factor']:g} times the "
        "noise holds, or up to what the original itself exceeds only once in a thousand checks."
    )
    fed = ", ".join(f"{i['name']} {i['dtype']} {i['shape']}" for i in numerics["inputs"])
    source = numerics["inputs"][0]["source"] if numerics["inputs"] else "none"
    origin = f"random inputs, seed {numerics['seed']}" if source == "random" else source
    about = (
        f"{numerics['sets']} input sets ({fed}; {origin}), run by {numerics['evaluator']} with "
        "optimisations disabled."
    )
    measured = [o for o in numerics["outputs"] if "float" in o["dtype"]]
    parts = [el("p", f"{limit} {about}", class_="lead")]
    if measured and not by_tolerance:
        parts.append(noise_chart(measured, numerics["factor"]))
    parts.append(_outputs(numerics["outputs"]))
    parts += _first(numerics["first_difference"])
    parts += [el("p", f"Note: {note}.", class_="note") for note in numerics["notes"]]
    return _section("numerics", "Difference and rounding noise", *parts)


def _outputs(outputs: Sequence[Data]) -> Element:
    heads = (
        "output",
        "max error",
        "of peak",
        "SNR",
        "noise SNR",
        "× noise",
        "top-1 same",
        "verdict",
    )
    return table(heads, [_output(output) for output in outputs], numbers=range(1, 7))


def _output(output: Data) -> list[Element | str]:
    verdict = pill("ok", "good") if output["holds"] else pill("failed", "bad")
    if "float" not in output["dtype"]:
        return [el("code", output["name"]), f"{output['mismatched']} differ", *[""] * 5, verdict]
    return [
        el("code", output["name"]),
        _number(output["max_abs"], ".3g"),
        _number(output["relative_to_peak"], ".2g"),
        _number(output["snr_db"], ".1f", " dB"),
        _number(output["noise_snr_db"], ".1f", " dB"),
        _number(output["times_noise"], ".3g"),
        _number(output["top1_agreement"], ".2%"),
        verdict,
    ]


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else format(value, form) + unit


def _first(first: Data | None) -> Iterator[Element]:
    if first is not None:
        node = f"{first['op_type']} {first['node']!r}"
        yield el(
            "p", "The first tensor that differs is ", el("code", first["tensor"]),
            ", an output of ", el("code", node), f": {first['difference']['reason']}.",
            class_="note",
        )  # fmt: skip


def _accuracy(accuracy: Data) -> Element:
    rows: list[list[Element | str]] = [
        [name, f"{original:.4%}", f"{folded:.4%}"]
        for name, original, folded in (
            ("top-1", accuracy["top1_original"], accuracy["top1_folded"]),
            ("top-5", accuracy["top5_original"], accuracy["top5_folded"]),
        )
        if original is not None and folded is not None
    ]
    changed = (
        f"{accuracy['changed']} of {accuracy['examples']:,} predictions changed: "
        f"{accuracy['became_right']} became right, {accuracy['became_wrong']} became wrong."
    )
    figures = table(("accuracy", "original", "folded"), rows, numbers=range(1, 3))
    return _section("accuracy", "Accuracy", el("p", changed, class_="lead"), figures)


def _latency(latency: Data) -> Element:
    threads = latency["threads"] or "onnxruntime's choice of"
    about = (
        f"{latency['runs']} interleaved pairs of runs, batch {latency['batch']}, {threads} "
        "thread(s). "
        f"{latency['remark'][:1].upper()}{latency['remark'][1:]}."
    )
    parts = [el("p", about, class_="lead")]
    for mode in latency["modes"]:
        parts += _timed(mode)
    heads = ("optimisations", "model", "median", "session", "peak memory", "of the model")
    rows = [row for mode in latency["modes"] for row in _costs(mode)]
    return _section("latency", "Latency", *parts, table(heads, rows, numbers=range(2, 6)))


def _timed(mode: Data) -> list[Element]:
    told = (
        f"optimisations {mode['mode']}: speed-up {mode['speedup']:.3f} "
        f"(95 % interval {mode['speedup_low']:.3f} to {mode['speedup_high']:.3f})"
    )
    return [el("h3", told), latency_chart(mode)]


def _quantized(quantized: Data) -> Element:
    about = (
        "Both models quantised by onnxruntime's quantize_static (QDQ, int8, one scale per tensor "
        "of activations and per channel of weights), calibrated on "
        f"{quantized['calibration_sets']} sets of {quantized['source']} inputs and compared on "
        f"{quantized['sets']} others with the original in float."
    )
    parts = [el("p", about, class_="lead")]
    heads = (
        "output", "signal-to-noise, original", "signal-to-noise, folded",
        "same top class, original", "same top class, folded",
    )  # fmt: skip
    rows: list[list[Element | str]] = [
        [
            el("code", output["name"]),
            *(_number(output[f"snr_{model}_db"], ".2f", " dB") for model in _MODELS),
            *(_number(output[f"top1_{model}"], ".2%") for model in _MODELS),
        ]
        for output in quantized["outputs"]
    ]
    parts += [table(heads, rows, numbers=range(1, 5)), *_timed(quantized["latency"])]
    if quantized["ranges"]:
        key = el(
            "p", "The range that the codes of an activation represent: ",
            swatch("before", "original"), ", ",
            swatch("after", "folded"), ". A single bar is a tensor that the other "
            "model does not have.", class_="lead",
        )  # fmt: skip
        parts += [el("h3", "Ranges of the activations"), key]
        parts.append(ranges_chart(quantized["ranges"]))
    return _section("quantized", "Int8", *parts)


def _costs(mode: Data) -> Iterator[list[Element | str]]:
    for name in _MODELS:
        timing = mode[name]
        yield [
            mode["mode"],
            name,
            f"{timing['median_ms']:.3f} ms",
            f"{timing['session_ms']:.1f} ms",
            *(_megabytes(timing[key]) for key in ("peak_memory", "model_memory")),
        ]


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.1f} MB"
