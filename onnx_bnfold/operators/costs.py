"""What one evaluation of a node costs: multiply-adds, and multiplicative depth.

Multiply-adds: one for each product that is summed in a linear layer, and one for each output
element of a BatchNormalization, Mul or Div. Depth: see ``reports.depth``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from onnx_bnfold.model.node_view import NodeView

Depth = tuple[int, int]  # levels; operators that are no polynomials
# From a node and the names of the tensors that hold encrypted data to its depth.
DepthOf = Callable[[NodeView, set[str]], Depth]
Count = Callable[[NodeView], int]

FREE: Depth = (0, 0)
ONE_LEVEL: Depth = (1, 0)
NO_POLYNOMIAL: Depth = (0, 1)


class Unknown(Exception):
    """The cost of a node cannot be told; the sentence says why."""


def size(view: NodeView, name: str, dims: slice = slice(None)) -> int:
    """Return the product of some dims of a tensor.

    Raises:
        Unknown: one of them is not known.
        Refused: its rank is not.
    """
    found = view.dims_of(name)[dims]
    known = [each for each in found if isinstance(each, int)]
    if len(known) < len(found):
        raise Unknown(f"{view.label}: the shape of {name!r} is not known")
    return math.prod(known)


def no_products(view: NodeView) -> int:
    """Count for an operator whose multiply-adds do not count."""
    return 0


def unknown_products(view: NodeView) -> int:
    """Count for an operator whose multiply-adds nobody has counted.

    Raises:
        Unknown: always.
    """
    raise Unknown(f"{view.label}: its multiply-adds are not known")


def unknown_depth(view: NodeView, encrypted: set[str]) -> Depth:
    """Return the depth of an operator that is as deep as its data is long.

    Raises:
        Unknown: always.
    """
    raise Unknown(f"{view.label}: its multiplicative depth is not known")


def per_element(view: NodeView) -> int:
    """Count one for each element of the output."""
    return size(view, view.node.output[0])


def convolution(weight: int) -> Count:
    """Make the count of a convolution whose weight is at some input."""
    kernel = slice(1, None)  # every axis but the output channels
    return lambda view: per_element(view) * size(view, view.name_in(weight), kernel)


def transposed_convolution(view: NodeView) -> int:
    """Count for a ConvTranspose."""
    return size(view, view.name_in(0)) * size(view, view.name_in(1), slice(1, None))


def gemm(view: NodeView) -> int:
    """Count for a Gemm."""
    axis = 0 if view.attribute("transA", 0) else 1
    return per_element(view) * size(view, view.name_in(0), slice(axis, axis + 1))


def matmul(view: NodeView) -> int:
    """Count for a product of matrices."""
    return per_element(view) * size(view, view.name_in(0), slice(-1, None))


def division(view: NodeView, encrypted: set[str]) -> Depth:
    """Return the depth of a quotient: an encrypted divisor needs its inverse."""
    return (1, 1) if view.name_in(1) in encrypted else ONE_LEVEL


def selection(view: NodeView, encrypted: set[str]) -> Depth:
    """Return the depth of a choice, a product with the condition: an encrypted one is compared."""
    return (1, 1) if view.name_in(0) in encrypted else ONE_LEVEL


def power(view: NodeView, encrypted: set[str]) -> Depth:
    """Return the depth of a power: one of a whole number is a product of squares."""
    exponent = None if view.name_in(1) in encrypted else view.value(1)
    if exponent is None or (exponent < 1).any() or (exponent % 1 != 0).any():
        return NO_POLYNOMIAL
    return math.ceil(math.log2(exponent.max(initial=1))), 0


def lookup(view: NodeView, encrypted: set[str]) -> Depth:
    """Return the depth of picking elements: by encrypted indices it is no polynomial."""
    return NO_POLYNOMIAL if view.name_in(1) in encrypted else FREE


def scattering(view: NodeView, encrypted: set[str]) -> Depth:
    """Return the depth of writing elements: at encrypted positions it is no polynomial."""
    if view.name_in(1) in encrypted:
        return NO_POLYNOMIAL
    known = {"none": FREE, "add": FREE, "mul": ONE_LEVEL}
    return known.get(view.attribute("reduction", "none"), NO_POLYNOMIAL)


def sampling(view: NodeView, encrypted: set[str]) -> Depth:
    """Return the depth of samples: at encrypted positions it is no polynomial."""
    return NO_POLYNOMIAL if view.name_in(1) in encrypted else ONE_LEVEL


def regions(view: NodeView, encrypted: set[str]) -> Depth:
    """Return the depth of a RoiAlign: a mean of samples, of which the largest is no polynomial."""
    is_mean = view.attribute("mode", "avg") == "avg"
    return sampling(view, encrypted) if is_mean else NO_POLYNOMIAL


def interpolation(view: NodeView, encrypted: set[str]) -> Depth:
    """Return the depth of a resized image: neighbours are copied, others are weighted."""
    return FREE if view.attribute("mode", "nearest") == "nearest" else ONE_LEVEL
