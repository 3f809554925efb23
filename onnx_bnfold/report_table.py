"""A report as a table for notebooks, which show it by themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from onnx_bnfold.errors import printable
from onnx_bnfold.planning.record import Record
from onnx_bnfold.reasons import told

MOST_ROWS = 200  # of a notebook; ``save`` writes all
_HEAD = "<tr><th>node</th><th>went into, or stays because</th></tr>"


def table(summary: str, records: Sequence[Record]) -> str:
    """Return a summary and, below it, a row per record as HTML."""
    rows = "".join(map(_row, records[:MOST_ROWS]))
    left_out = len(records) - MOST_ROWS
    note = f"<p>{left_out} more; report.save('report.html') has all</p>" if left_out > 0 else ""
    body = f"<table><thead>{_HEAD}</thead><tbody>{rows}</tbody></table>" if rows else ""
    return f"<div><p>{_text(summary)}</p>{body}{note}</div>"


def _row(record: Record) -> str:
    cells = "".join(f"<td style='text-align:left'>{_text(each)}</td>" for each in _cells(record))
    return f"<tr>{cells}</tr>"


def _cells(record: Record) -> Iterator[str]:
    yield record.name
    if record.refusal is None:
        takers = dict.fromkeys((*record.scale_to, *record.shift_to))
        yield ", ".join(takers) or str(record.way)
    else:
        yield told(record.refusal)


def _text(text: str) -> str:
    return escape(printable(text))
