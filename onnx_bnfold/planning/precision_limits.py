"""How far a tensor that stays may be re-parametrised before its data type loses something.

In exact arithmetic every plan is right. In floating point a scale is harmless as long as nothing
leaves the range of the type, and a shift as long as it does not dwarf what it is added to
(``shifts``). BatchNormalizations know means and variances, so both can be judged without data.

What is judged is the change from the original model to the end, of every tensor that somebody
still reads, whatever kind of node is removed: what one removal may not do, two may not either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from onnx import TensorProto

from onnx_bnfold.model.float_formats import largest, unit_roundoff
from onnx_bnfold.operators import batchnorm
from onnx_bnfold.operators.affine import VANISHED, Affine, Float64
from onnx_bnfold.options import Profile
from onnx_bnfold.planning.graph_state import GraphState, Key
from onnx_bnfold.planning.totals import Totals
from onnx_bnfold.reasons import Reason, Refused

if TYPE_CHECKING:
    from onnx_bnfold.planning.copies import Copies

# Largest factor, up or down, by which a channel of a staying tensor may be rescaled.
# float16 ends at 65504 and loses bits below 6e-5; the others have room to spare.
MAX_RESCALE: dict[int, float] = {
    TensorProto.FLOAT: 2.0**40,
    TensorProto.DOUBLE: 2.0**80,
    TensorProto.FLOAT16: 2.0**5,
    TensorProto.BFLOAT16: 2.0**40,
}
# Unit roundoff of float64, in which shifts are computed, and how much of it may be lost.
_UNIT_64, _DIGITS_64 = 2.0**-53, 2.0**13
_SAFE_CANCELLATION = 2.0**13  # of that kind in any type
_LARGEST_SHIFT = 0.25  # of a tensor, in units of the largest number of its type
_LARGEST_REACH = 0.25  # of what BNs say of a tensor, in the same units
_FAR = 2.0**64  # from the end of its type no tensor gets there
# Largest rounding error of what a BN reads, as it comes out, in units of its largest output.
_NOISE = 0.25
_COARSEST = unit_roundoff(TensorProto.BFLOAT16)
# Below this cancellation no type rounds a BN's mean that far; half of it is room for rounding.
_LEAST_CANCELLATION = _NOISE / _COARSEST / 2


class Limits(NamedTuple):
    """Bounds on the changes of tensors that stay.

    Attributes:
        max_rescale: replaces ``MAX_RESCALE`` for every type, if given.
        profile: what the model will be run in. ``fp16`` applies the bounds of float16 to wider
            types and weighs roundings; ``int8``, which has one scale per activation, leaves tensors
            that stay as they were, so that a BN goes only where that makes no new ranges, and
            weighs how weights are rounded.
    """

    max_rescale: float | None = None
    profile: Profile = "float"

    def check(self, state: GraphState, origin: int, totals: Totals) -> None:
        """Refuse the outcome of a propagation that would cost precision.

        Args:
            state: the graph before the changes.
            origin: the node to be removed.
            totals: with the changes on top.

        Raises:
            Refused: a scale or a shift is too large.
        """
        changes = totals.changes
        if state.graph.ops[origin] == batchnorm.OPERATOR:
            self.check_rounding(state, origin)
        else:
            self._check_neighbours(state, origin, changes)
        from onnx_bnfold.planning.copies import Copies  # few plain folds come here
        from onnx_bnfold.planning.shifts import Shifts

        copies = Copies(state, origin, totals)
        names = [key for key in changes if isinstance(key, str) and key not in copies.merged]
        if self.profile == "int8":
            copies.require_no_new_range(names)
        held = partial(self._holds, state, copies)
        self.check_scales(state, totals, names, held)
        self.check_shifts(state, totals, names, held)
        Shifts(state, origin, totals, partial(self.type_of, state)).check()
        if self.profile == "fp16":
            from onnx_bnfold.planning.half_noise import require_gain

            require_gain(state, origin, totals)
        if self.profile == "int8":
            from onnx_bnfold.planning import int8_weights

            int8_weights.require_gain(state, origin, totals)

    def _holds(self, state: GraphState, copies: Copies, name: str) -> bool:
        """Whether a tensor gets values of the original model, in a type that has them, too."""
        if copies.original is None or not copies.holds(name):
            return False
        # Of the types that they have: what the profile says holds for both.
        bounds = (_bound(MAX_RESCALE, state.type_of(t)) for t in (name, copies.original))
        return next(bounds) >= next(bounds)

    def _check_neighbours(
        self, state: GraphState, origin: int, changes: Mapping[Key, Affine]
    ) -> None:
        """Refuse to disturb BNs that read little more than rounding errors, by any removal."""
        names = [name for side in state.sides(origin) for name in state.groups.seen(side)]
        for name in dict.fromkeys((*names, *(key for key in changes if isinstance(key, str)))):
            for index, slot in state.graph.readers.get(name, ()):
                if slot == 0 and index not in state.removed and state.is_bn(index):
                    self.check_rounding(state, index)

    def check_scales(
        self,
        state: GraphState,
        totals: Totals,
        names: Iterable[str],
        held: Callable[[str], bool] = lambda name: False,
    ) -> None:
        """Refuse changes that rescale a tensor beyond what its type may hold.

        Args:
            state: the graph before the changes.
            totals: with the changes on top.
            names: of the tensors.
            held: whether a tensor gets values that its type holds whatever its change is. It is
                asked of those alone that would be refused, as it takes a walk over the graph.

        Raises:
            Refused: a scale is too large or too small.
        """
        for name in names:
            total = totals.of(name) if totals.changes[name].has_scale else None
            if total is None:
                continue
            magnitude, kind = np.abs(total.scale), self.type_of(state, name)
            bound = self.max_rescale or _bound(MAX_RESCALE, kind)
            magnitude = magnitude[magnitude < VANISHED]
            far = (magnitude > bound).any() or (magnitude[magnitude > 0] < 1 / bound).any()
            if not far and np.abs(total.scale).max(initial=0) * _FAR < largest(kind):
                continue  # without looking for BNs
            if held(name):
                continue
            if far:
                raise Refused(
                    Reason.RANGE,
                    repr(name),
                    f"a channel of it would be rescaled by more than {bound:g}, which its data "
                    "type may not hold; --max-rescale sets the limit",
                )
            _check_room(state, name, total, kind)

    def check_shifts(
        self,
        state: GraphState,
        totals: Totals,
        names: Iterable[str],
        held: Callable[[str], bool] = lambda name: False,
    ) -> None:
        """Refuse shifts that leave a tensor too little room in its type, whatever it holds."""
        for name in names:
            total = totals.of(name) if totals.changes[name].has_shift else None
            if total is None:
                continue
            shift = np.abs(total.shift).max(initial=0)
            if shift <= _LARGEST_SHIFT * largest(TensorProto.FLOAT16):
                continue  # without asking for the data type, which takes shape inference
            end = largest(self.type_of(state, name))
            if shift > _LARGEST_SHIFT * end and not held(name):
                raise Refused(
                    Reason.RANGE,
                    repr(name),
                    f"a channel of it would be shifted by {shift:.3g}, and its data type ends at "
                    f"{end:.3g}; convert the model to a wider type",
                )

    def check_product(self, state: GraphState, index: int) -> None:
        """Refuse to write a BatchNormalization as a product and a sum; see ``shifts``.

        Args:
            state: the graph with all changes.
            index: the node.

        Raises:
            Refused: it would cost precision.
        """
        from onnx_bnfold.planning.shifts import check_product

        check_product(state, index, self.type_of(state, state.sides(index)[0]))

    def type_of(self, state: GraphState, name: str) -> int:
        """Return the type that a tensor is judged by."""
        return int(TensorProto.FLOAT16) if self.profile == "fp16" else state.type_of(name)

    def check_rounding(self, state: GraphState, origin: int) -> None:
        """Refuse to disturb what BNs read where that is little more than rounding errors."""
        # A BN beside one that must not be disturbed stays too: it would go into that one, and a
        # second fold would find what the first has left.
        pairs = state.bn_pairs.get(origin, ())
        if not pairs and state.bn(origin).cancellation <= _LEAST_CANCELLATION:
            return
        bns = [origin, *(behind if front == origin else front for front, behind in pairs)]
        inputs = [*_inputs(state, origin, pairs)]
        for index in bns[1:]:
            inputs += _inputs(state, index, state.bn_pairs.get(index, ()))
        suspects = [found for found in inputs if _is_noise(state, *found, _COARSEST)]
        hidden = [i for i in bns if state.bn(i).cancellation > _SAFE_CANCELLATION]
        if not suspects and not hidden:
            return  # without asking for the data type, which takes shape inference
        unit = unit_roundoff(self.type_of(state, state.sides(origin)[1]))
        for index, front in suspects:
            if _is_noise(state, index, front, unit):
                raise Refused(
                    Reason.PRECISION,
                    state.view(index).label,
                    "what it normalises is little more than the rounding errors of its data type, "
                    "and folding would replace these by others; convert the model to a wider type",
                )
        for index in hidden:
            if _hides_its_shift(state.bn(index), unit):
                raise Refused(
                    Reason.PRECISION,
                    state.view(index).label,
                    "the mean of its input dwarfs what comes out so far that its shift is not "
                    "known to all digits",
                )


def _check_room(state: GraphState, name: str, total: Affine, kind: int) -> None:
    """Refuse a scale by which a tensor would leave its type, as BNs say how large it is."""
    end = largest(kind)
    from onnx_bnfold.planning.sizes import reach, sizes  # few plain folds come here

    for size in sizes(state, name):
        before, after = reach(size), reach(size.then(total))
        after = np.where(np.abs(total.scale) < VANISHED, after, 0)
        if (after > np.maximum(_LARGEST_REACH * end, before)).any():
            raise Refused(
                Reason.RANGE,
                repr(name),
                f"a channel of it would reach {after.max():.3g}, and its data type ends at "
                f"{end:.3g}; convert the model to a wider type",
            )


def _inputs(
    state: GraphState, origin: int, pairs: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int | None]]:
    """Yield a BN, and of its pairs the one behind with that in front, by which it is judged."""
    bn = state.bn(origin)
    if bn.cancellation > _LEAST_CANCELLATION:
        yield origin, None
    for first, second in pairs:
        if len(state.bn(first).a) == len(state.bn(second).a):
            yield second, first


class _Statistics(NamedTuple):
    """What a BN says of its input and its output, ``(C,)`` each."""

    a: Float64
    bias: Float64
    mean: Float64
    spread: Float64

    @property
    def size(self) -> Float64:
        """How large its output is."""
        return np.asarray(np.abs(self.bias) + 2 * np.abs(self.a) * self.spread)


def _original(state: GraphState, index: int) -> _Statistics:
    """Return the statistics of a BN as they were."""
    bn = state.bn(index)
    return _Statistics(bn.a, bn.bias, bn.mean, bn.spread)


def _present(state: GraphState, index: int) -> _Statistics:
    """Return the statistics of a BN as they are by now."""
    bn = state.bn(index)
    sides = [state.total.get(name) for name in state.sides(index)]
    pairs = [None if side is None else batchnorm.per_channel(side, bn.channels) for side in sides]
    if all(pair is None for pair in pairs):
        return _original(state, index)
    same = np.ones(bn.channels), np.zeros(bn.channels)
    (scale, shift), (factor, summand) = (same if pair is None else pair for pair in pairs)
    return _Statistics(
        bn.a * factor / scale,
        bn.bias * factor + summand,
        bn.mean * scale + shift,
        bn.spread * np.abs(scale),
    )


def _is_noise(state: GraphState, index: int, front: int | None, unit: float) -> bool:
    """Whether rounding what a BN reads moves its output visibly, before and after all changes.

    What changes have made of it is what another fold would see: that must not find more to do.

    Args:
        state: the graph.
        index: the BN.
        front: a BN whose output it reads; else its own mean says how large its input is.
        unit: of the rounding.
    """
    for statistics in (_original, _present):
        bn = statistics(state, index)
        size = np.abs(bn.mean) if front is None else statistics(state, front).size
        if not _is_seen(bn, size, unit):
            return False
    return True


def _is_seen(bn: _Statistics, size: Float64, unit: float) -> bool:
    peak = bn.size.max(initial=0)
    return bool((unit * size * np.abs(bn.a) > _NOISE * peak).any())


def _hides_its_shift(bn: batchnorm.BatchNorm, unit: float) -> bool:
    """Whether float64 loses, beside the mean, what a type still sees of the output."""
    peak = np.abs(bn.bias) + np.abs(bn.a) * bn.spread
    lost = _UNIT_64 * np.abs(bn.a * bn.mean)
    known = peak > 0
    return bool((lost[known] > max(unit, _UNIT_64 * _DIGITS_64) * peak[known]).any())


def _bound(table: Mapping[int, float], data_type: int) -> float:
    """Return a type's bound, float32's for types that have none."""
    return table.get(data_type, table[TensorProto.FLOAT])
