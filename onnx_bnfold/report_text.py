"""A report as a text to be read at a glance: what is alike is said once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from onnx_bnfold.advice import ADVICE
from onnx_bnfold.errors import printable
from onnx_bnfold.planning.record import Record, first_of
from onnx_bnfold.reasons import Reason
from onnx_bnfold.report import Report, by_reason

_FOLDED = 10  # that are listed
_MOST = 3  # names in a list
_PREFIX = "BatchNormalization "


def short_lines(report: Report) -> list[str]:
    """Return what was folded, capped, and what stays, by reason and with what one can do."""
    shown = [*_folded(report.records), *_kept(report), *advice(_reasons(report))]
    return [printable(line) for line in shown]


def long_lines(report: Report) -> list[str]:
    """Return a line per record, and what one can do about those that stay."""
    return [*report.lines(), *map(printable, advice(_reasons(report)))]


def advice(reasons: Iterable[Reason]) -> Iterator[str]:
    """Yield what one can do, once for each reason."""
    for reason in dict.fromkeys(reasons):
        yield f"advice  [{reason.value}] {ADVICE[reason]}"


def unmet(report: Report, *, all_go: bool, none_goes: bool) -> Iterator[str]:
    """Yield which requirements a fold does not meet.

    Args:
        report: of the fold.
        all_go: that no BatchNormalization is left (``--require-all``).
        none_goes: that there is nothing to fold (``--require-folded``).
    """
    if all_go and (left := report.left):
        codes = Counter(r.refusal.reason.value for r in left if r.refusal is not None)
        what = ", ".join(f"{number} {code}" for code, number in sorted(codes.items()))
        yield f"--require-all: {len(left)} BatchNormalization{_s(len(left))} left: {what}"
    if none_goes and (folded := sum(record.folded for record in report.records)):
        yield f"--require-folded: {folded} node{_s(folded)} to fold; fold it first"


def _s(number: int) -> str:
    return "" if number == 1 else "s"


def _reasons(report: Report) -> Iterator[Reason]:
    records = (*report.kept, *report.kept_affine)
    return (record.refusal.reason for record in records if record.refusal is not None)


def _folded(records: Sequence[Record]) -> Iterator[str]:
    folded = [record for record in records if record.folded]
    # One line more does not need another one that says so.
    shown = folded if len(folded) <= _FOLDED + 1 else folded[:_FOLDED]
    for record in shown:
        yield record.sentence(most=_MOST)
    if others := folded[len(shown) :]:
        yield f"folded  {len(others)} more (--verbose lists all)"


def _kept(report: Report) -> Iterator[str]:
    groups: dict[tuple[Reason, str, str | None], list[Record]] = {}
    for record in report.kept:
        assert record.refusal is not None
        key = record.refusal.reason, record.written_as, record.not_written
        groups.setdefault(key, []).append(record)
    for (reason, *_), records in groups.items():
        if len(records) == 1:
            yield records[0].sentence()
        else:
            names = first_of([record.name.removeprefix(_PREFIX) for record in records], _MOST)
            _, _, why = records[0].sentence().partition(f"[{reason.value}] ")
            yield f"kept    {len(records)} {_PREFIX}{names}: [{reason.value}] the first: {why}"
    yield from by_reason(report.kept_affine)
