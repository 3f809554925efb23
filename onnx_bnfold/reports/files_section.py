"""The foot of a page: files with their hashes, and the versions that made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx_bnfold.reports.markup import Data, Element, el, table


def given_options(options: Data, defaults: Data) -> str:
    """Return which options are not as they are by default, as a sentence."""
    given = [
        f"{name} {value}"
        for name, value in options.items()
        if _plain(value) != _plain(defaults[name])
    ]
    return f"Options: {', '.join(given)}." if given else "All options are as by default."


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def footer(data: Data, files: Mapping[str, Sequence[Data]], notes: Sequence[str]) -> Element:
    """Return the foot of a page.

    Args:
        data: the report.
        files: role → the files of a model.
        notes: sentences.
    """
    rows: list[list[Element | str]] = [
        [role, el("code", file["name"]), f"{file['bytes']:,}", el("code", file["sha256"])]
        for role, several in files.items()
        for file in several
    ]
    versions = [f"{data['tool']['name']} {data['tool']['version']}"]
    versions += [f"{name} {version}" for name, version in data["packages"].items() if version]
    return el(
        "footer",
        el("h2", "Files and versions"),
        table(("model", "file", "bytes", "SHA-256"), rows, numbers=(2,)),
        *(el("p", note, class_="note") for note in (*notes, f"{', '.join(versions)}.")),
        save_button(),
        id="files",
    )  # fmt: skip


def save_button() -> Element:
    """Return what saves the report of the page as JSON."""
    button = el("button", "Save this report as JSON", type="button", id="save")
    return el("p", button, class_="needs-script")
