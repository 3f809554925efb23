"""How widely tensors are spread, per channel: as BatchNormalizations say, or as data show.

A BatchNormalization says of its input that its channels have the mean ``input_mean`` and the
variance ``input_var``, and of its output that they have the mean ``B`` and the deviation
``|scale|``. Ranges (``ranges``) are carried on through the operators of ``_CARRY``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnx_bnfold.model.float_formats import FORMATS
from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators import batchnorm
from onnx_bnfold.operators.rules import Transparent
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.planning.ranges import Range, Ranges
from onnx_bnfold.reasons import Refused

# From a node's view and the ranges of its data inputs to that of its output, None if not known.
Carry = Callable[[NodeView, Sequence[Range]], "Range | None"]


def _kept(view: NodeView, parts: Sequence[Range]) -> Range | None:
    return parts[0]


def _rectified(view: NodeView, parts: Sequence[Range]) -> Range | None:
    x = parts[0]
    width = x.high - x.low
    share = np.divide(np.maximum(x.high, 0), width, out=np.zeros_like(width), where=width > 0)
    low, high = np.maximum(x.low, 0), np.maximum(x.high, 0)
    return Range(low, high, x.power * np.minimum(share, 1), x.rank)


def _added(view: NodeView, parts: Sequence[Range]) -> Range | None:
    x, y = parts
    if (x.channels, x.rank) != (y.channels, y.rank):
        return None
    return Range(x.low + y.low, x.high + y.high, x.power + y.power, x.rank)


def _concatenated(view: NodeView, parts: Sequence[Range]) -> Range | None:
    rank = parts[0].rank
    axis = view.attribute("axis", 1)
    if axis not in (1, 1 - rank) or any(part.rank != rank for part in parts):
        return None
    low, high = (np.concatenate(v) for v in zip(*((p.low, p.high) for p in parts), strict=True))
    return Range(low, high, np.concatenate([part.power for part in parts]), rank)


def _flattened(view: NodeView, parts: Sequence[Range]) -> Range | None:
    """Repeat every channel for its positions, where an output row is one of the batch."""
    x, (_, *sizes), after = parts[0], view.dims_in(0), view.dims_out(0)
    known = [size for size in sizes if isinstance(size, int)]
    if len(after) != 2 or len(known) < len(sizes) or math.prod(known) != after[1]:
        return None
    times = math.prod(known[1:])
    low, high, power = (np.repeat(values, times) for values in (x.low, x.high, x.power))
    return Range(low, high, power, 2)


# Operators whose output's range follows from those of their data inputs.
_CARRY: Mapping[str, Carry] = {
    "Add": _added,
    "AveragePool": _kept,
    "Concat": _concatenated,
    "Dropout": _kept,
    "Flatten": _flattened,
    "GlobalAveragePool": _kept,
    "Identity": _kept,
    "LeakyRelu": _kept,
    "MaxPool": _kept,
    "PRelu": _kept,
    "Relu": _rectified,
    "Reshape": _flattened,
}


def of_result(ranges: Ranges, state: GraphState) -> dict[str, Range]:
    """Return the ranges of a graph's tensors as they are with all changes.

    Args:
        ranges: of the tensors without any change.
        state: the graph.
    """
    found: dict[str, Range] = {}
    for name, span in ranges.items():
        now = span.changed(state.change(name, span.rank))
        if now is not None:
            found.update(dict.fromkeys(state.groups.members(name), now))
    return found


def unmeasured(state: GraphState, ranges: Ranges) -> list[str]:
    """Return the tensors of a graph that may have a range and have none.

    They are those of functions that were inlined, and those whose change is not per channel.

    Args:
        state: the graph.
        ranges: what was measured.
    """
    found = []
    for name in state.graph.producer.keys() - ranges.keys():
        dims = state.shapes.dims(name)
        has_channels = dims is None or (len(dims) > 1 and dims[1] != 1)
        if has_channels and state.type_of(name) in FORMATS and state.constants.get(name) is None:
            found.append(name)
    return sorted(found)


def from_statistics(state: GraphState) -> dict[str, Range]:
    """Return the ranges that the BatchNormalizations of a graph speak of.

    Args:
        state: the graph; ranges are of its tensors as they are without any change.
    """
    # Those that stay go first: what the others say a later fold will not know.
    found = _stated(state, removed=False)
    for name, span in _stated(state, removed=True).items():
        found.setdefault(name, span)
    for index, node in enumerate(state.graph.nodes):
        carry, entry = _CARRY.get(state.graph.ops[index] or ""), state.entries[index]
        if carry and isinstance(entry, Transparent) and node.output[0] not in found:
            output = _carried(carry, state.view(index), entry, found)
            if output is not None:
                found[node.output[0]] = output
    return found


def _stated(state: GraphState, *, removed: bool) -> dict[str, Range]:
    """Return the ranges of the tensors around those BNs that are removed, or that are not."""
    found: dict[str, Range] = {}
    inputs: dict[str, Range] = {}
    for index, node in enumerate(state.graph.nodes):
        if state.graph.ops[index] == batchnorm.OPERATOR and (index in state.removed) == removed:
            try:
                bn, rank = state.bn(index), state.rank(index)
            except Refused:
                continue
            inputs[node.input[0]] = Range.of(bn.mean, bn.spread, rank)
            found[node.output[0]] = Range.of(bn.bias, np.abs(bn.a) * bn.spread, rank)
    for name, span in inputs.items():
        found.setdefault(name, span)
    return found


def _carried(carry: Carry, view: NodeView, entry: Transparent, found: Ranges) -> Range | None:
    names = [view.name_in(slot) for slot in entry.data_slots(view)]
    if not names or not all(name in found for name in names):
        return None
    try:
        return carry(view, [found[name] for name in names])
    except Refused:  # a shape is not known
        return None
