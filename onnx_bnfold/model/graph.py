"""An index over the graphs of a model: producers, readers, initializers, attributes, scopes.

A model has several bodies: its main graph, the bodies of If, Loop and Scan, and its local
functions. Each is a ``Graph`` here; ``graphs_of`` lists them, parents before children. Nothing in
this module changes the model.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TypeVar

import numpy as np
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
)

from onnx_bnfold.errors import ModelError

Body = GraphProto | FunctionProto
Dims = tuple[int | str | None, ...]
ReadTensor = Callable[[TensorProto], "np.ndarray"]

Message = TypeVar("Message", ModelProto, NodeProto)

STANDARD_DOMAINS = ("", "ai.onnx")


def copy_of(message: Message) -> Message:
    """Return a copy of a protobuf message."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def operator(node: NodeProto) -> str:
    """Return the operator's name, prefixed with its domain unless that is the standard one."""
    if node.domain in STANDARD_DOMAINS:
        return node.op_type
    return f"{node.domain}::{node.op_type}"


def named_subgraphs(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """Yield the names and bodies of a node's subgraphs (of If, Loop, Scan and the like)."""
    for item in node.attribute:
        if item.type == AttributeProto.GRAPH:
            yield item.name, item.g
        elif item.type == AttributeProto.GRAPHS:
            yield from ((f"{item.name}[{i}]", body) for i, body in enumerate(item.graphs))


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the bodies of a node's subgraphs."""
    for _, body in named_subgraphs(node):
        yield body


def carried(nodes: Iterable[NodeProto]) -> Iterator[GraphProto]:
    """Yield the bodies of the subgraphs of some nodes."""
    for node in nodes:
        if node.attribute:  # for a node without any, this is five times as fast as the loop below
            yield from subgraphs(node)


def quantization_parameters(body: Body) -> list[str]:
    """Return the names of the tensors that a body's quantization annotations refer to."""
    if not isinstance(body, GraphProto):
        return []
    return [
        parameter.value
        for annotation in body.quantization_annotation
        for parameter in annotation.quant_parameter_tensor_names
    ]


class Graph:
    """One body of a model, indexed.

    Attributes:
        body: the protobuf message; never changed here.
        opset: version of the standard operator set in this body.
        parent: the graph whose node has this body; None for the main graph and functions.
        carrier: index of that node in ``parent``, -1 if there is none.
        path: where the body is, e.g. ``""`` or ``"if_1/then_branch"``.
        nodes: the nodes of the body.
        reads: for each node the names of its inputs, ``""`` for one that is left out.
        writes: for each node the names of its outputs, ``""`` for one that is left out.
        ops: for each node its operator, None outside the standard domain.
        names: for each node its own name.
        attributes: node index → name → attribute, for nodes that have any.
        carriers: indices of the nodes that have subgraphs.
        producer: tensor name → index of the node that writes it.
        uses: tensor name → number of inputs of nodes, and of annotations, that refer to it.
        readers: tensor name → its readers as (node index, input index). Initializers are left out,
            unless they are formal inputs as well.
        formal: names of the body's formal inputs, in order.
        inputs: names of the formal inputs that are not initializers.
        outputs: names of the outputs.
        captured: tensor name → label of a node whose subgraph reads it.
        initializers: name → tensor; constant unless in ``overridable``.
        sparse: name → tensor, for sparse initializers; written dense if they have to change.
        dims: name → shape, of initializers and sparse initializers.
        overridable: names of initializers that a caller may replace at run time.
    """

    def __init__(self, body: Body, opset: int, parent: Graph | None, path: str) -> None:
        self.body = body
        self.opset = opset
        self.parent = parent
        self.carrier = -1
        self.path = path
        self.nodes: list[NodeProto] = list(body.node)
        # Slicing a protobuf list takes half as long as iterating over it.
        self.reads: list[tuple[str, ...]] = [tuple(node.input[:]) for node in self.nodes]
        self.writes: list[tuple[str, ...]] = [tuple(node.output[:]) for node in self.nodes]
        self.ops: list[str | None] = [
            node.op_type if node.domain in STANDARD_DOMAINS else None for node in self.nodes
        ]
        self.names: list[str] = [node.name for node in self.nodes]
        self.attributes: dict[int, dict[str, AttributeProto]] = {
            index: self._by_name(index, attributes)
            for index, node in enumerate(self.nodes)
            if (attributes := node.attribute)
        }
        self.carriers: list[int] = []
        self.producer: dict[str, int] = {}
        self.uses = Counter(chain.from_iterable(self.reads))
        self.uses.update(quantization_parameters(body))
        del self.uses[""]
        self.readers: dict[str, list[tuple[int, int]]] = {}
        self.initializers: dict[str, TensorProto] = {}
        self.sparse: dict[str, SparseTensorProto] = {}
        self.dims: dict[str, tuple[int, ...]] = {}
        self.overridable: frozenset[str] = frozenset()
        self.captured: dict[str, str] = {}
        if isinstance(body, GraphProto):
            self._index_initializers(body)
            self.outputs = frozenset(o.name for o in body.output)
            self.formal = [i.name for i in body.input]
        else:
            self.outputs = frozenset(body.output)
            self.formal = list(body.input)
        formal = frozenset(self.formal)
        self.inputs = formal.difference(self.dims)
        self._index_nodes(formal)

    def _by_name(
        self, index: int, attributes: Sequence[AttributeProto]
    ) -> dict[str, AttributeProto]:
        named = {item.name: item for item in attributes}
        if len(named) < len(attributes):
            name, _ = Counter(item.name for item in attributes).most_common(1)[0]
            raise ModelError(f"{self.label(index)} has two attributes {name!r}; repair the model")
        return named

    def _index_nodes(self, formal: frozenset[str]) -> None:
        producer, readers = self.producer, self.readers
        dims = self.dims
        is_given = (dims if formal.isdisjoint(dims) else dims.keys() - formal).__contains__
        for index, (read, written) in enumerate(zip(self.reads, self.writes, strict=True)):
            for name in written:
                if not name:
                    continue
                if name in producer:
                    raise ModelError(f"tensor {name!r} is written by two nodes, the second being "
                                     f"{self.label(index)}; repair the model")  # fmt: skip
                producer[name] = index
            # Most nodes read constants alone beside their first input.
            for slot, name in enumerate(read[:1] if all(map(is_given, read[1:])) else read):
                if is_given(name) or not name:
                    continue
                if name in readers:
                    readers[name].append((index, slot))
                else:
                    readers[name] = [(index, slot)]
        if not self.dims.keys().isdisjoint(producer):
            raise _doubled([*self.dims, *producer])

    def _index_initializers(self, body: GraphProto) -> None:
        tensors, sparse = list(body.initializer), list(body.sparse_initializer)
        names = [tensor.name for tensor in tensors]
        others = [tensor.values.name for tensor in sparse]
        self.initializers.update(zip(names, tensors, strict=True))
        self.sparse.update(zip(others, sparse, strict=True))
        self.dims.update(zip(names, [tuple(t.dims[:]) for t in tensors], strict=True))
        self.dims.update(zip(others, [tuple(t.dims[:]) for t in sparse], strict=True))
        if len(self.dims) < len(names) + len(others):
            raise _doubled([*names, *others])

    def name(self, index: int) -> str:
        """Return the name of a node, or that of its first output if it has none."""
        return self.names[index] or next(iter(self.writes[index]), "")

    def label(self, index: int) -> str:
        """Return a label of a node for messages: its operator and its name."""
        name = self.names[index] or self.name(index)
        return f"{self.ops[index] or operator(self.nodes[index])} {name!r}"

    @property
    def is_of_function(self) -> bool:
        """Whether it is the body of a local function, or inside of one."""
        root = self
        while root.parent is not None:
            root = root.parent
        return isinstance(root.body, FunctionProto)

    def find_initializer(self, name: str) -> tuple[Graph, TensorProto] | None:
        """Return the initializer that a name refers to here, and the graph that has it.

        Outer scopes are searched as well; None if the name is not that of an initializer.
        """
        scope: Graph | None = self
        while scope is not None:
            if name in scope.initializers:
                return scope, scope.initializers[name]
            if name in scope.producer or name in scope.inputs:
                return None
            scope = scope.parent
        return None

    def defines(self, name: object) -> bool:
        """Return whether a name is an initializer, input or computed tensor of this body itself."""
        return (
            name in self.producer
            or name in self.initializers
            or name in self.inputs
            or name in self.sparse
        )

    def is_read(self, name: str) -> bool:
        """Return whether anything reads a tensor."""
        return name in self.uses or name in self.outputs or name in self.captured

    def only_reader(self, name: str) -> bool:
        """Return whether exactly one node input of this body, and nothing else, reads a tensor."""
        return self.uses.get(name) == 1 and name not in self.outputs and name not in self.captured

    def place(self, text: str) -> str:
        """Return a label prefixed with the path of this body."""
        return f"{self.path}/{text}" if self.path else text


def _doubled(names: Iterable[str]) -> ModelError:
    times = Counter(names)
    name = next(name for name in times if times[name] > 1)
    return ModelError(f"initializer {name!r} is defined more than once; repair the model")


def _opset(imports: object, default: int) -> int:
    versions = [i.version for i in imports if i.domain in STANDARD_DOMAINS]  # type: ignore[attr-defined]
    return max(versions, default=default)


def graphs_of(model: ModelProto, *, freeze_initializers: bool = False) -> list[Graph]:
    """Index every body of a model.

    Args:
        model: any model; tensors may lack their values.
        freeze_initializers: treat initializers that are also inputs as constants.

    Returns:
        The main graph, the bodies below it, then the functions with theirs; parents before
        children.

    Raises:
        ModelError: a tensor is defined twice, or a node has an attribute twice.
    """
    # Without an opset import the version is 1: models of IR version 1 and 2 had no such field.
    opset = _opset(model.opset_import, 1)
    main = Graph(model.graph, opset, None, "")
    graphs = _with_subgraphs(main)
    for function in model.functions:
        path = f"{function.domain}::{function.name}"
        path += f":{function.overload}" if function.overload else ""
        graphs += _with_subgraphs(Graph(function, _opset(function.opset_import, opset), None, path))
    if model.ir_version >= 4 and not freeze_initializers:
        # Before IR version 4 every initializer had to be an input, and none could be overridden.
        formal = {i.name for i in model.graph.input}
        main.overridable = frozenset(formal & (main.initializers.keys() | main.sparse.keys()))
    return graphs


def bodies_of(model: ModelProto) -> Iterator[Body]:
    """Yield every body of a model, in the order of ``graphs_of``."""
    for root in (model.graph, *model.functions):
        yield root
        yield from bodies_below(root)


def bodies_below(root: Body) -> Iterator[GraphProto]:
    """Yield the bodies below another one, level by level."""
    bodies = list(carried(root.node))
    for body in bodies:  # grows during the loop
        yield body
        bodies.extend(carried(body.node))


def counterparts(copy: ModelProto, graphs: Sequence[Graph]) -> list[Body]:
    """Return the bodies of a copy of a model, in the order of the model's graphs.

    It gives the list of ``bodies_of(copy)``, but looks at the attributes of those nodes alone that
    have subgraphs: for each other node protobuf would create an empty list and keep it.

    Args:
        copy: of the model.
        graphs: of the model, as ``graphs_of`` returns them.
    """
    roots: Iterator[Body] = iter((copy.graph, *copy.functions))
    bodies: list[Body] = []
    inner: deque[GraphProto] = deque()
    for graph in graphs:
        body = next(roots) if graph.parent is None else inner.popleft()
        bodies.append(body)
        for index in graph.carriers:
            inner.extend(subgraphs(body.node[index]))
    return bodies


def _with_subgraphs(root: Graph) -> list[Graph]:
    graphs = [root]
    owners: list[tuple[int, int] | None] = [None]
    for position, graph in enumerate(graphs):  # grows during the loop
        for index in graph.attributes:
            inner = list(named_subgraphs(graph.nodes[index]))
            if inner:
                graph.carriers.append(index)
            for role, body in inner:
                path = graph.place(f"{graph.name(index)}.{role}")
                graphs.append(Graph(body, graph.opset, graph, path))
                graphs[-1].carrier = index
                owners.append((position, index))
    if len(graphs) == 1:
        return graphs
    used: list[set[str]] = [set(g.uses) | g.outputs for g in graphs]
    for position in range(len(graphs) - 1, 0, -1):
        owner = owners[position]
        assert owner is not None
        outer = graphs[owner[0]]
        for name in used[position]:
            outer.captured.setdefault(name, outer.label(owner[1]))
        used[owner[0]] |= used[position]
    return graphs
