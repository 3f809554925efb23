"""Rules of operators that join parts along an axis or cut them off: Concat and Split."""

from __future__ import annotations

import numpy as np

from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators import data_movement
from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.operators.concatenation import joined
from onnx_bnfold.operators.entries import OUT
from onnx_bnfold.operators.rules import UNDECIDED, Known, Step, inputs
from onnx_bnfold.reasons import Reason, Refused


def concat(view: NodeView, known: Known) -> Step:
    """Complete a Concat: each input carries its part of the output's change."""
    slots = view.once(inputs)
    if _is_open(known, len(slots), OUT):
        return UNDECIDED
    axis, sizes = view.once(_concatenated)
    return _parts(known, slots, OUT, axis, sizes)


def _concatenated(view: NodeView) -> tuple[int, list[int]]:
    """Return the axis of a Concat, and the sizes of its inputs along it."""
    axis = data_movement.axis_of(view, view.attribute("axis", 1), len(view.dims_out(0)))
    return axis, [data_movement.size(view, view.dims_in(slot), axis) for slot in inputs(view)]


def split(view: NodeView, known: Known) -> Step:
    """Complete a Split: each output carries its part of the input's change."""
    dims = view.dims_in(0)
    axis = data_movement.axis_of(view, view.attribute("axis", 0), len(dims))
    slots = [slot for slot, name in enumerate(view.writes) if name]
    if len(slots) != len(view.writes):
        raise Refused(Reason.OPAQUE, view.label, "one of its outputs is left out")
    if _is_open(known, len(slots), 0):
        return UNDECIDED
    sizes = [data_movement.size(view, view.dims_out(slot), axis) for slot in slots]
    return _parts(known, [~slot for slot in slots], 0, axis, sizes)


def _is_open(known: Known, parts: int, whole: int) -> bool:
    return not known.deciding and whole not in known.changes and len(known.changes) < parts


def _parts(known: Known, parts: list[int], whole: int, axis: int, sizes: list[int]) -> Step:
    """Complete a tensor and its parts along an axis (Concat, and Split its mirror image)."""
    if whole in known.changes:
        change = known.changes[whole]
        offsets = np.cumsum([0, *sizes])
        found = {
            part: _cut(change, axis, int(offsets[i]), int(offsets[i + 1]))
            for i, part in enumerate(parts)
        }
        return Step(({whole: change, **found},))
    change = next(iter(known.changes.values()))
    fillers = [Affine.identity(change.rank)]
    if change.shape[axis] == 1 and len(known.changes) < len(parts):
        fillers.insert(0, change)  # the same change for all, which need not vary along the axis
    alternatives = []
    for filler in fillers:
        complete = {p: known.changes.get(p, filler) for p in parts}
        total = joined([known.changes.get(p) for p in parts], axis, sizes, filler)
        alternatives.append({**complete, whole: total})
    return Step(tuple(alternatives), certain=len(known.changes) == len(parts))


def _cut(change: Affine, axis: int, start: int, stop: int) -> Affine:
    return change.map(lambda a: data_movement.cut(a, axis, slice(start, stop)))
