"""Which nodes of a graph onnxruntime runs as one operator (``operators.fused_patterns``)."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from itertools import chain, permutations
from typing import NamedTuple

from onnx_bnfold.operators.data_movement import reduced_axes
from onnx_bnfold.operators.fused_patterns import (
    ALONG_THE_LAST_AXIS,
    COMMUTATIVE,
    PATTERNS,
    Constant,
    Pattern,
)
from onnx_bnfold.planning.graph_nodes import MALFORMED, GraphNodes
from onnx_bnfold.reasons import Reason, Refused

_TOLERANCE = 1e-5  # relative, of a constant by which a pattern is recognised


class _Group(NamedTuple):
    """Nodes that match a pattern, or part of one.

    Attributes:
        data: the tensor they read, None as long as there is none.
        nodes: their indices.
        constants: those by which they are recognised, as (node index, input index).
    """

    data: str | None = None
    nodes: frozenset[int] = frozenset()
    constants: frozenset[tuple[int, int]] = frozenset()


class FusedNodes:
    """The groups of nodes of one graph that onnxruntime runs as one operator each.

    Attributes:
        members: index of a node → the operator that it is part of.

    Args:
        nodes: of the graph.
    """

    def __init__(self, nodes: GraphNodes) -> None:
        self._nodes = nodes
        self.members: dict[int, str] = {}
        self._recognised_by: dict[tuple[int, int], str] = {}
        self._by_operator: dict[str | None, list[int]] = {}
        for index, op in enumerate(nodes.graph.ops):
            self._by_operator.setdefault(op, []).append(index)
        present = self._by_operator.keys()
        for operator, patterns in PATTERNS.items():
            for pattern in patterns:
                if present >= {*_operators(pattern)}:
                    self._search(operator, pattern)

    def _search(self, operator: str, pattern: Pattern) -> None:
        for index in self._by_operator[next(_operators(pattern))]:
            if index in self.members:
                continue
            group = self._matched(pattern, index, _Group())
            if group is not None and self._is_closed(group, index):
                self.members.update(dict.fromkeys(group.nodes, operator))
                self._recognised_by.update(dict.fromkeys(group.constants, operator))

    def broken_by(self, changes: Collection[object]) -> int:
        """Return how many constants by which a group is recognised are among keys that change."""
        return sum(key in self._recognised_by for key in changes)

    def require_whole(self, changes: Collection[object]) -> None:
        """Refuse changes of a constant by which a group is recognised.

        Args:
            changes: the keys that change (``graph_state.Key``).

        Raises:
            Refused: there is one.
        """
        for key, operator in self._recognised_by.items() if changes else ():
            if key in changes:
                raise Refused(
                    Reason.OPAQUE,
                    self._nodes.graph.label(key[0]),
                    f"it is part of a {operator}, which onnxruntime runs as one operator",
                )

    def _matched(self, pattern: Pattern, index: int | None, group: _Group) -> _Group | None:
        """Return a group with the nodes that match a pattern, the last of them given."""
        graph = self._nodes.graph
        assert isinstance(pattern, tuple)
        operator, *operands = pattern
        if index is None or graph.ops[index] != operator:
            return None
        if len(graph.reads[index]) < len(operands):
            return None
        if operator in ALONG_THE_LAST_AXIS and not self._is_along_the_last_axis(index):
            return None
        group = group._replace(nodes=group.nodes | {index})
        orders = permutations(operands) if operator in COMMUTATIVE else (operands,)
        for order in orders:
            if not self._may_match(order, index):
                continue
            found: _Group | None = group
            for slot, operand in enumerate(order):
                found = found and self._with_operand(operand, index, slot, found)
            if found is not None:
                return found
        return None

    def _may_match(self, operands: Sequence[Pattern], index: int) -> bool:
        """Whether a node's inputs are written by the operators that some operands ask for."""
        graph = self._nodes.graph
        for operand, name in zip(operands, graph.reads[index], strict=False):
            if isinstance(operand, tuple):
                producer = graph.producer.get(name)
                if producer is None or graph.ops[producer] != operand[0]:
                    return False
        return True

    def _with_operand(
        self, operand: Pattern, index: int, slot: int, group: _Group
    ) -> _Group | None:
        name = self._nodes.graph.reads[index][slot]
        if isinstance(operand, tuple):
            return self._matched(operand, self._nodes.graph.producer.get(name), group)
        if not isinstance(operand, Constant):
            return group._replace(data=name) if group.data in (None, name) else None
        if not self._is_constant(operand, name):
            return None
        if operand.is_weight:
            return group
        return group._replace(constants=group.constants | {(index, slot)})

    def _is_constant(self, wanted: Constant, name: str) -> bool:
        constants = self._nodes.constants
        info = constants.get(name) if name else None
        if info is None:
            return False
        if wanted.is_weight:
            return len(info.dims) == 1
        if math.prod(info.dims) != 1 or len(info.dims) > (wanted.axes or len(info.dims)):
            return False
        if wanted.value is None:
            return True
        return math.isclose(constants.value(name).item(), wanted.value, rel_tol=_TOLERANCE)

    def _is_along_the_last_axis(self, index: int) -> bool:
        view = self._nodes.view(index)
        try:
            if not view.attribute("keepdims", 1):
                return False
            axes = view.integers(1, view.attribute("axes", None))
            if axes == [-1]:
                return True  # whatever its rank is
            return reduced_axes(view) == {len(view.dims_in(0)) - 1}
        except (Refused, *MALFORMED):
            return False

    def _is_closed(self, group: _Group, last: int) -> bool:
        """Whether nobody else reads what the nodes write, but for the last one's output."""
        graph = self._nodes.graph
        for name in chain.from_iterable(graph.writes[index] for index in group.nodes - {last}):
            if name in graph.outputs or name in graph.captured:
                return False
            if any(reader not in group.nodes for reader, _ in graph.readers.get(name, ())):
                return False
        return True


def _operators(pattern: Pattern) -> Iterator[str]:
    if isinstance(pattern, tuple):
        operator, *operands = pattern
        assert isinstance(operator, str)
        yield operator
        yield from chain.from_iterable(map(_operators, operands))
