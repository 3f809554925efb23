"""Planning: which nodes go, how every tensor is re-parametrised, and why the others stay.

Planning reads shapes and the parameters of BatchNormalizations; it touches no weight and changes
no model. A node is removed by making its two sides the same tensor: its input becomes
``x' = p * x + q`` and its output ``y' = r * y + u`` such that ``x' = y'``. The ways to choose
``p, q, r, u`` are tried from the cheapest; each is flooded through the graph.

A BatchNormalization that stays absorbs any change, one that is gone absorbs none, so what can be
removed together depends on the order: those right behind their layer go first (they take nothing
from anybody), then those with the most elements, so that most work is saved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from onnx_bnfold.operators import batchnorm
from onnx_bnfold.operators.affine import VANISHING, Affine
from onnx_bnfold.operators.entries import BiasPlace, Combines
from onnx_bnfold.planning.graph_state import GraphState, Key, constant_map
from onnx_bnfold.planning.notes import require_unnoted
from onnx_bnfold.planning.precision_limits import Limits
from onnx_bnfold.planning.propagation import propagate
from onnx_bnfold.reasons import Reason, Refusal, Refused

if TYPE_CHECKING:
    from onnx_bnfold.planning.shared_constants import SharedConstants

# What a BatchNormalization that stays is written as, for compilers that have none: itself, two
# nodes with constants of shape (C, 1, …), or a depthwise Conv with a kernel of ones.
Standalone = Literal["keep", "mul-add", "conv"]


# Reasons that have to do with other nodes than the one that refuses.
_MAY_CHANGE = frozenset(
    (Reason.CAPTURED, Reason.CONFLICT, Reason.SEARCH_LIMIT, Reason.UNKNOWN_SHAPE)
)
# (position of the graph, index of the node)
Place = tuple[int, int]


class Restated(NamedTuple):
    """What was a BatchNormalization before it was written as something else.

    Attributes:
        form: what it is written as.
        name: of the node it was.
        output: name of the tensor it wrote.
    """

    form: Standalone
    name: str
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
        restated: what the node was if it stays as something else: the first of those in its place.
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

    def is_bn(self, decision: Decision) -> bool:
        """Whether a decision is about a BatchNormalization."""
        op = self.state.graph.ops[decision.node]
        return decision.restated is not None or op == batchnorm.OPERATOR


def plan_graph(
    state: GraphState,
    limits: Limits,
    excluded: dict[int, Refusal],
    *,
    keep_shared_weights: bool = False,
) -> GraphPlan:
    """Plan one graph.

    Args:
        state: the graph, with nothing decided.
        limits: what a re-parametrised tensor may become.
        excluded: nodes that must stay, with the reason.
        keep_shared_weights: copy no weight that others read, not for a BatchNormalization either.

    Returns:
        The plan; its state holds the changes.
    """
    planner = _Planner(state, limits, excluded, keep_shared_weights)
    planner.run()
    decisions = sorted(planner.decisions.values(), key=lambda d: d.node)
    doubtful = planner.doubtful | excluded
    return GraphPlan(
        state, limits, decisions, planner.touched, doubtful=doubtful, unsure=planner.unsure
    )


class _Planner:
    def __init__(
        self,
        state: GraphState,
        limits: Limits,
        excluded: dict[int, Refusal],
        keep_shared_weights: bool,
    ) -> None:
        self.state = state
        self.limits = limits
        self.excluded = excluded
        self.keep_shared_weights = keep_shared_weights
        self.decisions: dict[int, Decision] = {}
        self.touched: dict[int, list[int]] = {}
        self.doubtful: dict[int, Refusal] = {}
        self.unsure: set[int] = set()
        # For each node that stayed when it was tried: when that was, counted in removals, and the
        # nodes that were asked. For each node: at which removal something last changed there.
        self._tried: dict[int, tuple[int, set[int]]] = {}
        self._moved: dict[int, int] = {}

    def run(self) -> None:
        bns, affine = _candidates(self.state)
        self.state.read_bns([i for i in bns if i not in self.excluded])
        usable = [i for i in bns if self._is_usable(i)]
        direct = [i for i in usable if _is_direct(self.state, i)]
        self.state.read_maps(direct)
        others = sorted(set(usable) - set(direct))
        if len(others) > 1:
            others.sort(key=lambda i: -_elements(self.state, i))
        affine = [i for i in affine if self._may_go(i)]
        queue = [*direct, *others, *affine]
        while queue:
            for index in queue:
                self._decide(index)
            queue = [i for i in queue if i in self._tried and self._may_go_now(i)]

    @cached_property
    def shared(self) -> SharedConstants:
        """What copies of constants would add."""
        from onnx_bnfold.planning.shared_constants import SharedConstants  # few plain folds ask

        return SharedConstants(self.state)

    def _may_go_now(self, index: int) -> bool:
        """Whether something changed where a node that stayed was refused: then it is tried again.

        Else a second fold, of what the first has left, would find more to do.
        """
        when, asked = self._tried[index]
        return any(self._moved.get(other, 0) > when for other in asked)

    def _is_usable(self, index: int) -> bool:
        view = self.state.view(index)
        try:
            if index in self.excluded:
                raise Refused.again(self.excluded[index])
            self.state.bn(index)
            require_unnoted(self.state.graph, index, self.limits)
            if view.constant(0) is not None:
                raise Refused(
                    Reason.OPAQUE, view.label, "its input is a constant; fold constants first"
                )
        except Refused as refused:
            self.decisions[index] = Decision(index, refusal=refused.refusal)
            return False
        return True

    def _may_go(self, index: int) -> bool:
        """Whether nothing forbids to remove a node that is no BatchNormalization."""
        try:
            require_unnoted(self.state.graph, index, self.limits)
        except Refused:
            return False
        return index not in self.excluded

    def _decide(self, index: int) -> None:
        """Try all ways to remove a node and commit the one that disturbs least."""
        state = self.state
        is_bn = state.graph.ops[index] == batchnorm.OPERATOR
        self.doubtful.pop(index, None)
        self.unsure.discard(index)
        if is_bn and self._fold_directly(index):
            return
        best: tuple[tuple[int, ...], str, dict[Key, Affine]] | None = None
        tried: list[tuple[str, Refusal]] = []
        asked, met = {index}, set[Reason]()
        try:
            for number, (way, seeds) in enumerate(self._ways(index)):
                try:
                    changes = propagate(
                        state,
                        index,
                        seeds,
                        partial(self._require_allowed, index, asked),
                        asked,
                        met,
                    )
                except Refused as refused:
                    tried.append((way, refused.refusal))
                    continue
                added = _added(state, changes)
                cost = (added, _count_new_tensors(state, index, way, changes), number)
                if best is None or cost < best[0]:
                    best = (cost, way, changes)
                if cost[:2] == (0, 0) or not is_bn:
                    break
        except Refused as refused:
            tried.append(("", refused.refusal))
        if best is not None:
            least, way, changes = best
            self.doubtful.pop(index, None)
            self._commit(index, way, changes, least[0], self._absorbing(index, changes))
            return
        self._tried[index] = len(state.removed), asked
        met.update(refusal.reason for _, refusal in tried)
        if not met.isdisjoint(_MAY_CHANGE):
            self.unsure.add(index)
        if is_bn:
            self.decisions[index] = Decision(index, refusal=_why(tried), tried=tuple(tried))

    def _fold_directly(self, index: int) -> bool:
        """Put a BN into the layer that it alone reads, where nothing else has changed yet.

        No way is better than this one, which is found without a propagation.
        """
        state, graph = self.state, self.state.graph
        x, y = graph.reads[index][0], graph.writes[index][0]
        producer = graph.producer.get(x)
        if producer is None or not graph.only_reader(x):
            return False
        if not state.are_untouched(x, y):
            return False
        layer = state.layer_or_none(producer)
        if layer is None or layer.bias_slot is None:
            return False
        if self.keep_shared_weights and not graph.only_reader(layer.weight.name):
            return False
        try:
            present = state.original_map(index)
            layer.output_vectors(present)
            self.limits.check_rounding(state, index)
        except Refused:
            return False
        if present.is_identity:
            self._commit(index, UPSTREAM, {}, 0, ())
        else:
            self._commit(index, UPSTREAM, {x: present}, 0, ((producer, present),))
        return True

    def _ways(self, index: int) -> Iterator[tuple[str, dict[Key, Affine]]]:
        state = self.state
        present = state.affine_of(index)
        if not present.is_finite:
            raise Refused(Reason.OVERFLOW, state.view(index).label, "its factor would overflow")
        x, y = state.sides(index)
        if state.groups.has_fixed(x) and state.groups.has_fixed(y) and present.is_identity:
            raise _two_names(y)
        for way, upstream, downstream in _splits(present):
            yield way, {x: upstream, y: downstream}

    def _require_allowed(self, index: int, asked: set[int], changes: dict[Key, Affine]) -> None:
        """Refuse the outcome of a propagation that costs more than it saves, and note that."""
        try:
            self._judge(index, asked, changes)
        except Refused as refused:
            self.doubtful.setdefault(index, refused.refusal)
            raise

    def _judge(self, index: int, asked: set[int], changes: dict[Key, Affine]) -> None:
        state = self.state
        is_bn = state.graph.ops[index] == batchnorm.OPERATOR
        self.limits.check(state, index, changes)
        require_totals(state, index, changes)
        x, y = state.sides(index)
        if state.groups.has_fixed(x) and state.groups.has_fixed(y):
            raise _two_names(y)
        if not is_bn and any(_is_gating(state, i) for k in changes for i in state.neighbours(k)):
            raise Refused(
                Reason.OPAQUE,
                state.view(index).label,
                "it is part of an activation that runtimes recognise as a whole",
            )
        if not is_bn or self.keep_shared_weights:
            self.shared.require_cheap(index, changes, asked)
        if _added(state, changes) > (1 if is_bn else 0):
            raise Refused(
                Reason.NOT_SMALLER,
                state.view(index).label,
                "its shift would need as many new Add nodes as it saves",
            )

    def _commit(
        self,
        origin: int,
        way: str,
        changes: dict[Key, Affine],
        added: int,
        absorbing: Sequence[tuple[int, Affine]],
    ) -> None:
        """Make changes and note which nodes' constants take the scale and the shift."""
        state = self.state
        for index, _ in absorbing:
            touched = self.touched.setdefault(index, [])
            if origin not in touched:
                touched.append(origin)
        commit(state, changes)
        state.remove(origin)
        if self._tried:
            self._tried.pop(origin, None)
            near = (index for key in changes for index in state.neighbours(key))
            self._moved.update(dict.fromkeys((origin, *near), len(state.removed)))
        scale = {index for index, change in absorbing if change.has_scale}
        shift = {index for index, change in absorbing if change.has_shift}
        self.decisions[origin] = Decision(
            origin, way, tuple(sorted(scale)), tuple(sorted(shift)), added
        )

    def _absorbing(self, origin: int, changes: Mapping[Key, Affine]) -> list[tuple[int, Affine]]:
        """Return the nodes that take a change into their constants, each with that change."""
        state = self.state
        return [
            (index, change)
            for key, change in changes.items()
            for index in state.neighbours(key)
            if index != origin and index not in state.removed and state.absorbs(index, key)
        ]


