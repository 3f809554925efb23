"""How many axes tensors have at the least, as the operators say, without shape inference."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto

from onnx_bnfold.operators.entries import HandsOn, Operator, Rank
from onnx_bnfold.operators.rules import Transparent
from onnx_bnfold.planning.graph_nodes import GraphNodes

_MOST = 64  # elements of a list of sizes; a tensor has far fewer axes


def least_ranks(nodes: GraphNodes) -> dict[str, int]:
    """Return the least rank of tensors by name; of one that is left out nothing is known.

    Args:
        nodes: of a graph, in order.
    """
    graph = nodes.graph
    lists: dict[str, int] = {}  # that nodes put together, and the elements that they have
    known = {name: len(dims) for name, dims in graph.dims.items()}
    if isinstance(graph.body, GraphProto):
        for value in graph.body.input:
            known[value.name] = len(value.type.tensor_type.shape.dim)
    for index, entry in enumerate(nodes.entries):
        if _joins(entry):
            elements = sum(_elements(nodes, part, lists) for part in graph.reads[index])
            lists[graph.writes[index][0]] = min(elements, _MOST)
        if entry.rank is not None:
            reads = graph.reads[index]
            if entry.rank is Rank.LISTED:
                least = _elements(nodes, reads[1], lists) if len(reads) > 1 else 0
            else:
                least = _from_inputs(entry, [known.get(name, 0) for name in reads])
            written = graph.writes[index]
            is_parted = isinstance(entry, Transparent) and entry.parted
            known.update(dict.fromkeys(written if is_parted else written[:1], least))
    return known


def _from_inputs(entry: Operator, ranks: list[int]) -> int:
    """Return the least rank of an output, given those of the inputs."""
    if entry.rank is Rank.ADDED:
        return ranks[0] + 1
    if entry.rank is Rank.WEIGHT:
        return ranks[1]
    if entry.rank is Rank.PICKED:
        return max(ranks[0] + ranks[1] - 1, 0) if min(ranks) else 0
    if entry.rank is Rank.MATRICES:
        return max(ranks) if min(ranks) > 1 else 0
    if isinstance(entry, Transparent):
        ranks = ranks if entry.symmetric else [ranks[slot] for slot in entry.data]
        return max(ranks, default=0)
    return ranks[0]


def _joins(entry: Operator) -> bool:
    return isinstance(entry, Transparent) and entry.symmetric and entry.hands_on is HandsOn.ALL


def _elements(nodes: GraphNodes, name: str, lists: Mapping[str, int]) -> int:
    """Return how many elements a vector has at the least."""
    graph = nodes.graph
    index = graph.producer.get(name)
    if index is None or not graph.reads[index]:
        info = nodes.constants.get(name)
        return 0 if info is None else info.size
    return 1 if nodes.entries[index].rank is Rank.ADDED else lists.get(name, 0)
