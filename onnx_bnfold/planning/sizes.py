"""How large the values of a tensor are, as the constants around it say.

A BatchNormalization says it of its input and of its output. It holds for what is the same tensor
but for constants, or a movement of it. What is added to other tensors is a part of the sum, which
is taken to be of the size of the parts that are known, or they to be of its size. And who
subtracts a constant and multiplies by another, as images are normalised, makes values of about the
size 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial, reduce

import numpy as np

from onnx_bnfold.operators import batchnorm
from onnx_bnfold.operators.affine import Affine, Float64
from onnx_bnfold.operators.entries import OUT, Combines
from onnx_bnfold.operators.rules import Transparent, inputs
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.planning.ranges import REACH
from onnx_bnfold.reasons import Reason, Refused

# A tensor as an image of numbers of mean 0 and deviation 1: its scale is the deviation, its shift
# the mean.
Spread = Affine
# What is known of one tensor: it holds for each of several kinds of data.
Spreads = tuple[Spread, ...]
_Source = Callable[[GraphState, str], Spreads]

# Tensors that are looked at, around one that nothing is known of, before that is given up.
_MOST = 32


def sizes(state: GraphState, name: str) -> Spreads:
    """Return what BatchNormalizations of the original model say of the values of a tensor.

    Args:
        state: the graph; its changes do not matter.
        name: of a computed tensor.

    Returns:
        Nothing if none says anything. Else the statistics that it holds, and these around a mean of
        zero of its input, since data may be others than those it was trained on.
    """
    if not (state.has_bns or state.told):
        return ()
    when, found = state.sizes.get(name, (-1, ()))
    if when != len(state.removed):
        # Those that stay by themselves: what a removed one has said no later fold will know. Where
        # they contradict each other, the smaller size is what matters.
        found = _walked(state, name, _of_staying_bn)
        found += _walked(state, name, _of_bn)
        state.sizes[name] = len(state.removed), found
    return found


def reach(spread: Spread) -> Float64:
    """Return how far from zero the values of a tensor lie."""
    return np.asarray(np.abs(spread.shift) + REACH * np.abs(spread.scale))


def usual_sizes(state: GraphState, name: str, most: int = _MOST) -> Spreads:
    """Return the size that a tensor has if what is normalised by constants gets the size 1.

    That says something of what is made of the normalised tensor, and nothing of the tensor in
    front, which others read, too: a constant may have all but removed one of its channels.

    Args:
        state: the graph; its changes do not matter.
        name: of a computed tensor.
        most: nodes to look through.
    """
    found = _of_normalisation(state, name)
    index = state.graph.producer.get(name)
    ends = None if index is None else _ends(state, index)
    if found or index is None or ends is None or not most:
        return found
    try:
        before = usual_sizes(state, ends[0], most - 1)
        return tuple(_carried(state, index, OUT, spread) for spread in before)
    except Refused:
        return ()


def _walked(state: GraphState, name: str, source: _Source) -> Spreads:
    seen = set[str]()
    found = _around(state, name, source, seen)
    state.work.looked_at += len(seen)
    return found


def _around(state: GraphState, name: str, source: _Source, seen: set[str]) -> Spreads:
    """Look at a tensor, and at all that differ from it by constants and movements only."""
    seen.add(name)
    found = source(state, name)
    if found:
        return found
    for index, here, other in _links(state, name):
        if other in seen or len(seen) > _MOST:
            continue
        try:
            found = _around(state, other, source, seen)
            if found:
                return tuple(
                    _carried(state, index, here, spread, alone=number % 2 == 1)
                    for number, spread in enumerate(found)
                )
        except Refused:
            continue
    if len(seen) > _MOST:
        return ()
    return _of_summands(state, name, source, seen) or _of_sum(state, name, source, seen)


def _of_sum(state: GraphState, name: str, source: _Source, seen: set[str]) -> Spreads:
    """Return the size of a sum that a tensor is a part of: it is hardly larger than the sum."""
    for index, _ in state.graph.readers.get(name, ()):
        if state.entries[index].combines is Combines.SUM:
            total = state.graph.writes[index][0]
            found = () if total in seen else _around(state, total, source, seen)
            if found and _is_of_rank(state, index, found):
                return _times(found, _divisor(state, index))
    return ()


def _divisor(state: GraphState, index: int) -> int:
    """Return what a node divides the sum of its operands by."""
    return len(state.graph.reads[index]) if state.entries[index].averages else 1


def _times(known: Spreads, factor: float) -> Spreads:
    return tuple(spread.map(lambda a: a * factor) for spread in known)


def _is_of_rank(state: GraphState, index: int, known: Spreads) -> bool:
    """Whether all inputs of a node are of the rank of some sizes."""
    try:
        view = state.view(index)
        ranks = {len(view.dims_in(slot)) for slot in inputs(view)}
    except Refused:
        return False
    return ranks == {spread.rank for spread in known}


def _of_summands(state: GraphState, name: str, source: _Source, seen: set[str]) -> Spreads:
    """Return the size of a sum of computed tensors, as far as that of its parts is known."""
    index = state.graph.producer.get(name)
    if index is None or state.entries[index].combines is not Combines.SUM:
        return ()
    parts = [part for part in dict.fromkeys(state.graph.reads[index]) if part not in seen]
    found = [known for part in parts if (known := _around(state, part, source, seen))]
    if not found or not all(_is_of_rank(state, index, known) for known in found):
        return ()
    total = tuple(reduce(_sum, spreads) for spreads in zip(*found, strict=False))
    return _times(total, 1 / _divisor(state, index))


def _sum(one: Spread, other: Spread) -> Spread:
    """Return the spread of a sum of independent numbers, wherever their means point."""
    scale = np.hypot(one.scale, other.scale)
    return Affine.of(scale, np.abs(one.shift) + np.abs(other.shift))


def _of_bn(state: GraphState, name: str) -> Spreads:
    return _said_by_bns(state, name, lambda index: True) or state.told.get(name, ())


def _of_staying_bn(state: GraphState, name: str) -> Spreads:
    return _said_by_bns(state, name, lambda index: index not in state.removed)


def _said_by_bns(state: GraphState, name: str, counts: Callable[[int], bool]) -> Spreads:
    graph = state.graph
    readers = [index for index, slot in graph.readers.get(name, ()) if slot == 0]
    producer = graph.producer.get(name)
    for index in readers if producer is None else (*readers, producer):
        if counts(index) and state.is_bn(index):
            port = OUT if index == producer else 0
            if (index, port) not in state.said:
                state.said[index, port] = _said_by(state, index, port)
            if state.said[index, port]:
                return state.said[index, port]
    return ()


def told(state: GraphState, index: int) -> dict[str, Spreads]:
    """Return what a BatchNormalization says of the tensors on its sides."""
    x, y = state.sides(index)
    return {y: _said_by(state, index, OUT), x: _said_by(state, index, 0)}


def told_of_result(state: GraphState) -> dict[str, Spreads]:
    """Return what is known of the tensors of a graph, as they are with all changes.

    That is what its BatchNormalizations say that go, and what was told before.
    """
    found = dict(state.told)
    for index in sorted(state.removed):
        if state.is_bn(index):
            found |= told(state, index)
    return {
        member: tuple(spread.then(state.change(name, spread.rank)) for spread in spreads)
        for name, spreads in found.items()
        for member in state.groups.members(name)
    }


def _said_by(state: GraphState, index: int, port: int) -> Spreads:
    """Return what a BatchNormalization says of its input (port 0) or its output."""
    bn = state.bn(index)
    spread = bn.spread if port == 0 else abs(bn.a) * bn.spread
    means = (bn.mean, 0 * bn.mean) if port == 0 else (bn.bias, bn.b)
    try:
        rank = state.rank(index)
    except Refused:
        return ()
    shape = partial(batchnorm.along_channels, rank=rank)
    return tuple(Affine.of(shape(spread), shape(mean)) for mean in means)


def _of_normalisation(state: GraphState, name: str) -> Spreads:
    """Return the size 1 for a product of a constant and of a sum with one."""
    index = by_constant(state, name, Combines.PRODUCT)
    if index is None or by_constant(state, state.sides(index)[0], Combines.SUM) is None:
        return ()
    return (Affine.identity(state.original_map(index).rank),)


def by_constant(state: GraphState, name: str, combines: Combines) -> int | None:
    """Return the sum or product with a constant that writes a tensor, if one does."""
    index = state.graph.producer.get(name)
    if index is None or state.entries[index].combines is not combines:
        return None
    return None if _ends(state, index) is None else index


def _links(state: GraphState, name: str) -> Iterator[tuple[int, int, str]]:
    """Yield nodes of one input and one output, the port of a tensor, and the other tensor."""
    graph = state.graph
    readers = [index for index, _ in graph.readers.get(name, ())]
    producer = graph.producer.get(name)
    for index in readers if producer is None else (producer, *readers):
        ends = _ends(state, index)
        if ends is not None and name in ends:
            x, y = ends
            yield (index, OUT, x) if name == y else (index, 0, y)


def _ends(state: GraphState, index: int) -> tuple[str, str] | None:
    """Return input and output of a node that has one of each, constants aside."""
    entry, graph = state.entries[index], state.graph
    if entry.operand or (index in state.removed and graph.ops[index] == batchnorm.OPERATOR):
        try:
            return state.sides(index) if graph.opset >= 7 else None
        except Refused:
            return None
    if not isinstance(entry, Transparent) or entry.symmetric or entry.swallows:
        return None
    if len(graph.writes[index]) != 1 or entry.data != (0,):
        return None
    return graph.reads[index][0], graph.writes[index][0]


def _carried(
    state: GraphState, index: int, here: int, spread: Spread, *, alone: bool = False
) -> Spread:
    """Return the spread at one port of a node, given that at the other.

    Args:
        state: the graph.
        index: the node.
        here: the port.
        spread: at the other port.
        alone: of what is left beside a constant that the node adds: statistics that are odd may
            make up for none of it.

    Raises:
        Refused: it cannot be told.
    """
    entry = state.entries[index]
    if not entry.operand and state.graph.ops[index] != batchnorm.OPERATOR:
        there = 0 if here == OUT else OUT
        return state.passed(index, {there: spread}).alternatives[0][here]
    change = state.original_map(index)
    if here != OUT:
        if not change.is_invertible:
            raise Refused(Reason.PRECISION, state.view(index).label, "its factor is zero")
        change = change.inverse()
    if alone and entry.combines is Combines.SUM:
        change = change.with_shift(np.zeros_like(change.shift))
    carried = spread.then(change)
    return Affine.of(np.abs(carried.scale), carried.shift)
