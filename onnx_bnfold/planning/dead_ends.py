"""Tensors that cannot change, or take no scale, no shift or no negative scale, whatever it is.

A search finds that out anew for each node that it is asked for, by a walk over the graph. Where
searches have come to nothing often enough, one walk finds it for all tensors (``find_dead_ends``).
What is found stays so as more nodes go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum, auto
from typing import NamedTuple

from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.reasons import Refusal, Refused


class DeadEnd(NamedTuple):
    """Why a tensor takes no change of a kind.

    Attributes:
        refusal: the reason.
        asked: the nodes that have gone beside the tensor, or the one that refuses.
        behind: what the change of the tensor leads to.
    """

    refusal: Refusal
    asked: tuple[int, ...]
    behind: tuple[DeadEnd, ...] = ()

    def by_way_of(self, gone: tuple[int, ...]) -> DeadEnd:
        """Return the same for a tensor in front of which, or behind, some nodes have gone."""
        return DeadEnd(self.refusal, gone, (self,)) if gone else self

    def all_asked(self) -> set[int]:
        """Return the nodes that have gone on the way to all that refuses, and the latter."""
        nodes, todo, seen = set[int](), [self], set[int]()
        while todo:
            end = todo.pop()
            if id(end) not in seen:
                seen.add(id(end))
                nodes.update(end.asked)
                todo += end.behind
        return nodes


class Kind(Enum):
    """What of a change a tensor takes none of."""

    SCALE = auto()
    SHIFT = auto()
    NEGATIVE = auto()  # scale, of any element

    def is_in(self, change: Affine) -> bool:
        """Whether a change has it."""
        if self is Kind.SHIFT:
            return change.has_shift
        return change.has_scale and (self is Kind.SCALE or change.has_negative_scale)


class DeadEnds(NamedTuple):
    """The dead ends of a graph as it was when they were looked for.

    Attributes:
        beginnings: the tensors that take none of a kind for what they are themselves, or for a
            node beside them.
        found: of each kind all tensors, by name: what a change of these surely changes among them.
        gone: how many nodes had gone by then; as long as no more have, they are the same.
    """

    beginnings: Mapping[Kind, Sequence[tuple[str, DeadEnd]]]
    found: Mapping[Kind, Mapping[str, DeadEnd]]
    gone: int

    def require_none(self, names: Iterable[str], change: Affine, asked: set[int]) -> None:
        """Refuse a change that leads to a dead end.

        Args:
            names: of the tensors of one group that somebody sees.
            change: of them.
            asked: gets the nodes that the refusal depends on.
        """
        for kind, found in self.found.items():
            end = next((found[name] for name in names if name in found), None)
            if end is not None and kind.is_in(change):
                asked |= end.all_asked()
                raise Refused.again(end.refusal)
