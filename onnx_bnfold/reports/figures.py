"""Figures of a model that a fold changes, such as the number of nodes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from onnx import ModelProto, TensorProto

from onnx_bnfold.model.graph import ReadTensor, graphs_of, operator
from onnx_bnfold.operators import batchnorm
from onnx_bnfold.reports.cost import Sizes, cost_of
from onnx_bnfold.storage.tensors import byte_length


@dataclass(frozen=True)
class Figures:
    """Figures of a model, over all its graphs and functions.

    Attributes:
        nodes: number of nodes.
        batch_normalizations: number of BatchNormalization nodes.
        parameters: number of elements of all constant tensors in the model.
        parameter_bytes: their size.
        multiply_adds: number of products that linear layers sum, and of output elements of
            BatchNormalization, Mul and Div, in one evaluation; None if not known.
        multiplicative_depth: number of multiplications on the longest path; None if not known.
        non_polynomial: number of operators that are not polynomials, on the path with the most;
            None if not known.
        unknown: which figures are not known, as a sentence, or None.
    """

    nodes: int
    batch_normalizations: int
    parameters: int
    parameter_bytes: int
    multiply_adds: int | None
    multiplicative_depth: int | None
    non_polynomial: int | None
    unknown: str | None


def figures_of(model: ModelProto, read: ReadTensor, sizes: Sizes) -> Figures:
    """Return the figures of a model.

    Args:
        model: tensors may lack their values; it is not changed.
        read: returns the elements of an initializer.
        sizes: name of an input → shape, or name of a symbolic dimension → one size.
    """
    operators = [operator(node) for graph in graphs_of(model) for node in graph.nodes]
    stored = [tensor for tensor in _stored(model) if tensor.data_type != TensorProto.STRING]
    cost = cost_of(model, read, sizes)
    return Figures(
        nodes=len(operators),
        batch_normalizations=operators.count(batchnorm.OPERATOR),
        parameters=sum(math.prod(tensor.dims) for tensor in stored),
        parameter_bytes=sum(map(byte_length, stored)),
        multiply_adds=cost.multiply_adds,
        multiplicative_depth=cost.multiplicative_depth,
        non_polynomial=cost.non_polynomial,
        unknown=cost.unknown,
    )


def _stored(model: ModelProto) -> Iterator[TensorProto]:
    """Yield the initializers, and the tensors of Constant nodes."""
    for graph in graphs_of(model):
        yield from graph.initializers.values()
        for node in graph.nodes:
            if operator(node) == "Constant":
                yield from (item.t for item in node.attribute if item.HasField("t"))
