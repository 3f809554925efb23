"""Rules of operators that join parts along an axis or cut them off: Concat and Split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators import data_movement
from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.operators.concatenation import joined
from onnx_bnfold.operators.entries import OUT
from onnx_bnfold.operators.rules import UNDECIDED, Known, Step, Variant, inputs
from onnx_bnfold.reasons import Reason, Refused


class _Parts(NamedTuple):
    """A tensor that is cut into parts along an axis.

    Attributes:
        whole: the port of the tensor.
        axis: that of it.
        places: the ports of the parts, each with its place among them.
        starts: where each part starts along the axis, and where the last one ends.
        still: no change of any part.
    """

    whole: int
    axis: int
    places: Mapping[int, int]
    starts: Sequence[int]
    still: Mapping[int, Affine]

    @classmethod
    def of(cls, whole: int, rank: int, axis: int, sizes: Mapping[int, int]) -> _Parts:
        """Make it of the size that the part at each port has along the axis."""
        starts = [*accumulate(sizes.values(), initial=0)]
        places = {port: i for i, port in enumerate(sizes)}
        return cls(whole, axis, places, starts, dict.fromkeys(sizes, Affine.identity(rank)))


def concat(view: NodeView, known: Known) -> Step:
    """Complete a Concat: each input carries its part of the output's change."""
    if _is_open(known, len(view.once(inputs)), OUT):
        return UNDECIDED
    return _parts(known, view.once(_concatenated))


def _concatenated(view: NodeView) -> _Parts:
    rank = len(view.dims_out(0))
    axis = data_movement.axis_of(view, view.attribute("axis", 1), rank)
    slots = view.once(inputs)
    sizes = {slot: data_movement.size(view, view.dims_in(slot), axis) for slot in slots}
    return _Parts.of(OUT, rank, axis, sizes)


def split(view: NodeView, known: Known) -> Step:
    """Complete a Split: each output carries its part of the input's change."""
    view.once(_axis_of_split)
    if _is_open(known, len(view.writes), 0):
        return UNDECIDED
    return _parts(known, view.once(_split))


def _axis_of_split(view: NodeView) -> int:
    axis = data_movement.axis_of(view, view.attribute("axis", 0), len(view.dims_in(0)))
    if not all(view.writes):
        raise Refused(Reason.OPAQUE, view.label, "one of its outputs is left out")
    return axis


def _split(view: NodeView) -> _Parts:
    axis = view.once(_axis_of_split)
    slots = range(len(view.writes))
    sizes = {~slot: data_movement.size(view, view.dims_out(slot), axis) for slot in slots}
    return _Parts.of(0, len(view.dims_in(0)), axis, sizes)


def _is_open(known: Known, parts: int, whole: int) -> bool:
    return not known.deciding and whole not in known.changes and len(known.changes) < parts


def _parts(known: Known, parts: _Parts) -> Step:
    """Complete a tensor and its parts along an axis (Concat, and Split its mirror image)."""
    whole, axis, places, starts, still = parts
    if whole in known.changes:
        return Step((_Cut(known.changes[whole], parts),))
    given = {places[port]: change for port, change in known.changes.items()}
    change = next(iter(given.values()))
    own = {**known.changes, whole: joined(given, axis, starts)}
    alternatives = [Variant(still, own, still=True)]
    if change.shape[axis] == 1 and len(given) < len(places):
        # The same change for all, which need not vary along the axis.
        own = {**known.changes, whole: joined(given, axis, starts, change)}
        alternatives.insert(0, Variant(dict.fromkeys(places, change), own))
    return Step(tuple(alternatives), certain=len(given) == len(places))


class _Cut(Mapping[int, Affine]):
    """The change of a tensor, and what each part gets of it, which is cut when it is asked for.

    Of thousands of parts the first may take none, and the others are not looked at.
    """

    def __init__(self, change: Affine, parts: _Parts) -> None:
        self._change = change
        self._parts = parts
        self._varies = change.shape[parts.axis] > 1

    def __getitem__(self, port: int) -> Affine:
        whole, axis, places, starts, _ = self._parts
        if port == whole or not self._varies:
            return self._change
        part = slice(starts[places[port]], starts[places[port] + 1])
        return self._change.map(lambda array: data_movement.cut(array, axis, part))

    def __iter__(self) -> Iterator[int]:
        yield self._parts.whole
        yield from self._parts.places

    def __len__(self) -> int:
        return 1 + len(self._parts.places)
