"""Cross-layer equalisation: the scales that are left free make the channels of a tensor alike.

Int8 has one scale per activation tensor: a channel that is small beside the largest is rounded as
coarsely. Between two linear layers every channel has a positive factor that can be chosen freely,
through whatever hands it on (Nagel et al. 2019, "Data-free quantization through weight equalization
and bias correction"). The layer in front, with a scale per output channel, does not feel it, nor
does a depthwise layer behind; any other layer behind trades the rounding of its input for that of
its weights.

A group is what a propagation from one tensor reaches. Its factors are ``u**-alpha``, with ``u`` the
peak of a channel beside the largest, and the ``alpha`` that makes the expected noise least:

    noise(s) = sum_t step_t(s)**2 / 12 * sum_c gain_c / s_c**2
             + sum_o step_o(s)**2 / 12 * sum_c power_c * s_c**2

over the group's tensors ``t``, its channels ``c`` and the output channels ``o`` of the layers that
read it, where a tensor's step is its range over 255, that of an output channel its largest weight
over 127, and every reader counts relative to the power of its own output.

A BatchNormalization that stays feels nothing either: onnxruntime rounds its ``scale`` to int8 with
one step for all channels, so these are given one size, and ``input_var`` takes what they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from onnx import TensorProto

from onnx_bnfold.operators import batchnorm
from onnx_bnfold.operators.affine import AGREEMENT, Affine, Float64
from onnx_bnfold.planning.graph_state import GraphState, Key
from onnx_bnfold.planning.int8_groups import Group, Member, Reader, no_steps, reader_of
from onnx_bnfold.planning.notes import EQUALIZE, is_noted
from onnx_bnfold.planning.plan import GraphPlan
from onnx_bnfold.planning.precision_limits import Limits
from onnx_bnfold.planning.propagation import propagate
from onnx_bnfold.planning.ranges import Range, Ranges
from onnx_bnfold.planning.totals import Totals, commit, complete, require_totals
from onnx_bnfold.planning.value_ranges import unmeasured
from onnx_bnfold.reasons import Refused

_WIDE = (TensorProto.FLOAT, TensorProto.DOUBLE)  # types that hold the variances this makes
# Runtimes quantise what these write, not what they read.
_FUSED = frozenset(("Clip", "Relu"))


def equalize(
    plan: GraphPlan,
    ranges: Ranges,
    limits: Limits,
    excluded: frozenset[str],
    *,
    measured: bool = False,
) -> None:
    """Choose the free factors of a planned graph.

    Args:
        plan: gets further changes, and the groups that have them.
        ranges: of the graph's tensors before any change.
        limits: bounds the changes.
        excluded: roots of groups that must stay as they are.
        measured: whether the ranges are those that inputs have shown.
    """
    state = plan.state
    present = dict(_present(state, ranges))
    seen: set[str] = set()
    for root in sorted(present, key=lambda name: (-present[name].rank, -present[name].channels)):
        if root in seen:
            continue
        rank, labels = present[root].rank, _labels(present[root].channels)
        try:
            probe = propagate(state, None, {root: _laid(labels, rank)})
            seen.update(name for name in probe if isinstance(name, str))
            if _is_left(state, probe, limits):
                continue
            plan.free.append(root)
            group = _group(state, labels, present, probe)
            factors = None if group is None or root in excluded else group.factors()
            if factors is None:
                continue
            changes = propagate(state, None, {root: _laid(factors, rank)})
            totals = Totals(state, changes)
            require_totals(state, None, totals)
            limits.check_scales(state, totals, [key for key in changes if isinstance(key, str)])
        except Refused:
            continue
        commit(state, changes, totals)
        for index in _absorbing(state, changes):
            plan.equalized.setdefault(index, []).append(root)
    complete(state)
    if measured:
        plan.free += unmeasured(state, ranges)
    plan.equal_scales = {
        index
        for index, node in enumerate(state.graph.nodes)
        if _is_to_be_evened(state, index) and not is_noted(node, EQUALIZE, limits)
    }


def _is_left(state: GraphState, probe: Mapping[Key, Affine], limits: Limits) -> bool:
    """Whether an earlier fold has left a group as it is; it knew more ranges."""
    makers = (state.graph.producer.get(name) for name in probe if isinstance(name, str))
    nodes = (state.graph.nodes[index] for index in makers if index is not None)
    return any(is_noted(node, EQUALIZE, limits) for node in nodes)


def _present(state: GraphState, ranges: Ranges) -> Iterator[tuple[str, Range]]:
    for name, span in ranges.items():
        # Who reads a constant has it for its own: a change of the tensor would not reach it.
        if state.constants.get(name) is not None or state.groups.is_lost(name):
            continue
        if name in state.graph.producer and span.channels > 1:
            now = span.changed(state.change(name, span.rank))
            if now is not None and np.isfinite([now.low, now.high, now.power]).all():
                yield name, now


def _laid(factors: Float64, rank: int) -> Affine:
    return Affine.of(batchnorm.along_channels(factors, rank), np.zeros((1,) * rank))


def _labels(count: int) -> Float64:
    """Return factors that tell channels apart, none of them a product or quotient of others."""
    return np.sort(np.random.default_rng(0).uniform(1.25, 1.75, count))


def _absorbing(state: GraphState, changes: Mapping[Key, Affine]) -> Iterator[int]:
    for key in changes:
        for index in state.neighbours(key):
            if index not in state.removed and state.absorbs(index, key):
                yield index


def _group(
    state: GraphState, labels: Float64, present: Mapping[str, Range], probe: Mapping[Key, Affine]
) -> Group | None:
    """Return what the factors of a group do; None if that is not known or nothing.

    Args:
        state: the graph.
        labels: the factors that were carried through the group, ascending.
        present: the ranges of its tensors as they are by now.
        probe: what the propagation has found.
    """
    members: dict[str, Member] = {}
    rounded: dict[str, Member] = {}
    readers: list[Reader] = []
    gain = np.zeros(len(labels))
    for name, change in probe.items():
        if not isinstance(name, str):
            continue
        views = [
            state.view(i) for i, _ in state.graph.readers.get(name, ()) if i not in state.removed
        ]
        if name not in present:
            if any(state.absorber_or_none(view.index) is not None for view in views):
                return None
            continue
        member = _member(change, present[name], labels)
        if member is None:
            return None
        members.setdefault(state.groups.root(name), member)
        if any(view.op not in _FUSED for view in views):
            rounded.setdefault(state.groups.root(name), member)
        for view in views:
            if state.absorber_or_none(view.index) is not None:
                reader = _reader(state, view.index, member)
                if reader is None:
                    return None
                readers.append(reader)
    for reader in readers:
        gain += reader.member.onto(reader.gain, len(gain))
    if not rounded or not gain.any():
        return None
    gain = np.maximum(gain, gain.max() * 1e-6)  # noise that nobody reads counts a little
    return Group(tuple(members.values()), (*rounded.values(), *readers), gain)


def _member(change: Affine, span: Range, labels: Float64) -> Member | None:
    """Return a tensor of a group; None if its channels have other factors than the group's."""
    vectors = change.vector(1, span.channels)
    if vectors is None:
        return None
    found = vectors[0]
    channels = np.minimum(np.searchsorted(labels, found * (1 - AGREEMENT)), len(labels) - 1)
    channels = np.where(found == 1, -1, channels)
    exact = np.where(found == 1, 1.0, labels[channels])
    if (np.abs(found - exact) > AGREEMENT * exact).any():
        return None
    return Member(channels, span)


