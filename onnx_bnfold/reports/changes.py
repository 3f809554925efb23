"""What a fold changes in a model, by name: nodes and initializers, before and after."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from onnx import AttributeProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

from onnx_bnfold.model.graph import Graph, graphs_of, operator
from onnx_bnfold.reports.nodes import Node

Pair = tuple[str, str]
AnyTensor = TensorProto | SparseTensorProto

# What tells which node of one model is which of the other, tried in turn: its name, or what a node
# without a name writes and reads. None tells nothing.
_SIGNATURES: tuple[Callable[[NodeProto], str | tuple[str, ...] | None], ...] = (
    lambda node: node.name or None,
    lambda node: None if node.name else tuple(node.output),
    lambda node: None if node.name else tuple(node.input),
    lambda node: None if node.name else tuple(node.input[:1]),
)


@dataclass(frozen=True)
class ChangedNode(Node):
    """A node that both models have.

    Attributes:
        inputs: what it read and reads instead, for each input that differs; "" is none.
        outputs: what it wrote and writes instead, likewise.
        attributes: names of those that differ.
        values: names of the initializers that it reads and whose values differ.
    """

    inputs: tuple[Pair, ...]
    outputs: tuple[Pair, ...]
    attributes: tuple[str, ...]
    values: tuple[str, ...]


@dataclass(frozen=True)
class Initializer:
    """An initializer.

    Attributes:
        name: its name.
        graph: path of its graph; "" is the main graph.
        data_type: element type, as ONNX calls it, in lower case.
        shape: its shape.
    """

    name: str
    graph: str
    data_type: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Changes:
    """What one model has and the other has not, or has otherwise; notes and metadata apart.

    Attributes:
        removed_nodes, added_nodes: those of one model only.
        changed_nodes: those of both that differ, or that read an initializer that does.
        removed_initializers, added_initializers: those of one model only, by name.
        changed_initializers: those of both, as they are in the second.
    """

    removed_nodes: tuple[Node, ...]
    changed_nodes: tuple[ChangedNode, ...]
    added_nodes: tuple[Node, ...]
    removed_initializers: tuple[Initializer, ...]
    changed_initializers: tuple[Initializer, ...]
    added_initializers: tuple[Initializer, ...]


def changes_of(original: ModelProto, folded: ModelProto, computed: Collection[str]) -> Changes:
    """Compare a model with its fold by name.

    Args:
        original: the model. What marks a tensor without values stands for them.
        folded: its fold.
        computed: names of the initializers whose values the fold computes.
    """
    removed: list[Node] = []
    changed: list[ChangedNode] = []
    added: list[Node] = []
    stored: tuple[list[Initializer], ...] = [], [], []
    values: dict[str, frozenset[str]] = {}
    for before, after in _bodies(original, folded):
        found = _initializers(before, after, computed)
        outer = after.parent.path if after.parent else None
        values[after.path] = frozenset(t.name for t in found[1]) | values.get(outer or "", set())
        partners = _partners(before.nodes, after.nodes)
        left = set(range(len(after.nodes))) - set(partners.values())
        removed += [_node(before, i) for i in range(len(before.nodes)) if i not in partners]
        changed += _changed_nodes(before, after, partners, values[after.path])
        added += [_node(after, i) for i in sorted(left)]
        for all_, some in zip(stored, found, strict=True):
            all_ += some
    return Changes(tuple(removed), tuple(changed), tuple(added), *map(tuple, stored))


def _bodies(original: ModelProto, folded: ModelProto) -> Iterator[tuple[Graph, Graph]]:
    """Yield the bodies of both models; one that a model lacks is empty there."""
    nothing = graphs_of(ModelProto())[0]
    before, after = ({g.path: g for g in graphs_of(model)} for model in (original, folded))
    for path in dict.fromkeys((*before, *after)):
        yield before.get(path, nothing), after.get(path, nothing)


# --- initializers ---------------------------------------------------------------------------


def _initializers(
    before: Graph, after: Graph, computed: Collection[str]
) -> tuple[list[Initializer], ...]:
    """Return the initializers that are removed, changed and added."""
    old, new = _stored(before), _stored(after)
    return (
        [_described(name, old[name], before) for name in old if name not in new],
        [
            _described(name, new[name], after)
            for name in old
            if name in new
            and (_differ(old[name], new[name]) or (name in computed and _is_elsewhere(new[name])))
        ],
        [_described(name, new[name], after) for name in new if name not in old],
    )


def _is_elsewhere(stored: AnyTensor) -> bool:
    """Return whether the values are not in the message, so that it cannot tell if they differ."""
    return isinstance(stored, TensorProto) and bool(stored.external_data)


def _stored(graph: Graph) -> Mapping[str, AnyTensor]:
    return {**graph.initializers, **graph.sparse}


def _described(name: str, stored: AnyTensor, graph: Graph) -> Initializer:
    values = stored if isinstance(stored, TensorProto) else stored.values
    data_type = TensorProto.DataType.Name(values.data_type).lower()
    return Initializer(name, graph.path, data_type, tuple(stored.dims))


def _differ(one: AnyTensor | AttributeProto, other: AnyTensor | AttributeProto) -> bool:
    first, second = (each.SerializeToString(deterministic=True) for each in (one, other))
    return bool(first != second)


# --- nodes ----------------------------------------------------------------------------------


def _node(graph: Graph, index: int) -> Node:
    return Node(operator(graph.nodes[index]), graph.name(index), graph.path)


def _partners(before: Sequence[NodeProto], after: Sequence[NodeProto]) -> dict[int, int]:
    """Return index before → index after, of what only one node of both models can be."""
    partners: dict[int, int] = {}
    for signature in _SIGNATURES:
        old = _unique(before, partners.keys(), signature)
        new = _unique(after, set(partners.values()), signature)
        partners |= {index: new[key] for key, index in old.items() if key in new}
    return partners


def _unique(
    nodes: Sequence[NodeProto],
    done: Collection[int],
    signature: Callable[[NodeProto], str | tuple[str, ...] | None],
) -> dict[object, int]:
    """Return what only one of some nodes has, with its index."""
    found: dict[object, int | None] = {}
    for index, node in enumerate(nodes):
        mark = signature(node) if index not in done else None
        if mark:
            key = (operator(node), mark)
            found[key] = None if key in found else index
    return {key: index for key, index in found.items() if index is not None}


def _changed_nodes(
    before: Graph, after: Graph, partners: Mapping[int, int], values: Collection[str]
) -> Iterator[ChangedNode]:
    """Yield the nodes that differ.

    Args:
        before, after: a body of both models.
        partners: index before → index after.
        values: names of the initializers in reach whose values differ.
    """
    for index in sorted(partners):
        old, new = before.nodes[index], after.nodes[partners[index]]
        changed = ChangedNode(
            **vars(_node(before, index)),
            inputs=_other(old.input, new.input),
            outputs=_other(old.output, new.output),
            attributes=_other_attributes(old, new),
            values=tuple(name for name in dict.fromkeys(new.input) if name in values),
        )
        if changed.inputs or changed.outputs or changed.attributes or changed.values:
            yield changed


def _other(before: Sequence[str], after: Sequence[str]) -> tuple[Pair, ...]:
    pairs = zip_longest(before, after, fillvalue="")
    return tuple((old, new) for old, new in pairs if old != new)


def _other_attributes(before: NodeProto, after: NodeProto) -> tuple[str, ...]:
    """Return the names of the attributes that differ; bodies are compared as graphs."""
    old, new = (
        {a.name: a for a in node.attribute if not a.HasField("g") and not a.graphs}
        for node in (before, after)
    )
    names = dict.fromkeys((*old, *new))
    return tuple(n for n in names if n not in old or n not in new or _differ(old[n], new[n]))
