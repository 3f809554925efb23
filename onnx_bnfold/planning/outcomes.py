"""The ways to remove a node, what the outcome of one costs, and why none was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter

from onnx_bnfold.operators import batchnorm
from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.operators.entries import BiasPlace
from onnx_bnfold.planning.graph_state import GraphState, Key
from onnx_bnfold.planning.plan import Given
from onnx_bnfold.planning.record import FormCost, Record
from onnx_bnfold.planning.totals import Totals
from onnx_bnfold.planning.ways import Way, splits
from onnx_bnfold.reasons import Reason, Refusal, Refused


def cost_of_tensors(state: GraphState, index: int, way: Way, totals: Totals) -> tuple[int, int]:
    """Return what it costs an int8 model, and how many tensors hold values none held before."""
    groups = state.groups
    roots = {groups.root(key) for key in totals.changes if isinstance(key, str)}
    count = sum(len(groups.members(root)) for root in roots)
    x, _ = state.sides(index)
    if way == Way.UPSTREAM and state.graph.only_reader(x) and groups.root(x) in roots:
        count -= 1
    if not count:
        return 0, 0
    from onnx_bnfold.planning.int8_noise import cost  # many plans are all direct folds

    return cost(state, index, totals), count


def count_added(state: GraphState, changes: Mapping[Key, Affine]) -> int:
    """Count the layers whose shift only a new Add can hold, less those that lose theirs."""
    near = {i for key in changes if isinstance(key, str) for i in state.neighbours(key)}
    count = 0
    for index in sorted(near - state.removed):
        layer = state.layer_or_none(index)
        if layer is not None and layer.bias_place is BiasPlace.ADD:
            count += layer.needs_bias(state.side_changes(index, changes))
            count -= layer.needs_bias(state.side_changes(index))
    return count


def require_smaller(state: GraphState, index: int, changes: Mapping[Key, Affine]) -> None:
    """Refuse to remove a node for as many new Adds, or a BatchNormalization for more than one."""
    is_bn = state.graph.ops[index] == batchnorm.OPERATOR
    if count_added(state, changes) > (1 if is_bn else 0):
        raise Refused(
            Reason.NOT_SMALLER,
            state.view(index).label,
            "its shift would need as many new Add nodes as it saves",
        )


def require_one_name(state: GraphState, index: int) -> None:
    """Refuse to remove a node both of whose sides keep their names."""
    x, y = state.sides(index)
    groups = state.groups  # the smaller one is asked first
    if all(map(groups.has_fixed, sorted((x, y), key=lambda side: len(groups.seen(side))))):
        raise Refused(
            Reason.GRAPH_OUTPUT,
            repr(y),
            "the tensors on both sides keep their names, so the two cannot become one",
        )


def why(tried: Sequence[tuple[str, Refusal]]) -> Refusal:
    """Return the refusal to report: the first, unless a search was given up and nothing is sure."""
    refusals = [refusal for _, refusal in tried]
    return next((r for r in refusals if r.reason is Reason.SEARCH_LIMIT), refusals[0])


def gone(
    state: GraphState,
    index: int,
    way: Way,
    takers: Sequence[tuple[int, Given]],
    added: int,
    clamps: Sequence[int],
    form_cost: FormCost | None,
) -> Record:
    """Return the record of a node that goes.

    Args:
        state: the graph.
        index: the node.
        way: how it goes.
        takers: the nodes whose constants take a change for it, and that change.
        added: the Adds that it needs.
        clamps: the nodes that get constants by it.
        form_cost: what these cost; None if they cost nothing.
    """
    scale_to: dict[int, str] = {}
    shift_to: dict[int, str] = {}
    for other, given in sorted(takers, key=itemgetter(0)) if len(takers) > 1 else takers:
        name, change = state.place(other), given.change
        if change.has_scale:
            scale_to[other] = name
        if change.has_shift:
            shift_to[other] = name
    return Record(
        state.place(index),
        state.graph.ops[index] == batchnorm.OPERATOR,
        way,
        tuple(scale_to.values()),
        tuple(shift_to.values()),
        added,
        None,
        (),
        tuple(map(state.place, clamps)) if clamps else (),
        "keep",
        None,
        form_cost,
    )


def absorbing(
    state: GraphState, origin: int, changes: Mapping[Key, Affine]
) -> list[tuple[int, Given]]:
    """Return the nodes that take a change into their constants, each with that change."""
    return [
        (index, Given(origin, key, change))
        for key, change in changes.items()
        for index in state.neighbours(key)
        if index != origin and index not in state.removed and state.absorbs(index, key)
    ]


def ways(state: GraphState, index: int) -> Iterator[tuple[Way, dict[Key, Affine]]]:
    """Yield the ways to remove a node: what each is called, and the changes of its two sides.

    Raises:
        Refused: there is none.
    """
    present = state.affine_of(index)
    if not present.is_finite:
        raise Refused(Reason.OVERFLOW, state.view(index).label, "its factor would overflow")
    if present.is_identity:
        require_one_name(state, index)
    x, y = state.sides(index)
    for way, upstream, downstream in splits(present):
        yield way, {x: upstream, y: downstream}
