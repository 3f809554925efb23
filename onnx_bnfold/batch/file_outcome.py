"""The outcome for one file of a store."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from onnx_bnfold.report import Report

_KEPT = ("name", "reason", "culprit", "sentence")

Status: TypeAlias = Literal["folded", "planned", "copied", "linked", "failed", "gone", "removed"]


@dataclass(frozen=True)
class Stamp:
    """The content of a file: its size in bytes and its SHA-256 in hexadecimal."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Counts:
    """What a fold did, in numbers.

    Attributes:
        norms: number of BatchNormalizations.
        folded: number of those that were folded.
        nodes_before, nodes_after: number of nodes; None for a plan.
        kept: name and refusal of each BatchNormalization that is kept (``Refusal.to_dict``).
        bytes_before, bytes_after: length of the files; None for a plan.
        left: how many nodes of the result are BatchNormalizations.
    """

    norms: int
    folded: int
    nodes_before: int | None
    nodes_after: int | None
    kept: tuple[dict[str, str], ...]
    bytes_before: int | None = None
    bytes_after: int | None = None
    left: int | None = None

    def summary(self) -> str:
        """Return the numbers as text."""
        parts = ["there is no BatchNormalization in it"]
        if self.norms:
            parts = [f"{self.folded} of {self.norms} BatchNormalization folded"]
        if self.nodes_before is not None:
            parts.append(f"{self.nodes_before} -> {self.nodes_after} nodes")
        if self.bytes_before is not None:
            parts.append(f"{self.bytes_before:,} -> {self.bytes_after:,} bytes")
        return ", ".join(parts)


@dataclass(frozen=True)
class FileOutcome:
    """The outcome for one file.

    Attributes:
        name: its path below the store, with slashes; or an option that fits no model.
        status: what was done; "gone" if the model is no longer in the source, "removed" if its
            fold was therefore removed, too.
        skipped: whether an earlier run had done it, from the same content with the same options.
        error: one sentence, if it failed.
        counts: of a model that was folded or planned.
        source: name → content of the model and its data files, as they were read.
        target: name → content of the model and its data file, as they were written.
        unmatched: patterns of ``options.keep`` that match nothing in the model.
        unmatched_only: the same of ``options.only``.
        check: what a check has found, in a few words; None if there was none.
    """

    name: str
    status: Status
    skipped: bool = False
    error: str | None = None
    counts: Counts | None = None
    source: dict[str, Stamp] = field(default_factory=dict)
    target: dict[str, Stamp] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()
    unmatched_only: tuple[str, ...] = ()
    check: str | None = None

    @property
    def is_model(self) -> bool:
        """Whether the file is a model, judged by its name."""
        return is_model(self.name)

    @property
    def is_option(self) -> bool:
        """Whether it is of an option (``--keep``), and of no file."""
        return self.name.startswith("--")

    @property
    def said(self) -> str:
        """What reports say was done."""
        return "done before" if self.skipped else self.status

    @property
    def reasons(self) -> list[str]:
        """The code of each BatchNormalization that stays."""
        return [kept["reason"] for kept in self.counts.kept] if self.counts else []

    def to_data(self) -> dict[str, Any]:
        """Return the outcome as JSON types, without empty fields."""
        return {key: value for key, value in asdict(self).items() if value not in (None, {}, ())}

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> FileOutcome:
        """Return the outcome that ``to_data`` has turned into ``data``.

        Raises:
            LookupError, TypeError, ValueError: ``data`` does not come from there.
        """
        counts = dict(data["counts"])
        counts["kept"] = tuple({key: kept[key] for key in _KEPT} for kept in counts["kept"])
        stamps = {
            key: {name: Stamp(**stamp) for name, stamp in data[key].items()}
            for key in ("source", "target")
        }
        patterns = {key: tuple(data.get(key, ())) for key in ("unmatched", "unmatched_only")}
        return cls(**{**data, "counts": Counts(**counts), **patterns, **stamps})


def is_model(name: str) -> bool:
    """Return whether a file of this name is a model."""
    return name.lower().endswith(".onnx")


def counts_of(report: Report) -> Counts:
    """Return the numbers of a report."""
    kept = tuple(
        {"name": record.name, **record.refusal.to_dict()}
        for record in report.kept
        if record.refusal is not None
    )
    return Counts(
        len(report.norms),
        len(report.folded),
        report.nodes_before,
        report.nodes_after,
        kept,
        report.bytes_before,
        report.bytes_after,
        len(report.left),
    )
