"""Which removed nodes a constant does not fit its type for.

A node takes the changes of many, one after another. The one by which its constant ceases to fit is
to stay; those behind it may go into that one, so they are judged as if they started anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace

from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.planning.graph_state import Key
from onnx_bnfold.planning.plan import Given, GraphPlan
from onnx_bnfold.reasons import Refused
from onnx_bnfold.rewriting.new_constants import Unrepresentable, constants_of


def misfits(plan: GraphPlan, index: int) -> list[int]:
    """Return the nodes that are to stay lest a constant of a node does not fit its type.

    Args:
        plan: by which it does not.
        index: the node that has the constant.

    Returns:
        Removed nodes that it takes changes of, the node itself if there is none.
    """
    given = plan.given.get(index, [])
    origins = [*dict.fromkeys(each.origin for each in given)] or [index]
    if len(origins) == 1:
        return origins
    found, start = list[int](), 0
    while start < len(given):
        taken = _Taken(plan, index, given[start:])
        count = _first(taken.fits_not, len(given) - start)
        if count is None:
            break
        start += count
        found.append(given[start - 1].origin)
    return found or origins[-1:]


class _Taken:
    """A node that takes changes, the first of them or more.

    Args:
        plan: of the graph.
        index: the node.
        given: the changes, in order.
    """

    def __init__(self, plan: GraphPlan, index: int, given: Sequence[Given]) -> None:
        self._plan = plan
        self._index = index
        self._given = given
        self._totals: list[dict[Key, Affine]] = [{}]

    def fits_not(self, count: int) -> bool:
        """Whether a constant does not fit its type if the node takes so many changes."""
        for given in self._given[len(self._totals) - 1 : count]:
            key, change = given.key, given.change
            before = self._totals[-1].get(key)
            total = change if before is None else before.then(change)
            self._totals.append({**self._totals[-1], key: total})
        state = copy(self._plan.state)
        state.total = self._totals[count]
        slots = sorted(key[1] for key in state.total if isinstance(key, tuple))
        try:
            for new in constants_of(0, replace(self._plan, state=state), self._index, slots):
                new()
        except (Refused, Unrepresentable):
            return True
        return False


def _first(is_so: Callable[[int], bool], most: int) -> int | None:
    """Return a number for which something is so, and not for the one before; None if for none."""
    low, high = 0, 1
    while not is_so(high):
        if high == most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_so(middle) else (middle, high)
    return high
