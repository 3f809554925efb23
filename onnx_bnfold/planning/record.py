"""What became of one node: one type from the planner to the reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from onnx_bnfold.options import Standalone
from onnx_bnfold.planning.ways import Way
from onnx_bnfold.reasons import Refusal, told


class FormCost(NamedTuple):
    """What a form without a BatchNormalization costs.

    Attributes:
        nodes: with constants, that it has: each Max, Min, Mul, Add or depthwise Conv.
        elements: that these read, per example; axes of unknown size count as one.
        bytes: of their constants, beyond those of a clamp that had some.
        multiplicative_depth: their part of it, on a path through all of them.
    """

    nodes: int
    elements: int
    bytes: int
    multiplicative_depth: int = 0

    def __str__(self) -> str:
        nodes = f"{self.nodes} node{'' if self.nodes == 1 else 's'}"
        text = f"{nodes}, {self.elements:,} elements read, {self.bytes:,} bytes"
        depth = self.multiplicative_depth
        return f"{text}, multiplicative depth {depth}" if depth else text


class Record(NamedTuple):
    """What became of one node.

    It names nodes instead of referring to them, so that it outlives the model.

    Attributes:
        name: its operator and name, with the path of its graph.
        is_norm: whether it is a BatchNormalization; else a Mul, Add, Sub or Div by a constant.
        way: how it was folded, or None if it stays.
        scale_to, shift_to: the nodes that took its scale and its shift.
        added: Add nodes that its shift needs, behind a MatMul.
        refusal: why it stays.
        tried: for each way to fold it, what was in that way.
        clamps: the nodes that became a Max or Min with constants, or both, by its removal.
        written_as: of a node that stays, the form that it has.
        not_written: why it stays as it is though another form was asked for.
        form_cost: what the new Max and Min nodes cost, or what is left of the form that it is
            written as; None if there is neither.
        operator: of the node.
        index: of the node in its graph, as the model was given; None if that is not known, since
            the node is one of a function whose call was inlined, or was merged, or since the fold
            took several rounds.
        bytes: of the initializers and constants that it reads, its parameters; None where ``index``
            is, and where one has no known size.
    """

    name: str
    is_norm: bool
    way: Way | None = None
    scale_to: tuple[str, ...] = ()
    shift_to: tuple[str, ...] = ()
    added: int = 0
    refusal: Refusal | None = None
    tried: tuple[tuple[str, Refusal], ...] = ()
    clamps: tuple[str, ...] = ()
    written_as: Standalone = "keep"
    not_written: str | None = None
    form_cost: FormCost | None = None
    operator: str = ""
    index: int | None = None  # type: ignore[assignment]  # not the method of a tuple
    bytes: int | None = None

    @classmethod
    def of_merged(cls, name: str, conv: str) -> Record:
        """Return the record of a BatchNormalization whose branch was merged into a Conv."""
        return cls(name, True, Way.MERGED, (conv,), (conv,))

    @property
    def folded(self) -> bool:
        """Whether the node went."""
        return self.refusal is None

    @property
    def clamp_elements(self) -> int:
        """The elements that the new Max and Min nodes read; see ``FormCost``."""
        return self.form_cost.elements if self.form_cost is not None and self.folded else 0

    def sentence(self, others: int = 0, most: int | None = None) -> str:
        """Return one line for people.

        Args:
            others: how many more affine nodes stay for the same reason.
            most: how many nodes a list of them names; by default all.
        """
        if self.refusal is None:
            return f"folded  {self.name} into {self._takers(most)}"
        more = f" and {others} more affine node{'s' if others > 1 else ''}" if others else ""
        text = f"kept    {self.name}{more}: [{self.refusal.reason.value}] {told(self.refusal)}"
        other = next((r for _, r in self.tried if r.culprit != self.refusal.culprit), None)
        if other is not None:
            text = f"{text}; the other way, {told(other)}"
        if self.written_as != "keep":
            cost = "" if self.form_cost is None else f", {self.form_cost}"
            return f"{text}; written as {self.written_as}{cost}"
        return f"{text}; not written as asked: {self.not_written}" if self.not_written else text

    def _takers(self, most: int | None) -> str:
        if self.way is Way.CONSTANT:
            return "the constant that it computes"
        if self.way is Way.NEVER_RUN:
            return "nothing: its branch of an If is never run"
        scale_to, shift_to = first_of(self.scale_to, most), first_of(self.shift_to, most)
        if self.scale_to == self.shift_to or not self.shift_to:
            text = scale_to or "its neighbours (it changes nothing)"
        elif not self.scale_to:
            text = shift_to
        else:
            text = f"{scale_to} (scale) and {shift_to} (shift)"
        text += " and a new Add" if self.added else ""
        if self.clamps:
            became = "a clamp" if len(self.clamps) == 1 else "clamps"
            text += f", {first_of(self.clamps, most)} becoming {became} with constants"
        return text if self.form_cost is None else f"{text}, {self.form_cost}"


def first_of(names: Sequence[str], most: int | None) -> str:
    """Return names as a list of at most so many, and how many more there are."""
    if most is None or len(names) <= most + 1:  # a name is as short as "and 1 more"
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"
