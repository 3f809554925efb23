"""Validate a model before it is planned: names, shapes, counts of inputs, types of attributes.

onnx's checker requires more than a fold needs, and reads the weights. Source: the ONNX IR
specification, "Graphs" and "Nodes".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, chain
from operator import mul

import onnx
from onnx import AttributeProto

from onnx_bnfold.errors import ModelError
from onnx_bnfold.model.graph import Graph
from onnx_bnfold.model.standard import Signature, signature

_BODIES = frozenset((AttributeProto.GRAPH, AttributeProto.GRAPHS))
_MOST_ELEMENTS = 2**62


def require_sound(graphs: Sequence[Graph]) -> bool:
    """Check all graphs of a model.

    Args:
        graphs: as ``graph.graphs_of`` returns them.

    Returns:
        Whether their nodes are sorted topologically.

    Raises:
        ModelError: a name is undefined or defined twice, a shape is impossible, a node does not
            have the inputs, outputs or attributes of its operator, or the installed onnx does not
            know the version of the operator set.
    """
    defined: dict[int, set[str]] = {}
    in_order = True
    for graph in graphs:
        _require_text(graph)
        _require_version(graph)
        _require_shapes(graph)
        _require_counts(graph)
        _require_types(graph)
        outer = set() if graph.parent is None else defined[id(graph.parent)]
        defined[id(graph)], is_sorted = _require_names(graph, outer)
        in_order &= is_sorted
    if in_order and any(graph.carriers for graph in graphs):
        from onnx_bnfold.model.node_order import are_captures_in_order, captures_of

        captures = captures_of(graphs)
        return all(map(are_captures_in_order, graphs, captures))
    return in_order


def _require_text(graph: Graph) -> None:
    """Raise ModelError if a name is not text: protobuf's old syntax allows strings of any bytes."""
    foreign = [node for node, op in zip(graph.nodes, graph.ops, strict=True) if op is None]
    names: tuple[Iterable[object], ...] = (
        *(graph.uses, graph.producer, graph.initializers, graph.sparse),
        *(graph.inputs, graph.outputs, graph.names, *graph.attributes.values()),
        [op for op in graph.ops if op is not None],
        *([node.op_type for node in foreign], [node.domain for node in foreign]),
    )
    if not set(map(type, chain.from_iterable(names))) <= {str}:
        name = min(name for name in chain.from_iterable(names) if isinstance(name, bytes))
        raise ModelError(f"the name {name!r} is not UTF-8 text; export the model again")


def _require_version(graph: Graph) -> None:
    newest = onnx.defs.onnx_opset_version()
    if not 1 <= graph.opset <= newest:
        raise ModelError(
            f"the model uses version {graph.opset} of the ONNX operator set, the installed onnx "
            f"{onnx.__version__} knows 1 to {newest}; upgrade onnx or export the model again"
        )


def _require_shapes(graph: Graph) -> None:
    impossible = {
        dims
        for dims in set(graph.dims.values())
        if min(dims, default=0) < 0 or max(accumulate(dims, mul), default=0) > _MOST_ELEMENTS
    }
    if impossible:
        name, dims = next(item for item in graph.dims.items() if item[1] in impossible)
        raise ModelError(
            f"initializer {name!r} has the impossible shape {list(dims)}; repair the model"
        )


def _require_names(graph: Graph, outer: set[str]) -> tuple[set[str], bool]:
    """Check that names are defined once and before they are read.

    Args:
        graph: the graph.
        outer: names that the scopes around it define.

    Returns:
        The names that subgraphs can read, and whether the nodes are sorted.
    """
    doubled = graph.inputs & graph.producer.keys()
    if doubled:
        raise ModelError(f"tensor {min(doubled)!r} is an input of the graph and the output of a "
                         "node; repair the model")  # fmt: skip
    defined = {"", *graph.inputs, *graph.initializers, *graph.sparse}
    in_order = True
    for index, (read, written) in enumerate(zip(graph.reads, graph.writes, strict=True)):
        if not defined.issuperset(read):
            for name in read:
                # A name that a node here writes does not refer to the outer graph.
                if name in graph.producer:
                    in_order &= name in defined
                elif name not in defined and name not in outer:
                    raise ModelError(f"{graph.label(index)} reads {name!r}, which nothing defines; "
                                     "repair the model")  # fmt: skip
        defined.update(written)
    defined.discard("")
    for name in graph.outputs:
        if name not in defined and name not in outer:
            raise ModelError(f"no node computes output {name!r} of the graph; repair the model")
    return (outer | defined if outer else defined), in_order


def _signature(operator: str | None, opset: int) -> Signature | None:
    """Return what a node must hold, None for one of no standard operator."""
    found = signature(operator, opset)
    return None if found is None or found.is_deprecated else found


def _require_counts(graph: Graph) -> None:
    """Check the numbers of inputs and outputs, once for all nodes that have the same ones."""
    forms = list(zip(graph.ops, map(len, graph.reads), map(len, graph.writes), strict=True))
    wrong = {form: why for form in set(forms) if (why := _miscounted(*form, graph.opset))}
    for index, form in enumerate(forms) if wrong else ():
        if form in wrong:
            raise ModelError(f"{graph.label(index)} {wrong[form]}; repair the model")
    for index, read in enumerate(graph.reads):
        if "" in read:
            found = _signature(graph.ops[index], graph.opset)
            if found is not None and "" in read[: found.required]:
                raise ModelError(f"{graph.label(index)} lacks an input that its operator "
                                 "needs; repair the model")  # fmt: skip


def _miscounted(operator: str | None, inputs: int, outputs: int, opset: int) -> str | None:
    found = _signature(operator, opset)
    if found is None:
        return None
    for kind, count, (least, most) in (
        ("inputs", inputs, found.inputs),
        ("outputs", outputs, found.outputs),
    ):
        if not least <= count <= most:
            wanted = str(least) if least == most else f"{least} to {most}"
            return f"has {count} {kind}, its operator takes {wanted}"
    return None


def _require_types(graph: Graph) -> None:
    for index, attributes in graph.attributes.items():
        found = _signature(graph.ops[index], graph.opset)
        if found is None:
            continue
        for name, item in attributes.items():
            expected = found.attributes.get(name)
            if expected is None and item.type in _BODIES:  # nothing would look into that graph
                raise ModelError(f"{graph.label(index)} has a graph as attribute {name!r}, "
                                 "which its operator does not have; repair the model")  # fmt: skip
            if expected is not None and item.type != expected and not item.ref_attr_name:
                wanted = AttributeProto.AttributeType.Name(expected)
                raise ModelError(f"{graph.label(index)}: attribute {name!r} is not of type "
                                 f"{wanted}, as its operator needs; repair the model")  # fmt: skip
