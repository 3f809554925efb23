"""What was folded, into what, and why the rest stays: as data and as text."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onnx_bnfold.errors import printable
from onnx_bnfold.operators.affine import VANISHED, Affine
from onnx_bnfold.options import Options
from onnx_bnfold.planning.plan import GraphPlan
from onnx_bnfold.planning.record import Record as Record  # a public name of this module
from onnx_bnfold.planning.shared_constants import SharedConstants


@dataclass(frozen=True)
class Rescaled:
    """A tensor that stays and holds what no tensor of the original held.

    Attributes:
        name: of the tensor, with the path of its graph.
        smallest, largest: of the factors of its channels, by magnitude; those of channels that
            were constant are left out.
        shift: largest magnitude of what is added to a channel.
    """

    name: str
    smallest: float
    largest: float
    shift: float


def rescaled_of(rounds: Sequence[Sequence[GraphPlan]]) -> tuple[Rescaled, ...]:
    """Collect the tensors that stay and are re-parametrised, those of the widest factors first."""
    found = []
    for plans in zip(*rounds, strict=True):
        total = composed(plans)
        names = dict.fromkeys(name for plan in plans for name in _changed(plan))
        found += [_rescaled(plans[-1], name, total[name]) for name in names if name in total]
    return tuple(sorted(found, key=lambda each: (-each.largest / each.smallest, each.name)))


def composed(plans: Sequence[GraphPlan]) -> dict[str, Affine]:
    """Return the changes of a graph's tensors by all rounds together, by name."""
    total: dict[str, Affine] = {}
    for plan in plans:
        for name, change in plan.state.total.items():
            if isinstance(name, str):
                before = total.get(name)
                total[name] = change if before is None else before.then(change)
    return total


def _changed(plan: GraphPlan) -> list[str]:
    """Return the names that stand for tensors none of whose merged ones is as it was."""
    total, state = plan.state.total, plan.state
    roots = dict.fromkeys(state.groups.root(key) for key in total if isinstance(key, str))
    return [root for root in roots if all(member in total for member in state.groups.members(root))]


def _rescaled(plan: GraphPlan, name: str, change: Affine) -> Rescaled:
    size = np.abs(change.scale)
    size = size[(size > 0) & (size < VANISHED)]
    return Rescaled(
        plan.state.graph.place(repr(name)),
        float(size.min()) if size.size else 1.0,
        float(size.max()) if size.size else 1.0,
        float(np.abs(change.shift).max()),
    )


class Origin(NamedTuple):
    """What a report is of, to make it once more with what was around the nodes.

    Attributes:
        source: the model as it was given.
        options: of the fold.
        base_dir: folder of its external data.
        target: the folded model's file, if there is one.
    """

    source: Any
    options: Options
    base_dir: str | os.PathLike[str] | None = None
    target: Path | None = None