def commit(state: GraphState, changes: Mapping[Key, Affine]) -> None:
    """Make changes on top of those decided so far."""
    for key, change in changes.items():
        before = state.total.get(key)
        after = change if before is None else before.then(change)
        if after.is_identity:
            state.total.pop(key, None)
        else:
            state.total[key] = after


def _why(tried: Sequence[tuple[str, Refusal]]) -> Refusal:
    """Return the refusal to report: the first, unless a search was given up and nothing is sure."""
    refusals = [refusal for _, refusal in tried]
    return next((r for r in refusals if r.reason is Reason.SEARCH_LIMIT), refusals[0])


UPSTREAM = "upstream"


def _splits(present: Affine) -> Iterator[tuple[str, Affine, Affine]]:
    """Yield the ways to divide an affine map between its two sides.

    With ``y = a * x + b`` each way is a pair of changes ``x' = p * x + q`` and ``y' = r * y + u``
    with ``x' = y'``, that is ``p = r * a`` and ``q = r * b + u``.
    """
    one, zero = np.ones((1,) * present.rank), np.zeros((1,) * present.rank)
    same = Affine.identity(present.rank)
    a, b = present.scale, present.shift
    yield UPSTREAM, present, same
    divisor = np.where(a == 0, VANISHING, a)
    shifted, size = present.has_shift, np.abs(divisor)
    yield "downstream", same, Affine.of(1 / divisor, -b / divisor)
    if not present.has_scale:
        return
    if shifted:
        way = "shift upstream, scale downstream"
        yield way, Affine.of(one, b / divisor), Affine.of(1 / divisor, zero)
        yield "scale upstream, shift downstream", Affine(a, zero), Affine.of(one, -b)
    if (a < 0).any() and (size != 1).any():
        sign = np.sign(divisor)
        if shifted:
            way = "shift and sign upstream, magnitude downstream"
            yield way, Affine.of(sign, b / size), Affine.of(1 / size, zero)
        way = "sign upstream, shift and magnitude downstream"
        yield way, Affine.of(sign, zero), Affine.of(1 / size, -b / size)


