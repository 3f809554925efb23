"""A report as a table for notebooks, which show it by themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from onnx_bnfold.errors import printable
from onnx_bnfold.planning.record import Record
from onnx_bnfold.reasons import told

MOST_ROWS = 200  # of a notebook; ``save`` writes all


def table(summary: str, records: Sequence[Record]) -> str:
    """Return a summary and, below it, a row per record as HTML."""
    heads = ("node", "went into, or stays because")
    return table_of(summary, heads, [(*_cells(record),) for record in records])


def table_of(summary: str, heads: Iterable[str], rows: Sequence[Iterable[str]]) -> str:
    """Return a summary and, below it, the first rows of a table as HTML."""
    body = "".join(map(_row, rows[:MOST_ROWS]))
    left_out = len(rows) - MOST_ROWS
    note = f"<p>{left_out} more; report.save('report.html') has all</p>" if left_out > 0 else ""
    if body:
        head = "".join(f"<th>{_text(each)}</th>" for each in heads)
        body = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div><p>{_text(summary)}</p>{body}{note}</div>"


def _row(texts: Iterable[str]) -> str:
    cells = "".join(f"<td style='text-align:left'>{_text(each)}</td>" for each in texts)
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
