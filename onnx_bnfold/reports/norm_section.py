"""The table of BatchNormalizations, each with a picture of the graph around it."""

from __future__ import annotations

from collections.abc import Iterator

from onnx_bnfold.reports.markup import Data, Element, el, pill
from onnx_bnfold.reports.pictures import pictures

_SHOWN = 3  # nodes that a line names


def norms_section(data: Data) -> Element:
    """Return the table with its filter; the first folded and the first kept BN are expanded."""
    norms = data["batch_normalizations"]
    first = {norm["status"]: i for i, norm in reversed(list(enumerate(norms)))}
    rows = [_norm(i, norm, is_open=i in first.values()) for i, norm in enumerate(norms)]
    buttons = [
        el("button", show, type="button", data_show=show, aria_pressed="false")
        for show in ("all", "folded", "kept")
    ]
    query = el(
        "input", id="query", type="search", placeholder="filter by name, operator, reason …",
        aria_label="filter", autocomplete="off", spellcheck="false",
    )  # fmt: skip
    controls = el("div", query, *buttons, el("span", id="count"), class_="controls needs-script")
    heads = el("tr", el("th"), el("th", "name, and what was done with it"))
    listed = el("table", el("thead", heads), el("tbody", *rows), id="norms")
    section = el("section", el("h2", "BatchNormalizations"), controls, listed, id="list")
    if data["affine_nodes"]:
        count = len(data["affine_nodes"])
        text = (
            f"{count} Mul, Add, Sub or Div by a constant were folded as well (see affine_nodes in "
            "the JSON)."
        )
        section.append(el("p", text, class_="note"))
    return section


def _norm(number: int, norm: Data, *, is_open: bool) -> Element:
    graph = [el("span", f" in {norm['graph']}", class_="way")] if norm["graph"] else []
    became = _why(norm) if norm["status"] == "kept" else _where(norm)
    details = el("details", el("summary", "graph"), pictures(norm), *_more(norm), open=is_open)
    return el(
        "tr",
        el("td", pill(norm["status"], "good" if norm["status"] == "folded" else "kept")),
        el("td", el("p", el("code", norm["name"]), *graph), el("p", *became), details),
        id=f"bn-{number}",
        data_status=norm["status"],
    )


def _why(norm: Data) -> list[Element | str]:
    text: list[Element | str] = [el("code", norm["reason"], class_="reason"), " "]
    text += [el("code", norm["culprit"]), f": {norm['sentence']}"]
    if norm["written_as"] not in (None, "keep"):
        text.append(f". Written as {norm['written_as']}.")
    if norm["not_written"] is not None:
        text.append(f". Not written as asked: {norm['not_written']}.")
    return text


def _where(norm: Data) -> list[Element | str]:
    if not norm["taken_by"]:
        return ["changed nothing: its neighbours need no change"]
    text: list[Element | str] = []
    for taker in norm["taken_by"][:_SHOWN]:
        took = " and ".join(word for word in ("scale", "shift") if taker[word])
        text += ["; " if text else "", f"{took} into {taker['op']} ", el("code", taker["name"])]
    if len(norm["taken_by"]) > _SHOWN:
        text.append(f"; and {len(norm['taken_by']) - _SHOWN} more nodes")
    if norm["added_nodes"]:
        text.append("; and a new Add")
    for clamp in norm["clamps"]:
        text += ["; ", el("code", clamp), " becomes a clamp with constants"]
    if norm["clamp_elements"]:
        text.append(f" ({norm['clamp_elements']:,} elements read)")
    return [*text, " ", el("span", norm["way"], class_="way")]


def _more(norm: Data) -> list[Element]:
    """Return what the line above has no room for: every failed way, every node that took part."""
    parts = []
    if len(norm["tried"]) > 1:
        parts += [el("p", "Why each way to fold it failed:"), el("ul", *_attempts(norm))]
    if len(norm["taken_by"]) > _SHOWN:
        takers = (el("li", f"{t['op']} ", el("code", t["name"])) for t in norm["taken_by"])
        parts += [el("p", "All nodes that took scale or shift:"), el("ul", *takers)]
    return parts


def _attempts(norm: Data) -> Iterator[Element]:
    for attempt in norm["tried"]:
        way = f"{attempt['way'] or 'any way'}: "
        reason = el("code", attempt["reason"], class_="reason")
        yield el("li", way, reason, " ", el("code", attempt["culprit"]), f": {attempt['sentence']}")
