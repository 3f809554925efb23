"""What a page shows only when somebody opens it: compressed, so that large pages stay small."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence

from onnx_bnfold.reports.markup import Element, el, written

AT_ONCE = 150  # entries of a list that a page has as they are, and shows without a script

_MISSING = "This part of a large page needs JavaScript. The JSON report has it, too."


class Later:
    """The parts of one page that its script puts in their places."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def put(self, elements: Sequence[Element]) -> int:
        """Keep a part for later, and return its number."""
        self._parts.append(written(elements))
        return len(self._parts) - 1

    def details(self, title: Element, content: Sequence[Element], *, at_once: bool) -> Element:
        """Return what shows ``content`` when somebody opens it.

        Args:
            title: what is shown of it before.
            content: what there is to see.
            at_once: whether the page has it as it is.
        """
        if at_once:
            return el("details", el("summary", title), *content)
        missing = el("p", _MISSING, class_="note missing")
        return el("details", el("summary", title), missing, data_later=self.put(content))

    def packed(self) -> str:
        """Return all parts, for the page's script."""
        return packed(json.dumps(self._parts))


def packed(text: str) -> str:
    """Return a text compressed, as letters that cannot close the element that contains them."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
