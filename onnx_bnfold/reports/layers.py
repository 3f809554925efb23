"""The weights of the nodes that took a scale or a shift, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import ml_dtypes
import numpy as np

from onnx_bnfold.arrays import Array
from onnx_bnfold.model.graph import operator
from onnx_bnfold.model.source import rounded
from onnx_bnfold.operators.entries import Combines
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.planning.plan import GraphPlan
from onnx_bnfold.reports.nodes import Node, Places
from onnx_bnfold.rewriting.new_constants import NewConstant, new_constants


@dataclass(frozen=True)
class Layer(Node):
    """The factors of a node that took a scale or a shift: weight, BatchNormalization's scale, ...

    Attributes:
        tensor: name of the factors in the original.
        data_type: their element type, as numpy calls it.
        shape: their shape.
        largest_before, largest_after: largest magnitude; None if it is not finite.
        quietest_before, quietest_after: the smallest of all output channels' largest magnitudes,
            channels of zeros left out; None if there is no other. Per-tensor quantisation loses
            log2(largest / quietest) bits there.
        range_used_before, range_used_after: largest magnitude over the type's largest number.
    """

    tensor: str
    data_type: str
    shape: tuple[int, ...]
    largest_before: float | None
    largest_after: float | None
    quietest_before: float | None
    quietest_after: float | None
    range_used_before: float | None
    range_used_after: float | None


def layers_of(rounds: Sequence[Sequence[GraphPlan]]) -> tuple[tuple[Layer, ...], Places]:
    """Measure the weights of all nodes that took something.

    Args:
        rounds: the plans of all graphs; every new constant is computed once more, one at a time.

    Returns:
        The layers, and (identity of the plan, node index) → position of the layer.
    """
    layers: list[Layer] = []
    places: dict[tuple[int, int], int] = {}
    for position, plan in chain.from_iterable(map(enumerate, rounds)):
        new = {(each.node, each.slot): each for each in new_constants(position, plan)}
        for index in sorted(
            (plan.touched.keys() | plan.equalized.keys() | plan.equal_scales) - plan.state.removed
        ):
            slot = _factor_slot(plan.state, index)
            if slot is not None:
                places[id(plan), index] = len(layers)
                layers.append(_layer(plan.state, index, slot, new.get((index, slot))))
    return tuple(layers), places


def _factor_slot(state: GraphState, index: int) -> int | None:
    """Return the input that multiplies; None if there is none, or it is quantised."""
    absorber = state.absorber_or_none(index)
    if absorber is not None:
        return absorber.factor_slot
    if state.entries[index].combines is not Combines.PRODUCT:
        return None
    view = state.view(index)
    return next((slot for slot in (0, 1) if view.constant(slot) is not None), None)


def _layer(state: GraphState, index: int, slot: int, new: NewConstant | None) -> Layer:
    view = state.view(index)
    name, info = view.name_in(slot), view.constant(slot)
    assert info is not None
    before = rounded(state.constants.value(name), info.data_type)
    measured = _measured(state, index, before)
    changed = measured if new is None else _measured(state, index, new())
    largest = float(ml_dtypes.finfo(before.dtype).max)  # type: ignore[no-untyped-call]
    return Layer(
        op=operator(view.node),
        name=view.graph.name(view.index),
        graph=state.graph.path,
        tensor=name,
        data_type=before.dtype.name,
        shape=before.shape,
        largest_before=measured[0],
        largest_after=changed[0],
        quietest_before=measured[1],
        quietest_after=changed[1],
        range_used_before=None if measured[0] is None else measured[0] / largest,
        range_used_after=None if changed[0] is None else changed[0] / largest,
    )


def _measured(state: GraphState, index: int, values: Array) -> tuple[float | None, float | None]:
    """Return the largest magnitude, and that of the quietest output channel."""
    magnitude = np.abs(values)
    absorber = state.absorber_or_none(index)
    if absorber is not None:
        magnitude = absorber.peaks(magnitude)
    loud = magnitude[magnitude > 0]
    if not np.isfinite(magnitude).all() or not loud.size:
        return None, None
    return float(loud.max()), float(loud.min())
