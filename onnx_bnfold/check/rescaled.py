"""Rewrite a model so that its linear layers and BNs may be given other weights.

Behind each of them goes a Mul by one number r; with weights and bias divided by r the model is what
it was. The number is one for all layers that share a weight or a bias, however they lay it out, so
nothing here knows where an operator's channels are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import NodeProto, TensorProto, helper

from onnx_bnfold.check.weight_uses import WeightUses, graphs_in
from onnx_bnfold.model.graph import operator
from onnx_bnfold.operators import batchnorm
from onnx_bnfold.storage import ModelFile

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
        model: with all weights among the initializers of the main graph; those that ``ModelFile``
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
    uses = WeightUses(model)
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


def _stretch(uses: WeightUses, number: int) -> dict[str, float]:
    """Multiply the epsilon of a BN by q², and return the same for its variance and q for its scale.

    Variance and epsilon are of few values in a model, so that their sum is rounded alike in all
    layers and draws. The number is another for every BN. One that computes its own statistics does
    not divide by its variance.
    """
    node = uses.nodes[number]
    if operator(node) != batchnorm.OPERATOR or _in_training(node):
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


def _in_training(node: NodeProto) -> bool:
    """Whether a BN of opset 7 or later computes its mean and variance from its input."""
    return any(node.output[1:]) or any(a.name == "training_mode" and a.i for a in node.attribute)


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    if model.functions:
        from onnx_bnfold.rewriting.inlining_choice import inline_all

        return inline_all(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _hoist_constants(main: onnx.GraphProto) -> None:
    """Make initializers of the main graph of all Constants and of the initializers of bodies.

    A name that two bodies use for different tensors stays where it is.
    """
    bodies = list(graphs_in(main))
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


def _defined(graph: onnx.GraphProto) -> Iterator[str]:
    for item in (*graph.initializer, *graph.input):
        yield item.name
    for node in graph.node:
        yield from node.output


class _Edit:
    """Puts nodes into the graphs of a model."""

    def __init__(self, main: onnx.GraphProto) -> None:
        self._main = main
        self._taken = {name for graph in graphs_in(main) for name in _defined(graph)}
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
        for graph in graphs_in(self._main):
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
