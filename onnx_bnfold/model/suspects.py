"""The nodes of a model that onnx's shape inference may misread, found and left open."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import partial

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from onnx_bnfold.model.graph import (
    Body,
    Dims,
    Graph,
    counterparts,
    operator,
    subgraphs,
)
from onnx_bnfold.model.misread import MISREAD, Settings
from onnx_bnfold.storage.tensors import decode_inline

_OPEN = "onnx_bnfold.open"  # a name that nothing defines
Types = Mapping[str, tuple[Dims | None, int]]


class Integers:
    """The lists of integers in a copy of a model without weights.

    Args:
        graphs: of the model.
        light: the copy.
    """

    def __init__(self, graphs: Sequence[Graph], light: ModelProto) -> None:
        self._bodies = dict(zip(map(id, graphs), counterparts(light, graphs), strict=True))
        self._tensors: dict[int, dict[str, TensorProto]] = {}

    def body(self, graph: Graph) -> Body:
        """Return what stands for a graph in the copy."""
        return self._bodies[id(graph)]

    def listed(self, graph: Graph, name: str) -> list[int] | None:
        """Return the elements of an initializer or of a Constant node, None of anything else."""
        scope: Graph | None = graph
        while scope is not None and not scope.defines(name):
            scope = scope.parent
        if scope is None:
            return None
        body, index = self.body(scope), scope.producer.get(name)
        if index is not None:
            return _held(body.node[index])
        if id(scope) not in self._tensors:
            tensors = body.initializer if isinstance(body, GraphProto) else ()
            self._tensors[id(scope)] = {tensor.name: tensor for tensor in tensors}
        tensor = self._tensors[id(scope)].get(name)
        return None if tensor is None else _elements(tensor)


class Suspects:
    """The nodes of a model that inference may misread.

    Args:
        graphs: of the model.
        light: a copy without weights; afterwards only these nodes may change.

    Attributes:
        integers: those of the copy.
    """

    def __init__(self, graphs: Sequence[Graph], light: ModelProto) -> None:
        self._graphs = graphs
        self.integers = Integers(graphs, light)
        self._left: list[tuple[Graph, int, Settings]] = []
        for graph in graphs:
            if MISREAD.keys().isdisjoint(graph.ops):
                continue
            nodes, listed = self.integers.body(graph).node, partial(self.integers.listed, graph)
            for index, op in enumerate(graph.ops):
                # Another operator stands for a constant, or for what was misread before.
                if op in MISREAD and nodes[index].op_type == op:
                    self._left.append((graph, index, Settings(nodes[index], graph.opset, listed)))

    def take(self, types: Sequence[Types] | None = None) -> Iterator[tuple[str, NodeProto]]:
        """Yield the nodes that are misread, with their operators; each node only once.

        Args:
            types: what was inferred of the tensors of each graph. Without it, the nodes are yielded
                that are misread whatever the sizes, and in local functions, whose sizes are not
                known, those that may be misread.
        """
        by_graph = None
        if types is not None:
            by_graph = {id(g): of_one for g, of_one in zip(self._graphs, types, strict=True)}
        left, self._left = self._left, []
        for graph, index, settings in left:
            if self._is_misread(graph, index, settings, by_graph):
                yield str(graph.ops[index]), settings.node
            else:
                self._left.append((graph, index, settings))

    def shrunk(self, names: Sequence[Set[str]]) -> Iterator[tuple[str, NodeProto]]:
        """Yield the nodes that write the first tensors of negative sizes, with their operators.

        Args:
            names: of each graph, its tensors of negative sizes.
        """
        for graph, found in zip(self._graphs, names, strict=True):
            nodes = self.integers.body(graph).node
            for index in sorted({graph.producer[n] for n in found if n in graph.producer}):
                op = str(graph.ops[index])
                if op == nodes[index].op_type and found.isdisjoint(graph.reads[index]):
                    yield op, nodes[index]

    def _is_misread(
        self, graph: Graph, index: int, node: Settings, types: Mapping[int, Types] | None
    ) -> bool:
        misreading = MISREAD[str(graph.ops[index])]
        if types is None:
            inside = graph.is_of_function and (misreading.may(node) or node.is_open)
            return inside or misreading.settings(node)
        if not misreading.may(node):
            return False
        if misreading.by_bodies:
            branches = [b for b in self._graphs if b.parent is graph and b.carrier == index]
            return _differ(branches, types)
        before = _dims(graph, graph.reads[index][0], types)
        after = _dims(graph, graph.writes[index][0], types)
        return before is not None and after is not None and misreading.sizes(node, before, after)


def leave_open(nodes: Iterable[NodeProto]) -> None:
    """Change nodes in place so that inference finds the types of their outputs, but no sizes.

    A node becomes a Reshape to an unknown shape. A node with subgraphs keeps them, so that these
    are still inferred; its outputs are renamed, so that nothing is known of what reads them.
    """
    for node in nodes:
        if any(subgraphs(node)):
            node.output[:] = [name and f"{_OPEN}.{name}" for name in node.output]
            continue
        node.op_type = "Reshape"
        del node.attribute[:]
        node.input[1:] = [_OPEN]


def _differ(branches: Iterable[Graph], types: Mapping[int, Types]) -> bool:
    """Return whether an output has unknown sizes, or not the same in all branches."""
    sizes = [
        [_dims(branch, value.name, types) for value in branch.body.output]
        for branch in branches
        if isinstance(branch.body, GraphProto)
    ]
    return any(each != sizes[0] or None in each for each in sizes)


def _dims(graph: Graph | None, name: str, types: Mapping[int, Types]) -> Dims | None:
    while graph is not None:
        if name in graph.dims:
            return graph.dims[name]
        if graph.defines(name):
            return types[id(graph)].get(name, (None, 0))[0]
        graph = graph.parent
    return None


def _held(node: NodeProto) -> list[int] | None:
    """Return the elements that a Constant node writes, if they are integers; else None."""
    if operator(node) != "Constant":
        return None
    for item in node.attribute:
        if item.HasField("t"):
            return _elements(item.t)
        if item.name == "value_ints":
            return [*item.ints]
    return None


def _elements(tensor: TensorProto) -> list[int] | None:
    """Return the elements of a tensor, if they are integers and here; else None."""
    kinds = (TensorProto.INT32, TensorProto.INT64)
    if tensor.data_type not in kinds or tensor.data_location == TensorProto.EXTERNAL:
        return None
    try:
        value = decode_inline(tensor)
    except ValueError:  # a copy without its values
        return None
    return [*map(int, value.reshape(-1))]
