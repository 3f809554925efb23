"""Work around a bug of onnx's shape inference: a Slice of a negative size aborts the process.

onnx (1.19 to 1.23) infers a negative size where a kernel is larger than its input, for example. An
assertion of the C++ library then fails if a Slice cuts that axis. So a guard stands in front of
each Slice: a call of a local function that hands on what it gets, of which inference can make
nothing where that size is negative. However many Slices there are, one run is enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onnx import (
    AttributeProto,
    FunctionProto,
    ModelProto,
    NodeProto,
    OperatorSetIdProto,
)

from onnx_bnfold.model.determinism import SIZING
from onnx_bnfold.model.graph import Body, Graph, bodies_of, copy_of, counterparts
from onnx_bnfold.model.messages import new_node
from onnx_bnfold.model.suspects import Integers

# Operators whose values inference propagates, if they are vectors: sizes and what is computed of
# them. No guard stands between these, since it would not hand on values.
VALUED = frozenset(
    {
        *("Add", "Cast", "Concat", "Constant", "Gather", "Mul", "Shape", "Size", "Slice"),
        *("Squeeze", "Sub", "Unsqueeze"),
    }
)
_SLICE = "Slice"
_FIRST_INPUTS = 3  # with the bounds; older Slices have them as attributes, and are safe

DOMAIN = "onnx_bnfold.guard"
_GUARD = "Guard"
_OPSET = 18  # of the function's nodes, whatever the model's is
_UNKNOWN = f"{DOMAIN}.unknown"  # a name that nothing defines
_MOST_AXES = 64  # a tensor has far fewer


def guarded(light: ModelProto, graphs: Sequence[Graph], integers: Integers) -> ModelProto:
    """Return a model that is safe for shape inference: itself, or a copy with guards.

    Args:
        light: a copy without weights.
        graphs: of the model that it is a copy of.
        integers: those of the copy.
    """
    if not any(_SLICE in graph.ops for graph in graphs):
        return light
    guards = _Guards(integers)
    needed = [guards.needed(graph) for graph in graphs]
    if not any(needed):
        return light
    copy = copy_of(light)
    bodies = counterparts(copy, graphs)
    # A body is written anew with all that is below it, which is therefore done before.
    for slices, body in zip(reversed(needed), reversed(bodies), strict=True):
        guards.put(slices, body)
    for imports in (copy.opset_import, *(f.opset_import for f in copy.functions)):
        imports.add(domain=DOMAIN, version=1)
    copy.functions.append(_guard())
    return copy


def behind(model: ModelProto, nodes: Iterable[NodeProto]) -> frozenset[str]:
    """Return the tensors that depend on some nodes: their outputs, and what reads those."""
    names = {name for node in nodes for name in node.output}
    for body in bodies_of(model) if names else ():
        for node in body.node:
            if not names.isdisjoint(node.input):
                names.update(node.output)
    return frozenset(names - {""})


class _Guards:
    """The guards in front of the Slices of a model.

    Args:
        integers: those of a copy without weights.
    """

    def __init__(self, integers: Integers) -> None:
        self._integers = integers
        self._count = 0
        # For each graph so far: tensor → whether no size of it is negative.
        self._whole: dict[int, dict[str, bool]] = {}

    def needed(self, graph: Graph) -> dict[int, list[int] | None]:
        """Return the Slices of a graph that may cut an axis of negative size.

        Args:
            graph: one of the graphs; those around it come before it.

        Returns:
            Index of each → the axes that it cuts, None if they are not known.
        """
        whole, found = self._whole.setdefault(id(graph), _given(graph)), {}
        nodes = self._integers.body(graph).node
        for index, op in enumerate(graph.ops):
            if op not in VALUED:
                continue
            is_whole = self._is_whole(graph, index)
            whole.update(dict.fromkeys(graph.writes[index], is_whole))
            if op != _SLICE or is_whole or len(graph.reads[index]) < _FIRST_INPUTS:
                continue
            if nodes[index].op_type == op:  # else it is misread, and another node by now
                found[index] = self._axes(graph, index)
        return found

    def put(self, slices: dict[int, list[int] | None], body: Body) -> None:
        """Put guards in front of Slices.

        A Slice of unknown axes becomes one of which inference finds the rank alone.

        Args:
            slices: what ``needed`` returns for a graph.
            body: a copy of it, which gets the guards.
        """
        nodes: list[NodeProto] = []
        done = 0
        for index, axes in slices.items():
            node = body.node[index]
            if axes is None:
                node.input[1:] = [_UNKNOWN, _UNKNOWN]
                continue
            nodes += body.node[done:index]
            done = index
            for axis in axes:
                self._count += 1
                nodes.append(_call(node.input[0], f"{DOMAIN}.{self._count}", axis))
                node.input[0] = nodes[-1].output[0]
        nodes += body.node[done:]
        if len(nodes) > len(body.node):
            del body.node[:]
            body.node.extend(nodes)

    def _is_whole(self, graph: Graph, index: int) -> bool:
        """Whether no size of what a node of ``VALUED`` writes is negative."""
        op, reads = graph.ops[index], graph.reads[index]
        if op in SIZING:  # what it writes has sizes of its own
            return True
        held = graph.attributes.get(index, {}).values() if not reads else ()
        data = reads[:1] if op == _SLICE else reads
        dims = (size for item in held for size in (*item.t.dims, *item.sparse_tensor.dims))
        return min(dims, default=0) >= 0 and all(self._has_whole(graph, name) for name in data)

    def _has_whole(self, graph: Graph, name: str) -> bool:
        scope: Graph | None = graph
        while scope is not None:
            whole = self._whole[id(scope)]
            if name in whole:
                return whole[name]
            if name in scope.producer:  # it is written by a node of another kind
                return False
            scope = scope.parent
        return False

    def _axes(self, graph: Graph, index: int) -> list[int] | None:
        """Return the axes that a Slice cuts, None if they are not known."""
        names = (*graph.reads[index], "")[1:4]
        starts, ends, axes = (self._integers.listed(graph, n) if n else None for n in names)
        if not names[2]:
            bounds = ends if starts is None else starts
            axes = None if bounds is None else [*range(len(bounds))]
        return None if axes is None or len(axes) > _MOST_AXES else [*dict.fromkeys(axes)]


def _given(graph: Graph) -> dict[str, bool]:
    """Return what is known of the sizes of tensors that a graph does not compute."""
    # What a body is handed from outside may have been computed.
    is_main = graph.parent is None and not graph.is_of_function
    found = dict.fromkeys(graph.formal, is_main)
    found.update((name, min(dims, default=0) >= 0) for name, dims in graph.dims.items())
    return found


def _call(name: str, output: str, axis: int) -> NodeProto:
    return new_node(_GUARD, [name], [output], domain=DOMAIN, axis=axis)


def _guard() -> FunctionProto:
    """Return the function that hands on a tensor, but for one whose size of an axis is negative."""
    nodes = [
        new_node("Constant", [], ["none"], value_ints=[0]),
        # Inference finds that an axis of a negative size has less than 0 elements, and gives up.
        new_node("TopK", ["data", "none"], ["first", "indices"]),
        # As many axes as the data has, all of size 1: the sum is of the shape of the data.
        new_node("ReduceSum", ["first"], ["one"], keepdims=1),
        new_node("Add", ["data", "one"], ["same"]),
    ]
    axis = AttributeProto(name="axis", ref_attr_name="axis", type=AttributeProto.INT)
    nodes[1].attribute.append(axis)
    imports = [OperatorSetIdProto(domain="", version=_OPSET)]
    return FunctionProto(
        domain=DOMAIN,
        name=_GUARD,
        input=["data"],
        output=["same"],
        attribute=["axis"],
        node=nodes,
        opset_import=imports,
    )
