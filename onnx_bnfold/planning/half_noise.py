"""What rounding constants to float16 costs, as BatchNormalizations say.

A converter rounds every constant by itself. In units of ``u² / 12`` and of the power of what a
BatchNormalization writes, that adds

    1 + 1/4 + sum_c B_c² / sum_c scale_c² + 2 · sum_c (a_c · mean_c)² / sum_c (a_c · spread_c)²

for its scale, its variance, its ``B``, and its mean, which the bias of the layer in front holds
once more, so that both are rounded. A shift that nodes in front of a BatchNormalization take makes
its mean as large. So where others that stay read the same tensor, a removal may add more than it
spares: ``dense`` of ``tools.trained_zoo`` is a network whose errors it doubles.

Where a BatchNormalization goes and leaves another tensor than its own, it costs

    sum_c (B_c + h_c)² / sum_c (a_c · spread_c)² + 2 · sum_c h_c² / sum_c (a_c · spread_c)²

``h`` being what its readers take back, in units of what it wrote: their weights meet values that
are as large, and their biases hold the shift, in which many channels add up (``gru``). Without a
shift anywhere no fold costs more than it spares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from onnx_bnfold.operators import batchnorm
from onnx_bnfold.operators.affine import VANISHED, Affine, Float64
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.planning.totals import Totals
from onnx_bnfold.reasons import Reason, Refused

_SCALE_AND_VARIANCE = 1.25
_MEAN_AND_BIAS = 2
# Trained networks that lose two to five times as much power to a fold are expected to lose 1.44
# times as much and more; one that gains, 1.32 times, and all others no more than 1.1 times.
_WORTH_SAYING = 1.4


def is_coarser(rounds: Sequence[Sequence[GraphState]]) -> bool:
    """Whether a folded model is expected to lose far more to float16 than the original.

    Args:
        rounds: all graphs of a model as they were planned in each round, with all changes.
    """
    growth = 1.0
    for states in rounds:
        before, after = np.sum([_costs(state) for state in states], axis=0)
        growth *= after / before if before else 1.0
    return bool(growth > _WORTH_SAYING)


def _costs(state: GraphState) -> tuple[float, float]:
    """Return what all BatchNormalizations of a graph cost, before and after its changes."""
    before = after = 0.0
    for index in range(len(state.graph.nodes)):
        if not state.is_bn(index) or not _power(state, index):
            continue
        own = _SCALE_AND_VARIANCE + _of_bias(state, index)
        before += own + _of_mean(state, index, None)
        if index in state.removed:
            after += _of_readers(state, index, state.total.get(state.sides(index)[1]))
        else:
            after += own + _of_mean(state, index, _present(state, index))
    return before, after


def _of_readers(state: GraphState, index: int, change: Affine | None) -> float:
    """Return what a BN that is gone costs those that read what it wrote, where that changes."""
    readers = state.graph.readers.get(state.sides(index)[1], ())
    if all(reader in state.removed for reader, _ in readers):
        return 0.0
    bn = state.bn(index)
    shift = _shift(change, bn.channels)
    taken = np.square(bn.bias + shift).sum() + _MEAN_AND_BIAS * np.square(shift).sum()
    return float(taken) / _power(state, index)


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
    own = _SCALE_AND_VARIANCE + _of_bias(state, origin)
    spared = own + _of_mean(state, origin, _present(state, origin))
    name = state.sides(origin)[1]
    added = _of_readers(state, origin, totals.of(name) or state.total.get(name))
    if added > spared:
        raise Refused(
            Reason.PRECISION,
            repr(name),
            "those that read it would take back a shift so large that rounding it to float16 costs "
            "more than one BatchNormalization less spares; --profile float folds it all the same",
        )
    most = (0.0, origin)
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


def _of_bias(state: GraphState, index: int) -> float:
    """Return what rounding its ``B`` costs a BN."""
    return float(np.square(state.bn(index).bias).sum()) / _power(state, index)


def _of_mean(state: GraphState, index: int, change: Affine | None) -> float:
    """Return what rounding its mean and the bias in front costs a BN, where its input changes."""
    bn, power = state.bn(index), _power(state, index)
    mean = bn.mean + _shift(change, bn.channels)
    return _MEAN_AND_BIAS * float(np.square(bn.a * mean).sum()) / power if power else 0.0


def _shift(change: Affine | None, channels: int) -> Float64:
    """Return the shift of a change per channel, in units of the original tensor."""
    pair = None if change is None else batchnorm.per_channel(change, channels)
    scale, shift = (np.ones(1), np.zeros(1)) if pair is None else pair
    kept = (scale != 0) & (np.abs(scale) < VANISHED)
    return np.divide(shift, scale, out=np.zeros_like(scale), where=kept)
