"""The nodes of a model that onnx's shape inference may misread, found and left open."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from onnx_bnfold.model.graph import STANDARD_DOMAINS, Dims, Graph, bodies_of, graphs_of, subgraphs
from onnx_bnfold.model.misread import MISREAD, Settings

_OPEN = "onnx_bnfold.open"  # a name that nothing defines
Types = Mapping[str, tuple[Dims | None, int]]


class Suspects:
    """The nodes of a model that inference may misread.

    Args:
        model: the model; afterwards only these nodes may change.
    """

    def __init__(self, model: ModelProto) -> None:
        self._graphs: list[Graph] = []
        self._left: list[tuple[Graph, int, Settings]] = []
        # Index the model only if it has such nodes, which few have.
        if any(_is_suspect(node) for body in bodies_of(model) for node in body.node):
            self._graphs = graphs_of(model)
            for graph in self._graphs:
                for index, node in enumerate(graph.nodes):
                    if graph.ops[index] in MISREAD:
                        settings = Settings(node, graph.opset, partial(_integers, graph))
                        self._left.append((graph, index, settings))

    def take(self, types: Sequence[Types] | None = None) -> Iterator[tuple[str, NodeProto]]:
        """Yield the nodes that are misread, with their operators; each node only once.

        Args:
            types: what was inferred of the tensors of each graph. Without it, the nodes are yielded
                that are misread whatever the sizes, and in local functions, whose sizes are not
                known, those that may be misread.
        """
        by_graph = None
        if types is not None and self._graphs:
            by_graph = {id(g): of_one for g, of_one in zip(self._graphs, types, strict=True)}
        left, self._left = self._left, []  # empty if the model is not indexed
        for graph, index, settings in left:
            if self._is_misread(graph, index, settings, by_graph):
                yield str(graph.ops[index]), graph.nodes[index]
            else:
                self._left.append((graph, index, settings))

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


def _is_suspect(node: NodeProto) -> bool:
    misreading = MISREAD.get(node.op_type)
    if misreading is None or node.domain not in STANDARD_DOMAINS:
        return False
    settings = Settings(node, 1, lambda name: None)
    return (
        misreading.by_values
        or settings.is_open
        or misreading.settings(settings)
        or misreading.may(settings)
    )


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


def _integers(graph: Graph, name: str) -> list[int] | None:
    """Return the elements of an initializer or of a Constant node, if they are integers."""
    initializer, index = graph.find_initializer(name), graph.producer.get(name)
    if initializer is not None:
        return _elements(initializer[1])
    if index is None or graph.ops[index] != "Constant":
        return None
    for item in graph.nodes[index].attribute:
        if item.HasField("t"):
            return _elements(item.t)
        if item.name == "value_ints":
            return [*item.ints]
    return None


def _elements(tensor: TensorProto) -> list[int] | None:
    kinds = (TensorProto.INT32, TensorProto.INT64)
    if tensor.data_type not in kinds or tensor.data_location == TensorProto.EXTERNAL:
        return None
    try:
        value = numpy_helper.to_array(tensor)
    except ValueError:  # a copy without its values
        return None
    return [*map(int, value.reshape(-1))]
