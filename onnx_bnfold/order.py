"""The order of nodes: runtimes load models whose nodes are in any, and a fold puts them in order.

Each body is sorted by itself: a node comes behind those that compute what it reads, and what its
own bodies read from around them. Of nodes that do not need each other the order stays.
Source: the ONNX IR specification, "Graphs": nodes must be topologically sorted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from onnx import ModelProto

from onnx_bnfold.errors import ModelError
from onnx_bnfold.graph import Graph, counterparts
from onnx_bnfold.rewrite import arrange

Captures = Mapping[int, Set[str]]
_SHOWN = 6  # nodes of a cycle that are named


def captures_of(graphs: Sequence[Graph]) -> list[Captures]:
    """Return for every graph: index of a node → names that its bodies read from around them.

    Args:
        graphs: as ``graph.graphs_of`` lists them.
    """
    found: dict[int, dict[int, set[str]]] = {id(graph): {} for graph in graphs}
    for graph in reversed(graphs):
        if graph.parent is not None:
            used = {*graph.uses, *graph.outputs}.union(*found[id(graph)].values())
            outside = {name for name in used if name and not graph.defines(name)}
            found[id(graph.parent)].setdefault(graph.carrier, set()).update(outside)
    return [*found.values()]


def are_captures_in_order(graph: Graph, captures: Captures) -> bool:
    """Whether all that the bodies of a node read is computed before that node."""
    return all(
        graph.producer.get(name, -1) < index for index, names in captures.items() for name in names
    )


def in_order(model: ModelProto, graphs: Sequence[Graph]) -> ModelProto:
    """Return a copy of a model with the nodes of every body in order.

    Args:
        model: it is not changed.
        graphs: of the model.

    Raises:
        ModelError: nodes need each other in a circle.
    """
    orders = [_order(*each) for each in zip(graphs, captures_of(graphs), strict=True)]
    copy = ModelProto()
    copy.CopyFrom(model)
    for body, order in zip(counterparts(copy, graphs), orders, strict=True):
        places = [0] * len(order)
        for place, index in enumerate(order):
            places[index] = place
        arrange(body.node, places)
    return copy


def _order(graph: Graph, captures: Captures) -> list[int]:
    """Return the indices of the nodes in an order that can be computed, the least first."""
    from heapq import heapify, heappop, heappush  # few models need them

    producer = graph.producer
    needs = [
        {producer[name] for name in (*read, *captures.get(index, ())) if name in producer}
        for index, read in enumerate(graph.reads)
    ]
    needed_by: list[list[int]] = [[] for _ in needs]
    for index, others in enumerate(needs):
        for other in others:
            needed_by[other].append(index)
    missing = [*map(len, needs)]
    ready = [index for index, count in enumerate(missing) if not count]
    heapify(ready)
    order: list[int] = []
    while ready:
        index = heappop(ready)
        order.append(index)
        for other in needed_by[index]:
            missing[other] -= 1
            if not missing[other]:
                heappush(ready, other)
    if len(order) < len(needs):
        raise _cycle(graph, needs, set(range(len(needs))).difference(order))
    return order


def _cycle(graph: Graph, needs: Sequence[Set[int]], left: Set[int]) -> ModelError:
    """Name a cycle among nodes each of which needs another of them."""
    walk = [min(left)]
    seen: dict[int, int] = {}
    while walk[-1] not in seen:
        seen[walk[-1]] = len(walk) - 1
        walk.append(min(needs[walk[-1]] & left))
    cycle = walk[seen[walk[-1]] : -1]
    labels = [graph.place(graph.label(index)) for index in cycle[:_SHOWN]]
    if len(cycle) > _SHOWN:
        labels.append(f"{len(cycle) - _SHOWN} more")
    if len(cycle) == 1:
        return ModelError(f"{labels[0]} reads what it computes itself; repair the model")
    return ModelError(
        f"each of these nodes reads what the next one computes, and the last what the first does: "
        f"{', '.join(labels)}; nodes in a cycle cannot be computed, repair the model"
    )
