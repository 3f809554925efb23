"""What rounding constants to float16 costs, as BatchNormalizations say.

A converter rounds every constant by itself. In units of ``u² / 12`` and of the power of what a
BatchNormalization writes, that adds

    1 + 1/4 + sum_c B_c² / sum_c scale_c² + 2 · sum_c (a_c · mean_c)² / sum_c (a_c · spread_c)²

for its scale, its variance, its ``B``, and its mean, which the bias of the layer in front holds
once more, so that both are rounded. A shift that nodes in front of a BatchNormalization take makes
its mean as large. So where others that stay read the same tensor, a removal may add more than it
spares: ``dense`` of ``tools.trained_zoo`` is a network whose errors it doubles.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnx_bnfold.operators import batchnorm
from onnx_bnfold.operators.affine import VANISHED, Affine
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.planning.totals import Totals
from onnx_bnfold.reasons import Reason, Refused

_SCALE_AND_VARIANCE = 1.25
_MEAN_AND_BIAS = 2


def require_gain(state: GraphState, origin: int, totals: Totals) -> None:
    """Refuse to remove a BatchNormalization if others get larger means by more than that spares.

    Args:
        state: the graph before the changes.
        origin: the node to be removed; of others nothing is known.
        totals: with the changes on top.

    Raises:
        Refused: it would cost more than it spares.
    """
    power = _power(state, origin) if state.is_bn(origin) else 0
    if not power:
        return
    bn = state.bn(origin)
    bias = float(np.square(bn.bias).sum()) / power
    spared = _SCALE_AND_VARIANCE + bias + _of_mean(state, origin, _present(state, origin))
    added, most = 0.0, (0.0, origin)
    for index, name in _reading(state, origin, totals):
        after = _of_mean(state, index, totals.of(name))
        more = after - _of_mean(state, index, _present(state, index))
        added, most = added + more, max(most, (more, index))
    if added > spared:
        raise Refused(
            Reason.PRECISION,
            state.view(most[1]).label,
            "it stays and would get a mean so large that rounding it to float16 costs more than "
            "one BatchNormalization less spares; --profile float folds it all the same",
        )


def _reading(state: GraphState, origin: int, totals: Totals) -> Iterator[tuple[int, str]]:
    """Yield the BatchNormalizations that stay and read a tensor that shifts, and the tensor."""
    shifted = (key for key, change in totals.changes.items() if change.has_shift)
    for name in (key for key in shifted if isinstance(key, str)):
        for index, slot in state.graph.readers.get(name, ()):
            stays = index != origin and index not in state.removed
            if stays and slot == 0 and state.is_bn(index):
                yield index, name


def _present(state: GraphState, index: int) -> Affine | None:
    return state.total.get(state.sides(index)[0])


def _power(state: GraphState, index: int) -> float:
    """Return the power of what a BatchNormalization writes, of its deviations alone."""
    bn = state.bn(index)
    return float(np.square(bn.a * bn.spread).sum())


def _of_mean(state: GraphState, index: int, change: Affine | None) -> float:
    """Return what rounding its mean and the bias in front costs a BN, where its input changes."""
    bn, power = state.bn(index), _power(state, index)
    pair = None if change is None else batchnorm.per_channel(change, bn.channels)
    scale, shift = (np.ones(1), np.zeros(1)) if pair is None else pair
    kept = (scale != 0) & (np.abs(scale) < VANISHED)
    mean = bn.mean + np.divide(shift, scale, out=np.zeros_like(scale), where=kept)
    return _MEAN_AND_BIAS * float(np.square(bn.a * mean).sum()) / power if power else 0.0
