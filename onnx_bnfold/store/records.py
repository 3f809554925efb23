"""The record of a folded model, in the state of the output: one file for each model.

Whoever saves a record replaces a whole file, so runs at the same time cannot spoil each other's.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnx_bnfold.folding import Options
from onnx_bnfold.store.outcome import FileOutcome
from onnx_bnfold.store.places import Place
from onnx_bnfold.version import __version__


@dataclass(frozen=True)
class Record:
    """What a run has done with a model.

    Attributes:
        outcome: what became of the model.
        settings: version and options of the run.
        run: see `work.Job`.
    """

    outcome: FileOutcome
    settings: dict[str, Any]
    run: str


def settings_of(options: Options) -> dict[str, Any]:
    """Returns what the folded model depends on, besides the original."""
    return {"version": __version__, "options": asdict(options)}


def load(place: Place, key: str) -> Record | None:
    """Returns the record of a model; None if there is none that can be understood."""
    content = place.load(_name(key))
    try:
        data = json.loads(content or b"")
        return Record(FileOutcome.from_data(data["outcome"]), data["settings"], data["run"])
    except (ValueError, TypeError, LookupError):
        return None


def save(record: Record, place: Place, key: str, scratch: Path) -> None:
    """Saves the record of a model.

    Args:
        record: what to save.
        place: the output.
        key: that of the model.
        scratch: the claimed folder.
    """
    data = {"settings": record.settings, "run": record.run, "outcome": record.outcome.to_data()}
    path = scratch / "record"
    path.write_text(json.dumps(data, indent=1), encoding="ascii")
    place.save(path, _name(key))


def _name(key: str) -> str:
    return f"records/{key}.json"
