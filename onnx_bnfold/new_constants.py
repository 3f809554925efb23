"""The constants that a plan changes: what each becomes, and the function that computes it.

Nothing is computed here before it is asked for, so that a large model can be written one layer at
a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from onnx_bnfold.affine import Float64
from onnx_bnfold.entries import BiasPlace, Combines, Computed, Multiplied, Revised
from onnx_bnfold.numerics import ONE, Product, product, product_blocks, products
from onnx_bnfold.planner import GraphPlan
from onnx_bnfold.reasons import Refusal, Refused
from onnx_bnfold.site import Site

Array = np.ndarray[Any, Any]


class Compute(Protocol):
    """Computes the elements of a constant when they are asked for."""

    def __call__(self) -> Array:
        """Return all of them in the constant's shape and type."""

    def blocks(self) -> Iterable[Array]:
        """Return them in arrays one after another; each is there until the next is asked for."""

    def product(self) -> Product | None:
        """Return the product that they are, None if they are none."""


class Whole:
    """Computes all elements at once.

    Args:
        function: returns them.
    """

    __slots__ = ("_function",)

    def __init__(self, function: Callable[[], Array]) -> None:
        self._function = function

    def __call__(self) -> Array:
        """Return what the function returns."""
        return self._function()

    def blocks(self) -> Iterable[Array]:
        """Return that as the only block."""
        return (self(),)

    def product(self) -> None:
        """Return None: what a function returns may be anything."""


class _Rounded(ABC):
    """Rounds one product, or the values themselves."""

    __slots__ = ()

    def __call__(self) -> Array:
        return product(*self.product())

    def blocks(self) -> Iterable[Array]:
        return (self(),)

    @abstractmethod
    def product(self) -> Product:
        """Return the product."""


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


class Unrepresentable(Exception):
    """New constants do not fit their data type.

    Attributes:
        failures: (position of the graph, node index) → why.
    """

    def __init__(self, failures: dict[tuple[int, int], Refusal]) -> None:
        super().__init__("constants do not fit their data type")
        self.failures = failures


@dataclass(slots=True)
class NewConstant:
    """A constant that replaces the one a node reads; computes itself.

    Attributes:
        node, slot: the input that reads it; a slot past the node's last adds an input.
        suffix: for its name, where it cannot keep the old one.
        dims, data_type: of the new tensor.
        elements: computes its elements in ``data_type``, or refuses.
        attributes: of the node, to be set along with it; None takes one away.
        place: who reads it, if it is a bias that the node has no input for.
        cause: (position of the graph, index of the node) whose changes it compensates.
    """

    node: int
    slot: int
    suffix: str
    dims: tuple[int, ...]
    data_type: int
    elements: Compute
    attributes: tuple[tuple[str, int | None], ...] = ()
    place: BiasPlace = BiasPlace.INPUT
    cause: tuple[int, int] = (0, 0)

    def __call__(self) -> Array:
        """Return the elements.

        Raises:
            Unrepresentable: they do not fit their type; so say the other methods.
        """
        try:
            return self.elements()
        except Refused as refused:
            raise self._failure(refused) from None

    def blocks(self) -> Iterator[Array]:
        """Yield the elements in arrays one after another."""
        try:
            yield from self.elements.blocks()
        except Refused as refused:
            raise self._failure(refused) from None

    def product(self) -> Product | None:
        """Return the product that the elements are, None if they are none."""
        try:
            return self.elements.product()
        except Refused as refused:
            raise self._failure(refused) from None

    def _failure(self, refused: Refused) -> Unrepresentable:
        return Unrepresentable({self.cause: refused.refusal})


def new_constants(position: int, plan: GraphPlan) -> Iterator[NewConstant]:
    """Yield the constants of a graph that change, in node order.

    Args:
        position: of the graph in the model, for ``Unrepresentable``.
        plan: its plan.
    """
    site = plan.site
    edges = sorted(key for key in site.total if isinstance(key, tuple))
    found: Iterable[NewConstant]
    for index in sorted(plan.changed - site.removed):
        absorber = site.absorber_or_none(index)
        if absorber is None:
            found = (_of_edge(site, *edge) for edge in edges if edge[0] == index)
        elif index in plan.evened:
            found = map(_new, site.norm(index).revised(site.side_changes(index), even=True))
        else:
            found = map(_new, absorber.revised(site.side_changes(index)))
        try:
            for new in found:
                new.cause = position, index
                yield new
        except Refused as refused:  # changes that are fine one by one may not be so together
            raise Unrepresentable({(position, index): refused.refusal}) from None


def _new(revised: Revised) -> NewConstant:
    view, values = revised.view, revised.values
    elements: Compute
    if isinstance(values, Multiplied):
        elements = _Multiplied(revised, values)
    elif isinstance(values, Computed):
        elements = _Computed(revised, values)
    else:
        elements = Whole(values.elements)
    return NewConstant(
        view.index,
        revised.slot,
        revised.suffix,
        revised.dims,
        revised.data_type,
        elements,
        revised.attributes,
        place=revised.place,
    )


class _Multiplied(_Rounded):
    """Computes a constant times a factor."""

    __slots__ = ("_revised", "_values")

    def __init__(self, revised: Revised, values: Multiplied) -> None:
        self._revised = revised
        self._values = values

    def __call__(self) -> Array:
        return product(*self.product()).reshape(self._revised.dims)

    def product(self) -> Product:
        view, (name, shape, factor, sums_over) = self._revised.view, self._values
        values = view.constants.value(name).reshape(shape)
        return Product(values, factor(), self._revised.data_type, view, sums_over)

    def blocks(self) -> Iterable[Array]:
        view, (name, shape, factor, sums_over) = self._revised.view, self._values
        stored = view.constants.stored(name)
        if stored is None:
            return (self(),)
        data_type = self._revised.data_type
        return product_blocks(stored, shape, factor(), data_type, view, sums_over=sums_over)


class _Computed(_Rounded):
    """Rounds values."""

    __slots__ = ("_revised", "_values")

    def __init__(self, revised: Revised, values: Computed) -> None:
        self._revised = revised
        self._values = values

    def product(self) -> Product:
        values, sums_over = self._values
        return Product(values(), ONE, self._revised.data_type, self._revised.view, sums_over)


def _of_edge(site: Site, index: int, slot: int) -> NewConstant:
    view = site.view(index)
    info = view.constant(slot)
    assert info is not None
    dims = np.broadcast_shapes(info.dims, site.total[index, slot].shape)
    multiplies = site.entries[index].combines is Combines.PRODUCT

    def values() -> Float64:
        return np.broadcast_to(site.present(index, slot), dims)

    computed = Computed(values, () if multiplies else None)
    return _new(Revised(view, slot, "constant", dims, info.data_type, computed))
