"""Rewrite a model so that its linear layers and BNs may be given other weights.

Behind each of them goes a Mul by one number r; with weights and bias divided by r the model is what
it was. The number is one for all layers that share a weight or a bias, however they lay it out, so
nothing here knows where an operator's channels are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx
from onnx import NodeProto, TensorProto, helper

from onnx_bnfold.model.graph import STANDARD_DOMAINS, operator, subgraphs
from onnx_bnfold.operators import batchnorm
from onnx_bnfold.operators.entries import Absorbing
from onnx_bnfold.operators.table import OPERATORS
from onnx_bnfold.storage import ModelFile

# Positions of the inputs in which the first output is linear if all of them change together; the
# first of a choice that are constants are the weights.
# Here are the operators that have no entry in the table.
_LINEAR: dict[str | None, tuple[tuple[int, ...], ...]] = {
    **{op: entry.linear_in for op, entry in OPERATORS.items() if isinstance(entry, Absorbing)},
    "DeformConv": ((1, 3),),
    "GroupNormalization": ((1, 2),),
}
# Positions of all weights, of operators that are not linear in theirs too.
_WEIGHTS: dict[str | None, Collection[int]] = {
    **{op: {i for choice in choices for i in choice} for op, choices in _LINEAR.items()},
    **{op: entry.weights for op, entry in OPERATORS.items() if isinstance(entry, Absorbing)},
    "GRU": {1, 2, 3},
    "LSTM": {1, 2, 3},
    "RNN": {1, 2, 3},
}
# Operators that hand a weight on, as exporters place them in front of a layer, and the input that
# they hand on; a DequantizeLinear of constant codes is linear in its scale.
_CARRIERS = dict.fromkeys(
    ("Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"), 0
)
_CARRIERS |= {"CastLike": 0, "DequantizeLinear": 1}
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
_FIRST_OPSET = 7  # in which a Mul broadcasts
_EPSILON = 1e-5  # of a BN that does not say it
_STEPS, _STEP = 512, 197  # of numbers from 1 to 1.5, and from that of one BN to that of the next


@dataclass(frozen=True)
class Group:
    """Layers that share weights, and so the number that these are divided by.

    Attributes:
        weights: names of the weights and biases.
        factors: the initializers that hold the number, by element type.
    """

    weights: tuple[str, ...]
    factors: dict[int, str]


@dataclass(frozen=True)
class Rescaled:
    """A rewritten model.

    Attributes:
        model: with all weights among the initializers of the main graph; those that `ModelFile`
            left out are left out here, too.
        weights: the weights by name, divided or moved.
        groups: what is divided together; the weights of none are to be moved.
        stretched: what scales and variances of BNs are to be multiplied with on top of that.
    """

    model: onnx.ModelProto
    weights: dict[str, TensorProto]
    groups: tuple[Group, ...]
    stretched: dict[str, float]


def rescaled(file: ModelFile, *, divide: bool = True) -> Rescaled:
    """Put a Mul by an initializer behind every layer whose weights are constants of its own.

    Args:
        file: the model; local functions are put in the place of their calls.
        divide: False leaves the nodes alone; all weights are to be moved then.

    Returns:
        The rewritten copy; the new initializers hold 1.
    """
    model = _inlined(file.model)
    _hoist_constants(model.graph)
    uses = _Uses(model)
    edit = _Edit(model.graph)
    groups: list[Group] = []
    stretched: dict[str, float] = {}
    for names, layers in uses.groups() if divide and uses.opset >= _FIRST_OPSET else ():
        factors = {kind: edit.factor(kind) for kind in sorted({*layers.values()})}
        for number, kind in layers.items():
            edit.rescale(uses.nodes[number], factors[kind])
        groups.append(Group(tuple(names), factors))
        for number in layers:
            stretched |= _stretch(uses, number)
    edit.finish()
    divided = {name for group in groups for name in group.weights}
    weights = {n: t for n, t in uses.constants.items() if n in divided or uses.may_move(n)}
    return Rescaled(model, weights, tuple(groups), stretched)


def _stretch(uses: _Uses, number: int) -> dict[str, float]:
    """Multiply the epsilon of a BN by q², and return the same for its variance and q for its scale.

    Variance and epsilon are of few values in a model, so that their sum is rounded alike in all
    layers and draws. The number is another for every BN.
    """
    node = uses.nodes[number]
    if operator(node) != batchnorm.OPERATOR:
        return {}
    scale, variance = node.input[1], node.input[4]
    if not all(uses.is_own(name, number) for name in (scale, variance)):
        return {}
    q = 1 + (number * _STEP % _STEPS + 1) / (2 * _STEPS)
    epsilon = next((a for a in node.attribute if a.name == "epsilon"), None)
    if epsilon is None:
        epsilon = node.attribute.add(name="epsilon", type=onnx.AttributeProto.FLOAT, f=_EPSILON)
    epsilon.f *= q * q
    return {scale: q, variance: q * q}


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    if model.functions:
        from onnx.inliner import inline_local_functions

        return inline_local_functions(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _hoist_constants(main: onnx.GraphProto) -> None:
    """Make initializers of the main graph of all Constants and of the initializers of bodies.

    A name that two bodies use for different tensors stays where it is.
    """
    bodies = list(_graphs(main))
    names = Counter(name for graph in bodies for name in _defined(graph))
    for graph in bodies:
        if graph is not main:
            kept = [t for t in graph.initializer if names[t.name] > 1]
            main.initializer.extend(t for t in graph.initializer if names[t.name] == 1)
            del graph.initializer[:]
            graph.initializer.extend(kept)
        hoisted = [
            i
            for i, node in enumerate(graph.node)
            if _is_tensor(node) and names[node.output[0]] == 1
        ]
        outputs = {output.name for output in graph.output}
        for i in reversed(hoisted):
            node = graph.node[i]
            if node.output[0] not in outputs:
                tensor = main.initializer.add()
                tensor.CopyFrom(node.attribute[0].t)
                tensor.name = node.output[0]
                del graph.node[i]


def _is_tensor(node: NodeProto) -> bool:
    """Whether a node is a Constant that holds a tensor."""
    return operator(node) == "Constant" and [a.name for a in node.attribute] == ["value"]


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for body in subgraphs(node):
            yield from _graphs(body)


def _defined(graph: onnx.GraphProto) -> Iterator[str]:
    for item in (*graph.initializer, *graph.input):
        yield item.name
    for node in graph.node:
        yield from node.output


@dataclass(frozen=True)
class _Use:
    """A node that reads a constant: its number, the position, and the element type it gets."""

    node: int
    position: int
    kind: int


class _Uses:
    """Who reads which float constant, through carriers."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graphs = list(_graphs(model.graph))
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
                return (
                    False  # it may be the scale of a QuantizeLinear too, whose codes would change
                )
        return any(
            use is not None and use.position in _WEIGHTS.get(operator(self.nodes[use.node]), ())
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
        op = operator(node)
        for first, *rest in _LINEAR.get(op, ()) if op not in self._left else ():
            present = [p for p in (first, *rest) if p < len(node.input) and node.input[p]]
            if first in present and all((number, p) in self._sources for p in present):
                return tuple(present)
        return ()

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


class _Edit:
    """Puts nodes into the graphs of a model."""

    def __init__(self, main: onnx.GraphProto) -> None:
        self._main = main
        self._taken = {name for graph in _graphs(main) for name in _defined(graph)}
        self._muls: dict[str, NodeProto] = {}  # by the output of the layer
        self._numbers: Counter[str] = Counter()

    def factor(self, kind: int) -> str:
        """Add an initializer that holds 1 and return its name."""
        name = self._fresh("r")
        self._main.initializer.append(helper.make_tensor(name, kind, [], [1.0]))
        return name

    def rescale(self, layer: NodeProto, factor: str) -> None:
        """Put a Mul behind a layer, whose output keeps its name."""
        output, inner = layer.output[0], self._fresh(f"{layer.output[0]}_over_r")
        self._muls[inner] = helper.make_node("Mul", [inner, factor], [output], inner)
        layer.output[0] = inner

    def finish(self) -> None:
        """Put the new nodes where they belong."""
        for graph in _graphs(self._main):
            if all(node.output[0] not in self._muls for node in graph.node if node.output):
                continue
            old = list(graph.node)
            del graph.node[:]
            for node in old:
                graph.node.append(node)
                if node.output and node.output[0] in self._muls:
                    graph.node.append(self._muls[node.output[0]])

    def _fresh(self, wanted: str) -> str:
        name = wanted
        while name in self._taken:
            self._numbers[wanted] += 1
            name = f"{wanted}_{self._numbers[wanted]}"
        self._taken.add(name)
        return name


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
