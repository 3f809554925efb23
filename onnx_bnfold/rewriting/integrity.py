"""What a rewritten model must hold: the counterpart of ``sound``, for what comes out.

The original was sound, so whatever is found here is a bug of this package: it is said as one, and
nothing is written. Every name is looked at, shapes only where a constant has another one than
before; the time is linear in the nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto

from onnx_bnfold.errors import BrokenResult
from onnx_bnfold.model.graph import Body, Graph, subgraphs


class Text:
    """What the nodes of a body say, read once: protobuf takes its time to hand out strings.

    Attributes:
        body: the message.
        nodes: its nodes.
        reads: the names of their inputs.
    """

    def __init__(self, body: Body) -> None:
        self.body = body
        self.reread()

    def reread(self) -> None:
        """Read the nodes that the body has by now."""
        self.nodes: list[NodeProto] = list(self.body.node)
        self.reads: list[Sequence[str]] = [node.input[:] for node in self.nodes]


def require_intact(
    graphs: Sequence[Graph], texts: Sequence[Text], ir_version: int, *, halfway: bool = False
) -> None:
    """Check all bodies of a rewritten model.

    Args:
        graphs: of the model as it was, which was sound and in order.
        texts: of what they have become, in the same order.
        ir_version: of the model.
        halfway: it is to be planned again, and frozen initializers may still be inputs.

    Raises:
        BrokenResult: a name is defined twice, undefined or read too early; the inputs or outputs
            are not what they were; or a constant is declared in another shape or type.
    """
    finished = [_Finished(*each) for each in zip(graphs, texts, strict=True)]
    inner: dict[int, list[_Finished]] = {id(graph): [] for graph in graphs}
    for each in finished:
        if each.graph.parent is not None:
            inner[id(each.graph.parent)].append(each)
    for each in reversed(finished):
        each.require_names(inner[id(each.graph)])
        each.require_signature(ir_version, halfway)
        each.require_declarations()
    if len(finished) > 1:
        _require_new_names(finished)


class _Finished:
    """A body that has been rewritten.

    Attributes:
        graph: the body as it was.
        formal: the names of its inputs.
        initializer_names, constants: of its initializers, as a list and as a set.
        defined: all names that it defines.
        outside: the names that it reads from around it.
    """

    def __init__(self, graph: Graph, text: Text) -> None:
        self.graph = graph
        self.body = text.body
        self.text = text
        self.formal = _names(self.body.input)
        self.tensors: list[TensorProto] = []
        self.initializer_names: list[str] = []
        self.defined: set[str] = set()
        self.outside: set[str] = set()
        if isinstance(self.body, GraphProto):
            self.tensors = list(self.body.initializer)
            self.initializer_names = [tensor.name for tensor in self.tensors]
            self.initializer_names += [
                sparse.values.name for sparse in self.body.sparse_initializer
            ]
        self.constants = set(self.initializer_names)

    def require_names(self, inner: Sequence[_Finished]) -> None:
        """Check that every name is defined once, and before it is read."""
        if len(self.constants) < len(self.initializer_names):
            raise self.broken(
                f"two initializers are named {_first_double(self.initializer_names)!r}"
            )
        self._require_node_names()
        writes = [node.output[:] for node in self.text.nodes]
        captures = self._captures(inner)
        defined, outside = self.constants.union(self.formal), self.outside
        count = len(defined) + sum(map(len, writes))
        for index, (read, written) in enumerate(zip(self.text.reads, writes, strict=True)):
            if not defined.issuperset(read):
                outside.update(name for name in read if name not in defined)
            if index in captures:
                outside |= captures[index] - defined
            defined.update(written)
        if len(defined) < count:
            left_out = sum(written.count("") for written in writes)
            if len(defined - {""}) < count - left_out:
                made = (
                    {*self.formal, *self.initializer_names},
                    filter(None, chain.from_iterable(writes)),
                )
                raise self.broken(f"{_first_double(chain(*made))!r} is defined twice")
        defined.discard("")
        outside.update(name for name in _names(self.body.output) if name not in defined)
        outside.discard("")
        early = outside & defined
        if early:
            raise self.broken(f"{min(early)!r} is read before it is computed")
        if outside and self.graph.parent is None:
            raise self.broken(f"{min(outside)!r} is read and nothing defines it")
        self.defined = defined

    def _captures(self, inner: Sequence[_Finished]) -> Mapping[int, set[str]]:
        """Return, per node that carries bodies, what these read from around them."""
        if not inner:
            return {}
        left = list(reversed(inner))
        found: dict[int, set[str]] = {}
        for index, node in enumerate(self.text.nodes):
            for _ in subgraphs(node) if node.attribute else ():
                if left:
                    found.setdefault(index, set()).update(left.pop().outside)
        if left:
            raise self.broken(f"the body {left[-1].graph.path!r} is lost")
        return found

    def _require_node_names(self) -> None:
        names = [name for node in self.text.nodes if (name := node.name)]
        if len(set(names)) == len(names):
            return
        before, after = Counter(self.graph.names), Counter(names)
        for name, times in after.items():
            if times > max(before[name], 1):
                raise self.broken(f"two nodes are named {name!r}")

    def require_signature(self, ir_version: int, halfway: bool) -> None:
        """Check that inputs and outputs are what they were, but for those of initializers."""
        graph, body = self.graph, self.body
        if _described(graph.body.output) != _described(body.output):
            raise self.broken("the outputs are not those that it had")
        before, initializer_names = graph.dims, self.constants
        old = [graph.body.input[i] for i, name in enumerate(graph.formal) if name in graph.inputs]
        new = [body.input[i] for i, name in enumerate(self.formal) if name not in initializer_names]
        if _described(old) != _described(new):
            raise self.broken("the inputs are not those that it had")
        if graph.parent is not None or not initializer_names:
            return
        formal, listed = set(graph.formal), initializer_names.intersection(self.formal)
        lost = set(graph.overridable - listed)
        if ir_version < 4:  # every initializer has to be an input
            lost |= {
                name for name in initializer_names - listed if name in formal or name not in before
            }
        elif not listed <= graph.overridable | (formal if halfway else set()):
            name = min(listed - graph.overridable)
            what = "is still an input" if name in formal else "has become an input"
            raise self.broken(f"the constant {name!r} {what}")
        if lost:
            raise self.broken(f"the input {min(lost)!r} is lost")

    def require_declarations(self) -> None:
        """Check that constants which have another shape or type than before are declared so."""
        infos = [info.name for info in self.body.value_info]
        declared = self.constants.intersection(chain(self.formal, infos))
        if not declared:
            return
        before, dims = self.graph.initializers, self.graph.dims
        changed: dict[str, TensorProto] = {}
        for tensor, name in zip(self.tensors, self.initializer_names, strict=False):
            if name in declared and (
                dims.get(name) != tuple(tensor.dims[:])
                or name not in before
                or before[name].data_type != tensor.data_type
            ):
                changed[name] = tensor
        if not changed:
            return
        for names, values in ((self.formal, self.body.input), (infos, self.body.value_info)):
            for index, name in enumerate(names):
                if name in changed and not _declares(values[index], changed[name]):
                    raise self.broken(f"{name!r} is declared in another shape or type than it has")

    def broken(self, what: str) -> BrokenResult:
        """Return the error that says what is wrong with this body."""
        where = f"the body {self.graph.path}" if self.graph.path else "the graph"
        return BrokenResult(f"in {where}, as folded, {what}; nothing was written")


def _require_new_names(finished: Sequence[_Finished]) -> None:
    """Check that no new name is one of another body, which it would hide or be hidden by."""
    before = [{*f.graph.producer, *f.graph.inputs, *f.graph.dims} for f in finished]
    new = [f.defined - old for f, old in zip(finished, before, strict=True)]
    if not any(new):
        return
    times = Counter(chain.from_iterable(new))
    known = set().union(*before)
    for each, names in zip(finished, new, strict=True):
        for name in names:
            if name in known or times[name] > 1:
                raise each.broken(f"the new name {name!r} is one of another body")


def _declares(value: ValueInfoProto, tensor: TensorProto) -> bool:
    kind, dims = value.type.tensor_type, tensor.dims
    if kind.elem_type not in (TensorProto.UNDEFINED, tensor.data_type):
        return False
    if not kind.HasField("shape"):
        return True
    said = kind.shape.dim
    return len(said) == len(dims) and all(
        not dim.HasField("dim_value") or dim.dim_value == size
        for dim, size in zip(said, dims, strict=True)
    )


def _name(item: str | ValueInfoProto) -> str:
    return item if isinstance(item, str) else item.name


def _names(items: Iterable[str | ValueInfoProto]) -> list[str]:
    return [_name(item) for item in items]


def _described(items: Iterable[str | ValueInfoProto]) -> list[str | bytes]:
    return [item if isinstance(item, str) else item.SerializeToString() for item in items]


def _first_double(names: Iterable[str]) -> str:
    return next(name for name, times in Counter(names).items() if times > 1)
