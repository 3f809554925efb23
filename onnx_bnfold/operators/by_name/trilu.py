"""Trilu: of matrices it keeps a triangle, the rest becomes zero."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators import data_movement
from onnx_bnfold.operators.entries import OUT, HandsOn
from onnx_bnfold.operators.rules import Known, Step, Transparent, require


def _trilu(view: NodeView, known: Known) -> Step:
    """Let every scale pass, and a shift of the elements that it keeps.

    A shift of those that become zero ends here. What is left of it is a picture, which no layer
    takes, unless one of the two axes has size 1.
    """
    source = 0 if 0 in known.changes else OUT
    change = other = known.changes[source]
    if change.has_shift:
        kept = _triangle(view, change.rank)
        if source == 0 and 1 in kept.shape:
            other = change.with_shift(change.shift * kept)
        else:
            shifted = change.shift.any(axis=tuple(range(change.rank - 2)))
            require(view, change, positive=False, shift=not (shifted & ~kept).any())
    # On the way back nothing is said of the elements that become zero.
    return Step(({source: change, ~source: other},), certain=source == 0)


def _triangle(view: NodeView, rank: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which elements of the last two axes a Trilu keeps, ``(rows, columns)``."""
    dims = view.dims_in(0)
    rows, columns = (data_movement.size(view, dims, axis) for axis in (rank - 2, rank - 1))
    data_movement.bounded(view, rows * columns)
    given = view.integers(1, None)
    [k] = [0] if given is None else given
    diagonal = np.arange(columns) - np.arange(rows)[:, np.newaxis]
    return diagonal >= k if view.attribute("upper", 1) else diagonal <= k


ENTRIES = {"Trilu": Transparent(_trilu, version=14, hands_on=HandsOn.SOME)}
