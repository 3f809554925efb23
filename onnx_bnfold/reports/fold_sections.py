"""The parts of the page that show a fold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from onnx_bnfold.operators.entries import Absorbing
from onnx_bnfold.operators.table import entry_of
from onnx_bnfold.options import Options
from onnx_bnfold.report import FLOAT16_WARNING, int8_warning
from onnx_bnfold.reports.changes_section import changes_section
from onnx_bnfold.reports.check_sections import verdict
from onnx_bnfold.reports.column_charts import weights_chart
from onnx_bnfold.reports.figures_section import card, cards
from onnx_bnfold.reports.files_section import footer, given_options
from onnx_bnfold.reports.later import AT_ONCE, Later
from onnx_bnfold.reports.markup import Data, Element, el, pill, spaced, swatch, table
from onnx_bnfold.reports.norm_section import norms_section
from onnx_bnfold.reports.reasons_section import Stays, reasons_list

_SIZES = ((200, "large"), (1000, "small"))  # most squares of a size
_FIGURES = (
    ("batch_normalizations", "BatchNormalizations"),
    ("nodes", "nodes"),
    ("multiply_adds", "multiply-adds"),
    ("multiplicative_depth", "multiplicative depth"),
    ("parameters", "parameters"),
)


def sections(data: Data, checked: Sequence[Element], later: Later) -> list[Element]:
    """Return the sections of the page of a fold.

    Args:
        data: the report.
        checked: the sections of its check.
        later: keeps what the page does not show at once.
    """
    parts = [_header(data), _summary(data), *checked]
    if data["batch_normalizations"]:
        parts.append(norms_section(data, later))
    parts.append(changes_section(data["changes"], later))
    if weights := [layer for layer in data["layers"] if _is_drawn(layer)]:
        parts.append(_weights(weights, later))
    return [*parts, _footer(data)]


def _header(data: Data) -> Element:
    norms = data["batch_normalizations"]
    folded = sum(norm["status"] == "folded" for norm in norms)
    pills = [pill(f"{folded} of {len(norms)} folded", "good" if folded else "quiet")]
    if folded < len(norms):
        pills.append(pill(f"{len(norms) - folded} kept", "kept"))
    pills.append(verdict(data["check"]))
    if data["result"] is None:
        pills.append(pill("dry run: nothing written", "quiet"))
    elif not data["written"]:
        pills.append(pill("model NOT written", "bad"))
    names = [el("code", data["source"][0]["name"])]
    names += [] if data["result"] is None else [el("code", data["result"][0]["name"])]
    title = el("h1", names[0], *(part for name in names[1:] for part in (" → ", name)))
    kicker = el("p", "BatchNormalization fold", class_="kicker")
    return el("header", kicker, title, el("p", *spaced(pills), class_="pills"))


# --- summary --------------------------------------------------------------------------------


def _summary(data: Data) -> Element:
    figures = [card(label, data["before"][key], data["after"][key]) for key, label in _FIGURES]
    if data["result"] is not None:
        figures.append(card("bytes", data["bytes_before"], data["bytes_after"]))
    parts = [cards(figures)]
    if data["copied_bytes"]:
        text = f"Copies of weights that several nodes read add {data['copied_bytes']:,} bytes"
        parts.append(el("p", f"{text}; --keep-shared-weights avoids them.", class_="note"))
    if data["int8_loss"] is not None:
        text = int8_warning(data["int8_loss"])
        parts.append(el("p", f"{text[0].upper()}{text[1:]}.", class_="note"))
    if data["coarser_in_float16"]:
        text = f"{FLOAT16_WARNING[0].upper()}{FLOAT16_WARNING[1:]}."
        parts.append(el("p", text, class_="note"))
    if data["inlined_calls"]:
        number = data["inlined_calls"]
        text = f"Calls of local functions that were inlined: {number}."
        parts.append(el("p", text, class_="note"))
    if data["open_choices"]:
        text = "Too many BatchNormalizations compete to search all choices among them: at most "
        text += f"{data['open_choices']} more could go if others stayed."
        parts.append(el("p", text, class_="note"))
    unknown = dict.fromkeys(data[when]["unknown"] for when in ("before", "after"))
    parts += [el("p", f"Not counted: {text}.", class_="note") for text in unknown if text]
    if data["batch_normalizations"]:
        parts.append(_strip(data["batch_normalizations"]))
        parts += _reasons(data["batch_normalizations"], are_listed=True)
    parts += _reasons(data["kept_affine_nodes"], are_listed=False)
    return el("section", el("h2", "Summary"), *parts, id="summary")


def _strip(norms: Sequence[Data]) -> Element:
    """Draw one square per BatchNormalization, in the order of the graph."""
    squares = [
        el("a", str(i + 1), href=f"#bn-{i}", class_=None if norm["status"] == "folded" else "kept")
        for i, norm in enumerate(norms)
    ]
    key = el(
        "p", "Each square is a BatchNormalization, in the order of the graph: ",
        swatch("folded"), ", ", swatch("kept"), ".",
        class_="lead",
    )  # fmt: skip
    size = next((name for most, name in _SIZES if len(norms) <= most), "dots")
    strip = el(
        "div", *squares, class_=f"strip {size}", role="toolbar",
        aria_label="BatchNormalizations, in the order of the graph",
    )  # fmt: skip
    says = el("p", "Point at a square, or walk along them with the arrow keys.",
              id="says", class_="lead needs-script", aria_hidden="true")  # fmt: skip
    return el("div", key, strip, says)


def _reasons(norms: Sequence[Data], *, are_listed: bool) -> Iterator[Element]:
    """Yield the reasons why nodes are kept, the most frequent first.

    Args:
        norms: records of BatchNormalizations, or of decomposed ones.
        are_listed: whether it is the former, which the page lists.
    """
    counts = Counter(norm["reason"] for norm in norms if norm["reason"])
    if not counts:
        return
    reasons = []
    for reason, count in counts.most_common():
        example = next(norm for norm in norms if norm["reason"] == reason)
        told = (el("code", example["culprit"]), f": {example['sentence']}")
        reasons.append(Stays(reason, count, told, f"#q={reason}&show=kept" if are_listed else None))
    yield el("h3", f"Why {'the others' if are_listed else 'decomposed ones'} stay")
    yield reasons_list(reasons, "BN" if are_listed else "node")


# --- weights, files -------------------------------------------------------------------------


def _is_drawn(layer: Data) -> bool:
    """Return whether a layer is one that is quantised, and its weights are not all zero."""
    ends = ("quietest_before", "quietest_after")
    entry = entry_of(layer["op"])
    is_quantised = isinstance(entry, Absorbing) and entry.is_linear
    return is_quantised and all(layer[end] is not None for end in ends)


def _weights(layers: Sequence[Data], later: Later) -> Element:
    lead = el(
        "p", "For each layer, the largest weights of its output channels, from the smallest to the "
        "largest of them: ", swatch("before"), ", ", swatch("after"), ". The longer the bar, the "
        "more is lost by quantisation with one scale per tensor.", class_="lead",
    )  # fmt: skip
    heads = (
        "layer", "type", "quietest before", "quietest after", "largest before", "largest after",
        "of the type's range",
    )  # fmt: skip
    rows = [_layer(layer) for layer in layers]
    listed = table(heads, rows, numbers=range(2, 7))
    numbers = later.details(el("span", "numbers"), [listed], at_once=len(rows) <= AT_ONCE)
    chart = weights_chart(layers)
    return el("section", el("h2", "Range of the weights"), lead, chart, numbers, id="weights")


def _layer(layer: Data) -> list[Element | str]:
    keys = ("quietest_before", "quietest_after", "largest_before", "largest_after")
    values = ["" if layer[key] is None else f"{layer[key]:.3g}" for key in keys]
    used = layer["range_used_after"]
    name = el("span", f"{layer['op']} ", el("code", layer["name"]))
    return [name, layer["data_type"], *values, "" if used is None else f"{used:.1e}"]


def _footer(data: Data) -> Element:
    shapes = ", ".join(f"{name} {list(shape)}" for name, shape in data["input_shapes"].items())
    notes = (
        f"Multiply-adds are counted for {shapes or 'no inputs'}. The multiplicative depth is the "
        "number of multiplications on the longest path, the cost under homomorphic encryption.",
        given_options(data["options"], asdict(Options())),
    )
    return footer(data, {role: data[role] or () for role in ("source", "result")}, notes)
