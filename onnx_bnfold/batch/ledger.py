"""Records of folded models, in the state of the output: one file for each model.

A record is saved by replacing the whole file, so that concurrent runs cannot corrupt it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnx_bnfold.batch.file_outcome import FileOutcome
from onnx_bnfold.batch.locations import Location
from onnx_bnfold.options import Options
from onnx_bnfold.version import __version__


@dataclass(frozen=True)
class Record:
    """What a run has done with a model.

    Attributes:
        outcome: for the model.
        settings: version and options of the run.
        run: see ``task.Batch``.
    """

    outcome: FileOutcome
    settings: dict[str, Any]
    run: str


def settings_of(options: Options) -> dict[str, Any]:
    """Return what a folded model depends on besides its original: version and options.

    As JSON has them: they are compared with what was saved.
    """
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(options).items()}
    return {"version": __version__, "options": plain}


def load(location: Location, key: str) -> Record | None:
    """Return the record of a model, None if there is none or it cannot be read."""
    content = location.load(_name(key))
    try:
        data = json.loads(content or b"")
        return Record(FileOutcome.from_data(data["outcome"]), data["settings"], data["run"])
    except (ValueError, TypeError, LookupError):
        return None


def save(record: Record, location: Location, key: str, scratch: Path) -> None:
    """Save the record of a model.

    Args:
        record: the record.
        location: the output.
        key: that of the model.
        scratch: the claimed folder.
    """
    data = {"settings": record.settings, "run": record.run, "outcome": record.outcome.to_data()}
    path = scratch / "record"
    path.write_text(json.dumps(data, indent=1), encoding="ascii")
    location.save(path, _name(key))


def _name(key: str) -> str:
    return f"records/{key}.json"
