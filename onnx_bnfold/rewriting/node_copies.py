"""Copies of nodes that make a weight for several readers, one of which needs another."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto

from onnx_bnfold.model.graph import copy_of
from onnx_bnfold.model.repeated_fields import exchange
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.rewriting.fresh_names import Names


class NodeCopies:
    """The copies of a body's nodes.

    Args:
        state: the graph.
        nodes: of the body.
        after: gets the copies: node index → what is to follow it.
        names: gives new ones.
    """

    def __init__(
        self,
        state: GraphState,
        nodes: Sequence[NodeProto],
        after: dict[int, list[NodeProto]],
        names: Names,
    ) -> None:
        self._graph = state.graph
        self._nodes = nodes
        self._after = after
        self._names = names
        self._made: dict[tuple[int, int], NodeProto] = {}

    def of(self, index: int, reader: int) -> NodeProto:
        """Return the copy of a node for one of its readers, which reads that from now on."""
        if (index, reader) not in self._made:
            self._made[index, reader] = self._make(index, reader)
        return self._made[index, reader]

    def _make(self, index: int, reader: int) -> NodeProto:
        node, shared = copy_of(self._nodes[index]), self._graph.writes[index][0]
        node.name = self._names.fresh(f"{node.name}_folded") if node.name else ""
        node.output[0] = self._names.fresh(f"{shared}_folded")
        for slot in range(len(self._graph.reads[reader])):
            exchange(self._nodes[reader].input, slot, shared, node.output[0])
        self._after.setdefault(index, []).append(node)
        return node
