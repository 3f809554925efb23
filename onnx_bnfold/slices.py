"""Keeps onnx's shape inference from a bug of its own: a Slice of a negative size ends the process.

onnx (1.19 to 1.23) computes a size below zero where a kernel is larger than its input, say, and
fails an assertion of the C++ library where a Slice reads that tensor.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import onnx
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

from onnx_bnfold.graph import STANDARD_DOMAINS, bodies_of, graphs_of, subgraphs

MOST_LEVELS = 100  # of Slices behind one another; each costs a run of the inference

_HIDDEN = "onnx_bnfold.hidden"  # a domain of which inference knows nothing


def _hide(model: ModelProto, nodes: Iterable[NodeProto]) -> None:
    """Hide nodes of a model from shape inference, in place: it leaves their outputs open."""
    _set_domain(nodes, _HIDDEN)
    for imports in (model.opset_import, *(f.opset_import for f in model.functions)):
        if all(item.domain != _HIDDEN for item in imports):
            imports.add(domain=_HIDDEN, version=1)


def hide_unsafe_slices(model: ModelProto, *, data_prop: bool) -> list[NodeProto]:
    """Make a model safe for shape inference, in place.

    The Slices of the graphs are hidden from inference at first, and shown again level by level
    once all sizes in front of them are known to be natural. What a local function infers inside
    cannot be seen: its Slices stay hidden, and so do those behind more than ``MOST_LEVELS`` others.

    Args:
        model: a copy without weights.
        data_prop: whether the inference will propagate values too, which gives more sizes.

    Returns:
        The Slices of the graphs that stay hidden.

    Raises:
        ValueError: a size in front of a Slice is negative.
    """
    levels: list[list[NodeProto]] = []
    _sort_by_level(model.graph, {}, levels)
    for function in model.functions:
        inside: list[list[NodeProto]] = []
        _sort_by_level(function, {}, inside)
        _hide(model, chain.from_iterable(inside))
    _hide(model, chain.from_iterable(levels))
    for level in levels[:MOST_LEVELS]:
        _require_natural(onnx.shape_inference.infer_shapes(model, data_prop=data_prop))
        _set_domain(level, "")
    return [*chain.from_iterable(levels[MOST_LEVELS:])]


def behind(model: ModelProto, nodes: Iterable[NodeProto]) -> frozenset[str]:
    """Return the tensors of a model that some nodes write, or whatever reads those."""
    found = {name for node in nodes for name in node.output}
    for body in bodies_of(model) if found else ():
        for node in body.node:
            if not found.isdisjoint(node.input):
                found.update(node.output)
    return frozenset(found - {""})


def _sort_by_level(
    body: GraphProto | FunctionProto, known: dict[str, int], levels: list[list[NodeProto]]
) -> int:
    """Sort the Slices of a body by the number that lie in front; return the largest behind it.

    Args:
        body: the body.
        known: how many Slices lie in front of a tensor of the enclosing bodies, 0 if left out.
        levels: takes the Slices.
    """
    known = dict(known)
    most = 0
    for node in body.node:
        level = max((known.get(name, 0) for name in node.input), default=0)
        for inner in subgraphs(node):
            # What a Loop or Scan hands in: any of its inputs.
            given = dict.fromkeys((value.name for value in inner.input), level)
            level = max(level, _sort_by_level(inner, known | given, levels))
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


def _require_natural(model: ModelProto) -> None:
    for graph in graphs_of(model):
        body = graph.body
        if not isinstance(body, GraphProto):
            continue
        for value in (*body.input, *body.value_info, *body.output):
            if any(d.dim_value < 0 for d in value.type.tensor_type.shape.dim):
                raise ValueError(f"{value.name} has a negative size")
