"""The report as one HTML page, which loads nothing: its style and script are inside.

Names come from a model and are untrusted. ``markup`` escapes them and replaces unprintable and
bidirectional control characters by escape sequences, and a Content-Security-Policy allows nothing
but the page's own style and script, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from onnx_bnfold.errors import printable
from onnx_bnfold.reports import check_sections, fold_sections
from onnx_bnfold.reports.markup import Data, Element, written


def page(data: Data) -> str:
    """Return the page of a report.

    Args:
        data: ``FoldReport.to_dict()`` or ``CheckResult.to_dict()``.
    """
    check = data if "numerics" in data else data["check"]
    if check is data:
        title = f"check of {Path(data['folded']).name}"
        body = check_sections.header(data) + check_sections.sections(data)
    else:
        title = f"fold of {data['source'][0]['name']}"
        checked = [] if check is None else check_sections.sections(check)
        body = fold_sections.sections(data, checked)
    return document(title, body, data)


def document(title: str, body: Sequence[Element], data: Data) -> str:
    """Return a page.

    Args:
        title: of the page.
        body: what is shown.
        data: what it is made of, as JSON types; it is put into the page.
    """
    style, script = _resource("page.css"), _resource("page.js")
    return Template(_resource("page.html")).substitute(
        title=escape(printable(title)),
        policy=_policy(style, script),
        style=style,
        script=script,
        body=written(body),
        data=_embedded(data),
    )


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; style-src 'sha256-{_hash(style)}'; "
        f"script-src 'sha256-{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embedded(data: Data) -> str:
    """Return JSON that cannot close the HTML element that contains it."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text
