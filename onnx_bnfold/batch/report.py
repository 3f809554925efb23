"""The report of a run over a store, as text and as JSON."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from onnx_bnfold.batch.file_outcome import FileOutcome
from onnx_bnfold.errors import printable

_WITHOUT_COUNTS = {
    "gone": "is no longer in the source; its fold is still in the output (--prune removes it)",
    "removed": "is no longer in the source; its fold was removed",
}
SCHEMA = 1  # raised when a field of the JSON is removed or changes its meaning


@dataclass(frozen=True, repr=False)
class StoreReport:
    """The outcome of a run over a store.

    Attributes:
        outcomes: one per file and per link to a folder, sorted by name.
        settings: version and options of the run.
    """

    outcomes: tuple[FileOutcome, ...]
    settings: dict[str, Any]

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return f"<StoreReport: {self.summary()}>"

    def _repr_html_(self) -> str:
        from onnx_bnfold.report_table import table_of  # for notebooks

        rows = [(f"{o.said}  {o.name}", o.error or _told(o)) for o in (*self.failed, *self._fine())]
        return table_of(self.summary(), ("file", "outcome"), rows)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as a page or as JSON, as ``--report`` does.

        Args:
            path: ends in ``.html`` or ``.json``.

        Raises:
            UsageError: the file cannot be written.
        """
        # It is made of this module: the import would be a cycle.
        import_module("onnx_bnfold.batch.saving").save(self, path)

    @property
    def models(self) -> tuple[FileOutcome, ...]:
        """The outcomes of models."""
        return tuple(o for o in self.outcomes if o.is_model)

    @property
    def failed(self) -> tuple[FileOutcome, ...]:
        """The outcomes of everything that failed, models or not."""
        return tuple(o for o in self.outcomes if o.status == "failed")

    def lines(self, *, reasons: bool = False) -> list[str]:
        """Return one line for each model that did not fail.

        Args:
            reasons: with how many BatchNormalizations stay for which reason.
        """
        return [printable(_line(o, reasons)) for o in self._fine()]

    def _fine(self) -> list[FileOutcome]:
        return [o for o in self.models if o.status != "failed"]

    def reasons(self) -> Counter[str]:
        """Return for each reason how many BatchNormalizations stay, of all models."""
        return Counter(code for outcome in self.models for code in outcome.reasons)

    def errors(self) -> list[str]:
        """Return one line for each file that failed."""
        return [printable(f"failed  {o.error}") for o in self.failed]

    def summary(self) -> str:
        """Return the last line of the text."""
        models = Counter[str](o.said for o in self.models)
        rest = [o for o in self.outcomes if not o.is_model]
        others = Counter[str](o.status for o in rest if not o.is_option)
        counts = [o.counts for o in self.models if o.counts]
        parts = [
            f"{len(self.models)} model{'' if len(self.models) == 1 else 's'}: {listed(models)}",
            f"{sum(c.folded for c in counts)} of {sum(c.norms for c in counts)} "
            "BatchNormalization folded",
        ]
        if before := sum(c.bytes_before or 0 for c in counts):
            parts.append(f"{before:,} -> {sum(c.bytes_after or 0 for c in counts):,} bytes")
        if others:
            parts.append(f"other files: {listed(others)}")
        if options := [o.name for o in rest if o.is_option]:
            parts.append(f"failed: {', '.join(options)}")
        return "; ".join(parts)

    def to_data(self) -> dict[str, Any]:
        """Return everything as JSON types.

        ``models`` has an entry for each model and ``files`` for each other file: ``name``,
        ``status`` and ``skipped``; ``error`` if the status is "failed"; ``counts``, ``source`` and
        ``target`` if it is a folded model (see ``file_outcome.FileOutcome``).
        """
        return {
            "schema": SCHEMA,
            **self.settings,
            "summary": self.summary(),
            "models": [o.to_data() for o in self.models],
            "files": [o.to_data() for o in self.outcomes if not o.is_model],
        }

    def to_json(self) -> str:
        """Return ``to_data`` as JSON."""
        return json.dumps(self.to_data(), indent=1) + "\n"


def _line(outcome: FileOutcome, reasons: bool) -> str:
    kept = f"; kept: {listed(Counter(outcome.reasons))}" if reasons and outcome.reasons else ""
    return f"{outcome.said}  {outcome.name}: {_told(outcome)}{kept}"


def _told(outcome: FileOutcome) -> str:
    """Return what became of a model that did not fail."""
    if outcome.counts is None:
        return _WITHOUT_COUNTS[outcome.status]
    return outcome.counts.summary() + (f"; {outcome.check}" if outcome.check else "")


def listed(counts: Counter[str]) -> str:
    """Return how many there are of what, as text."""
    return ", ".join(f"{number} {what}" for what, number in sorted(counts.items())) or "none"
