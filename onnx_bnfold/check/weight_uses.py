"""Which constants of a model are weights, and who reads them, through nodes that hand them on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx
from onnx import NodeProto, TensorProto

from onnx_bnfold.model.graph import STANDARD_DOMAINS, operator, subgraphs
from onnx_bnfold.operators import batchnorm
from onnx_bnfold.operators.entries import Absorbing
from onnx_bnfold.operators.table import entry_of

# Operators that hand a weight on, as exporters place them in front of a layer, and the input that
# they hand on; a DequantizeLinear of constant codes is linear in its scale.
_CARRIERS = dict.fromkeys(
    ("Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"), 0
)
_CARRIERS |= {"CastLike": 0, "DequantizeLinear": 1}
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class _Use:
    """A node that reads a constant: its number, the position, and the element type it gets."""

    node: int
    position: int
    kind: int


class WeightUses:
    """Who reads which float constant, through carriers."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graphs = list(graphs_in(model.graph))
        imports = model.opset_import
        self.opset = max((i.version for i in imports if i.domain in STANDARD_DOMAINS), default=1)
        self.nodes = [node for graph in graphs for node in graph.node]
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._results = {output.name for graph in graphs for output in graph.output}
        self._readers: dict[str, list[tuple[int, int]]] = {}
        for number, node in enumerate(self.nodes):
            for position, name in enumerate(node.input):
                self._readers.setdefault(name, []).append((number, position))
        self._uses = {
            name: tuple(self._follow(name, tensor.data_type))
            for name, tensor in self.constants.items()
            if tensor.data_type in _FLOATS and name in self._readers
        }
        self._sources = {
            (use.node, use.position): name
            for name, uses in self._uses.items()
            for use in uses
            if use is not None
        }
        # The output of a BN has the type of its data, which may not be that of its scale.
        kinds = {i.type.tensor_type.elem_type for i in model.graph.input}
        kinds |= {self.constants[name].data_type for name in self._uses}
        self._left = {batchnorm.OPERATOR} if len(kinds & {*_FLOATS}) > 1 else set()

    def may_move(self, name: str) -> bool:
        """Whether a constant is a weight that may be moved by half a unit."""
        for number, position in self._readers.get(name, ()):
            if operator(self.nodes[number]) == "DequantizeLinear" and position:
                # It may be the scale of a QuantizeLinear, too, whose codes would change.
                return False
        return any(
            use is not None
            and (entry := self._absorbing(use.node)) is not None
            and use.position in entry.weights
            for use in self._uses.get(name, ())
        )

    def is_own(self, name: str, number: int) -> bool:
        """Whether a constant of full precision is read by one node alone, once and directly."""
        readers = self._readers.get(name, [])
        tensor = self.constants.get(name)
        return (
            [reader for reader, _ in readers] == [number]
            and name not in self._results
            and tensor is not None
            and tensor.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE)
        )

    def groups(self) -> Iterator[tuple[list[str], dict[int, int]]]:
        """Yield the weights that may be divided by one number, with the layers and their types."""
        divided = {number: self._divided(number) for number in {n for n, _ in self._sources}}
        together = (
            [self._sources[number, position] for position in positions]
            for number, positions in sorted(divided.items())
            if positions
        )
        for names in _components(together):
            layers: dict[int, int] = {}
            for use in (use for name in names for use in self._uses[name]):
                if use is None or use.position not in divided[use.node]:
                    break
                layers.setdefault(use.node, use.kind)
            else:
                yield names, layers

    def _divided(self, number: int) -> tuple[int, ...]:
        """Return the positions of a layer's inputs to divide; none if one is not a constant."""
        node = self.nodes[number]
        entry = self._absorbing(number)
        if entry is None or operator(node) in self._left:
            return ()
        for first, *rest in entry.linear_in:
            present = [p for p in (first, *rest) if p < len(node.input) and node.input[p]]
            if first in present and all((number, p) in self._sources for p in present):
                return tuple(present)
        return ()

    def _absorbing(self, number: int) -> Absorbing | None:
        entry = entry_of(operator(self.nodes[number]))
        return entry if isinstance(entry, Absorbing) else None

    def _follow(self, name: str, kind: int) -> Iterator[_Use | None]:
        """Every use of a float constant; None where it is read as something else."""
        if name in self._results:
            yield None
        for number, position in self._readers.get(name, ()):
            node = self.nodes[number]
            if _CARRIERS.get(operator(node)) != position:
                yield _Use(number, position, kind)
                continue
            after = self._kind_after(node, kind)
            if after:
                yield from self._follow(node.output[0], after)
            else:
                yield None

    def _kind_after(self, carrier: NodeProto, kind: int) -> int:
        """Return the element type that a carrier passes on; 0 if it is unknown or not a float."""
        op = operator(carrier)
        if op == "CastLike":
            return 0
        if op == "DequantizeLinear":
            return kind if carrier.input[0] in self.constants else 0
        if op == "Cast":
            to = next((a.i for a in carrier.attribute if a.name == "to"), 0)
            return to if to in _FLOATS else 0
        return kind


def _components(sets: Iterable[Sequence[str]]) -> list[list[str]]:
    """Names joined where they stand in one set, in the order in which they first stand there."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for names in sets:
        for name in names:
            parent[root(name)] = root(names[0])
    found: dict[str, list[str]] = {}
    for name in parent:
        found.setdefault(root(name), []).append(name)
    return list(found.values())


def graphs_in(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph, and those below each of its nodes in turn."""
    yield graph
    for node in graph.node:
        for body in subgraphs(node):
            yield from graphs_in(body)
