"""The report as one HTML page, which loads nothing: its style and script are inside.

Names come from a model and are untrusted. ``markup`` escapes them and replaces unprintable and
bidirectional control characters by escape sequences, and a Content-Security-Policy allows nothing
but the page's own style and script, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from onnx_bnfold.errors import printable
from onnx_bnfold.reports import check_sections, fold_sections
from onnx_bnfold.reports.later import Later, packed
from onnx_bnfold.reports.markup import Data, Element, el, written


def page(data: Data) -> str:
    """Return the page of a report.

    Args:
        data: ``FoldReport.to_dict()``, ``CheckReport.to_dict()`` or ``CheckResult.to_dict()``.
    """
    later = Later()
    if "numerics" in data:
        title, body = f"check of {Path(data['folded']).name}", check_sections.page_of(data, later)
    else:
        title = f"fold of {data['source'][0]['name']}"
        checked = [] if data["check"] is None else check_sections.sections(data["check"])
        body = fold_sections.sections(data, checked, later)
    return document(title, body, data, later)


def document(title: str, body: Sequence[Element], data: Data, later: Later) -> str:
    """Return a page.

    Args:
        title: of the page.
        body: what is shown: a header, then sections; those with an ``id`` are linked to from the
            top.
        data: what it is made of, as JSON types; it is put into the page.
        later: what the page does not show at once.
    """
    style, script = _resource("page.css"), _resource("page.js")
    links = _links(body)
    skip = "list" if "list" in links else "main"
    return Template(_resource("page.html")).substitute(
        title=escape(printable(title)),
        policy=_policy(style, script),
        style=style,
        script=script,
        skip=f"#{skip}",
        skipped=links.get(skip, "the content"),
        body=written([body[0], _navigation(links), *body[1:]]),
        later=later.packed(),
        data=packed(json.dumps(data, allow_nan=False, indent=2)),
    )


def _links(body: Sequence[Element]) -> dict[str, str]:
    """Return the sections of a page: id → title."""
    return {
        name: str(section.findtext("h2"))
        for section in body
        if (name := section.get("id")) is not None
    }


def _navigation(links: Mapping[str, str]) -> Element:
    linked = (el("a", text, href=f"#{name}") for name, text in links.items())
    return el("nav", *linked, aria_label="sections of this page")


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; style-src 'sha256-{_hash(style)}'; "
        f"script-src 'sha256-{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