def _reader(state: GraphState, index: int, member: Member) -> Reader | None:
    """Return what a node that absorbs makes of a member; None if that is not known."""
    if state.is_bn(index):  # its scales get one size and are not rounded at all
        gain = _gain_of_bn(state, index)
        return Reader(member, no_steps, gain, gain)
    layer, axis = state.layer_or_none(index), batchnorm.channel_axis(member.range.rank)
    # A MatMul may take a change along other axes than that of the channels that it sums over.
    if layer is None or (layer.in_axis, layer.channels_in) != (axis, member.range.channels):
        return None
    return reader_of(layer, state.side_changes(index), member)


def _gain_of_bn(state: GraphState, index: int) -> Float64:
    """Return what noise of one in a channel of its input is beside the power of its output."""
    bn, (p, r) = state.bn(index), _rescaled(state, index)
    power = float(np.square(bn.a * r * bn.spread).sum())
    return np.asarray(np.square(bn.a * r / p) / (power or 1.0))


def _rescaled(state: GraphState, index: int) -> tuple[Float64, Float64]:
    """Return the factors that input and output of a BN have got, ``(C,)`` each."""
    rank, count = state.rank(index), state.bn(index).channels
    vectors = (
        batchnorm.per_channel(state.change(name, rank), count) for name in state.sides(index)
    )
    p, r = (np.ones(count) if vector is None else vector[0] for vector in vectors)
    return p, r


def _is_to_be_evened(state: GraphState, index: int) -> bool:
    """Whether a node is a BatchNormalization that stays, with scales of several sizes."""
    view = state.view(index)
    if index in state.removed or index in state.kept or view.op != batchnorm.OPERATOR:
        return False
    try:
        bn, (p, r) = state.bn(index), _rescaled(state, index)
    except Refused:
        return False
    infos = (view.constant(1), view.constant(4))
    wide = all(info is not None and info.data_type in _WIDE for info in infos)
    return wide and bn.between(p, r, batchnorm.parameter_type(view, 4)).equal_scales() is not None
