"""What a shift costs, and what rounding the constants costs that take it.

Who reads ``t' = s * t + h`` in place of ``t`` takes the shift back, and the rounding error of
``t'``, which is ``u * |t + h / s|`` in units of ``t``, remains where ``t`` had ``u * |t|``. So what
counts is how large a shift makes a channel in units of what it was (``sizes``). A constant that is
added is rounded, too, and its error is to be small beside what the sum leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from onnx_bnfold.model.determinism import DESCRIBED
from onnx_bnfold.model.float_formats import as_type, unit_roundoff
from onnx_bnfold.operators import batchnorm
from onnx_bnfold.operators.affine import VANISHED, Affine, Float64, along
from onnx_bnfold.operators.entries import Absorbing, Combines
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.planning.sizes import Spreads, by_constant, sizes, usual_sizes
from onnx_bnfold.planning.totals import Totals
from onnx_bnfold.reasons import Reason, Refused

# Largest magnitude of a channel after a shift, in units of what it had before.
MAX_OFFSET: dict[int, float] = {
    TensorProto.FLOAT: 2.0**4,
    TensorProto.DOUBLE: 2.0**4,
    TensorProto.FLOAT16: 2.0**2,
    TensorProto.BFLOAT16: 2.0**2,
}
_INCREDIBLE = 2.0**40  # what is said to be larger is of unknown size


class Shifts:
    """The shifts that the removal of a node would leave.

    Args:
        state: the graph before the changes.
        origin: the node to be removed.
        totals: with the changes on top.
        type_of: tells what type a tensor is judged by.
    """

    def __init__(
        self,
        state: GraphState,
        origin: int,
        totals: Totals,
        type_of: Callable[[str], int],
    ) -> None:
        self._state = state
        self._origin = origin
        self._changes = totals.changes
        self._total = totals.of
        self._type_of = type_of
        self._of_bn = state.graph.ops[origin] == batchnorm.OPERATOR

    def check(self) -> None:
        """Judge every tensor and every constant.

        Raises:
            Refused: a reader, or what a constant is added to, would lose precision.
        """
        for key, change in self._changes.items():
            if not isinstance(key, str):
                self.check_constant(*key)
                continue
            self._check_means(key, change)
            # A scale alone leaves a shift of before as large as it was beside the tensor.
            total = self._total(key) if change.has_shift and self._is_seen(key) else None
            if total is not None and total.has_shift:
                self._check_bias(key, total)
                self._check_tensor(key, total)

    def _is_seen(self, name: str) -> bool:
        """Whether a node that stays writes or reads a tensor."""
        index = self._state.graph.producer.get(name)
        stays = index is not None and index != self._origin and index not in self._state.removed
        return stays or any(True for _ in self._readers(name))

    def _check_tensor(self, name: str, total: Affine) -> None:
        """Refuse to move a tensor far from where it was if somebody has to move it back."""
        state, readers = self._state, [*self._takers(name)]
        if not readers:
            return
        known = sizes(state, name)
        if all(state.graph.ops[index] == batchnorm.OPERATOR for index in readers):
            known = known[:1]  # a BN adds its mean to the size of any data
        if not self._of_bn:
            known += usual_sizes(state, name)
        beyond = any(_is_incredible(size) for size in known)
        if beyond or not known:
            # An answer may turn on the last digits, which a layer's output does not.
            answers = any(state.entries[index].swallows for index in readers)
            if not (answers or beyond) and (self._of_bn or self._is_rounded_before(name)):
                return
            raise Refused(
                Reason.PRECISION,
                repr(name),
                "its readers would have to subtract a constant from values of unknown size, which "
                "may cost all their digits",
                because=(*self._asked_for(name), *self._summands(name)),
            )
        moved = [_Moved.of(total, size) for size in known]
        most_ever = max(float(one.ratio.max(initial=0)) for one in moved)
        if most_ever <= min(MAX_OFFSET.values()):
            return  # without asking for the data type, which takes shape inference
        bound = most(self._type_of(name))
        bounds = {index: self._bound_at(index, bound) for index in readers}
        if any(one.is_seen_by(state, *each) for one in moved for each in bounds.items()):
            raise Refused(
                Reason.PRECISION,
                repr(name),
                "a channel of it would be moved so far from zero that this dwarfs what its readers "
                "need of it",
                because=tuple(self._asked_for(name)),
            )

    def _asked_for(self, name: str) -> Iterator[str]:
        """Yield the tensors whose changes say who takes the shift of one back, and how large."""
        yield name
        for index, _ in self._readers(name):
            if not isinstance(self._state.entries[index], Absorbing):
                yield from filter(None, self._state.graph.writes[index])

    def _bound_at(self, index: int, bound: float) -> float:
        """Return the largest offset for a reader that knows one of its type."""
        entry = self._state.entries[index]
        squares = isinstance(entry, Absorbing) and entry.squares
        return min(bound, min(MAX_OFFSET.values())) if squares else bound

    def _takers(self, name: str) -> Iterator[int]:
        """Yield the nodes that stay and take the shift of a tensor back.

        The others hand it on, and what they write is judged by itself, unless it is of a type that
        has more digits, or nobody knows how large it is: a Concat may have other operands.
        """
        graph = self._state.graph
        for index, slot in self._readers(name):
            entry, after = self._state.entries[index], graph.writes[index]
            if (graph.ops[index], slot) in DESCRIBED:
                continue
            if not isinstance(entry, Absorbing):
                changes = (self._total(output) for output in after)
                handed_on = any(change is not None and change.has_shift for change in changes)
                unknown = handed_on and self._of_bn and not sizes(self._state, after[0])
                gains = entry.retypes and self._gains_digits(name, after[0])
                if handed_on and not unknown and not gains:
                    continue
            yield index

    def _readers(self, name: str) -> Iterator[tuple[int, int]]:
        for index, slot in self._state.graph.readers.get(name, ()):
            if index != self._origin and index not in self._state.removed:
                yield index, slot

    def _gains_digits(self, before: str, after: str) -> bool:
        types = self._state.type_of(before), self._state.type_of(after)
        return unit_roundoff(types[0]) > unit_roundoff(types[1])

    def _is_rounded_before(self, name: str) -> bool:
        """Whether a tensor has the rounding error already that its readers would get.

        So it is behind a product with a constant that has been rounded before another constant was
        added to it, if the new values are those of the product. (Of other tensors that are large
        beside what is left we do not know: they may hold exact numbers, like pixels.)
        """
        for summand in self._summands(name):
            total, product = (
                self._total(summand),
                by_constant(self._state, summand, Combines.PRODUCT),
            )
            if product is not None and (total is None or not total.has_shift):
                factor = self._state.original_map(product).scale
                return bool((np.abs(np.frexp(factor)[0]) != 0.5).all())
        return False

    def _summands(self, name: str) -> Iterator[str]:
        """Yield the tensors in a row in front of one that a constant has been added to."""
        state = self._state
        index = by_constant(state, name, Combines.SUM)
        while index is not None:
            name = state.sides(index)[0]
            yield name
            index = by_constant(state, name, Combines.SUM)

    def check_constant(self, index: int, slot: int) -> None:
        """Refuse a new constant of a sum if the sum would show that it is rounded."""
        state, change = self._state, self._changes[index, slot]
        # A scale alone comes from a product, which has been rounded as much.
        if not change.has_shift or state.entries[index].combines is not Combines.SUM:
            return
        name = state.graph.writes[index][0]
        old = change.scale * state.present(index, slot)
        known, total = sizes(state, name), self._total(name)
        if known:
            left = _least(known, total)
        else:  # it is to be as exact as the parts that it is made of
            parts = np.abs(old), np.abs(change.shift)
            left = np.where(parts[0] * parts[1] > 0, np.minimum(*parts), np.maximum(*parts))
        if _is_rounding_seen(old + change.shift, left, self._type_of(name), 0):
            raise Refused(Reason.PRECISION, state.view(index).label, _TOO_COARSE)

    def _check_bias(self, name: str, total: Affine) -> None:
        """Refuse a new ``B`` of a BN if what the BN writes would show that it is rounded."""
        state, index = self._state, self._state.graph.producer.get(name)
        gone = index == self._origin or index in state.removed
        if index is None or gone or not state.is_bn(index):
            return
        vectors, known = batchnorm.per_channel(total, state.bn(index).channels), sizes(state, name)
        if vectors is not None and known:
            exact = vectors[0] * state.bn(index).bias + vectors[1]
            exact = batchnorm.along_channels(exact, total.rank)
            kind = batchnorm.parameter_type(state.view(index), 2)
            if _is_rounding_seen(exact, _least(known, total), kind, 0):
                raise Refused(Reason.PRECISION, state.view(index).label, _TOO_COARSE)

    def _check_means(self, name: str, change: Affine) -> None:
        """Refuse a new mean of a BN if the BN's output would show that it is rounded.

        If it is scaled only, a product has gone that was rounded as much, except where runtimes
        compute float16 in float32, without rounding between two nodes.
        """
        state = self._state
        for index, slot in self._readers(name):
            total = None if slot or not state.is_bn(index) else self._total(name)
            if total is None:
                continue
            bn, out = state.bn(index), self._total(state.graph.writes[index][0])
            into = batchnorm.per_channel(total, bn.channels)
            after = batchnorm.per_channel(out or Affine.identity(total.rank), bn.channels)
            if into is None or after is None:
                continue
            (scale, shift), (factor, summand) = into, after
            a = np.abs(factor * bn.a)
            size = np.abs(factor * bn.bias + summand) + a * bn.spread
            left, peak = np.abs(scale) / a * size, np.abs(scale) / a * size.max(initial=0)
            kind = batchnorm.parameter_type(state.view(index), 3)
            if not change.has_shift and unit_roundoff(kind) <= unit_roundoff(TensorProto.FLOAT):
                continue
            if _is_rounding_seen(scale * bn.mean + shift, left, kind, peak):
                raise Refused(Reason.PRECISION, state.view(index).label, _TOO_COARSE)


_TOO_COARSE = (
    "its constant would be so large beside what is left when it has been added that the digits "
    "which rounding it costs would be seen"
)


def check_product(state: GraphState, index: int, data_type: int) -> None:
    """Refuse to write a BatchNormalization as a product and a sum that cancel each other.

    It subtracts the mean first.

    Args:
        state: the graph with all changes.
        index: the node.
        data_type: of its input.

    Raises:
        Refused: the mean of a channel, multiplied, dwarfs what comes out.
    """
    bn, name = state.bn(index), state.sides(index)[0]
    present, rank = state.affine_of(index), state.rank(index)
    spread, mean = (batchnorm.along_channels(each, rank) for each in (bn.spread, bn.mean))
    size = Affine.of(spread, mean)
    size = size.then(state.change(name, rank))
    after = size.then(present)
    product = np.abs(present.scale) * (np.abs(size.shift) + np.abs(size.scale))
    left = np.abs(after.scale) + np.abs(after.shift)
    seen = product > left.max(initial=0)  # other rounding errors are not smaller
    if (seen & (product > most(data_type) * left)).any():
        raise Refused(
            Reason.PRECISION,
            state.view(index).label,
            "the mean of its input dwarfs what comes out, and without a BatchNormalization it "
            "would be subtracted after both have been rounded",
        )


def _is_incredible(size: Affine) -> bool:
    """Whether a tensor would be out of all proportion, as odd statistics behind a factor say."""
    return bool((np.abs(size.scale) + np.abs(size.shift) > _INCREDIBLE).any())


def most(data_type: int) -> float:
    """Return the largest offset in a type, float32's for types that have none."""
    return MAX_OFFSET.get(data_type, MAX_OFFSET[TensorProto.FLOAT])


