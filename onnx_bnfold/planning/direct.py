"""BatchNormalizations that go into the layer in front of them, found without a propagation.

No way is better than this one. One behind another goes into the same layer, all of a row at once:
one by one each would change every tensor of the row anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from functools import reduce
from typing import TYPE_CHECKING, NamedTuple

from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.operators.entries import OUT
from onnx_bnfold.options import Options
from onnx_bnfold.planning.conditions import may_take
from onnx_bnfold.planning.plan import Given
from onnx_bnfold.reasons import Refused

if TYPE_CHECKING:
    from onnx_bnfold.operators.linear import LinearLayer
    from onnx_bnfold.planning.graph_state import GraphState, Key
    from onnx_bnfold.planning.precision_limits import Limits


# Affine nodes in a row from which on most go without a search (``long_rows``). No real network was
# seen to have as many, and up to there a search takes no longer.
LONG_ROW = 16


class Row(NamedTuple):
    """Nodes in a row that go together.

    Attributes:
        changes: of every key, by all of them.
        takers: of each, in order, the nodes whose constants take something of it, and what.
    """

    changes: dict[Key, Affine]
    takers: Mapping[int, Sequence[tuple[int, Given]]]


class DirectFolds:
    """What the layers of a graph take of the BatchNormalizations right behind them.

    Args:
        state: the graph with what is decided so far.
        limits: what a re-parametrised tensor may become.
        direct: the BatchNormalizations, in the graph's order: each is the only reader of a layer,
            or of one that is.
        options: what the user asked for.
    """

    def __init__(
        self, state: GraphState, limits: Limits, direct: Sequence[int], options: Options
    ) -> None:
        self._state = state
        self._limits = limits
        self._options = options
        self._direct = set(direct)
        self._rows = _rows(state, direct) if state.bn_pairs else {}

    def on(self, state: GraphState) -> DirectFolds:
        """Return the same for a state of the same graph."""
        new = copy(self)
        new._state = state
        return new

    def taken(self, index: int) -> dict[int, Affine]:
        """Return what the layer in front takes of a node and of the row behind it, in order.

        Returns:
            The maps of the nodes; a row ends before the first that the layer does not take.
        """
        found: dict[int, Affine] = {}
        if index not in self._direct:
            return found
        graph = self._state.graph
        layer = self._state.layer_or_none(graph.producer[graph.reads[index][0]])
        if layer is None or layer.bias_slot is None:
            return found
        if not may_take(self._options, self._state, layer):
            return found
        for each in self._rows.get(index, (index,)):
            taken = self._taken_by(layer, each)
            if taken is None:
                break
            found[each] = taken
        return found

    def _taken_by(self, layer: LinearLayer, index: int) -> Affine | None:
        """Return the map of a node if a layer takes it, and nothing has changed around it yet."""
        state, graph = self._state, self._state.graph
        if not state.are_untouched(graph.reads[index][0], graph.writes[index][0]):
            return None
        try:
            present = state.original_map(index)
            layer.require(OUT, present)
            self._limits.check_rounding(state, index)
        except Refused:
            return None
        return present


def into_layer(state: GraphState, taken: dict[int, Affine]) -> Row:
    """Return a row that goes into the layer in front of it.

    Args:
        state: the graph.
        taken: the map of each node of the row, in order.
    """
    name, _ = state.sides(next(iter(taken)))
    layer = state.graph.producer[name]
    takers = {
        index: () if change.is_identity else ((layer, Given(index, name, change)),)
        for index, change in taken.items()
    }
    return Row(_changes_by(state, taken), takers)


def _changes_by(state: GraphState, taken: dict[int, Affine]) -> dict[Key, Affine]:
    """Return what becomes of the tensors of a row whose nodes become identities.

    Args:
        state: the graph.
        taken: the map of each node of the row, in order.
    """
    changes: dict[Key, Affine] = {}
    if len(taken) == 1:  # most stand alone
        [(index, present)] = taken.items()
        return {} if present.is_identity else {state.sides(index)[0]: present}
    behind: Affine | None = None
    for index, present in reversed(taken.items()):
        behind = present if behind is None else present.then(behind)
        changes[state.sides(index)[0]] = behind
    # What the layer takes is composed in the order in which it is computed.
    changes[state.sides(next(iter(taken)))[0]] = reduce(Affine.then, taken.values())
    return {key: change for key, change in changes.items() if not change.is_identity}


def _rows(state: GraphState, direct: Sequence[int]) -> dict[int, list[int]]:
    """Return the rows of nodes, each the only reader of the one before, by the first."""
    graph, found = state.graph, dict[int, list[int]]()
    row_of: dict[int, list[int]] = {}
    for index in direct:
        front = graph.producer[graph.reads[index][0]]
        row_of[index] = row_of[front] if front in row_of else found.setdefault(index, [])
        row_of[index].append(index)
    return found
