"""The parts of the page that show a fold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from onnx_bnfold.operators.entries import Absorbing
from onnx_bnfold.operators.table import entry_of
from onnx_bnfold.report import int8_warning
from onnx_bnfold.reports.charts import weights_chart
from onnx_bnfold.reports.check_sections import verdict
from onnx_bnfold.reports.markup import Data, Element, el, pill, table
from onnx_bnfold.reports.norm_section import norms_section

_FIGURES = (
    ("batch_normalizations", "BatchNormalizations"),
    ("nodes", "nodes"),
    ("multiply_adds", "multiply-adds"),
    ("multiplicative_depth", "multiplicative depth"),
    ("parameters", "parameters"),
)


def sections(data: Data, checked: Sequence[Element]) -> list[Element]:
    """Return the sections of the page of a fold.

    Args:
        data: the report.
        checked: the sections of its check.
    """
    parts = [_header(data), _summary(data), *checked]
    if data["batch_normalizations"]:
        parts.append(norms_section(data))
    if weights := [layer for layer in data["layers"] if _is_drawn(layer)]:
        parts.append(_weights(weights))
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
    return el("header", kicker, title, el("p", *_spaced(pills), class_="pills"))


def _spaced(elements: Sequence[Element]) -> list[Element | str]:
    return [part for element in elements for part in (element, " ")]


# --- summary --------------------------------------------------------------------------------


def _summary(data: Data) -> Element:
    cards = [_card(label, data["before"][key], data["after"][key]) for key, label in _FIGURES]
    if data["result"] is not None:
        cards.append(_card("bytes", data["bytes_before"], data["bytes_after"]))
    parts = [el("div", *cards, class_="cards")]
    if data["copied_bytes"]:
        text = f"Copies of weights that several nodes read add {data['copied_bytes']:,} bytes"
        parts.append(el("p", f"{text}; --keep-shared-weights avoids them.", class_="note"))
    if data["int8_loss"] is not None:
        text = int8_warning(data["int8_loss"])
        parts.append(el("p", f"{text[0].upper()}{text[1:]}.", class_="note"))
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


def _card(label: str, before: int | None, after: int | None) -> Element:
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


def _strip(norms: Sequence[Data]) -> Element:
    """Draw one square per BatchNormalization, in the order of the graph."""
    squares = [
        el("a", href=f"#bn-{i}", class_=f"square {norm['status']}", title=_title(norm))
        for i, norm in enumerate(norms)
    ]
    key = el(
        "p", "Each square is a BatchNormalization, in the order of the graph: ",
        el("span", class_="square folded"), " folded, ", el("span", class_="square kept"), " kept.",
        class_="lead",
    )  # fmt: skip
    return el("div", key, el("div", *squares, class_="strip"))


def _title(norm: Data) -> str:
    return f"{norm['status']}: {norm['name']}" + (f" ({norm['reason']})" if norm["reason"] else "")


def _reasons(norms: Sequence[Data], *, are_listed: bool) -> Iterator[Element]:
    """Yield the reasons why nodes are kept, the most frequent first.

    Args:
        norms: records of BatchNormalizations, or of decomposed ones.
        are_listed: whether it is the former, which the page lists.
    """
    counts = Counter(norm["reason"] for norm in norms if norm["reason"])
    if not counts:
        return
    most = max(counts.values())
    rows: list[list[Element | str]] = []
    for reason, count in counts.most_common():
        example = next(norm for norm in norms if norm["reason"] == reason)
        length = max(round(90 * count / most), 2)
        bar = el(
            "svg", el("rect", width=length, height=10, rx=2), class_="bar", width=90, height=10
        )
        text = el("span", el("code", example["culprit"]), f": {example['sentence']}")
        name = el("code", reason)
        link = el("a", name, href=f"#q={reason}") if are_listed else name
        rows.append([link, str(count), bar, text])
    whose, what = ("the others", "BNs") if are_listed else ("decomposed ones", "nodes")
    yield el("h3", f"Why {whose} stay")
    yield table(("reason", what, "", "for example"), rows, numbers=(1,))


# --- weights, files -------------------------------------------------------------------------


def _is_drawn(layer: Data) -> bool:
    """Return whether a layer is one that is quantised, and its weights are not all zero."""
    ends = ("quietest_before", "quietest_after")
    entry = entry_of(layer["op"])
    is_quantised = isinstance(entry, Absorbing) and entry.is_linear
    return is_quantised and all(layer[end] is not None for end in ends)


def _weights(layers: Sequence[Data]) -> Element:
    lead = el(
        "p", "For each layer, the largest weights of its output channels, from the smallest to the "
        "largest of them: ", el("span", class_="square before"), " before, ",
        el("span", class_="square after"), " after. The longer the bar, the more is lost by "
        "quantisation with one scale per tensor.", class_="lead",
    )  # fmt: skip
    heads = ("layer", "type", "quietest before", "after", "largest before", "after", "of the range")
    rows = [_layer(layer) for layer in layers]
    numbers = el("details", el("summary", "numbers"), table(heads, rows, numbers=range(2, 7)))
    chart = el("div", weights_chart(layers), class_="scroll")
    return el("section", el("h2", "Range of the weights"), lead, chart, numbers, id="weights")


def _layer(layer: Data) -> list[Element | str]:
    keys = ("quietest_before", "quietest_after", "largest_before", "largest_after")
    values = ["" if layer[key] is None else f"{layer[key]:.3g}" for key in keys]
    used = layer["range_used_after"]
    name = el("span", f"{layer['op']} ", el("code", layer["name"]))
    return [name, layer["data_type"], *values, "" if used is None else f"{used:.1e}"]


def _footer(data: Data) -> Element:
    files = [
        [role, el("code", file["name"]), f"{file['bytes']:,}", el("code", file["sha256"])]
        for role in ("source", "result")
        for file in data[role] or ()
    ]
    shapes = ", ".join(f"{name} {list(shape)}" for name, shape in data["input_shapes"].items())
    versions = [f"{data['tool']['name']} {data['tool']['version']}"]
    versions += [f"{name} {version}" for name, version in data["packages"].items() if version]
    given = {name: value for name, value in data["options"].items() if value not in ((), [])}
    options = ", ".join(f"{name} {value}" for name, value in given.items())
    return el(
        "footer",
        el("h2", "Files and versions"),
        table(("", "file", "bytes", "SHA-256"), files, numbers=(2,)),
        el("p", f"Multiply-adds are counted for {shapes or 'no inputs'}. The multiplicative depth "
           "is the number of multiplications on the longest path, the cost under homomorphic "
           "encryption.", class_="note"),
        el("p", f"Options: {options}.", class_="note"),
        el("p", ", ".join(versions) + ".", class_="note"),
    )  # fmt: skip
