"""Records of folded models, in the state of the output: one file for each model.

A record is saved by replacing the whole file, so that concurrent runs cannot corrupt it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_bnfold.batch.file_outcome import FileOutcome
from onnx_bnfold.batch.locations import Location
from onnx_bnfold.options import Options
from onnx_bnfold.version import __version__

if TYPE_CHECKING:  # most runs have no check
    from onnx_bnfold.check.options import CheckOptions

_FOLDER, _SUFFIX = "records", ".json"


@dataclass(frozen=True)
class Record:
    """What a run has done with a model.

    Attributes:
        outcome: for the model.
        settings: version and options of the run.
        run: see ``task.Batch``.
        origin: address of the source; empty if an older version has made the record.
    """

    outcome: FileOutcome
    settings: dict[str, Any]
    run: str
    origin: str = ""


def settings_of(options: Options, check: CheckOptions | None = None) -> dict[str, Any]:
    """Return what a folded model depends on besides its original: version, options, and its check.

    As JSON has them: they are compared with what was saved.
    """
    settings = {"version": __version__, "options": _plain(asdict(options))}
    return settings if check is None else {**settings, "check": _plain(asdict(check))}


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(fields, default=os.fspath))
    return plain


def key_of(name: str) -> str:
    """Return the key of the file of a name."""
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:32]


def load(location: Location, key: str) -> Record | None:
    """Return the record of a model, None if there is none or it cannot be read."""
    content = location.load(_name(key))
    try:
        data = json.loads(content or b"")
        outcome = FileOutcome.from_data(data["outcome"])
        return Record(outcome, data["settings"], data["run"], data.get("origin", ""))
    except (ValueError, TypeError, LookupError):
        return None


def load_others(location: Location, names: Iterable[str]) -> Iterator[tuple[str, Record]]:
    """Yield every record that can be read, with its key, but those of files of some names."""
    known = set(map(key_of, names))
    for name in location.saved(_FOLDER):
        key = name.removesuffix(_SUFFIX)
        if key not in known and (record := load(location, key)) is not None:
            yield key, record


def forget(location: Location, key: str) -> None:
    """Remove a record."""
    location.discard(_name(key))


def save(record: Record, location: Location, key: str, scratch: Path) -> None:
    """Save the record of a model.

    Args:
        record: the record.
        location: the output.
        key: that of the model.
        scratch: the claimed folder.
    """
    data = {"settings": record.settings, "run": record.run, "origin": record.origin}
    data["outcome"] = record.outcome.to_data()
    path = scratch / "record"
    path.write_text(json.dumps(data, indent=1), encoding="ascii")
    location.save(path, _name(key))


def _name(key: str) -> str:
    return f"{_FOLDER}/{key}{_SUFFIX}"
