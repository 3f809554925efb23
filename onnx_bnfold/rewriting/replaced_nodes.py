"""A copy of a model in which nodes have been replaced, which is to be planned again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from onnx import ModelProto

from onnx_bnfold.model.graph import Graph
from onnx_bnfold.planning.plan import Place, Restated
from onnx_bnfold.planning.record import Record
from onnx_bnfold.planning.sizes import Spreads


class NeverRun(NamedTuple):
    """A BatchNormalization in a branch that is never run."""

    graph: Graph
    node: int
    record: Record


class Renamed(NamedTuple):
    """A tensor of a branch that has replaced an If.

    Attributes:
        position: of the graph that holds it now.
        was: its name in the branch.
        now: its name in that graph.
    """

    position: int
    was: str
    now: str


@dataclass
class Copied:
    """A copy of a model, and what is in it.

    Attributes:
        model: the copy.
        moved: for each node of the graphs as they were its index by now, if any has moved.
        restated: what was replaced, by the index by now.
        unread: the constants that these have read.
        told: what they said of the tensors on their sides, by the position of the graph.
        resolved: Ifs that branches have replaced: the positions of their graphs, and what they
            wrote first.
        renamed: the tensors of these branches, those of inner ones first.
        never_run: the BatchNormalizations of the other branches.
    """

    model: ModelProto
    moved: dict[Place, int] = field(default_factory=dict)
    restated: dict[Place, Restated] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)
    told: dict[int, dict[str, Spreads]] = field(default_factory=dict)
    resolved: tuple[tuple[int, str], ...] = ()
    renamed: Sequence[Renamed] = ()
    never_run: tuple[NeverRun, ...] = ()
