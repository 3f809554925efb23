"""What was folded, into what, and why the rest stays: as data and as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_bnfold import batchnorm
from onnx_bnfold.errors import printable
from onnx_bnfold.plan import Decision, GraphPlan
from onnx_bnfold.reasons import Refusal

# The way of a BatchNormalization whose whole branch went into a Conv.
MERGED = "merged"


@dataclass(frozen=True)
class Record:
    """What became of one node.

    Attributes:
        name: its operator and name, with the path of its graph.
        is_norm: whether it is a BatchNormalization; else a Mul, Add, Sub or Div by a constant.
        way: how it was folded, or None if it stays.
        scale_to, shift_to: the nodes that took its scale and its shift.
        added: Add nodes that its shift needs, behind a MatMul.
        refusal: why it stays.
        tried: for each way to fold it, what was in that way.
    """

    name: str
    is_norm: bool
    way: str | None
    scale_to: tuple[str, ...]
    shift_to: tuple[str, ...]
    added: int
    refusal: Refusal | None
    tried: tuple[tuple[str, Refusal], ...]

    @classmethod
    def of_merged(cls, name: str, conv: str) -> Record:
        """Return the record of a BatchNormalization whose branch was merged into a Conv."""
        return cls(name, True, MERGED, (conv,), (conv,), 0, None, ())

    @property
    def folded(self) -> bool:
        """Whether the node went."""
        return self.refusal is None

    def sentence(self) -> str:
        """Return one line for people."""
        if self.refusal is None:
            return f"folded  {self.name} into {self._takers()}"
        text = f"kept    {self.name}: [{self.refusal.reason.value}] {_told(self.refusal)}"
        other = next((r for _, r in self.tried if r.culprit != self.refusal.culprit), None)
        return f"{text}; the other way, {_told(other)}" if other is not None else text

    def _takers(self) -> str:
        if self.scale_to == self.shift_to or not self.shift_to:
            text = ", ".join(self.scale_to) or "its neighbours (it changes nothing)"
        elif not self.scale_to:
            text = ", ".join(self.shift_to)
        else:
            text = f"{', '.join(self.scale_to)} (scale) and {', '.join(self.shift_to)} (shift)"
        return text + (" and a new Add" if self.added else "")


def _told(refusal: Refusal) -> str:
    return f"{refusal.culprit}: {refusal.sentence}"


@dataclass(frozen=True)
class Report:
    """The outcome of a plan or a fold.

    Attributes:
        records: one per BatchNormalization of the model and per removed affine node, in order.
        nodes_before, nodes_after: node counts over all graphs; None for a plan.
        equalized: tensors whose channels were made alike, each with those that share its factors.
    """

    records: tuple[Record, ...]
    nodes_before: int | None = None
    nodes_after: int | None = None
    equalized: tuple[str, ...] = ()

    @property
    def norms(self) -> tuple[Record, ...]:
        """The records of BatchNormalizations."""
        return tuple(r for r in self.records if r.is_norm)

    @property
    def folded(self) -> tuple[Record, ...]:
        """The BatchNormalizations that go."""
        return tuple(r for r in self.norms if r.folded)

    @property
    def kept(self) -> tuple[Record, ...]:
        """The BatchNormalizations that stay."""
        return tuple(r for r in self.norms if not r.folded)

    def lines(self) -> list[str]:
        """Return one line per record."""
        return [printable(record.sentence()) for record in self.records]

    def summary(self) -> str:
        """Return the last line: how many went, how many stay, what it did to the node count."""
        affine = sum(not r.is_norm for r in self.records)
        parts = [f"{len(self.folded)} of {len(self.norms)} BatchNormalization folded"]
        if affine:
            parts.append(f"{affine} affine node{'s' if affine > 1 else ''} folded")
        if self.equalized:
            parts.append(f"channels equalized from {len(self.equalized)} tensors on")
        if self.nodes_before is not None:
            parts.append(f"{self.nodes_before} -> {self.nodes_after} nodes")
        return ", ".join(parts)


def records_of(plans: Sequence[GraphPlan]) -> tuple[Record, ...]:
    """Collect the decisions of all graphs of a model."""
    return tuple(_record(plan, decision) for plan in plans for decision in plan.decisions)


def _record(plan: GraphPlan, decision: Decision) -> Record:
    return Record(
        plan.site.place(decision.node),
        plan.site.view(decision.node).op == batchnorm.OPERATOR,
        decision.way,
        decision.scale_to,
        decision.shift_to,
        decision.added,
        decision.refusal,
        decision.tried,
    )
