"""Elements of constants that are computed when somebody asks for them, at once or in blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from onnx import TensorProto

from onnx_bnfold.arrays import Array, dtype_of
from onnx_bnfold.model.blocks import Elements, Stored, Streamed, blocks_of
from onnx_bnfold.model.source import rounded
from onnx_bnfold.rewriting.blocked_products import BLOCK
from onnx_bnfold.rewriting.rounded_products import Product, products


class Compute(Elements, Protocol):
    """Computes the elements of a constant when they are asked for, rounded to its type."""

    def blocks(self) -> Iterable[Array]:
        """Return them in arrays one after another; each is there until the next is asked for."""

    def exactly(self) -> Elements:
        """Return what computes them without rounding, where they are rounded."""

    def product(self) -> Product | None:
        """Return the product that they are, None if they are none."""


class Pending:
    """An initializer of the main graph that has name, shape and type, and no values yet.

    Attributes:
        tensor: the message.
        size: number of elements.
        compute: computes them.
    """

    __slots__ = ("compute", "size", "tensor")  # see ``entries.Multiplied``

    def __init__(self, tensor: TensorProto, size: int, compute: Compute) -> None:
        self.tensor = tensor
        self.size = size
        self.compute = compute


class Rounded:
    """Computes what others compute, rounded to a type.

    Args:
        elements: compute it.
        dims, data_type: of the constant.
    """

    __slots__ = ("_data_type", "_dims", "_elements")

    def __init__(self, elements: Elements, dims: tuple[int, ...], data_type: int) -> None:
        self._elements = elements
        self._dims = dims
        self._data_type = data_type

    def __call__(self) -> Array:
        """Return all elements at once."""
        return rounded(self._elements(), self._data_type)

    def stored(self) -> Stored:
        """Return a reader that rounds them block by block."""
        return streamed(self.blocks, self._dims, self._data_type)

    def blocks(self) -> Iterator[Array]:
        """Yield them in blocks."""
        for _, values in blocks_of(self._elements.stored(), self._dims, BLOCK):
            yield rounded(values, self._data_type).reshape(-1)

    def exactly(self) -> Elements:
        """Return what others compute."""
        return self._elements

    def product(self) -> None:
        """Return None: what others compute may be anything."""


def compute_all(wanted: Sequence[Compute]) -> Iterator[Array]:
    """Compute small constants, thousands of them as soon as one.

    Yields:
        The elements of each, in its shape or flat.

    Raises:
        Unrepresentable: one of them does not fit its type.
    """
    described = [compute.product() for compute in wanted]
    found = iter(products([each for each in described if each is not None]))
    for compute, each in zip(wanted, described, strict=True):
        result = None if each is None else next(found)
        yield compute() if result is None else result


def streamed(
    blocks: Callable[[], Iterable[Array]], dims: tuple[int, ...], data_type: int
) -> Streamed:
    """Return a reader of elements that are computed in blocks.

    Args:
        blocks: computes them.
        dims, data_type: of the constant.
    """
    return Streamed(blocks, math.prod(dims), dtype_of(data_type))
