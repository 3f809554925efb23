"""The list of BatchNormalizations, each with a picture of the graph around it."""

from __future__ import annotations

from collections.abc import Iterator

from onnx_bnfold.planning.record import FormCost
from onnx_bnfold.reports.later import AT_ONCE, Later
from onnx_bnfold.reports.markup import Data, Element, el, pill
from onnx_bnfold.reports.pictures import pictures

_SHOWN = 3  # nodes that a line names
_PLAIN = "upstream"  # the way that most go, which a line does not name


def norms_section(data: Data, later: Later) -> Element:
    """Return the list with its filter; the first folded and the first kept BN are expanded.

    Args:
        data: the report.
        later: keeps what is around the nodes of a large model; nothing else before.
    """
    norms = data["batch_normalizations"]
    first = {norm["status"]: i for i, norm in reversed(list(enumerate(norms)))}
    at_once = len(norms) <= AT_ONCE
    rows = []
    for i, norm in enumerate(norms):
        around = [pictures(norm), *_more(norm)]
        row = _norm(i, norm)
        if at_once or i in first.values():
            title = el("summary", "the graph around it")
            row.append(el("details", title, *around, open=i in first.values()))
        if not at_once:
            later.put(around)  # the script finds it by the number of the row
        rows.append(row)
    listed = el("ol", *rows, id="norms", data_later=None if at_once else True)
    section = el("section", el("h2", "BatchNormalizations"), _controls(), listed, id="list")
    section.append(el("p", "None fits this filter.", id="nothing", class_="note", hidden=True))
    if data["affine_nodes"]:
        count = len(data["affine_nodes"])
        text = (
            f"{count} Mul, Add, Sub or Div by a constant were folded as well (see affine_nodes in "
            "the JSON)."
        )
        section.append(el("p", text, class_="note"))
    return section


def _controls() -> Element:
    buttons = [
        el("button", show, type="button", data_show=show, aria_pressed="false")
        for show in ("all", "folded", "kept")
    ]
    query = el(
        "input", id="query", type="search", placeholder="name, operator, reason …",
        aria_label="filter the list", autocomplete="off", spellcheck="false",
    )  # fmt: skip
    shown = el("div", *buttons, class_="buttons", role="group", aria_label="which are shown")
    count = el("output", id="count")
    return el("div", query, shown, count, class_="controls needs-script", role="search")


def _norm(number: int, norm: Data) -> Element:
    became = _why(norm) if norm["status"] == "kept" else _where(norm)
    state = pill(norm["status"], "good" if norm["status"] == "folded" else "kept")
    head = el("p", state, " ", el("code", norm["name"]))
    if norm["graph"]:
        head.append(el("span", " in ", el("code", norm["graph"]), class_="way"))
    return el("li", head, el("p", *became), id=f"bn-{number}", class_=norm["status"])


def _why(norm: Data) -> list[Element | str]:
    text: list[Element | str] = [el("code", norm["reason"], class_="reason"), " "]
    text += [el("code", norm["culprit"]), f": {norm['sentence']}"]
    if norm["written_as"] not in (None, "keep"):
        text.append(f". Written as {norm['written_as']}{_cost(norm)}.")
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
    text.append(_cost(norm))
    if norm["way"] != _PLAIN:
        text += [" ", el("span", f"({norm['way']})", class_="way")]
    return text


def _cost(norm: Data) -> str:
    cost = norm["form_cost"]
    return f" ({FormCost(**cost)})" if cost else ""


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
