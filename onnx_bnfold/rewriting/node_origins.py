"""What a node has of nodes that are gone, in its ``metadata_props``, where Netron shows it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from onnx import NodeProto

from onnx_bnfold.operators import batchnorm
from onnx_bnfold.planning.plan import GraphPlan, Restated, Taken

KEY = "onnx_bnfold.from"
OLDEST_IR_VERSION = 10  # whose nodes have ``metadata_props``
_BETWEEN = "; "


def record(nodes: Sequence[NodeProto], plan: GraphPlan) -> None:
    """Record at each node that a plan leaves what it has of those that it removes.

    Args:
        nodes: of the graph as they were, the removed ones among them; changed in place.
        plan: of the graph.
    """
    labels = _labels(plan)
    found: dict[int, list[str]] = {}
    for index, said in _written_as(plan, labels):
        found.setdefault(index, []).append(said)
    for index in plan.touched:
        found.setdefault(index, []).extend(_taken(nodes, plan, labels, index, set()))
    for index, said in _bounded(plan, labels):
        found.setdefault(index, []).append(said)
    for index, phrases in found.items():  # those that go take theirs along
        add(nodes[index], phrases)


def add(node: NodeProto, phrases: Iterable[str]) -> None:
    """Add what a node has of others to what it says already."""
    entry = next((each for each in node.metadata_props if each.key == KEY), None)
    said = dict.fromkeys((*([] if entry is None else entry.value.split(_BETWEEN)), *phrases))
    if not said:
        return
    if entry is None:
        entry = node.metadata_props.add(key=KEY)
    entry.value = _BETWEEN.join(said)


def hand_on(node: NodeProto, other: NodeProto) -> None:
    """Let a new node say what the one has that it belongs to."""
    add(other, said_of((node,)))


def said_of(nodes: Iterable[NodeProto]) -> Iterator[str]:
    """Yield what nodes say that they have of others, by this fold or an earlier one."""
    for node in nodes:
        for each in node.metadata_props:
            if each.key == KEY:
                yield from each.value.split(_BETWEEN)


def parts_of(label: str, part: Taken) -> str:
    """Return the phrase for a node that took some of a removed one."""
    names = [name for name, has in zip(Taken._fields, part, strict=True) if has]
    return f"{' and '.join(names)} of {label}"


def bn_label(name: str) -> str:
    """Return the label of a BatchNormalization of a name."""
    return f"{batchnorm.OPERATOR} {name!r}"


def _labels(plan: GraphPlan) -> dict[int, str]:
    """Return how nodes are called that stand for a BatchNormalization of the original."""
    graph = plan.state.graph
    return {i: graph.place(bn_label(was.name)) for i, was in _forms(plan)}


def _written_as(plan: GraphPlan, labels: dict[int, str]) -> Iterator[tuple[int, str]]:
    return ((index, f"{labels[index]}, written as {was.form}") for index, was in _forms(plan))


def _forms(plan: GraphPlan) -> Iterator[tuple[int, Restated]]:
    """Yield each node that stands for a BatchNormalization, or half of one, and what that was."""
    for first, was in plan.restated.items():
        last = plan.state.graph.producer[was.output]
        yield from ((index, was) for index in dict.fromkeys((first, last)))


def _taken(
    nodes: Sequence[NodeProto], plan: GraphPlan, labels: dict[int, str], index: int, seen: set[int]
) -> Iterator[str]:
    """Yield what a node took, and what that had taken itself before it went."""
    for origin, part in plan.touched.get(index, {}).items():
        if origin not in seen:
            seen.add(origin)
            yield parts_of(labels.get(origin) or plan.state.place(origin), part)
            yield from said_of((nodes[origin],))
            yield from _taken(nodes, plan, labels, origin, seen)


def _bounded(plan: GraphPlan, labels: dict[int, str]) -> Iterator[tuple[int, str]]:
    """Yield the nodes that have become clamps with constants, and what by."""
    clamps = {plan.state.place(index): index for index in plan.state.clamps}
    for origin, each in plan.records.items():
        for name in clamps.keys() & each.clamps:
            yield clamps[name], f"bounds of {labels.get(origin) or plan.state.place(origin)}"
