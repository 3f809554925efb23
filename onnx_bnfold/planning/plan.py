"""A plan of one graph: which nodes go, and what that does to the others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from onnx_bnfold.operators import batchnorm
from onnx_bnfold.options import Standalone
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.planning.precision_limits import Limits
from onnx_bnfold.reasons import Refusal

# The way of a BatchNormalization that computes a constant, which is written in its place.
CONSTANT: Literal["constant"] = "constant"
# (position of the graph, index of the node)
Place = tuple[int, int]


class Restated(NamedTuple):
    """What was a BatchNormalization before it was written as something else.

    Attributes:
        form: what it is written as.
        name: of the node it was.
        input: name of the tensor it read.
        output: name of the tensor it wrote.
    """

    form: Standalone | Literal["constant"]
    name: str
    input: str
    output: str


class Decision(NamedTuple):
    """What becomes of one BatchNormalization, or of one affine node that is removed.

    Attributes:
        node: index of the node in its graph.
        way: how it is folded, or None if it stays.
        scale_to, shift_to: indices of the nodes that take its scale and its shift, in order.
        added: number of Add nodes that its shift needs (behind a MatMul of rank 3 and more).
        refusal: why it stays, or None if it is folded.
        tried: for each way that was tried, the refusal it met.
        restated: what the node was if it is something else by now: the first of those in its place.
    """

    node: int
    way: str | None = None
    scale_to: tuple[int, ...] = ()
    shift_to: tuple[int, ...] = ()
    added: int = 0
    refusal: Refusal | None = None
    tried: tuple[tuple[str, Refusal], ...] = ()
    restated: Restated | None = None

    @property
    def folded(self) -> bool:
        """Whether the node goes."""
        return self.refusal is None


@dataclass
class GraphPlan:
    """The plan of one graph.

    Attributes:
        state: the graph with the total change of every key and the removed nodes.
        limits: what it was planned by.
        decisions: one per BatchNormalization and per removed affine node, in node order.
        touched: for each node whose constants change, the removed nodes that caused it, in order.
        equalized: for each node whose constants change for it, the tensors whose channels are made
            alike (``equalize``).
        equal_scales: the BatchNormalizations that stay and get scales of one size.
        doubtful: nodes that stay though a place was found for what they do, and why: another fold
            may judge otherwise.
        unsure: nodes that stay for reasons that may not hold where other nodes have gone.
        left: nodes that stay for good, and what for (``notes``).
    """

    state: GraphState
    limits: Limits
    decisions: list[Decision] = field(default_factory=list)
    touched: dict[int, list[int]] = field(default_factory=dict)
    equalized: dict[int, list[str]] = field(default_factory=dict)
    equal_scales: set[int] = field(default_factory=set)
    doubtful: dict[int, Refusal] = field(default_factory=dict)
    unsure: set[int] = field(default_factory=set)
    left: dict[int, list[str]] = field(default_factory=dict)

    @property
    def changed(self) -> set[int]:
        """The nodes whose constants change."""
        edges = (key[0] for key in self.state.total if isinstance(key, tuple))
        return {*self.touched, *self.equalized, *self.equal_scales, *edges}

    @property
    def is_open(self) -> bool:
        """Whether what stays might be judged otherwise if the result were planned."""
        # A new Add takes changes that the MatMul in front of it does not.
        return bool(self.doubtful or self.unsure or any(d.added for d in self.decisions))

    def is_bn(self, decision: Decision) -> bool:
        """Whether a decision is about a BatchNormalization."""
        op = self.state.graph.ops[decision.node]
        return decision.restated is not None or op == batchnorm.OPERATOR