def _candidates(state: GraphState) -> tuple[list[int], list[int]]:
    bns, affine = [], []
    for index, op in enumerate(state.graph.ops):
        if op == batchnorm.OPERATOR:
            bns.append(index)
        elif state.entries[index].operand is not None and _is_decomposed_bn(state, index):
            affine.append(index)
    if affine:
        fixed = state.constants.fixed_nodes()
        affine = [index for index in affine if index not in fixed]
    return bns, affine


def _is_decomposed_bn(state: GraphState, index: int) -> bool:
    """Whether a Mul, Add, Sub or Div by a constant may go like a BatchNormalization.

    One whose operand is a product or quotient of computed tensors belongs to a normalisation or an
    activation (LayerNormalization, Gelu) that runtimes recognise as a whole: taking it out would
    make the model slower.
    """
    view = state.view(index)
    if len(view.reads) != 2 or view.opset < 7:
        return False
    if (view.constant(0) is None) == (view.constant(1) is None):
        return False
    try:
        slot, _ = constant_map(state, index)
    except Refused:
        return False
    producer = state.graph.producer.get(view.name_in(slot))
    seen = 0
    while producer is not None and state.entries[producer].operand is not None and seen < 2:
        before = state.view(producer)
        constant = [before.constant(s) is not None for s in (0, 1)]
        if not any(constant):
            return state.entries[producer].combines is not Combines.PRODUCT
        producer = state.graph.producer.get(before.name_in(constant.index(False)))
        seen += 1
    return True