class _Moved(NamedTuple):
    """Channels that a shift moves.

    Attributes:
        before, after: their sizes, both in units of the original tensor.
        ratio: of the two; 0 in channels that hold one value whatever they are.
    """

    before: Float64
    after: Float64
    ratio: Float64

    @classmethod
    def of(cls, total: Affine, size: Affine) -> _Moved:
        """Make it of the change of a tensor, and of the tensor as an image of normal numbers."""
        with np.errstate(all="ignore"):
            before = np.abs(size.scale) + np.abs(size.shift)
            after = np.abs(size.shift + total.shift / total.scale)
            ratio = np.where(after > 0, after / before, 0)
        constant = (total.scale == 0) | (np.abs(total.scale) >= VANISHED)
        return cls(before, after, np.where(constant, 0, ratio))

    def is_seen_by(self, state: GraphState, index: int, bound: float) -> bool:
        """Whether a reader sees what rounding a channel of more than a ratio costs."""
        far = self.ratio > bound
        layer = state.layer_or_none(index)
        if layer is not None and layer.group == 1 and far.any():
            # It adds up all channels: errors that are small beside the largest one are not seen.
            others = tuple(a for a, letter in enumerate(layer.layout) if letter != "i")
            peaks = layer.combined(np.maximum, others, of=np.absolute).reshape(-1)
            reach = along(peaks, layer.in_axis, layer.in_rank)
            far = far & (self.after * reach > (self.before * reach).max(initial=0))
        return bool(far.any())


def _least(known: Spreads, total: Affine | None) -> Float64:
    """Return the least of the sizes that a tensor may have after a change."""
    after = known if total is None else [size.then(total) for size in known]
    return reduce(np.minimum, [np.abs(size.scale) + np.abs(size.shift) for size in after])


def _is_rounding_seen(exact: Float64, left: Float64, data_type: int, peak: Float64 | float) -> bool:
    """Whether rounding a summand costs more than rounding what is left of the sum.

    Args:
        exact: the summand.
        left: size of what is left, per channel.
        data_type: of the summand.
        peak: below this no error counts.
    """
    lost = np.abs(as_type(exact, data_type).astype(np.float64) - exact)
    return bool((lost > unit_roundoff(data_type) * np.maximum(most(data_type) * left, peak)).any())
