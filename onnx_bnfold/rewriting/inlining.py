"""Calls of local functions, replaced by the nodes of the function.

onnx's own inliner replaces all calls of a function or none, and knows no overloads. Here it is a
matter of each call, in a body or in a function that was inlined there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count, zip_longest
from typing import Any, NamedTuple

import onnx
from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, OperatorSetIdProto

from onnx_bnfold.model.functions import Functions, Key, Root, key_of, nodes_within, versions
from onnx_bnfold.model.graph import Body, copy_of, subgraphs
from onnx_bnfold.model.messages import new_node
from onnx_bnfold.rewriting.fresh_names import Names
from onnx_bnfold.rewriting.function_facts import AllFacts, Facts
from onnx_bnfold.rewriting.function_nodes import describe, rename, renamed, resolve


class Call(NamedTuple):
    """A call, in a body or in what was inlined there.

    Attributes:
        root: the body.
        path: the number of the call among those of its function, after that of the call which this
            function was inlined for, and so on.
    """

    root: Root
    path: tuple[int, ...]

    def inner(self, number: int) -> Call:
        """Return a call in the function that this one calls."""
        return Call(self.root, (*self.path, number))

    @property
    def outermost_first(self) -> Iterator[Call]:
        """The calls by whose inlining this one came into its body, and itself."""
        return (Call(self.root, self.path[:end]) for end in range(1, len(self.path) + 1))


class Origin(NamedTuple):
    """Where a tensor comes from.

    Attributes:
        call: the call that it was inlined for; its path is empty for a tensor of the body itself.
        function: the body that defined it.
        name: of the tensor there.
    """

    call: Call
    function: Root
    name: str


# Whether to inline a call of a function.
Accept = Callable[[Call, Key], bool]


@dataclass
class Inlined:
    """A model with calls inlined.

    Attributes:
        model: the model.
        calls: those that were inlined, with their functions.
        refused: functions with a call that cannot be inlined where it is, and why.
    """

    model: ModelProto
    calls: dict[Call, Key] = field(default_factory=dict)
    refused: dict[Key, str] = field(default_factory=dict)
    _origins: dict[tuple[Root, str], Origin] = field(default_factory=dict)

    def origin(self, root: Root, name: str) -> Origin:
        """Return where a tensor of a body, or below it, comes from."""
        return self._origins.get((root, name)) or Origin(Call(root, ()), root, name)

    def with_names(self, model: ModelProto, names: Iterable[tuple[Root, str, str]]) -> Inlined:
        """Return it with another model, in which tensors have new names.

        Args:
            model: the model.
            names: a body, the name of a tensor there, and its new one.
        """
        made = replace(self, model=model, _origins={**self._origins})
        for root, was, now in names:
            made._origins[root, now] = made.origin(root, was)
        return made


def inline(
    model: ModelProto,
    functions: Functions,
    names: Names,
    accept: Accept,
    roots: Iterable[Root] | None = None,
) -> Inlined:
    """Inline calls of functions in a copy of a model; functions without callers stay.

    Args:
        model: the model; it is not changed.
        functions: its functions.
        names: all that it has; gets the new ones.
        accept: says for each call whether it is to be inlined: those of a body in order, each
            before the calls in its function.
        roots: the bodies in which calls are inlined, by default all. Those are added that they
            still call then; other functions are left out.
    """
    copy = copy_of(model)
    inlined = Inlined(copy)
    facts = AllFacts(functions, versions(model.opset_import, 1)[""])
    bodies: dict[Root, tuple[Body, Any]] = {None: (copy.graph, copy.opset_import)}
    bodies.update((key_of(each), (each, each.opset_import)) for each in copy.functions)
    known = {*bodies} if roots is None else {*roots}
    waiting = [*(bodies if roots is None else roots)]
    for root in waiting:  # grows during the loop
        body, imports = bodies[root]
        if functions.calls[root]:
            inliner = _Inliner(root, imports, facts, names, accept, inlined)
            inliner.rewrite(body, Call(root, ()), count())
            waiting += [key for key in inliner.left if key not in known]
            known.update(inliner.left)
    if roots is not None:
        _keep_functions(copy, known)
    return inlined


def _keep_functions(model: ModelProto, keys: Set[Root]) -> None:
    kept = [function for function in model.functions if key_of(function) in keys]
    if len(kept) < len(model.functions):
        del model.functions[:]
        model.functions.extend(kept)


def drop_uncalled(inlined: Inlined, functions: Functions) -> None:
    """Drop the functions that nothing calls any more, but was called before.

    Args:
        inlined: a model with calls inlined.
        functions: those of the model as it was.
    """
    if inlined.model.training_info:  # which may call them
        return
    uncalled = functions.by_key.keys() - functions.reachable()
    _keep_functions(inlined.model, uncalled | Functions(inlined.model).reachable((None, *uncalled)))


class _Inliner:
    """Inlines calls in one body and below it, in place.

    Attributes:
        left: the functions of which calls stay calls.
    """

    def __init__(
        self,
        root: Root,
        imports: Any,
        facts: AllFacts,
        names: Names,
        accept: Accept,
        inlined: Inlined,
    ) -> None:
        self.root = root
        self.imports = imports
        self.facts = facts
        self.functions = facts.functions
        self.names = names
        self.accept = accept
        self.inlined = inlined
        self.left: dict[Key, None] = {}
        self.versions = dict(versions(imports, facts.default))
        self._conflicts: dict[tuple[Key, int], str | None] = {}

    def rewrite(self, body: Body, within: Call, numbers: Iterator[int]) -> None:
        nodes = [*body.node]
        found = [*self._expanded(nodes, within, numbers, body)]
        if len(found) != len(nodes) or any(a is not b for a, b in zip(found, nodes, strict=True)):
            del body.node[:]
            body.node.extend(found)

    def _expanded(
        self, nodes: Iterable[NodeProto], within: Call, numbers: Iterator[int], body: Body
    ) -> Iterator[NodeProto]:
        """Yield nodes, those of the function instead of each call that is inlined.

        Args:
            nodes: of the body, or of a function that is inlined there.
            within: the call that they were inlined for.
            numbers: counts the calls among them and below.
            body: gets what is known of the types of new tensors.
        """
        for node in nodes:
            key = self.functions.callee(node)
            if key is None:
                for inner in subgraphs(node) if node.attribute else ():
                    self.rewrite(inner, within, numbers)
                yield node
                continue
            call = within.inner(next(numbers))
            why = self._hindrance(node, key)
            if why is not None:
                self.inlined.refused.setdefault(key, why)
            if why is not None or not self.accept(call, key):
                self.left[key] = None
                yield node
                continue
            self.inlined.calls[call] = key
            copied = self._copied(node, key, call, body)
            yield from self._expanded(copied, call, count(), body)

    def _hindrance(self, node: NodeProto, key: Key) -> str | None:
        if key in self.functions.hindered:
            return self.functions.hindered[key]
        facts = self.facts.of(key)
        if len(node.input) > len(facts.inputs) or len(node.output) > len(facts.outputs):
            return "a call has more inputs or outputs than it"
        if any(item.type in _GRAPHS for item in node.attribute):
            return "a call has a graph as attribute"
        if _loses_omitted(facts, node):
            return "a call leaves out an input that it needs"
        asked = key, len(self.versions)  # which are added to only
        if asked not in self._conflicts:
            self._conflicts[asked] = self._version_conflict(facts)
        return self._conflicts[asked]

    def _version_conflict(self, facts: Facts) -> str | None:
        for domain, operator in facts.operators:
            version = facts.versions.get(domain)
            mine = self.versions.get(domain, version)
            if mine == version or (not domain and _is_same(operator, mine, version)):
                continue
            return (
                f"it uses version {version} of the operator set {domain!r} and its caller {mine}; "
                "convert the model to one version"
            )
        return None

    def _copied(self, call: NodeProto, key: Key, where: Call, body: Body) -> list[NodeProto]:
        """Return the nodes of a function as they stand instead of a call of it."""
        facts, names = self.facts.of(key), self.names
        function = FunctionProto()
        function.CopyFrom(facts.function)
        given = call.input[:]
        mapping = {"": "", **dict(zip_longest(facts.inputs, given, fillvalue=""))}
        prefix = call.name or next(filter(None, call.output), call.op_type)
        passed_on = []
        for name, actual in zip(facts.outputs, call.output, strict=False):
            if actual and name in mapping:
                passed_on.append((mapping[name], actual))
            elif actual:
                mapping[name] = actual
                self._note(actual, where, key, name)
        for name in facts.defined:
            if name not in mapping:
                mapping[name] = names.fresh(f"{prefix}/{name}")
                self._note(mapping[name], where, key, name)
        nodes = [*function.node]
        if facts.has_parameters:
            attributes = {item.name: item for item in (*function.attribute_proto, *call.attribute)}
            for node in nodes_within(nodes):
                resolve(node, attributes)
        for node in nodes_within(nodes):
            if node.name:
                node.name = names.fresh(f"{prefix}/{node.name}")
        for node in nodes:
            rename(node, mapping)
            describe(node, call)
        for before, after in passed_on:
            nodes.append(new_node("Identity", [before], [after]))
            self._note(after, where, key, after)
        if function.value_info:
            internal = mapping.keys() - {*facts.inputs, *facts.outputs}
            body.value_info.extend(
                renamed(v, mapping) for v in function.value_info if v.name in internal
            )
        self._import(facts)
        return nodes

    def _note(self, name: str, call: Call, function: Key, original: str) -> None:
        self.inlined._origins[self.root, name] = Origin(call, function, original)

    def _import(self, facts: Facts) -> None:
        for domain, version in facts.versions.items():
            if domain not in self.versions:
                self.versions[domain] = version
                self.imports.append(OperatorSetIdProto(domain=domain, version=version))


_GRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)


def _loses_omitted(facts: Facts, call: NodeProto) -> bool:
    """Whether an input that a call leaves out is needed by something other than a node's input."""
    given = call.input[:]
    if len(given) == len(facts.inputs) and all(given):
        return False
    omitted = {*facts.inputs[len(given) :]}
    omitted |= {name for name, actual in zip(facts.inputs, given, strict=False) if not actual}
    needed = {*facts.outputs}
    for node in nodes_within(facts.function.node):
        needed.update(o.name for body in subgraphs(node) for o in body.output)
    return not omitted.isdisjoint(needed)


@cache
def _is_same(operator: str, a: int, b: int) -> bool:
    """Whether an operator of ONNX is the same one in two versions of its set."""
    try:
        first, second = (onnx.defs.get_schema(operator, version, "") for version in (a, b))
    except onnx.defs.SchemaError:
        return False
    return bool(first.since_version == second.since_version)