@dataclass(frozen=True, repr=False)
class Report:
    """The outcome of a plan or a fold.

    Attributes:
        records: one per BatchNormalization of the model and per removed affine node, in order.
        nodes_before, nodes_after: node counts over all graphs; None for a plan.
        equalized: tensors whose channels were made alike, each with those that share its factors.
        rescaled: tensors that stay and hold what no tensor of the original held, those of the
            widest factors first.
        bytes_before, bytes_after: of the model, with its external data; None for a plan.
        copied_bytes: what copies of weights that several nodes read add to it.
        inlined_calls: number of calls of local functions that were inlined.
        kept_affine: one per Mul, Add, Sub or Div by a constant per channel (a decomposed
            BatchNormalization) that a fold was tried for and that stays, in order.
        int8_loss: what the new ranges of ``rescaled`` are expected to cost a model that is
            quantised to int8 afterwards, in dB; None if nothing worth saying.
        coarser_in_float16: whether rounding its constants to float16 is expected to cost a folded
            model far more than the original.
        open_choices: how many more BatchNormalizations could go at most if others stayed; 0 unless
            too many compete for all choices to be searched.
        origin: what it is of, for ``save``; not kept where the report is pickled, unless it is a
            file.
    """

    records: tuple[Record, ...]
    nodes_before: int | None = None
    nodes_after: int | None = None
    equalized: tuple[str, ...] = ()
    rescaled: tuple[Rescaled, ...] = ()
    # Where values lie, in the model or in files, changes these and nothing else.
    bytes_before: int | None = field(default=None, compare=False)
    bytes_after: int | None = field(default=None, compare=False)
    copied_bytes: int = 0
    inlined_calls: int = 0
    kept_affine: tuple[Record, ...] = ()
    int8_loss: float | None = None
    coarser_in_float16: bool = False
    open_choices: int = 0
    origin: Origin | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return f"<Report: {self.summary()}>"

    def __getstate__(self) -> dict[str, Any]:
        is_file = self.origin is not None and isinstance(self.origin.source, Path)
        return {**vars(self), "origin": self.origin if is_file else None}

    def _repr_html_(self) -> str:
        from onnx_bnfold.report_table import table  # for notebooks

        going = (record for record in self.records if record.folded)
        return table(self.summary(), [*self.kept, *self.kept_affine, *going])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as a page or as JSON, as ``--report`` does.

        The model is read and planned once more. It must not have changed.

        Args:
            path: ends in ``.html`` or ``.json``.

        Raises:
            UsageError: the file cannot be written, or the model has changed.
            ModelError: the model cannot be read any more.
        """
        # It is made of the layers above this one, by name: the import would be a cycle.
        import_module("onnx_bnfold.reports.saving").save(self, path)

    @property
    def norms(self) -> tuple[Record, ...]:
        """The records of BatchNormalizations."""
        return tuple([r for r in self.records if r.is_norm])

    @property
    def folded(self) -> tuple[Record, ...]:
        """The BatchNormalizations that go."""
        return tuple([r for r in self.records if r.is_norm and r.folded])

    @property
    def kept(self) -> tuple[Record, ...]:
        """The BatchNormalizations that stay, in this form or another."""
        return tuple([r for r in self.records if r.is_norm and not r.folded])

    @property
    def left(self) -> tuple[Record, ...]:
        """Those of them that stay BatchNormalizations."""
        return tuple([r for r in self.kept if r.written_as == "keep"])

    def lines(self) -> list[str]:
        """Return one line per record, and one per reason for which affine nodes stay."""
        shown = [record.sentence() for record in self.records]
        return [printable(line) for line in [*shown, *by_reason(self.kept_affine)]]

    def summary(self) -> str:
        """Return the last line: how many went and stay, what it did to nodes and bytes."""
        affine = sum(not r.is_norm for r in self.records)
        parts = ["there is no BatchNormalization in this model"]
        if self.norms:
            parts = [f"{len(self.folded)} of {len(self.norms)} BatchNormalization folded"]
        if self.open_choices:
            parts.append(f"at most {self.open_choices} more by another choice")
        if affine:
            parts.append(f"{_counted(affine, 'affine node')} folded")
        if self.kept_affine:
            parts.append(f"{_counted(len(self.kept_affine), 'affine node')} kept")
        clamps = {clamp for record in self.records for clamp in record.clamps}
        if clamps:
            parts.append(f"{_counted(len(clamps), 'clamp')} written with constants")
        if self.inlined_calls:
            parts.append(f"{_counted(self.inlined_calls, 'call')} of functions inlined")
        if written := Counter(r.written_as for r in self.kept if r.written_as != "keep"):
            parts += [f"{number} written as {form}" for form, number in written.items()]
        if self.equalized:
            parts.append(f"channels equalized from {_counted(len(self.equalized), 'tensor')} on")
        if self.rescaled:
            widest, number = self.rescaled[0], _counted(len(self.rescaled), "tensor")
            parts.append(
                f"{number} rescaled (widest: {printable(widest.name)}, its channels by "
                f"{widest.smallest:.3g} to {widest.largest:.3g})"
            )
        if self.int8_loss is not None:
            parts.append(int8_warning(self.int8_loss))
        if self.coarser_in_float16:
            parts.append(FLOAT16_WARNING)
        if self.nodes_before is not None:
            if self.norms:
                parts.append(f"{len(self.norms)} -> {len(self.left)} BatchNormalization")
            parts.append(f"{self.nodes_before} -> {self.nodes_after} nodes")
        if self.bytes_before is not None:
            parts.append(f"{self.bytes_before:,} -> {self.bytes_after:,} bytes")
        if self.copied_bytes:
            parts.append(f"copies of shared weights take {self.copied_bytes:,} bytes more")
        return ", ".join(parts)


def by_reason(kept_affine: Sequence[Record]) -> list[str]:
    """Return one line per reason for which affine nodes stay; names are not escaped."""
    groups: dict[str, list[Record]] = {}
    for record in kept_affine:
        assert record.refusal is not None
        groups.setdefault(record.refusal.reason.value, []).append(record)
    return [first.sentence(len(others)) for first, *others in groups.values()]


def int8_warning(loss: float) -> str:
    """Return what to tell who quantises the result, given ``Report.int8_loss``."""
    return (
        f"the new ranges would cost an int8 model about {loss:.0f} dB (--profile int8 avoids that)"
    )


# What to tell who converts the result, given ``Report.coarser_in_float16``.
FLOAT16_WARNING = (
    "rounding the new constants would make a float16 model less exact than the original "
    "(--profile fp16 weighs that)"
)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def copied_bytes(plans: Sequence[GraphPlan]) -> int:
    """Return what copies of constants that several nodes read add to a model."""
    return sum(SharedConstants(plan.state).growth(plan.changed) for plan in plans)
