"""Which nodes may be removed, and in which order they are tried."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from onnx import TensorProto

from onnx_bnfold.model.node_view import FLOATS
from onnx_bnfold.operators import batchnorm
from onnx_bnfold.options import Options
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.planning.kept import not_named
from onnx_bnfold.planning.notes import require_unnoted
from onnx_bnfold.planning.precision_limits import Limits
from onnx_bnfold.progress import progress
from onnx_bnfold.reasons import Reason, Refusal, Refused

# Reasons of an affine node whose operand is of unknown shape, or may be broadcast at some size.
_MAY_BE_KNOWN = frozenset((Reason.AXES, Reason.UNKNOWN_SHAPE))
_LONG = 1.0  # seconds of planning from which on a user wants to see how far it is


def candidates(state: GraphState) -> tuple[list[int], list[int], list[int]]:
    """Return the BatchNormalizations of a graph, and the other affine nodes that may go.

    The third are those of unknown shape: it may be known when others have gone.
    """
    bns, affine, unknown = [], [], []
    for index, op in enumerate(state.graph.ops):
        if op == batchnorm.OPERATOR:
            bns.append(index)
        elif state.entries[index].operand is not None:
            try:
                if _is_affine(state, index):
                    affine.append(index)
            except Refused as refused:
                if refused.refusal.reason in _MAY_BE_KNOWN:
                    unknown.append(index)
    if affine:
        fixed = state.constants.fixed_nodes()
        affine = [index for index in affine if index not in fixed]
    return bns, affine, unknown


def _is_affine(state: GraphState, index: int) -> bool:
    """Whether a node is a Mul, Add, Sub or Div by a constant, which may go like a BN.

    Raises:
        Refused: it is no affine map, or of unknown shape.
    """
    view = state.view(index)
    if len(view.reads) != 2 or view.opset < 7:
        return False
    if any(map(state.constants.needs_sizes, view.reads)) and computes_integers(state, index):
        return False
    if (view.constant(0) is None) == (view.constant(1) is None):
        return False
    state.original_map(index)
    return True


def computes_integers(state: GraphState, index: int) -> bool:
    """Whether a node with one type of operands computes sizes from sizes, say."""
    kind = state.constants.implied_type(state.graph.reads[index][0])
    return kind not in (TensorProto.UNDEFINED, *FLOATS)


def require_removable(
    state: GraphState,
    index: int,
    limits: Limits,
    excluded: Mapping[int, Refusal],
    options: Options,
) -> None:
    """Refuse to try to remove a node that must stay, whatever its neighbours are.

    Args:
        state: the graph.
        index: the node.
        limits, excluded, options: see ``planner.plan_graph``.
    """
    left = state.kept.get(index) or excluded.get(index)
    if left is not None:
        raise Refused.again(left)
    is_bn = state.graph.ops[index] == batchnorm.OPERATOR
    if is_bn:
        state.bn(index)
    elif options.only:
        raise Refused.again(not_named(state.graph, index))
    require_unnoted(state.graph, index, limits)
    if is_bn and (view := state.view(index)).constant(0) is not None:
        raise Refused(Reason.OPAQUE, view.label, "its input is a constant; fold constants first")


def _is_direct(state: GraphState, index: int, known: dict[int, bool]) -> bool:
    """Whether a BatchNormalization is the only reader of a layer, or of one that is direct.

    Args:
        state: the graph.
        index: the node.
        known: the answers for others so far; gets this one, and those of the row in front.
    """
    graph, row = state.graph, [index]
    while row[-1] not in known:
        name = graph.reads[row[-1]][0]
        producer = graph.producer.get(name)
        if producer is None or not graph.only_reader(name):
            known[row[-1]] = False
        elif graph.ops[producer] != batchnorm.OPERATOR:
            known[row[-1]] = state.layer_or_none(producer) is not None
        else:
            row.append(producer)
    known.update(dict.fromkeys(row, known[row[-1]]))
    return known[index]


def in_order(state: GraphState, bns: Iterable[int]) -> tuple[list[int], list[int]]:
    """Return BNs in the order in which they are tried: those that are direct, and the others."""
    direct: list[int] = []  # calling ``list[int]`` takes long
    others: list[int] = []
    known: dict[int, bool] = {}
    for index in bns:
        (direct if _is_direct(state, index, known) else others).append(index)
    if len(others) > 1:
        others.sort(key=lambda i: -elements(state, i))
    return direct, others


def elements(state: GraphState, index: int) -> int:
    """Return the number of elements per example of an output; unknown dims count as one."""
    dims = state.shapes.dims(state.graph.writes[index][0]) or ()
    return math.prod(d for d in dims[1:] if isinstance(d, int))


def watched(queue: Sequence[int]) -> Iterable[int]:
    """Return the nodes to decide on, in order; if that takes long, its progress is shown."""
    return progress(queue, total=len(queue), label="planning", after=_LONG)
