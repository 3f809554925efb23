"""What the options forbid of an outcome, where the planner takes one.

A BatchNormalization goes by one of two methods: directly into the layer in front of it, or by a way
whose changes are carried through the graph. A condition on outcomes has to ask both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.options import Options
from onnx_bnfold.planning.graph_state import GraphState, Key

if TYPE_CHECKING:
    from onnx_bnfold.operators.linear import LinearLayer
    from onnx_bnfold.planning.shared_constants import SharedConstants


def may_take(options: Options, state: GraphState, layer: LinearLayer) -> bool:
    """Return whether a layer may take what it alone is read by; else the ways are tried."""
    return not options.keep_shared_weights or state.graph.only_reader(layer.weight.name)


def require_allowed(
    options: Options,
    state: GraphState,
    index: int,
    changes: Mapping[Key, Affine],
    asked: set[int],
    shared: Callable[[], SharedConstants],
) -> None:
    """Refuse an outcome of a way that the options forbid.

    Args:
        options: what the user asked for.
        state: the graph as it is by now.
        index: the node that would go: a BatchNormalization, or a Mul, Add, Sub or Div.
        changes: of every key, relative to now; some may be identities.
        asked: gets the nodes that the answer depends on, beside those of the changes.
        shared: what copies of constants would add.

    Raises:
        Refused: they do.
    """
    if options.keep_shared_weights and state.is_bn(index):
        shared().require_cheap(index, changes, asked)
