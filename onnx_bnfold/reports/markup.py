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


def table(
    heads: Sequence[str], rows: Iterable[Sequence[Element | str]], numbers: Collection[int]
) -> Element:
    """Return a table; the columns with the indices ``numbers`` are aligned right."""

    def line(tag: str, cells: Sequence[Element | str]) -> Element:
        kinds = ("number" if i in numbers else None for i in range(len(cells)))
        return el(
            "tr", *(el(tag, cell, class_=kind) for cell, kind in zip(cells, kinds, strict=True))
        )

    body = el("tbody", *(line("td", row) for row in rows))
    return el("div", el("table", el("thead", line("th", heads)), body), class_="scroll")


def shortened(text: str, letters: int) -> str:
    """Return a name shortened in the middle; names mostly differ at their ends."""
    half = (letters - 1) // 2
    return text if len(text) <= letters else f"{text[:half]}…{text[-half:]}"


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
