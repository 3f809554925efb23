"""Names that onnxruntime's ``quantize_static`` makes from those of a model's tensors.

It does not see whether the model has them already: with tensors ``x`` and ``x_scale`` it writes an
initializer ``x_scale`` of its own beside the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import GraphProto, ModelProto

from onnx_bnfold.check.weight_uses import graphs_in

# What it puts behind the name of a tensor, or of what it has quantised.
_SUFFIXES = (
    *("_scale", "_zero_point"),
    *("_quantized", "_quantized_scale", "_quantized_zero_point"),
    *("_QuantizeLinear_Input", "_QuantizeLinear_Output"),
    *("_DequantizeLinear_Input", "_DequantizeLinear_Output"),
)


def free_names(model: ModelProto) -> None:
    """Rename tensors, so that ``quantize_static`` may write theirs; inputs and outputs keep names.

    Args:
        model: changed in place.
    """
    graphs = list(graphs_in(model.graph))
    names = {name for graph in graphs for name in _names(graph)}
    fixed = {value.name for value in (*model.graph.input, *model.graph.output)}
    renamed: dict[str, str] = {}
    for name in sorted(names):
        for base in _bases(name, names):
            taken = name if name not in fixed else base
            if taken not in fixed and taken not in renamed:
                renamed[taken] = _fresh(taken, names)
    if renamed:
        for graph in graphs:
            _rename(graph, renamed)


def _bases(name: str, names: set[str]) -> Iterator[str]:
    """Yield the tensors from whose names ``quantize_static`` makes this one."""
    for suffix in _SUFFIXES:
        if name.endswith(suffix) and name.removesuffix(suffix) in names:
            yield name.removesuffix(suffix)


def _names(graph: GraphProto) -> Iterator[str]:
    for item in (*graph.initializer, *graph.input):
        yield item.name
    for sparse in graph.sparse_initializer:
        yield sparse.values.name
    for node in graph.node:
        yield from filter(None, node.output)


def _fresh(name: str, names: set[str]) -> str:
    while name in names:
        name += "_"
    names.add(name)
    return name


def _rename(graph: GraphProto, renamed: Mapping[str, str]) -> None:
    sparse = [each.values for each in graph.sparse_initializer]
    for item in (*graph.initializer, *sparse, *graph.input, *graph.output, *graph.value_info):
        item.name = renamed.get(item.name, item.name)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
