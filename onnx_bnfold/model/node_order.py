"""Sort nodes topologically, as the ONNX specification requires; runtimes load any order.

Each body is sorted by itself: a node comes after the nodes that compute what it reads and what its
subgraphs capture. Nodes that do not depend on each other keep their order.
Source: the ONNX IR specification, "Graphs".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from onnx import ModelProto

from onnx_bnfold.errors import ModelError
from onnx_bnfold.model.graph import Graph, copy_of, counterparts
from onnx_bnfold.model.repeated_fields import arrange

# Index of a node → names that its subgraphs read from the scopes around them.
Captures = Mapping[int, Set[str]]
_SHOWN = 6  # nodes of a cycle that a message names


def captures_of(graphs: Sequence[Graph]) -> list[Captures]:
    """Return the captures of every graph.

    Args:
        graphs: as ``graph.graphs_of`` returns them.
    """
    captures: dict[int, dict[int, set[str]]] = {id(graph): {} for graph in graphs}
    for graph in reversed(graphs):
        if graph.parent is not None:
            used = {*graph.uses, *graph.outputs}.union(*captures[id(graph)].values())
            outside = {name for name in used if name and not graph.defines(name)}
            captures[id(graph.parent)].setdefault(graph.carrier, set()).update(outside)
    return [*captures.values()]


def are_captures_in_order(graph: Graph, captures: Captures) -> bool:
    """Return whether everything that subgraphs capture is computed before their node."""
    return all(
        graph.producer.get(name, -1) < index for index, names in captures.items() for name in names
    )


def in_order(model: ModelProto, graphs: Sequence[Graph]) -> ModelProto:
    """Return a copy of a model with the nodes of every body in order.

    Args:
        model: it is not changed.
        graphs: of the model.

    Raises:
        ModelError: nodes depend on each other in a cycle.
    """
    orders = [_order(*each) for each in zip(graphs, captures_of(graphs), strict=True)]
    copy = copy_of(model)
    for body, order in zip(counterparts(copy, graphs), orders, strict=True):
        positions = [0] * len(order)
        for position, index in enumerate(order):
            positions[index] = position
        arrange(body.node, positions)
    return copy


def _order(graph: Graph, captures: Captures) -> list[int]:
    """Return the indices of the nodes in topological order, the smallest first where several fit.

    Raises:
        ModelError: nodes depend on each other in a cycle.
    """
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
    """Return the error that names a cycle among nodes that could not be sorted."""
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
        return ModelError(f"{labels[0]} reads its own output; repair the model")
    return ModelError(
        f"these nodes form a cycle, in which each reads an output of the next one: "
        f"{', '.join(labels)}; repair the model"
    )
