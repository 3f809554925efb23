"""The local functions of a model: who calls whom, and how large a call is once it is inlined."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import NamedTuple

import onnx
from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto

from onnx_bnfold.model.graph import STANDARD_DOMAINS, Body, subgraphs

# Domain, name and overload of a function; None stands for the main graph.
Key = tuple[str, str, str]
Root = Key | None

# Functions of these domains have the name of an operator that a runtime may know and prefer.
_RUNTIMES = ("ai.onnx", "com.microsoft", "com.ms")
# Calls in calls, up to this depth, are inlined.
DEEPEST = 50


class Size(NamedTuple):
    """How large a body is with all calls in it inlined.

    Attributes:
        nodes: number of nodes.
        elements: number of elements of the constants that it holds.
    """

    nodes: int
    elements: int

    def plus(self, other: Size) -> Size:
        """Return the sum."""
        return Size(self.nodes + other.nodes, self.elements + other.elements)

    def minus(self, other: Size) -> Size:
        """Return the difference."""
        return Size(self.nodes - other.nodes, self.elements - other.elements)

    def fits(self, limit: Size) -> bool:
        """Whether neither number exceeds that of a limit."""
        return self.nodes <= limit.nodes and self.elements <= limit.elements


class Functions:
    """The local functions of a model.

    Args:
        model: the model; it is not changed, and may not change afterwards.

    Attributes:
        by_key: the functions.
        calls: for each body with those below it the functions that it calls, in order.
    """

    def __init__(self, model: ModelProto) -> None:
        self.by_key: dict[Key, FunctionProto] = {key_of(f): f for f in model.functions}
        self.calls: dict[Root, list[Key]] = {None: self._calls_of(model.graph)}
        self.calls.update((key, self._calls_of(body)) for key, body in self.by_key.items())

    @cached_property
    def _sound(self) -> list[Key]:
        """The functions that do not call themselves, each after those that it calls."""
        return [*self._callees_first()]

    @cached_property
    def sizes(self) -> dict[Key, Size]:
        """The size of each function; see ``Size``."""
        sizes: dict[Key, Size] = {}
        for key in self._sound:
            called = self.calls[key]
            size = _size(self.by_key[key]).minus(Size(len(called), 0))
            for callee in called:
                size = size.plus(sizes[callee])
            sizes[key] = size
        return sizes

    @cached_property
    def hindered(self) -> dict[Key, str]:
        """Functions that cannot be inlined, and why: the end of a sentence."""
        hindered: dict[Key, str] = {}
        heights: dict[Key, int] = {}
        for key in self._sound:
            heights[key] = 1 + max((heights[callee] for callee in self.calls[key]), default=0)
            why = _malformed(self.by_key[key])
            if why is None and heights[key] > DEEPEST:
                why = f"calls are nested deeper than {DEEPEST} levels there"
            if why is not None:
                hindered[key] = why
        for key in self.by_key.keys() - heights.keys():
            hindered[key] = "it, or a function that it calls, calls itself"
        return hindered

    def callee(self, node: NodeProto) -> Key | None:
        """Return the function that a node calls, None if it calls none."""
        if node.domain in STANDARD_DOMAINS or not self.by_key:
            return None
        key = (node.domain, node.op_type, node.overload)
        return key if key in self.by_key else None

    def reachable(self, roots: Iterable[Root] = (None,)) -> set[Key]:
        """Return the functions that some bodies call, or one of those; by default the main graph's.

        Args:
            roots: the bodies.
        """
        found: set[Key] = set()
        queue: list[Root] = [*roots]
        while queue:
            others = set(self.calls[queue.pop()]) - found
            found |= others
            queue += others
        return found

    def times(self) -> Counter[Root]:
        """Return how often each body runs, were each branch and each round of a loop one run."""
        times: Counter[Root] = Counter({None: 1})
        for root in (None, *reversed(self._sound)):
            for callee in self.calls[root]:
                times[callee] += times[root]
        return times

    def _calls_of(self, body: Body) -> list[Key]:
        found = map(self.callee, nodes_within(body.node))
        return [key for key in found if key is not None]

    def _callees_first(self) -> Iterator[Key]:
        """Yield the functions, each after those that it calls; without those that call themselves.

        Whoever calls one that calls itself is left out, too.
        """
        waiting = {key: len({*self.calls[key]}) for key in self.by_key}
        callers: dict[Key, list[Key]] = {}
        for key in self.by_key:
            for callee in dict.fromkeys(self.calls[key]):
                callers.setdefault(callee, []).append(key)
        ready = [key for key, number in waiting.items() if not number]
        for key in ready:  # grows during the loop
            yield key
            for caller in callers.get(key, ()):
                waiting[caller] -= 1
                if not waiting[caller]:
                    ready.append(caller)


def key_of(function: FunctionProto) -> Key:
    """Return what a function is called by."""
    return function.domain, function.name, function.overload


def nodes_within(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yield nodes, each followed by those of its subgraphs."""
    for node in nodes:
        yield node
        if node.attribute:
            for body in subgraphs(node):
                yield from nodes_within(body.node)


def of_model(model: ModelProto) -> Size:
    """Return the size of a model as it is, no call inlined."""
    size = Size(0, 0)
    for body in (model.graph, *model.functions):
        size = size.plus(_size(body))
    stored = sum(math.prod(tensor.dims) for tensor in model.graph.initializer)
    return size.plus(Size(0, stored))


def _size(body: Body) -> Size:
    nodes = elements = 0
    for node in nodes_within(body.node):
        nodes += 1
        held = [item.t for item in node.attribute if item.type == AttributeProto.TENSOR]
        for inner in subgraphs(node):
            held += inner.initializer
        elements += sum(math.prod(tensor.dims) for tensor in held)
    return Size(nodes, elements)


def _malformed(function: FunctionProto) -> str | None:
    """Return why a function cannot be inlined wherever it is called."""
    if function.domain in STANDARD_DOMAINS or function.domain.startswith(_RUNTIMES):
        return "a runtime may have an operator of its own by that name"
    names = [*function.input, *function.output]
    if "" in names or len({*function.output}) < len(function.output):
        return "its outputs are not named apart"
    if len({*function.input}) < len(function.input):
        return "its inputs are not named apart"
    if _shadows(function):
        return "a subgraph in it defines a name of its own that its surroundings have"
    return None


def _shadows(function: FunctionProto) -> bool:
    bodies = [body for node in function.node for body in subgraphs(node)]
    if not bodies:
        return False
    known = {*function.input, *(o for node in function.node for o in node.output)}
    return any(_hides(body, known) for body in bodies)


def _hides(body: onnx.GraphProto, outer: set[str]) -> bool:
    own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
    own |= {tensor.values.name for tensor in body.sparse_initializer}
    own |= {o for node in body.node for o in node.output}
    own.discard("")
    if own & outer:
        return True
    known = own | outer
    return any(_hides(inner, known) for node in body.node for inner in subgraphs(node))


def versions(imports: Iterable[onnx.OperatorSetIdProto], default: int) -> Mapping[str, int]:
    """Return the version of each operator set that a body imports; "" is the standard one."""
    found = {"" if i.domain in STANDARD_DOMAINS else i.domain: i.version for i in imports}
    found.setdefault("", default)
    return found
