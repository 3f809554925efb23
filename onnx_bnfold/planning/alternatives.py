"""Alternatives of a node that the outcome of no search may have.

A shift goes on from Add to Add, and each of a chain may take it. Where an outcome has been refused,
the constant of each further Add is judged by itself: to make and judge an outcome for each would
take the square of their number.
"""

from __future__ import annotations

from functools import partial

from onnx_bnfold.operators.rules import Step
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.planning.precision_limits import Limits
from onnx_bnfold.planning.shifts import Shifts
from onnx_bnfold.planning.totals import Totals
from onnx_bnfold.reasons import Refused


def left(state: GraphState, limits: Limits, origin: int, index: int, step: Step) -> Step:
    """Return what is left of the alternatives of a node; one of them, if none is.

    Args:
        state: the graph.
        limits: what a re-parametrised tensor may become.
        origin: a node to be removed.
        index: the node.
        step: how its changes can be completed.
    """
    found, keys = [], state.keys(index)
    for alternative in step.alternatives:
        changes = {keys[port]: change for port, change in alternative.items() if port in keys}
        shifts = Shifts(state, origin, Totals(state, changes), partial(limits.type_of, state))
        try:
            for key in changes:
                if not isinstance(key, str):
                    shifts.check_constant(*key)
        except Refused:
            continue
        found.append(alternative)
    return Step(tuple(found) or step.alternatives[:1], step.certain)
