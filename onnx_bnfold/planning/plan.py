"""A plan of one graph: which nodes go, and what that does to the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Literal, NamedTuple

from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.options import Standalone
from onnx_bnfold.planning.graph_state import GraphState, Key
from onnx_bnfold.planning.precision_limits import Limits
from onnx_bnfold.planning.record import Record
from onnx_bnfold.reasons import Reason, Refusal

if TYPE_CHECKING:
    from onnx_bnfold.model.functions import Functions, Root

# (position of the graph, index of the node)
Place = tuple[int, int]


class Taken(NamedTuple):
    """What the constants of a node take of a removed one.

    Attributes:
        scale, shift: whether they take that.
    """

    scale: bool = False
    shift: bool = False

    def more(self, change: Affine) -> Taken:
        """Return what they take with a further change."""
        return Taken(self.scale or change.has_scale, self.shift or change.has_shift)


NOTHING = Taken()


class Given:
    """A change that a node takes into its constants.

    Attributes:
        origin: the removed node that caused it.
        key: what changes: a tensor beside the node, or one of its constants.
        change: relative to what was decided before.
    """

    __slots__ = ("change", "key", "origin")  # a NamedTuple takes twice as long to make

    def __init__(self, origin: int, key: Key, change: Affine) -> None:
        self.origin = origin
        self.key = key
        self.change = change


class Restated(NamedTuple):
    """What was a BatchNormalization before it was written as something else.

    Attributes:
        form: what it is written as.
        name: of the node it was.
        input, output: names of the tensors it read and wrote.
        record: why it stays, or that it goes.
    """

    form: Standalone | Literal["constant"]
    name: str
    input: str
    output: str
    record: Record


class Recorded(NamedTuple):
    """What became of a node, and where that node is.

    Attributes:
        plan: of the node's graph.
        node: index in that graph; where ``restated`` is given, of the first of those in its place.
        record: what became of it.
        restated: what the node was if it is something else by now.
    """

    plan: GraphPlan
    node: int
    record: Record
    restated: Restated | None


@dataclass(eq=False, repr=False)
class GraphPlan:
    """The plan of one graph.

    Attributes:
        state: the graph with the total change of every key and the removed nodes.
        limits: what it was planned by.
        records: of each BatchNormalization and each removed affine node, in node order.
        given: for each node whose constants change, what it takes, in order.
        equalized: for each node whose constants change for it, the tensors whose channels are made
            alike (``equalize``).
        equal_scales: the BatchNormalizations that stay and get scales of one size.
        free: of every group of tensors whose channels could be made alike, one tensor; and, where
            ranges are measured, those tensors that have none.
        doubtful: nodes that stay though a place was found for what they do, and why: another fold
            may judge otherwise.
        unsure: nodes that stay for reasons that may not hold where other nodes have gone.
        left: nodes that stay for good, and what for (``notes``).
        find_kept_affine: finds ``kept_affine``, which takes time where it is certain that all stay.
        restated: nodes that stand for BatchNormalizations, and what those were.
        open_choices: how many more BatchNormalizations could go at most if others stayed
            (``competition``).
        forms: that BatchNormalizations which stay are to be written in.
    """

    state: GraphState
    limits: Limits
    records: dict[int, Record] = field(default_factory=dict)
    given: dict[int, list[Given]] = field(default_factory=dict)
    equalized: dict[int, list[str]] = field(default_factory=dict)
    equal_scales: set[int] = field(default_factory=set)
    free: list[str] = field(default_factory=list)
    doubtful: dict[int, Refusal] = field(default_factory=dict)
    unsure: set[int] = field(default_factory=set)
    left: dict[int, list[str]] = field(default_factory=dict)
    find_kept_affine: Callable[[], dict[int, Record]] = dict
    restated: dict[int, Restated] = field(default_factory=dict)
    open_choices: int = 0
    forms: tuple[Standalone, ...] = ()

    @cached_property
    def kept_affine(self) -> dict[int, Record]:
        """Of each affine node that was tried and stays, in node order."""
        return self.find_kept_affine()

    @cached_property
    def touched(self) -> dict[int, dict[int, Taken]]:
        """The removed nodes of which a node's constants take something, in order, and what."""
        found: dict[int, dict[int, Taken]] = {}
        for index, changes in self.given.items():
            taken = found[index] = dict[int, Taken]()
            for given in changes:
                taken[given.origin] = taken.get(given.origin, NOTHING).more(given.change)
        return found

    @property
    def changed(self) -> set[int]:
        """The nodes whose constants change."""
        edges = (key[0] for key in self.state.total if isinstance(key, tuple))
        return {*self.given, *self.equalized, *self.equal_scales, *edges, *self.state.clamps}

    @property
    def is_open(self) -> bool:
        """Whether what stays might be judged otherwise if the result were planned."""
        # A new Add takes changes that the MatMul in front of it does not.
        return bool(self.doubtful or self.unsure or any(r.added for r in self.records.values()))

    @property
    def recorded(self) -> list[Recorded]:
        """What became of each BatchNormalization and each removed affine node, in node order."""
        own = [Recorded(self, index, record, None) for index, record in self.records.items()]
        if not self.restated:
            return own
        # A Mul that stands for a BatchNormalization may have a record of its own.
        others = [Recorded(self, index, was.record, was) for index, was in self.restated.items()]
        return sorted((*others, *own), key=attrgetter("node"))

    @property
    def decomposed_bns(self) -> list[Recorded]:
        """Those of ``kept_affine`` that hold a value per channel.

        A bias that its layer has no input for is none of them.
        """
        return [
            Recorded(self, index, record, None)
            for index, record in self.kept_affine.items()
            if not _is_bias(record) and self._is_per_channel(index)
        ]

    def _is_per_channel(self, index: int) -> bool:
        constant = self.state.view(index).constant(self.state.operands(index).constant)
        return constant is not None and sum(dim != 1 for dim in constant.dims) == 1


def with_roots(
    functions: Functions, plans: Iterable[GraphPlan]
) -> Iterator[tuple[Root, GraphPlan]]:
    """Yield the plan of each graph of a model, and the body that the graph is, or is below."""
    roots: Iterator[Root] = iter((None, *functions.by_key))
    root: Root = None
    for plan in plans:
        if plan.state.graph.parent is None:
            root = next(roots)
        yield root, plan


def _is_bias(record: Record) -> bool:
    return record.refusal is not None and record.refusal.reason is Reason.NOT_SMALLER
