"""The report of a run over a store, as text and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from onnx_bnfold.batch.file_outcome import FileOutcome
from onnx_bnfold.errors import printable

SCHEMA = 1  # raised when a field of the JSON is removed or changes its meaning


@dataclass(frozen=True)
class StoreReport:
    """The outcome of a run over a store.

    Attributes:
        outcomes: one per file and per link to a folder, sorted by name.
        settings: version and options of the run.
    """

    outcomes: tuple[FileOutcome, ...]
    settings: dict[str, Any]

    @property
    def models(self) -> tuple[FileOutcome, ...]:
        """The outcomes of models."""
        return tuple(o for o in self.outcomes if o.is_model)

    @property
    def failed(self) -> tuple[FileOutcome, ...]:
        """The outcomes of everything that failed, models or not."""
        return tuple(o for o in self.outcomes if o.status == "failed")

    def lines(self) -> list[str]:
        """Return one line for each model that did not fail."""
        return [
            printable(f"{'done before' if o.skipped else o.status}  {o.name}: {o.counts.summary()}")
            for o in self.models
            if o.counts
        ]

    def errors(self) -> list[str]:
        """Return one line for each file that failed."""
        return [printable(f"failed  {o.error}") for o in self.failed]

    def summary(self) -> str:
        """Return the last line of the text."""
        models = Counter[str]("done before" if o.skipped else o.status for o in self.models)
        others = Counter[str](o.status for o in self.outcomes if not o.is_model)
        counts = [o.counts for o in self.models if o.counts]
        parts = [
            f"{len(self.models)} models: {_listed(models)}",
            f"{sum(c.folded for c in counts)} of {sum(c.norms for c in counts)} "
            "BatchNormalization folded",
        ]
        if before := sum(c.bytes_before or 0 for c in counts):
            parts.append(f"{before:,} -> {sum(c.bytes_after or 0 for c in counts):,} bytes")
        if others:
            parts.append(f"other files: {_listed(others)}")
        return "; ".join(parts)

    def to_json(self) -> str:
        """Return everything as JSON.

        ``models`` has an entry for each model and ``files`` for each other file: ``name``,
        ``status`` and ``skipped``; ``error`` if the status is "failed"; ``counts``, ``source`` and
        ``target`` if it is a folded model (see ``file_outcome.FileOutcome``).
        """
        data = {
            "schema": SCHEMA,
            **self.settings,
            "summary": self.summary(),
            "models": [o.to_data() for o in self.outcomes if o.is_model],
            "files": [o.to_data() for o in self.outcomes if not o.is_model],
        }
        return json.dumps(data, indent=1) + "\n"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {what}" for what, number in sorted(counts.items())) or "none"
