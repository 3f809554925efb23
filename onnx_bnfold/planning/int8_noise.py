"""What new ranges cost a model that is quantised to int8 afterwards, as BatchNormalizations say.

It chooses between the outcomes of removing a node, and is told of the whole fold.

Int8 has one scale per activation tensor. A fold is exact in float whatever it makes of the channels
of a tensor that stays; in int8 a channel that has become small beside the largest is lost.

    noise(t) = max over readers of  sum_c gain_c · min(step² / 12, power_c) / scale_c²
                                    / sum_c gain_c · deviation_c²

is what rounding a tensor adds, relative to its signal as it was: ``step`` is its range over 255,
``scale_c`` the change of a channel, and ``gain_c`` how much a reader sees of it, ``a²`` for a
BatchNormalization and the same of all for others. No rounding adds more than what a channel holds,
so one that is dead adds nothing. What weights lose is left out. How well this tells folds that ruin
an int8 model from others is measured by ``tools.trained_zoo``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnx_bnfold.operators.affine import VANISHED, Affine, Float64
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.planning.ranges import KnownRanges, Range
from onnx_bnfold.planning.totals import Totals
from onnx_bnfold.planning.value_ranges import from_statistics

# Trained networks that a fold ruins are expected to lose 10 dB and more; those that it does not
# ruin up to 3, or 7 with --equalize, which knows more.
_WORTH_SAYING = 8.0  # dB
_STEP = 3.0  # dB; a calibration moves a figure by as much
_APART = 8.0  # a change that scales no channel that much more than another costs little
_LEVELS = 255
_ALL = slice(None)


def expected_loss(states: Sequence[GraphState]) -> float | None:
    """Return the loss of int8 signal-to-noise that new ranges are expected to cost, in dB.

    Args:
        states: a graph as it was planned in each round, with all changes.

    Returns:
        None if it is too little to be told from nothing.
    """
    loss = 0.0
    for state in states:
        before, after = _noise(state)
        if 0 < before < math.inf and 0 < after < math.inf:
            loss += 10 * math.log10(after / before)
    return round(loss, 1) if loss > _WORTH_SAYING else None


def _noise(state: GraphState) -> tuple[float, float]:
    """Return the relative noise of all tensors of which something is known, before and after."""
    before = after = 0.0
    for name, span in from_statistics(state).items():
        readers = _readers(state, name, span)
        later = _after(readers, span, state.change(name, span.rank), state.removed)
        if later is not None:
            before += _before(readers, span, state.removed)
            after += later
    return before, after


def cost(state: GraphState, origin: int, totals: Totals) -> int:
    """Return what an outcome would cost an int8 model, in steps that can be told apart.

    Args:
        state: the graph before the changes.
        origin: the node to be removed.
        totals: with the changes on top.
    """
    changes = {name: totals.of(name) for name in totals.changes if isinstance(name, str)}
    if not any(map(is_uneven, {id(change): change for change in changes.values()}.values())):
        return 0
    known, before = _known(state)
    after = before
    removed = state.removed | {origin}
    for name, change in changes.items():
        if name in known and change is not None:
            span, noise = known[name]
            after += (_after(_readers(state, name, span), span, change, removed) or 0.0) - noise
    return int(10 * math.log10(after / before) / _STEP) if 0 < before < after < math.inf else 0


def known_range(state: GraphState, name: str) -> Range | None:
    """Return what is known of an original tensor, None if nothing is."""
    span, _ = _known(state).ranges.get(name, (None, 0.0))
    return span


def _known(state: GraphState) -> KnownRanges:
    """Return what is known of original tensors, and their noise; it is found out once."""
    if not state.ranges:
        state.ranges.append(_ranges(state))
    [found] = state.ranges
    return found


def _ranges(state: GraphState) -> KnownRanges:
    found: dict[str, tuple[Range, float]] = {}
    for name, span in from_statistics(state).items():
        found[name] = span, _before(_readers(state, name, span), span, state.removed)
    return KnownRanges(found, sum(noise for _, noise in found.values()))


def is_uneven(change: Affine | None) -> bool:
    """Whether a change scales some channels far more than others, but for those it takes all of."""
    if change is None or not change.has_scale:
        return False
    sizes = np.abs(change.scale)
    sizes = sizes[(sizes > 0) & (sizes < VANISHED)]
    return bool(sizes.max(initial=0) > _APART * sizes.min(initial=math.inf))


class _Readers(NamedTuple):
    """The readers of a tensor, and how much they see of it.

    Attributes:
        bns: each with its gain and the power of what it sees.
        others: each with whether it is a clamp: what a Relu or Clip reads is rounded behind it
            alone, what a Max or Min reads, before.
        power: of what these see.
    """

    bns: Sequence[tuple[int, Float64, float]]
    others: Sequence[tuple[int, bool]]
    power: float


@np.errstate(over="ignore", invalid="ignore")  # of numbers that no square holds
def _readers(state: GraphState, name: str, span: Range) -> _Readers:
    """Return the readers of a tensor."""
    bns, others = list[tuple[int, Float64, float]](), list[tuple[int, bool]]()
    power = span.deviation**2
    for index, slot in state.graph.readers.get(name, ()):
        if state.is_bn(index) and slot == 0 and state.bn(index).channels == span.channels:
            gain = state.bn(index).a ** 2
            bns.append((index, gain, float((gain * power).sum())))
        else:
            others.append((index, state.entries[index].bounds is not None))
    return _Readers(bns, others, float(power.sum()))


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def _before(readers: _Readers, span: Range, removed: Set[int]) -> float:
    """Return the relative noise of a tensor as it is without any change."""
    is_read = any(index not in removed and not clamp for index, clamp in readers.others)
    return _most(rounding(span), readers.bns, readers.power if is_read else 0.0)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def _after(readers: _Readers, span: Range, change: Affine, removed: Set[int]) -> float | None:
    """Return the relative noise of a tensor after a change, None if that is not per channel."""
    now, vectors = span.changed(change), change.vector(1, span.channels)
    if now is None or vectors is None:
        return None
    scale = np.abs(vectors[0])
    # A channel that a change takes all values from is none that anybody reads.
    seen = (scale > 0) & (scale < VANISHED)
    noise = np.zeros_like(scale)
    noise[seen] = rounding(now, seen) / scale[seen] ** 2
    constant = bool(vectors[1].any() or (vectors[0] < 0).any())  # so is a clamp then
    bns = [each for each in readers.bns if each[0] not in removed]
    stays = (not clamp or constant for index, clamp in readers.others if index not in removed)
    return _most(noise, bns, readers.power if any(stays) else 0.0)


def _most(noise: Float64, bns: Sequence[tuple[int, Float64, float]], power: float) -> float:
    """Return the largest noise relative to what a reader sees: some BNs, others if of any power."""
    found = [float((gain * noise).sum()) / signal for _, gain, signal in bns if signal > 0]
    if power > 0:
        found.append(float(noise.sum()) / power)
    return max([0.0, *found])


def rounding(span: Range, seen: NDArray[np.bool_] | slice = _ALL) -> Float64:
    """Return the power of what rounding adds to those channels of a tensor that are seen."""
    low, high = span.low[seen].min(initial=0), span.high[seen].max(initial=0)
    step = (high - low) / _LEVELS
    return np.asarray(np.minimum(step**2 / 12, span.power[seen]))
