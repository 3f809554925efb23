"""What a node has of nodes that are gone, in its ``metadata_props``, where Netron shows it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache

from onnx import NodeProto

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
    names = {index: record.name for index, record in plan.records.items()}
    found: dict[int, list[str]] = {}
    for index, was in _forms(plan):
        names[index] = was.record.name
        found.setdefault(index, []).append(f"{was.record.name}, written as {was.form}")
    for index in plan.touched.keys() - plan.state.removed:
        found.setdefault(index, []).extend(_taken(nodes, plan, names, index))
    for index, said in _bounded(plan, names) if plan.state.clamps else ():
        found.setdefault(index, []).append(said)
    for index, phrases in found.items():
        add(nodes[index], phrases)


def add(node: NodeProto, phrases: Iterable[str]) -> None:
    """Add what a node has of others to what it says already."""
    new = [*phrases]
    for entry in node.metadata_props:
        if entry.key == KEY:
            entry.value = _BETWEEN.join(dict.fromkeys((*entry.value.split(_BETWEEN), *new)))
            return
    if new:
        node.metadata_props.add(key=KEY, value=_BETWEEN.join(dict.fromkeys(new)))


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
    return f"{_listed(part)} of {label}"


@cache
def _listed(part: Taken) -> str:
    return " and ".join(name for name, has in zip(Taken._fields, part, strict=True) if has)


def _forms(plan: GraphPlan) -> Iterator[tuple[int, Restated]]:
    """Yield each node that stands for a BatchNormalization, or half of one, and what that was."""
    for first, was in plan.restated.items():
        last = plan.state.graph.producer[was.output]
        yield from ((index, was) for index in dict.fromkeys((first, last)))


def _taken(
    nodes: Sequence[NodeProto], plan: GraphPlan, names: Mapping[int, str], index: int
) -> Iterator[str]:
    """Yield what a node took, and what that had taken itself before it went."""
    seen, todo = set[int](), [*reversed(plan.touched[index].items())]
    while todo:
        origin, part = todo.pop()
        if origin not in seen:
            seen.add(origin)
            yield parts_of(names[origin], part)
            yield from said_of((nodes[origin],))
            todo += reversed(plan.touched.get(origin, {}).items())


def _bounded(plan: GraphPlan, names: Mapping[int, str]) -> Iterator[tuple[int, str]]:
    """Yield the nodes that have become clamps with constants, and what by."""
    clamps = {plan.state.place(index): index for index in plan.state.clamps}
    for origin, each in plan.records.items():
        for name in clamps.keys() & each.clamps:
            yield clamps[name], f"bounds of {names[origin]}"
