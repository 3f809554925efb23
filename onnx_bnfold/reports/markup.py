"""HTML and SVG elements; text and attributes are escaped when the page is written."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias
from xml.etree import ElementTree

from onnx_bnfold.errors import printable

Data: TypeAlias = Mapping[str, Any]  # of a report, or a part of it, as its JSON has it

Element = ElementTree.Element


def el(tag: str, *children: Element | str, **attributes: object) -> Element:
    """Return an element of HTML or SVG.

    Args:
        tag: its name.
        children: elements and text; unprintable characters become escape sequences.
        attributes: name → value; ``_`` in a name becomes ``-``, and is dropped at the end
            (``class_``). True means an attribute without a value, None and False mean no attribute.
    """
    element = Element(tag)
    for name, value in attributes.items():
        if value is not None and value is not False:
            text = "" if value is True else printable(str(value))
            element.set(name.rstrip("_").replace("_", "-"), text)
    _fill(element, children)
    return element


def written(elements: Iterable[Element]) -> str:
    """Return elements as HTML."""
    return "\n".join(
        ElementTree.tostring(each, encoding="unicode", method="html") for each in elements
    )


def pill(text: str, kind: str) -> Element:
    """Return a word on a background of a colour: ``good``, ``kept``, ``bad`` or ``quiet``."""
    return el("span", text, class_=f"pill {kind}")


def swatch(kind: str, word: str | None = None) -> Element:
    """Return a square of a kind and the word for it, which defaults to the kind."""
    square = el("span", class_=f"square {kind}")
    return el("span", square, f" {kind if word is None else word}", class_="key")


def spaced(elements: Iterable[Element]) -> list[Element | str]:
    """Return elements with a space behind each."""
    return [part for element in elements for part in (element, " ")]


def table(
    heads: Sequence[str], rows: Iterable[Sequence[Element | str]], numbers: Collection[int]
) -> Element:
    """Return a table, whose rows become lists of "column: value" where the page is narrow.

    Args:
        heads: titles of the columns.
        rows: the cells.
        numbers: indices of the columns that are aligned right.
    """

    def kind(column: int) -> str | None:
        return "number" if column in numbers else None

    titles = [
        el("th", head, class_=kind(i), scope="col", role="columnheader") if head else el("td")
        for i, head in enumerate(heads)
    ]
    lines = [
        el("tr", *(
            el("td", cell, class_=kind(i), data_label=heads[i] or None, role="cell")
            for i, cell in enumerate(row)
        ), role="row")
        for row in rows
    ]  # fmt: skip
    head = el("thead", el("tr", *titles, role="row"), role="rowgroup")
    return el("table", head, el("tbody", *lines, role="rowgroup"), role="table", class_="stack")


def scrolling(content: Element, what: str) -> Element:
    """Return what scrolls sideways where it is wider than the page, and says so."""
    hint = el("p", "scroll sideways to see all of it", class_="hint", hidden=True)
    return el("div", el("div", content, class_="scroll", role="group", aria_label=what), hint)


def _fill(parent: Element, children: Iterable[Element | str]) -> None:
    last: Element | None = None
    for child in children:
        if isinstance(child, Element):
            parent.append(child)
            last = child
        elif last is None:
            parent.text = (parent.text or "") + printable(child)
        else:
            last.tail = (last.tail or "") + printable(child)
