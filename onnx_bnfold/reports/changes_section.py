"""The part of the page that compares both models by name: nodes and initializers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from onnx_bnfold.reports.later import AT_ONCE, Later
from onnx_bnfold.reports.markup import Data, Element, el

_VERBS = ("removed", "changed", "added")


def changes_section(changes: Data, later: Later) -> Element:
    """Return the section; its lists are closed."""
    lead = el(
        "p", "The nodes and initializers that the fold removes, changes and adds. All others are "
        "as they were, apart from notes and metadata.", class_="lead",
    )  # fmt: skip
    parts = [lead, el("h3", "Nodes")]
    for verb in _VERBS:
        parts.append(_nodes(verb, changes[f"{verb}_nodes"], later))
    parts.append(el("h3", "Initializers"))
    for verb in _VERBS:
        parts.append(_initializers(verb, changes[f"{verb}_initializers"], later))
    return el("section", el("h2", "Before and after, by name"), *parts, id="changes")


def _nodes(verb: str, nodes: Sequence[Data], later: Later) -> Element:
    kinds = Counter(node["op"] for node in nodes).most_common()
    named = [f"{number:,} {op}" for op, number in kinds[:4]]
    named += [f"{sum(number for _, number in kinds[4:]):,} others"] if len(kinds) > 4 else []
    rows = [el("li", *_node(node), *_where(node), *_differences(node)) for node in nodes]
    return _group(verb, rows, ", ".join(named), later)


def _initializers(verb: str, tensors: Sequence[Data], later: Later) -> Element:
    rows = [el("li", el("code", t["name"]), f" {_type(t)}", *_where(t)) for t in tensors]
    return _group(verb, rows, "", later)


def _group(verb: str, rows: Sequence[Element], about: str, later: Later) -> Element:
    if not rows:
        return el("p", f"none {verb}", class_=f"none {verb}")
    title = el("span", el("strong", f"{len(rows):,} {verb}"), f": {about}" if about else "")
    listed = el("ul", *rows, class_=f"diff {verb}")
    return later.details(title, [listed], at_once=len(rows) <= AT_ONCE)


def _node(node: Data) -> list[Element | str]:
    return [f"{node['op']} ", el("code", node["name"])]


def _where(item: Data) -> list[Element | str]:
    return [" in ", el("code", item["graph"])] if item["graph"] else []


def _type(tensor: Data) -> str:
    return f"{tensor['data_type']}[{', '.join(map(str, tensor['shape']))}]"


def _differences(node: Data) -> Iterator[Element | str]:
    """Yield how a changed node differs; nothing for another."""
    between = ": "
    for phrase in _phrases(node):
        yield between
        yield from phrase
        between = "; "


def _phrases(node: Data) -> Iterator[list[Element | str]]:
    for name in node.get("values", ()):
        yield ["other values in ", el("code", name)]
    for what, key in (("reads ", "inputs"), ("writes ", "outputs")):
        for before, after in node.get(key, ()):
            if not before:
                yield [what, el("code", after), ", too"]
            elif not after:
                yield [f"no longer {what}", el("code", before)]
            else:
                yield [what, el("code", after), " instead of ", el("code", before)]
    for name in node.get("attributes", ()):
        yield ["another attribute ", el("code", name)]