def _is_gating(state: GraphState, index: int) -> bool:
    """Whether a node multiplies or divides two computed tensors, as in Gelu and Swish."""
    if state.entries[index].combines is not Combines.PRODUCT:
        return False
    view = state.view(index)
    return view.constant(0) is None and view.constant(1) is None


def _is_direct(state: GraphState, index: int) -> bool:
    """Whether a BatchNormalization is the only reader of a layer, or of one that is direct."""
    graph = state.graph
    while True:
        name = graph.reads[index][0]
        producer = graph.producer.get(name)
        if producer is None or not graph.only_reader(name):
            return False
        if graph.ops[producer] != batchnorm.OPERATOR:
            return state.layer_or_none(producer) is not None
        index = producer


def _elements(state: GraphState, index: int) -> int:
    """Return the number of elements per example of an output; unknown dims count as one."""
    dims = state.shapes.dims(state.graph.writes[index][0]) or ()
    return math.prod(d for d in dims[1:] if isinstance(d, int))


def _count_new_tensors(state: GraphState, index: int, way: str, changes: dict[Key, Affine]) -> int:
    """Count the tensors that would hold values no tensor held before."""
    names = {key for key in changes if isinstance(key, str)}
    x, _ = state.sides(index)
    if way == UPSTREAM and state.graph.only_reader(x):
        names.discard(x)
    return len(names)


def require_totals(state: GraphState, origin: int | None, changes: Mapping[Key, Affine]) -> None:
    """Refuse what a node takes as a further change, but not on top of those it has taken.

    Args:
        state: the graph before the changes.
        origin: a node to be removed, or None.
        changes: of every key, relative to now.
    """
    for key, change in changes.items():
        before = state.total.get(key)
        if before is None:
            continue
        total = before.then(change)
        for index in state.neighbours(key):
            if index == origin or index in state.removed or not state.absorbs(index, key):
                continue
            ports = (p for p in state.ports(index) if state.key(index, p) == key)
            state.step(index, dict.fromkeys(ports, total))


def _added(state: GraphState, changes: dict[Key, Affine]) -> int:
    """Count the layers whose shift only a new Add can hold, less those that lose theirs."""
    near = {i for key in changes if isinstance(key, str) for i in state.neighbours(key)}
    count = 0
    for index in sorted(near - state.removed):
        layer = state.layer_or_none(index)
        if layer is not None and layer.bias_place is BiasPlace.ADD:
            count += layer.needs_bias(state.side_changes(index, changes))
            count -= layer.needs_bias(state.side_changes(index))
    return count


def _two_names(name: str) -> Refused:
    return Refused(
        Reason.GRAPH_OUTPUT,
        repr(name),
        "the tensors on both sides keep their names, so the two cannot become one",
    )
