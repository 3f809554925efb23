"""Tensors that cannot change, or take no scale or no shift, whatever it is.

A search finds that out anew for each node that it is asked for, by a walk over the graph. Where
searches have come to nothing often enough, one walk finds it for all tensors (``find_dead_ends``).
What is found stays so as more nodes go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.reasons import Refusal, Refused


class DeadEnd(NamedTuple):
    """Why a tensor takes no change of a kind.

    Attributes:
        refusal: the reason.
        asked: the nodes that have gone on the way to what refuses, and that node.
    """

    refusal: Refusal
    asked: frozenset[int]

    def by_way_of(self, gone: tuple[int, ...]) -> DeadEnd:
        """Return the same for a tensor in front of which, or behind, some nodes have gone."""
        return self._replace(asked=self.asked.union(gone)) if gone else self


class DeadEnds(NamedTuple):
    """The dead ends of a graph as it was when they were looked for.

    Attributes:
        fixed: the tensors that take no change, whatever becomes of the nodes around.
        cut_off: those that a node beside them lets take no shift.
        scale, shift: by name, all tensors that take none, since a change of one of these follows.
    """

    fixed: Sequence[tuple[str, DeadEnd]]
    cut_off: Sequence[tuple[str, DeadEnd]]
    scale: Mapping[str, DeadEnd]
    shift: Mapping[str, DeadEnd]

    def require_none(self, names: Iterable[str], change: Affine, asked: set[int]) -> None:
        """Refuse a change that leads to a dead end.

        Args:
            names: of the tensors of one group that somebody sees.
            change: of them.
            asked: gets the nodes that the refusal depends on.
        """
        for kind, found in ((change.has_scale, self.scale), (change.has_shift, self.shift)):
            end = next((found[name] for name in names if name in found), None) if kind else None
            if end is not None:
                asked |= end.asked
                raise Refused.again(end.refusal)
