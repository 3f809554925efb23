"""Elements of the page. Text and attributes are escaped when they are written, never by hand."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from xml.etree import ElementTree

from onnx_bnfold.errors import printable

Element = ElementTree.Element


def el(tag: str, *children: Element | str, **attributes: object) -> Element:
    """Return an element of HTML or SVG.

    Args:
        tag: its name.
        children: elements and text; unprintable characters of text become escape sequences.
        attributes: by name, where ``_`` stands for ``-`` and is dropped at the end (``class_``);
            True gives an attribute without a value, None and False none at all.
    """
    made = Element(tag)
    for name, value in attributes.items():
        if value is not None and value is not False:
            text = "" if value is True else printable(str(value))
            made.set(name.rstrip("_").replace("_", "-"), text)
    _fill(made, children)
    return made


def written(elements: Iterable[Element]) -> str:
    """Return elements as HTML."""
    return "\n".join(
        ElementTree.tostring(each, encoding="unicode", method="html") for each in elements
    )


def pill(text: str, kind: str) -> Element:
    """Return a word on a coloured ground: ``good``, ``kept``, ``bad`` or ``quiet``."""
    return el("span", text, class_=f"pill {kind}")


def table(
    heads: Sequence[str], rows: Iterable[Sequence[Element | str]], numbers: Collection[int]
) -> Element:
    """Return a table; the columns in ``numbers`` are aligned right."""

    def line(tag: str, cells: Sequence[Element | str]) -> Element:
        kinds = ("number" if i in numbers else None for i in range(len(cells)))
        return el(
            "tr", *(el(tag, cell, class_=kind) for cell, kind in zip(cells, kinds, strict=True))
        )

    body = el("tbody", *(line("td", row) for row in rows))
    return el("div", el("table", el("thead", line("th", heads)), body), class_="scroll")


def shortened(text: str, letters: int) -> str:
    """Shorten a name in its middle, since both ends tell names apart."""
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
