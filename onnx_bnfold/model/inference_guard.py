"""Work around a bug of onnx's shape inference: a Slice of a negative size aborts the process.

onnx (1.19 to 1.23) infers a negative size where a kernel is larger than its input, for example. An
assertion of the C++ library then fails if a Slice reads that tensor.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, compress

import onnx
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

from onnx_bnfold.model.graph import STANDARD_DOMAINS, bodies_of, copy_of, subgraphs

MOST_LEVELS = 100  # Slices behind one another; each level costs a run of the inference

_HIDDEN = "onnx_bnfold.hidden"  # a domain that inference does not know


def _hide(model: ModelProto, nodes: Iterable[NodeProto]) -> None:
    """Hide nodes of a model from shape inference, in place; their outputs get no shapes.

    Models may have thousands of functions, so it is called once for all.
    """
    nodes = [*nodes]
    if not nodes:
        return
    _set_domain(nodes, _HIDDEN)
    for imports in (model.opset_import, *(f.opset_import for f in model.functions)):
        if all(item.domain != _HIDDEN for item in imports):
            imports.add(domain=_HIDDEN, version=1)


def hide_unsafe_slices(model: ModelProto, *, data_prop: bool) -> list[NodeProto]:
    """Make a model safe for shape inference, in place.

    All Slices are hidden from inference at first. Those of the graphs are shown again level by
    level, once no size in front of them is negative. Sizes inside a local function cannot be seen,
    so its Slices stay hidden, as do Slices behind more than ``MOST_LEVELS`` others.

    Args:
        model: a copy without weights.
        data_prop: whether the inference will propagate values, which gives more sizes.

    Returns:
        The Slices of the graphs that stay hidden.

    Raises:
        ValueError: a size in front of a Slice is negative.
    """
    levels: list[list[NodeProto]] = []
    in_front: list[int] = []
    _sort_by_level(model.graph, {}, levels, in_front)
    inside: list[list[NodeProto]] = []
    for function in model.functions:
        _sort_by_level(function, {}, inside, [])
    _hide(model, chain.from_iterable((*inside, *levels)))
    if not levels:
        return []
    part = copy_of(model)  # of what lies behind a hidden Slice nothing is known yet
    for number, level in enumerate(levels[:MOST_LEVELS]):
        del part.graph.node[:]
        part.graph.node.extend(compress(model.graph.node, [n <= number for n in in_front]))
        _require_no_negative_size(onnx.shape_inference.infer_shapes(part, data_prop=data_prop))
        _set_domain(level, "")
    return [*chain.from_iterable(levels[MOST_LEVELS:])]


def behind(model: ModelProto, nodes: Iterable[NodeProto]) -> frozenset[str]:
    """Return the tensors that depend on some nodes: their outputs, and what reads those."""
    names = {name for node in nodes for name in node.output}
    for body in bodies_of(model) if names else ():
        for node in body.node:
            if not names.isdisjoint(node.input):
                names.update(node.output)
    return frozenset(names - {""})


def _sort_by_level(
    body: GraphProto | FunctionProto,
    known: dict[str, int],
    levels: list[list[NodeProto]],
    in_front: list[int],
) -> int:
    """Sort the Slices of a body into levels by the number of Slices in front of them.

    Args:
        body: the body.
        known: tensor of the enclosing bodies → number of Slices in front of it; 0 if left out.
        levels: gets the Slices.
        in_front: gets for each node of the body the number of Slices in front of it.

    Returns:
        The largest number of Slices in front of a tensor of the body.
    """
    known = dict(known)
    most = 0
    for node in body.node:
        level = max((known.get(name, 0) for name in node.input), default=0)
        in_front.append(level)
        for inner in subgraphs(node) if node.attribute else ():
            # A Loop or Scan may pass any of its inputs.
            given = dict.fromkeys((value.name for value in inner.input), level)
            level = max(level, _sort_by_level(inner, known | given, levels, []))
        if node.op_type == "Slice" and node.domain in STANDARD_DOMAINS:
            levels.extend([] for _ in range(level + 1 - len(levels)))
            levels[level].append(node)
            level += 1
        known.update(dict.fromkeys(node.output, level))
        most = max(most, level)
    return most


def _set_domain(nodes: Iterable[NodeProto], domain: str) -> None:
    for node in nodes:
        node.domain = domain


def _require_no_negative_size(model: ModelProto) -> None:
    for body in bodies_of(model):
        if not isinstance(body, GraphProto):
            continue
        for value in chain(body.input, body.value_info, body.output):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_value < 0:
                    raise ValueError(f"{value.name} has a negative size")
