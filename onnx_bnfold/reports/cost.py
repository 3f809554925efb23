"""What a model costs to evaluate: multiply-adds, and the depth that homomorphic encryption pays.

Multiply-adds: one for each product that is summed in a linear layer (quantised ones included), and
one for each output element of a BatchNormalization, Mul or Div. Other operators count none.

The depth is counted in ``depth``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, ValueInfoProto

from onnx_bnfold.model.constants import Constants
from onnx_bnfold.model.graph import ReadTensor, graphs_of, subgraphs
from onnx_bnfold.model.messages import new_node, new_tensor
from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.model.shape_inference import Inference, Shapes
from onnx_bnfold.operators import costs
from onnx_bnfold.operators.costs import Depth, Unknown
from onnx_bnfold.operators.entries import UNKNOWN
from onnx_bnfold.operators.table import entry_of
from onnx_bnfold.reasons import Refused
from onnx_bnfold.reports.depth import depth_of

Sizes = Mapping[str, tuple[int, ...]]
_RANGE: tuple[tuple[str, int | None], ...] = (("start", 0), ("end", None))

# Their outputs do not depend on the values of their inputs.
_NO_DATA = frozenset({"Shape", "Size"})


@dataclass(frozen=True)
class Cost:
    """What one evaluation of a model costs.

    Attributes:
        multiply_adds: see the module's text; None where a shape or an operator is not known.
        multiplicative_depth: levels on the longest path; None where an operator is not known.
        non_polynomial: operators that are no polynomials, on the path with most of them.
        unknown: what is not known, one sentence, or None.
    """

    multiply_adds: int | None
    multiplicative_depth: int | None
    non_polynomial: int | None
    unknown: str | None


def cost_of(model: ModelProto, read: ReadTensor, sizes: Sizes) -> Cost:
    """Count what one evaluation of a model costs.

    Args:
        model: a model whose tensors may lack their values; it is not changed.
        read: reads the elements of an initializer.
        sizes: see ``input_shapes``.
    """
    model = _with_sizes(model, sizes)
    active, encrypted = _active(_views(model, read), model)
    depth: Depth | tuple[None, None] = (None, None)
    multiply_adds, unknown = None, None
    try:
        depth = depth_of(active, encrypted, [output.name for output in model.graph.output])
        multiply_adds = sum(map(_multiply_adds, active))
    except (Unknown, Refused) as found:
        unknown = str(found)
    return Cost(multiply_adds, depth[0], depth[1], unknown)


def input_shapes(model: ModelProto, sizes: Sizes) -> dict[str, tuple[int | None, ...]]:
    """Return the shapes of a model's inputs for which its cost is counted.

    Args:
        model: the model.
        sizes: shapes of inputs, or (one) size of a symbolic dimension, by name. A first axis that
            the model leaves open, and ``sizes`` too, is the batch and counts as one example.
    """
    inputs = _inputs(model)
    first = (next(iter(value.type.tensor_type.shape.dim), None) for value in inputs)
    symbols = {dim.dim_param: 1 for dim in first if dim is not None and dim.dim_param}
    symbols.update((name, shape[0]) for name, shape in sizes.items() if len(shape) == 1)
    return {value.name: sizes.get(value.name) or _shape(value, symbols) for value in inputs}


def _shape(value: ValueInfoProto, symbols: Mapping[str, int]) -> tuple[int | None, ...]:
    return tuple(
        dim.dim_value
        if dim.HasField("dim_value")
        else symbols.get(dim.dim_param, 1 if axis == 0 else None)
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
    )


def _inputs(model: ModelProto) -> list[ValueInfoProto]:
    """Return the inputs that are tensors of known rank and no initializers."""
    given = {tensor.name for tensor in model.graph.initializer}
    return [
        value
        for value in model.graph.input
        if value.name not in given and value.type.tensor_type.HasField("shape")
    ]


def _with_sizes(model: ModelProto, sizes: Sizes) -> ModelProto:
    """Copy a model with its inputs' shapes filled in and its local functions expanded."""
    copy = ModelProto()
    copy.CopyFrom(model)
    shapes = input_shapes(model, sizes)
    for value in _inputs(copy):
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for size in shapes[value.name]:
            shape.dim.add(dim_value=size)
    if not copy.functions:
        return copy
    from onnx_bnfold.rewriting.inlining_choice import inline_all  # few models have functions

    return inline_all(copy)


def _views(model: ModelProto, read: ReadTensor) -> list[NodeView]:
    """View the nodes of a model, in which every Shape of a known shape becomes a constant.

    Shape inference alone does not follow what exporters compute from it (a Div of a Shape).
    """
    while True:
        graphs = graphs_of(model)
        graph = graphs[0]
        shapes = Shapes(graph, Inference(model, graphs, read), 0, None)
        constants = Constants(graph, read, shapes, None)
        views = [NodeView(graph, constants, shapes, index) for index in range(len(graph.nodes))]
        known = [view for view in views if view.op == "Shape" and _is_static(view)]
        for view in known:
            start, end = (view.attribute(name, default) for name, default in _RANGE)
            value = np.array(view.dims_in(0)[start:end], np.int64)
            output = [*view.node.output]
            view.node.CopyFrom(new_node("Constant", [], output, value=new_tensor(value)))
        if not known:
            return views


def _is_static(view: NodeView) -> bool:
    try:
        return all(isinstance(size, int) for size in view.dims_in(0))
    except Refused:
        return False


def _active(views: Sequence[NodeView], model: ModelProto) -> tuple[list[NodeView], set[str]]:
    """Return the nodes that compute with the model's inputs, and the tensors that hold them."""
    encrypted = {i.name for i in model.graph.input} - {t.name for t in model.graph.initializer}
    found = []
    for view in views:
        reads = not encrypted.isdisjoint(view.node.input) or any(subgraphs(view.node))
        if reads and view.op not in _NO_DATA:
            encrypted.update(filter(None, view.node.output))
            found.append(view)
    return found, encrypted


# --- multiply-adds --------------------------------------------------------------------------


def _multiply_adds(view: NodeView) -> int:
    entry = entry_of(view.op)
    if view.op is None or any(subgraphs(view.node)):
        return costs.unknown_products(view)
    count = _COUNTS.get(view.op) if entry is UNKNOWN else None
    return (count or entry.multiply_adds)(view)


# Of operators that have no entry.
_COUNTS: Mapping[str, costs.Count] = {
    "Attention": costs.unknown_products,
    "ConvInteger": costs.convolution(1),
    "MatMulInteger": costs.matmul,
    "QLinearConv": costs.convolution(3),
    "QLinearMatMul": costs.matmul,
}
