"""The constants that a plan changes: what each becomes, and the function that computes it.

Nothing is computed here before it is asked for, so that a large model can be written one layer at
a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from onnx_bnfold.arrays import Array
from onnx_bnfold.model.blocks import Elements, InMemory, Stored
from onnx_bnfold.model.float_formats import as_type
from onnx_bnfold.operators.affine import Float64
from onnx_bnfold.operators.entries import (
    BiasPlace,
    Combines,
    Computed,
    Exact,
    Given,
    Multiplied,
    Revised,
)
from onnx_bnfold.operators.factors import whole
from onnx_bnfold.operators.rules import Transparent
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.planning.plan import GraphPlan
from onnx_bnfold.reasons import Reason, Refusal, Refused
from onnx_bnfold.rewriting.blocked_products import Blocks
from onnx_bnfold.rewriting.computed_elements import streamed
from onnx_bnfold.rewriting.rounded_products import ONE, Product, product_blocks

if TYPE_CHECKING:
    from onnx_bnfold.planning.output_sizes import OutputSize


class Unrepresentable(Exception):
    """New constants do not fit their data type.

    Attributes:
        failures: (position of the graph, node index) → why.
    """

    def __init__(self, failures: dict[tuple[int, int], Refusal]) -> None:
        super().__init__("constants do not fit their data type")
        self.failures = failures


class NewConstant:
    """A constant that replaces the one a node reads; computes itself.

    Attributes:
        revised: says what it holds and who reads it.
        node, slot: the input that reads it; a slot past the node's last adds an input.
        dims, data_type: of the new tensor.
        cause: (position of the graph, index of the node) whose changes it compensates.

    Args:
        state: the graph with all changes.
    """

    __slots__ = ("_state", "cause", "data_type", "dims", "node", "revised", "slot")

    def __init__(self, revised: Revised, cause: tuple[int, int], state: GraphState) -> None:
        self._state = state
        self.revised = revised
        self.node = revised.view.index
        self.slot = revised.slot
        self.dims = revised.dims
        self.data_type = revised.data_type
        self.cause = cause

    @property
    def of_shared_weight(self) -> bool:
        """Whether it is of a node that makes a weight of the cause, and that others read, too."""
        view = self.revised.view
        return self.node != self.cause[1] and not view.graph.only_reader(view.writes[0])

    def __call__(self) -> Array:
        """Return the elements.

        Raises:
            Unrepresentable: they do not fit their type; so say the other methods.
        """
        described = self.product()
        try:
            if described is not None:
                return described.compute().reshape(self.dims)
            assert isinstance(self.revised.values, Exact)
            return self.revised.values.elements()
        except Refused as refused:
            raise self._failure(refused) from None

    def blocks(self) -> Iterator[Array]:
        """Yield the elements in arrays one after another."""
        values = self.revised.values
        if not isinstance(values, Multiplied):
            yield self()
            return
        view, sums_over = self.revised.view, values.sums_over
        try:
            yield from product_blocks(
                view.constants.stored(values.name),
                values.shape,
                values.factor(),
                self.data_type,
                view,
                sums_over=sums_over,
                beside=self._beside,
            )
        except Refused as refused:
            raise self._failure(refused) from None

    def stored(self) -> Stored:
        """Return a reader that computes the elements in blocks, if they are a product."""
        if isinstance(self.revised.values, Multiplied):
            return streamed(self.blocks, self.dims, self.data_type)
        return InMemory(self())

    def exactly(self) -> Elements:
        """Return what computes the elements in float64, if they are rounded."""
        return self if isinstance(self.revised.values, Exact) else _Unrounded(self)

    def operands(self, values: Multiplied) -> Iterator[tuple[Array, Float64]]:
        """Yield the elements of a product in blocks, each with its factor.

        Raises:
            Unrepresentable: the factor cannot be computed.
        """
        try:
            stored, factor = self.revised.view.constants.stored(values.name), values.factor()
        except Refused as refused:
            raise self._failure(refused) from None
        for _, block, part in Blocks(stored, values.shape, factor, self.data_type).operands():
            yield block, part

    def product(self) -> Product | None:
        """Return the product that the elements are, None if they are none."""
        view, values, data_type = self.revised.view, self.revised.values, self.data_type
        try:
            if isinstance(values, Multiplied):
                elements = view.constants.value(values.name).reshape(values.shape)
                factor, sums_over = whole(values.factor()), values.sums_over
                return Product(elements, factor, data_type, view, sums_over, self._beside)
            if isinstance(values, Computed):
                return Product(values.values(), ONE, data_type, view, values.sums_over)
        except Refused as refused:
            raise self._failure(refused) from None
        return None

    def _beside(self) -> Sequence[OutputSize]:
        from onnx_bnfold.planning.output_sizes import output_sizes  # few weights are that small

        return output_sizes(self._state, self.node)

    def _failure(self, refused: Refused) -> Unrepresentable:
        return Unrepresentable({self.cause: refused.refusal})


class _Unrounded:
    """Computes the elements of a new constant in float64.

    Args:
        new: the constant.
    """

    __slots__ = ("_new",)

    def __init__(self, new: NewConstant) -> None:
        self._new = new

    def __call__(self) -> Array:
        """Return all elements at once."""
        described = self._new.product()
        assert described is not None
        with np.errstate(all="ignore"):
            exact = described.values.astype(np.float64) * described.factor
        return np.asarray(exact).reshape(self._new.dims)

    def stored(self) -> Stored:
        """Return a reader that computes them in blocks, if they are a product."""
        values = self._new.revised.values
        if not isinstance(values, Multiplied):
            return InMemory(self())
        return streamed(partial(self._blocks, values), self._new.dims, TensorProto.DOUBLE)

    def _blocks(self, values: Multiplied) -> Iterator[Array]:
        for block, factor in self._new.operands(values):
            with np.errstate(all="ignore"):
                exact = block.astype(np.float64) * factor
            yield exact


def new_constants(position: int, plan: GraphPlan) -> Iterator[NewConstant]:
    """Yield the constants of a graph that change, in node order.

    Args:
        position: of the graph in the model, for ``Unrepresentable``.
        plan: its plan.
    """
    edges: dict[int, list[int]] = {}
    for index, slot in sorted(key for key in plan.state.total if isinstance(key, tuple)):
        edges.setdefault(index, []).append(slot)
    for index in sorted(plan.changed - plan.state.removed):
        yield from constants_of(position, plan, index, edges.get(index, ()))


def constants_of(
    position: int, plan: GraphPlan, index: int, slots: Iterable[int]
) -> Iterator[NewConstant]:
    """Yield the constants of a node that change.

    Args:
        position, plan: see ``new_constants``.
        index: the node.
        slots: those of its inputs whose constants have changes of their own.
    """
    state = plan.state
    absorber = state.absorber_or_none(index)
    found: Iterable[Revised]
    cause = position, index
    try:
        if index in state.clamps and (bounds := _of_clamp(state, index)):
            found = bounds
        elif absorber is None:
            found = (_of_edge(state, index, slot) for slot in slots)
        elif index in plan.equal_scales:
            found = state.bn(index).revised(state.side_changes(index), even=True)
        else:
            found = absorber.revised(state.side_changes(index))
        for revised in found:
            yield NewConstant(revised, cause, state)
    except Refused as refused:  # changes that are fine one by one may not be so together
        raise Unrepresentable({cause: refused.refusal}) from None


def require_representable(plans: Sequence[GraphPlan]) -> None:
    """Compute every constant that changes and forget it.

    Args:
        plans: one per graph of the model.

    Raises:
        Unrepresentable: some do not fit their type; all of them are named.
    """
    failures: dict[tuple[int, int], Refusal] = {}
    for position, plan in enumerate(plans):
        for new in new_constants(position, plan):
            if (position, new.node) not in failures:
                try:
                    for _ in new.blocks():
                        pass
                except Unrepresentable as failed:
                    failures.update(failed.failures)
    if failures:
        raise Unrepresentable(failures)


def _of_clamp(state: GraphState, index: int) -> list[Revised]:
    """Return the constants that a clamp is to be written with; none if it stays what it is."""
    from onnx_bnfold.planning.clamps import written  # few plans have any

    view = state.view(index)
    kind, found = state.type_of(view.writes[0]), []
    for number, each in enumerate(written(state, index)):
        if each.lets_nothing_through(kind):
            raise Refused(
                Reason.OVERFLOW,
                view.label,
                "a bound would exceed its type; convert the model to a wider one",
            )
        operator, values = each
        slot, exactly = len(view.reads) + number, Exact(partial(as_type, values, kind))
        name, place = operator.lower(), BiasPlace.BOUND
        found.append(Revised(view, slot, name, values.shape, kind, exactly, place=place))
    return found


def _of_edge(state: GraphState, index: int, slot: int) -> Revised:
    view = state.view(index)
    info = view.constant(slot)
    assert info is not None
    dims = np.broadcast_shapes(info.dims, state.total[index, slot].shape)
    while len(dims) > len(info.dims) and dims[0] == 1:
        # Runtimes fuse a normalisation whose scale is (C,).
        dims = dims[1:]
    entry = state.entries[index]
    own = isinstance(entry, Transparent) and slot in entry.own
    multiplies = own or entry.combines is Combines.PRODUCT

    def values() -> Float64:
        present = state.present(index, slot)
        return np.broadcast_to(present, np.broadcast_shapes(present.shape, dims)).reshape(dims)

    given = Given(values, () if multiplies else None)
    return Revised(view, slot, "constant", dims, info.data_type, given)
