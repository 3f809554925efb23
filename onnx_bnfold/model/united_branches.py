"""Nodes that no runtime loads if inference finds that the sizes of their branches differ.

Before opset 11 inference takes the branches of an If to be of one size. It refuses an If where it
sees that they are not, and says nothing where it knows too little of one of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto

from onnx_bnfold.model.functions import nodes_within
from onnx_bnfold.model.graph import Graph, operator, subgraphs
from onnx_bnfold.model.misread import MISREAD, Settings


def united_behind(graph: Graph, name: str) -> Iterator[NodeProto]:
    """Yield the nodes that unite what depends on a tensor with what another branch computes.

    Args:
        graph: the graph that computes the tensor.
        name: of the tensor.
    """
    scope: Graph | None = graph
    names = {name}
    while scope is not None:
        for node in scope.nodes:
            if not names.isdisjoint(_reads(node)):
                yield from (n for n in nodes_within((node,)) if _unites(n, scope.opset))
                names.update(node.output)
        if names.isdisjoint(scope.outputs) or scope.parent is None:
            return
        node = scope.parent.nodes[scope.carrier]
        if _unites(node, scope.opset):
            yield node
        names = {*node.output}
        scope = scope.parent


def _unites(node: NodeProto, opset: int) -> bool:
    misreading = MISREAD.get(operator(node))
    if misreading is None or not misreading.by_bodies:
        return False
    return misreading.may(Settings(node, opset, lambda name: None))


def _reads(node: NodeProto) -> Iterator[str]:
    """Yield the names that a node and its subgraphs read."""
    for each in nodes_within((node,)):
        yield from filter(None, each.input)
        for body in subgraphs(each):
            yield from (value.name for value in body.output)
