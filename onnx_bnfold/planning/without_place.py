"""Whether it is certain that no affine node of a graph goes, found without a search.

Many models hold no BatchNormalization, and thousands of biases and factors that stay. A search for
each takes many times as long as reading the model. So one walk finds the tensors that surely take
no scale, or no shift, by what the table says of the operators around them: no search finds a place
where it finds none. It holds for a graph in which nothing is decided yet; if no node goes, nothing
ever is.

Two conditions on outcomes count as well. Where there is no BatchNormalization, nobody knows how
large tensors are, and none is shifted that a node has to shift back (``shifts``). And a layer that
has no input for a bias takes no shift of its output: that costs the Add that it saves.

Shapes are inferred only where a constant may be computed from sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import NamedTuple

import numpy as np

from onnx_bnfold.model.determinism import DESCRIBED
from onnx_bnfold.model.node_view import FLOATS
from onnx_bnfold.operators.entries import Absorbing, Combines, HandsOn, Operator
from onnx_bnfold.operators.rules import Transparent
from onnx_bnfold.planning.candidates import computes_integers
from onnx_bnfold.planning.fused_nodes import FusedNodes
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.planning.least_ranks import least_ranks
from onnx_bnfold.reasons import Refused


def all_stay(state: GraphState, *, clamps_everywhere: bool) -> bool:
    """Whether it is certain that no node of a graph goes.

    Args:
        state: the graph, with nothing decided.
        clamps_everywhere: whether any clamp may be written with constants; see ``clamps``.
    """
    if state.has_bns or state.told:
        return False
    if not any(entry.operand for entry in {*state.entries}):
        return True
    return state.graph.opset >= 7 and _Walk(state, clamps_everywhere).finds_no_place()


_FLAT = 2  # the rank of a MatMul that becomes a Gemm, which has a bias


class _Map(NamedTuple):
    """What a Mul, Add, Sub or Div by a constant does to its other operand.

    Attributes:
        data: name of that operand.
        has_scale, has_shift: what it does.
        loses: whether some factor is zero.
    """

    data: str
    has_scale: bool
    has_shift: bool
    loses: bool


class _Walk:
    """Walks over a graph until it knows which tensors take no scale, and which no shift."""

    def __init__(self, state: GraphState, clamps_everywhere: bool) -> None:
        self._state = state
        self._graph = graph = state.graph
        # Any change passes a clamp that is written with constants, as some in front of pools are.
        pools = any(entry.picks_maxima for entry in {*state.entries})
        self._clamps = clamps_everywhere or pools
        surely, perhaps = state.constants.without_sizes
        outer = graph.uses.keys() - graph.producer.keys() - graph.dims.keys() - graph.inputs
        known = {name for name in outer if state.constants.get(name) is not None}
        self._constant = (graph.dims.keys() - graph.overridable) | surely | known
        self._perhaps = self._constant | perhaps
        self._nodes = [
            (index, entry)
            for index, (entry, written) in enumerate(zip(state.entries, graph.writes, strict=True))
            if not all(name in surely for name in written)
        ]
        self._before: dict[int, list[str]] = {}  # what a node reads that may change
        self._after: dict[int, tuple[str, ...]] = {}
        self._sized: set[str] = set()
        self._maps: dict[int, _Map] = {}
        # Each Sub from a constant, as long as it may be the node that goes.
        self._goes: set[int] = set()
        self._unscaled: set[str] = set()
        self._unshifted: set[str] = set()
        self._todo: dict[int, None] = {}  # nodes beside tensors that take less by now

    def finds_no_place(self) -> bool:
        """Whether every affine node surely stays."""
        self._read(FusedNodes(self._state).members)
        self._ranks = least_ranks(self._state) if self._maps else {}
        self._spread()
        if not all(map(self._stays, self._goes)):
            return False
        # Another node may go beside these alone: then both of their sides are scaled alike.
        left, self._todo = self._maps.keys() - self._goes, dict.fromkeys(self._goes)
        self._goes.clear()
        self._follow()
        return all(map(self._stays, left))

    def _read(self, members: Container[int]) -> None:
        """Read the maps of affine nodes, and find the tensors whose size may be known.

        Args:
            members: nodes that stay whatever they do; see ``fused_nodes``.
        """
        for index, entry in self._nodes:
            if entry.operand is not None and index not in members:
                found = self._map(index, entry)
                if found is not None:
                    self._maps[index] = found
                    if found.has_scale and entry.combines is Combines.SUM:
                        self._goes.add(index)
            if self._makes_size(index, entry):
                self._sized.update(self._graph.writes[index])

    def _map(self, index: int, entry: Operator) -> _Map | None:
        """Return what a node does if it is affine."""
        reads, constants = self._graph.reads[index], self._state.constants
        if len(reads) != 2 or entry.operand is None or self._perhaps.isdisjoint(reads):
            return None
        sized = [*filter(constants.needs_sizes, reads)]
        if sized and computes_integers(self._state, index):
            return None
        for name in sized:
            if constants.get(name) is None:
                self._perhaps.discard(name)
            else:
                self._constant.add(name)
        slots = [slot for slot in (0, 1) if reads[slot] in self._constant]
        if len(slots) != 1 or 1 - slots[0] not in entry.operand.data:
            return None
        info = constants.get(reads[slots[0]])
        if info is None or info.data_type not in FLOATS:
            return None
        try:
            value = constants.value(info.name).astype(np.float64)
            scale, shift = entry.operand.map(self._state.view(index), value, 1 - slots[0])
        except Refused:
            return None
        has_scale, has_shift = bool((scale != 1).any()), bool(shift.any())
        return _Map(reads[1 - slots[0]], has_scale, has_shift, not scale.all())

    def _makes_size(self, index: int, entry: Operator) -> bool:
        """Whether constants may say how large a node's output is; see ``sizes.usual_sizes``."""
        reads = self._graph.reads[index]
        if entry.operand is not None and not self._perhaps.isdisjoint(reads):
            is_product = entry.combines is Combines.PRODUCT
            return is_product or not self._sized.isdisjoint(reads)
        if not isinstance(entry, Transparent) or entry.symmetric or entry.swallows:
            return False
        return entry.data == (0,) and reads[0] in self._sized

    # --- what surely takes nothing ------------------------------------------------------------

    def _spread(self) -> None:
        """Find the tensors that take no scale, and those that take no shift."""
        graph = self._graph
        outer = graph.uses.keys() - graph.producer.keys()
        self._take_none([*outer, *graph.outputs, *graph.captured])
        for index, entry in self._nodes:
            self._begin(index, entry)
        self._follow()

    def _follow(self) -> None:
        entries = self._state.entries
        while self._todo:
            index, _ = self._todo.popitem()
            self._hand_on(index, entries[index])

    def _look_around(self, name: str) -> None:
        graph = self._graph
        for index, _ in graph.readers.get(name, ()):
            self._todo[index] = None
        if name in graph.producer:
            self._todo[graph.producer[name]] = None

    def _take_none(self, names: Iterable[str]) -> None:
        for name in names:
            self._take_no_scale(name)
            self._take_no_shift(name)

    def _take_no_scale(self, name: str) -> None:
        if name not in self._unscaled and name not in self._constant:
            self._unscaled.add(name)
            self._look_around(name)

    def _take_no_shift(self, name: str) -> None:
        if name not in self._unshifted and name not in self._constant:
            self._unshifted.add(name)
            self._look_around(name)

    def _begin(self, index: int, entry: Operator) -> None:
        """Note what takes nothing because of a node itself."""
        reads, written = self._graph.reads[index], self._graph.writes[index]
        if isinstance(entry, Transparent):
            data = reads if entry.symmetric else [reads[s] for s in entry.data if s < len(reads)]
            self._before[index] = [name for name in data if name and name not in self._perhaps]
            self._after[index] = written if entry.parted else () if entry.swallows else written[:1]
            self._take_none(name for name in written if name not in self._after[index])
            for slot, name in enumerate(() if entry.symmetric else reads):
                described = (self._graph.ops[index], slot) in DESCRIBED
                if not (slot in entry.data or described or name in self._perhaps):
                    self._take_none([name])
            for name in data if entry.only_shifts else ():
                self._take_no_scale(name)
            if entry.swallows:
                self._shift_back(index)
            elif entry.only_scales or (
                entry.combines is Combines.PRODUCT and self._perhaps.isdisjoint(reads)
            ):
                for name in (*data, *written):
                    self._take_no_shift(name)
        elif isinstance(entry, Absorbing):
            self._begin_layer(index, entry)
        else:
            op = self._graph.ops[index]
            self._take_none(n for s, n in enumerate(reads) if (op, s) not in DESCRIBED)
            self._take_none(written)

    def _begin_layer(self, index: int, entry: Absorbing) -> None:
        reads, written = self._graph.reads[index], self._graph.writes[index]
        self._before[index] = [name for name in reads if name and name not in self._perhaps]
        self._take_none(written[1:])
        self._shift_back(index)
        weights = {slot for choice in entry.linear_in for slot in choice if slot < len(reads)}
        if weights and not any(self._is_weight(reads[slot]) for slot in weights):
            self._take_none(reads)
            self._take_no_scale(written[0])
            if not _has_bias(entry):
                self._take_no_shift(written[0])

    def _shift_back(self, index: int) -> None:
        """Note that a node would have to shift tensors back of which nobody knows the size."""
        for name in self._before[index]:
            if name not in self._sized:
                self._take_no_shift(name)

    def _is_weight(self, name: str) -> bool:
        """Whether a tensor may be a weight: a constant, or made of constants at once."""
        index = self._graph.producer.get(name)
        return name in self._perhaps or (
            index is not None and self._perhaps.issuperset(self._graph.reads[index])
        )

    def _hand_on(self, index: int, entry: Operator) -> None:
        """Note what takes nothing because other tensors of a node take nothing."""
        if index not in self._before:
            return
        if isinstance(entry, Absorbing):
            # An Add behind it makes up for what its data is shifted by, and for nothing else.
            if self._unshifted.issuperset(self._before[index]) and self._adds(index, entry):
                self._take_no_shift(self._graph.writes[index][0])
        elif isinstance(entry, Transparent):
            with_constant = not self._perhaps.isdisjoint(self._graph.reads[index])
            if entry.combines is Combines.SUM:
                self._hand_on_sum(index, with_constant)
            elif entry.combines is Combines.PRODUCT:
                self._hand_on_product(index, entry, with_constant)
            elif not (entry.bounds and self._clamps):
                self._hand_on_whole(index, entry)
            is_free = with_constant and entry.operand is not None  # it may be the one that goes
            if not is_free and self._unshifted.issuperset(self._after[index]):
                self._shift_back(index)

    def _hand_on_sum(self, index: int, with_constant: bool) -> None:
        """All operands are scaled alike, and a shift of one is made up for by another."""
        ports = [*self._before[index], *self._after[index]]
        if index not in self._goes and not self._unscaled.isdisjoint(ports):
            for name in ports:
                self._take_no_scale(name)
        if not with_constant:
            self._leave_alone(self._unshifted, ports, self._take_no_shift)

    def _hand_on_product(self, index: int, entry: Operator, with_constant: bool) -> None:
        """Scales make up for each other; a shift passes beside a constant alone."""
        before, after = self._before[index], self._after[index]
        ports = [*before, *after]
        if not with_constant:
            self._leave_alone(self._unscaled, ports, self._take_no_scale)
        found = self._maps.get(index)
        if found is not None:
            if self._unshifted.issuperset(before):
                self._take_no_shift(after[0])
            if not found.loses and self._unshifted.issuperset(after):
                self._take_no_shift(found.data)

    def _leave_alone(self, none: set[str], ports: list[str], take: Callable[[str], None]) -> None:
        """Note that the one tensor that might still change has no other to make up for it."""
        left = [name for name in ports if name not in none]
        if len(left) == 1 and len({*ports}) == len(ports):  # else one may make up for itself
            take(left[0])

    def _hand_on_whole(self, index: int, entry: Transparent) -> None:
        """Note that what hands on all that it gets changes on both sides or on none."""
        ports = [*self._before[index], *self._after[index]]
        is_whole = entry.hands_on is HandsOn.ALL and not (entry.symmetric or entry.parted)
        if is_whole or entry.picks_maxima or entry.is_alike:
            if not self._unshifted.isdisjoint(ports):
                for name in ports:
                    self._take_no_shift(name)
        elif not (entry.rectifies and entry.bounds):
            return
        if not self._unscaled.isdisjoint(ports):
            for name in ports:
                self._take_no_scale(name)

    # --- what that means for a node -----------------------------------------------------------

    def _adds(self, index: int, entry: Absorbing) -> bool:
        """Whether only a new Add could hold the bias of a layer."""
        if _has_bias(entry):
            return False
        return max((self._ranks.get(n, 0) for n in self._before[index]), default=0) > _FLAT

    def _stays(self, index: int) -> bool:
        """Whether an affine node finds no place for its scale, or none for its shift.

        One that has neither is an identity, which goes.
        """
        found, y = self._maps[index], self._graph.writes[index][0]
        x = found.data
        if found.has_scale and x in self._unscaled and y in self._unscaled:
            return True
        up = x not in self._unshifted and not self._is_behind_adding(x)
        return found.has_shift and not up and y in self._unshifted

    def _is_behind_adding(self, name: str) -> bool:
        """Whether a node alone reads a tensor whose shift would end at an Add in front."""
        index = self._graph.producer.get(name)
        if index is None or not self._graph.only_reader(name):
            return False
        entry = self._state.entries[index]
        return isinstance(entry, Absorbing) and self._adds(index, entry)


def _has_bias(entry: Absorbing) -> bool:
    """Whether a layer may have an input for a bias."""
    return not entry.linear_in or any(len(choice) > 1 for choice in entry.linear_in)
