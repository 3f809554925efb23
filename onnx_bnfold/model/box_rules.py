"""Which parts of a node's inputs make a part of its output, so that no tensor is whole in memory.

A part is a *box*: a run of indices along each axis. The node computes it from boxes of its inputs,
in the same types and to the same bits as the whole. Some sums are rounded in an order that depends
on where in memory a row begins, so they are only divided at every ``ALIGNED``-th row of an axis in
front of all others, or behind them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from onnx_bnfold.arrays import Array
from onnx_bnfold.model.blocks import Box

Dims = tuple[int, ...]
ALIGNED = 16  # rows of any number of elements of 4 bytes are 64 bytes, the widest registers


class Node(NamedTuple):
    """A node that computes a constant, as rules see it.

    Attributes:
        dims: shape of its output.
        inputs: shapes of its inputs, empty where one is left out.
        attributes: of the node.
        opset: version of its operator set.
        value: returns the elements of a small input.
    """

    dims: Dims
    inputs: Sequence[Dims]
    attributes: Mapping[str, Any]
    opset: int
    value: Callable[[int], Array]


Part = (
    Box | Array
)  # what an input gives to a box of the output: a box, or other values in its place
# What each input gives; None if the box is not computed without the rest.
Needs = list[Part] | None
Rule = Callable[[Node, Box], Needs]


def sizes_of(box: Box) -> Dims:
    """Return the shape of a box."""
    return tuple(stop - start for start, stop in box)


def all_of(dims: Dims) -> Box:
    """Return the box that is a whole array."""
    return tuple((0, size) for size in dims)


def leading_axis(dims: Dims) -> int:
    """Return the first axis along which an array can be divided."""
    return next((axis for axis, size in enumerate(dims) if size > 1), 0)


def _elementwise(node: Node, box: Box) -> Needs:
    if node.opset < 7:  # attributes say how inputs are broadcast
        return None
    return [_broadcast(dims, box) for dims in node.inputs]


def _broadcast(dims: Dims, box: Box) -> Box:
    """Return the box of an input that is broadcast to a box."""
    behind = box[len(box) - len(dims) :]
    return tuple((0, 1) if n == 1 else part for n, part in zip(dims, behind, strict=True))


def _expanded(node: Node, box: Box) -> Needs:
    return [_broadcast(node.inputs[0], box), np.array(sizes_of(box), np.int64)]


def _transposed(node: Node, box: Box) -> Needs:
    order = node.attributes.get("perm", range(len(box))[::-1])
    return [tuple(part for _, part in sorted(zip(order, box, strict=True)))]


def _regrouped(node: Node, box: Box) -> Needs:
    """Divide what is the same elements in the same order, along an axis that both shapes have."""
    dims = node.inputs[0]
    found = all_of(dims)
    for axis in _divided(node.dims, box):
        before = math.prod(node.dims[:axis])
        same = (
            i
            for i, size in enumerate(dims)
            if size == node.dims[axis] and math.prod(dims[:i]) == before
        )
        own = next(same, None)
        if own is None:
            return None
        found = (*found[:own], box[axis], *found[own + 1 :])
    return [found, *(all_of(other) for other in node.inputs[1:])]


def _squeezed(node: Node, box: Box) -> Needs:
    given = node.attributes.get("axes") or any(math.prod(dims) for dims in node.inputs[1:] if dims)
    return _regrouped(node, box) if given else None  # or a part of one row would lose its axis


def _reshaped(node: Node, box: Box) -> Needs:
    found = _regrouped(node, box)
    return found and [found[0], np.array(sizes_of(box), np.int64)]


def _divided(dims: Dims, box: Box) -> list[int]:
    return [axis for axis, part in enumerate(box) if part != (0, dims[axis])]


def _reduced(node: Node, box: Box, *, aligned: bool) -> Needs:
    dims = node.inputs[0]
    given = node.attributes.get("axes", ())
    if len(node.inputs) > 1 and node.inputs[1]:
        given = node.value(1).tolist()
    axes = {axis % len(dims) for axis in given}
    if not axes:
        return None
    found, parts = list(all_of(dims)), iter(box)
    for axis in range(len(dims)):
        if axis not in axes:
            found[axis] = next(parts)
        elif node.attributes.get("keepdims", 1):
            next(parts)
    divided = _divided(dims, tuple(found)) if aligned else ()
    if not all(_is_outermost(dims, axis) and found[axis][0] % ALIGNED == 0 for axis in divided):
        return None
    return [tuple(found), *(all_of(other) for other in node.inputs[1:])]


def _is_outermost(dims: Dims, axis: int) -> bool:
    return math.prod(dims[:axis]) == 1 or math.prod(dims[axis + 1 :]) == 1


def _scaled(node: Node, box: Box) -> Needs:
    """Divide a DequantizeLinear or a QuantizeLinear: scales lie along an axis, or in blocks."""
    axis = node.attributes.get("axis", 1) % max(1, len(box))
    found: list[Part] = [box]
    for dims in node.inputs[1:]:
        if math.prod(dims) == 1:
            found.append(all_of(dims))
        elif len(dims) == 1 and node.opset >= 13:
            found.append((box[axis],))
        elif len(dims) == len(box) and axis not in _divided(node.dims, box):
            found.append((*box[:axis], (0, dims[axis]), *box[axis + 1 :]))
        else:
            return None
    return found


# Each element of the output is one of the inputs', or depends on those at its place alone, and is
# rounded as it would be wherever it lies.
_ELEMENTWISE = frozenset(
    {
        *("Abs", "Add", "And", "Cast", "CastLike", "Ceil", "Clip", "Div", "Equal", "Exp", "Floor"),
        *("Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Log", "Max", "Min"),
        *("Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Round", "Sign", "Sqrt", "Sub"),
        *("Where",),
    }
)
# What sums add up one after another, wherever it lies; and several at a time.
_ONE_BY_ONE = frozenset({"ReduceL1", "ReduceL2", "ReduceMax", "ReduceMin", "ReduceSumSquare"})
_TOGETHER = frozenset({"ReduceMean", "ReduceSum"})
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_ONE_BY_ONE, partial(_reduced, aligned=False)),
    **dict.fromkeys(_TOGETHER, partial(_reduced, aligned=True)),
    **dict.fromkeys(("Flatten", "Unsqueeze"), _regrouped),
    **dict.fromkeys(("DequantizeLinear", "QuantizeLinear"), _scaled),
    "Expand": _expanded,
    "Reshape": _reshaped,
    "Squeeze": _squeezed,
    "Transpose": _transposed,
}
