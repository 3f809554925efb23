"""How far a tensor that stays may be re-parametrised before its data type loses something.

In exact arithmetic every plan is right. In floating point a scale is harmless as long as nothing
leaves the range of the type. A shift is not: who reads ``t' = s * t + h`` in place of ``t`` takes
the shift back, and the rounding error of ``t'``, which is ``u * |t + h / s|`` in units of ``t``,
remains where ``t`` had ``u * |t|``. So what counts is how far a shift moves a tensor from where it
was, in units of its own size. BatchNormalizations know sizes, so it can be judged without data
(``sizes``).

What is judged is the change from the original model to the end, of every tensor that somebody
still reads, whatever kind of node is removed: what one removal may not do, two may not either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import TensorProto

from onnx_bnfold import batchnorm
from onnx_bnfold.affine import VANISHED, Affine, Float64, along
from onnx_bnfold.constants import DIMS_ONLY, TYPE_ONLY
from onnx_bnfold.layers import LAYOUTS
from onnx_bnfold.reasons import Reason, Refused
from onnx_bnfold.rounding import as_type, unit_roundoff
from onnx_bnfold.site import Key, Site
from onnx_bnfold.sizes import PRODUCTS, SUMS, by_constant, sizes

# Largest factor, up or down, by which a channel of a staying tensor may be rescaled.
# float16 ends at 65504 and loses bits below 6e-5; the others have room to spare.
MAX_RESCALE: dict[int, float] = {
    TensorProto.FLOAT: 2.0**40,
    TensorProto.DOUBLE: 2.0**80,
    TensorProto.FLOAT16: 2.0**5,
    TensorProto.BFLOAT16: 2.0**40,
}
# Largest magnitude of a channel after a shift, in units of what it had before.
MAX_OFFSET: dict[int, float] = {
    TensorProto.FLOAT: 2.0**4,
    TensorProto.DOUBLE: 2.0**4,
    TensorProto.FLOAT16: 2.0**2,
    TensorProto.BFLOAT16: 2.0**2,
}

# Unit roundoff of float64, in which shifts are computed, and how much of it may be lost.
_UNIT_64, _DIGITS_64 = 2.0**-53, 2.0**13
_SAFE_CANCELLATION = 2.0**13  # of that kind in any type
# Largest rounding error of what a norm reads, as it comes out, in units of its largest output.
_NOISE = 0.25

Profile = Literal["float", "fp16", "int8"]


@dataclass(frozen=True)
class Limits:
    """Bounds on the changes of tensors that stay.

    Attributes:
        max_rescale: replaces ``MAX_RESCALE`` for every type, if given.
        profile: what the model will be run in. ``fp16`` applies the bounds of float16 to wider
            types; ``int8``, which has one scale per activation, leaves every tensor that stays as
            it was, so that a BatchNormalization goes only where that makes no new ranges.
    """

    max_rescale: float | None = None
    profile: Profile = "float"

    def check(self, site: Site, origin: int, changes: Mapping[Key, Affine]) -> None:
        """Refuse the outcome of a flood that would cost precision.

        Args:
            site: the graph before the changes.
            origin: the node to be removed.
            changes: of every key, relative to now.

        Raises:
            Refused: a scale or a shift is too large.
        """
        if site.graph.ops[origin] == batchnorm.OPERATOR:
            self.check_rounding(site, origin)
        existing = _existing(site, origin, changes)
        staying = {k: c for k, c in changes.items() if isinstance(k, str) and k not in existing}
        if self.profile == "int8" and (staying or _seen_by_others(site, origin)):
            raise Refused(
                Reason.RANGE,
                repr(next(iter(staying), site.sides(origin)[0])),
                "it would get ranges that no tensor had; --profile float folds it all the same",
            )
        self.check_scales(site, staying)
        totals = {k: _total(site, k, c) for k, c in changes.items() if isinstance(k, str)}
        for key, change in changes.items():
            if isinstance(key, str):
                if totals[key].has_shift:
                    self._check_shift(site, origin, key, totals)
            elif change.has_shift and site.graph.ops[key[0]] in SUMS:
                self._check_summand(site, *key, change, totals)

    def check_scales(self, site: Site, changes: Mapping[str, Affine]) -> None:
        """Refuse changes that rescale a tensor beyond what its type may hold.

        Args:
            site: the graph before the changes.
            changes: of tensors, relative to now.

        Raises:
            Refused: a scale is too large or too small.
        """
        for name, change in changes.items():
            if not change.has_scale:
                continue
            magnitude = np.abs(_total(site, name, change).scale)
            bound = self.max_rescale or _bound(MAX_RESCALE, self._type(site, name))
            magnitude = magnitude[magnitude < VANISHED]
            if (magnitude > bound).any() or (magnitude[magnitude > 0] < 1 / bound).any():
                raise Refused(
                    Reason.RANGE,
                    repr(name),
                    f"a channel of it would be rescaled by more than {bound:g}, which its data "
                    "type may not hold; --max-rescale sets the limit",
                )

    def check_product(self, site: Site, index: int) -> None:
        """Refuse to write a BatchNormalization as a product and a sum that cancel each other.

        It subtracts the mean first.

        Args:
            site: the graph with all changes.
            index: the node.

        Raises:
            Refused: the mean of a channel, multiplied, dwarfs what comes out.
        """
        norm, name = site.norm(index), site.sides(index)[0]
        present, rank = site.affine_of(index), site.rank(index)
        size = Affine.of(along(norm.spread, 1, rank), along(norm.mean, 1, rank))
        size = size.then(site.change(name, rank))
        after = size.then(present)
        product = np.abs(present.scale) * (np.abs(size.shift) + np.abs(size.scale))
        left = np.abs(after.scale) + np.abs(after.shift)
        seen = product > left.max(initial=0)  # other rounding errors are not smaller
        if (seen & (product > _bound(MAX_OFFSET, self._type(site, name)) * left)).any():
            raise Refused(
                Reason.PRECISION,
                site.view(index).label,
                "the mean of its input dwarfs what comes out, and without a BatchNormalization it "
                "would be subtracted after both have been rounded",
            )

    def _check_shift(
        self, site: Site, origin: int, name: str, totals: Mapping[str, Affine]
    ) -> None:
        """Refuse to move a tensor far from where it was if somebody has to move it back.

        Args:
            site: the graph before the changes.
            origin: the node to be removed.
            name: of the tensor.
            totals: the changes of all tensors that change now, relative to the original.
        """
        readers = self._judges(site, origin, name, totals)
        if not readers:
            return
        is_norm = site.graph.ops[origin] == batchnorm.OPERATOR
        known = sizes(site, name)
        if known is None:
            if is_norm or _is_rounded_before(site, name, totals):
                return
            raise Refused(
                Reason.PRECISION,
                repr(name),
                "its readers would have to subtract a constant from values of unknown size, which "
                "may cost all their digits",
            )
        if all(site.graph.ops[index] == batchnorm.OPERATOR for index in readers):
            known = known[:1]  # a norm adds its mean to the size of any data
        together = all(_sums_over_channels(site, index) for index in readers)
        worst = max(_offset(totals[name], size, together=together) for size in known)
        if worst > min(MAX_OFFSET.values()) and worst > _bound(MAX_OFFSET, self._type(site, name)):
            raise Refused(
                Reason.PRECISION,
                repr(name),
                "a channel of it would be moved so far from zero that its size dwarfs what the "
                "readers need of it, and these would lose precision",
            )

    def _check_summand(
        self, site: Site, index: int, slot: int, change: Affine, totals: Mapping[str, Affine]
    ) -> None:
        """Refuse a new constant of a sum whose rounding would be seen in the little that is left.

        Args:
            site: the graph before the changes.
            index, slot: the sum, and which of its operands the constant is.
            change: of the constant, relative to now.
            totals: the changes of all tensors that change now, relative to the original.
        """
        name = site.graph.writes[index][0]
        old = change.scale * site.present(index, slot)
        new = old + change.shift
        info = site.view(index).constant(slot)
        assert info is not None
        lost = np.abs(as_type(new, info.data_type).astype(np.float64) - new)
        if not lost.any():
            return
        known, total = sizes(site, name), totals.get(name) or site.total.get(name)
        if known is None:  # then it is to be as exact as the parts that it is made of
            parts = np.abs(old), np.abs(change.shift)
            size = np.where(parts[0] * parts[1] > 0, np.minimum(*parts), np.maximum(*parts))
        else:
            now = known[0] if total is None else known[0].then(total)
            size = np.abs(now.scale) + np.abs(now.shift)
        unit, bound = unit_roundoff(info.data_type), _bound(MAX_OFFSET, info.data_type)
        if (lost > unit * bound * size).any():
            raise Refused(
                Reason.PRECISION,
                site.view(index).label,
                "its constant would be so large beside what the sum leaves that the digits lost by "
                "rounding it would be seen",
            )

    def _judges(
        self, site: Site, origin: int, name: str, totals: Mapping[str, Affine]
    ) -> list[int]:
        """Return the nodes that stay and take the shift of a tensor back.

        The others hand it on, and what they write is judged by itself, unless it is of a type that
        has more digits.
        """
        graph, found = site.graph, []
        for index, slot in graph.readers.get(name, ()):
            if index == origin or index in site.removed:
                continue
            op = graph.ops[index]
            if (op, slot) in TYPE_ONLY | DIMS_ONLY:
                continue
            if op not in LAYOUTS and op != batchnorm.OPERATOR:
                after = (totals.get(o) or site.total.get(o) for o in graph.writes[index])
                handed_on = any(change is not None and change.has_shift for change in after)
                if handed_on and not (op == "Cast" and self._gains_digits(site, index)):
                    continue
            found.append(index)
        return found

    def _gains_digits(self, site: Site, index: int) -> bool:
        before, after = site.graph.reads[index][0], site.graph.writes[index][0]
        return unit_roundoff(self._type(site, before)) > unit_roundoff(self._type(site, after))

    def _type(self, site: Site, name: str) -> int:
        if self.profile == "fp16":
            return int(TensorProto.FLOAT16)
        found = site.shapes[name][1] if name in site.shapes else TensorProto.UNDEFINED
        return found or int(TensorProto.FLOAT)

    def check_rounding(self, site: Site, origin: int) -> None:
        """Refuse to disturb what norms read where that is little more than rounding errors."""
        # A norm beside one that must not be disturbed stays too: it would go into that one, and a
        # second fold would find what the first has left.
        pairs = site.norm_pairs.get(origin, ())
        if not pairs and site.norm(origin).cancellation <= 1:
            return
        norms = [origin, *(behind if front == origin else front for front, behind in pairs)]
        inputs = [*_inputs(site, origin, pairs)]
        for index in norms[1:]:
            inputs += _inputs(site, index, site.norm_pairs.get(index, ()))
        coarsest = unit_roundoff(TensorProto.BFLOAT16)
        suspects = [found for found in inputs if _is_noise(site, *found, coarsest)]
        hidden = [i for i in norms if site.norm(i).cancellation > _SAFE_CANCELLATION]
        if not suspects and not hidden:
            return  # without asking for the data type, which takes shape inference
        unit = unit_roundoff(self._type(site, site.sides(origin)[1]))
        for index, size in suspects:
            if _is_noise(site, index, size, unit):
                raise Refused(
                    Reason.PRECISION,
                    site.view(index).label,
                    "what it normalises is little more than the rounding errors of its data type, "
                    "and folding would replace these by others; convert the model to a wider type",
                )
        for index in hidden:
            if _hides_its_shift(site.norm(index), unit):
                raise Refused(
                    Reason.PRECISION,
                    site.view(index).label,
                    "the mean of its input dwarfs what comes out so far that its shift is not "
                    "known to all digits",
                )


def _inputs(
    site: Site, origin: int, pairs: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, Float64]]:
    """Yield a norm, and of its pairs the one behind, each with the size of what it reads."""
    norm = site.norm(origin)
    if norm.cancellation > 1:
        yield origin, np.abs(norm.mean)
    for first, second in pairs:
        if len(site.norm(first).a) == len(site.norm(second).a):
            yield second, _size(site.norm(first))


def _size(norm: batchnorm.Norm) -> Float64:
    """Return how large a norm's output is, per channel."""
    return np.asarray(np.abs(norm.bias) + 2 * np.abs(norm.a) * norm.spread)


def _is_noise(site: Site, index: int, size: Float64, unit: float) -> bool:
    """Whether rounding values of a size, per channel, moves a norm's output visibly."""
    norm = site.norm(index)
    peak = _size(norm).max(initial=0)
    return bool((unit * size * np.abs(norm.a) > _NOISE * peak).any())


def _hides_its_shift(norm: batchnorm.Norm, unit: float) -> bool:
    """Whether float64 loses, beside the mean, what a type still sees of the output."""
    peak = np.abs(norm.bias) + np.abs(norm.a) * norm.spread
    lost = _UNIT_64 * np.abs(norm.a * norm.mean)
    known = peak > 0
    return bool((lost[known] > max(unit, _UNIT_64 * _DIGITS_64) * peak[known]).any())


def _bound(table: Mapping[int, float], data_type: int) -> float:
    """Return a type's bound, float32's for types that have none."""
    return table.get(data_type, table[TensorProto.FLOAT])


def _existing(site: Site, origin: int, changes: Mapping[Key, Affine]) -> set[str]:
    """Return the tensors that the removal merges into one that the original model has."""
    merged = {name for side in site.sides(origin) for name in site.groups.members(side)}
    for name in merged:
        before, now = site.total.get(name), changes.get(name)
        if now is None:
            unchanged = before is None
        else:
            unchanged = (now if before is None else before.then(now)).is_identity
        if unchanged:
            return merged
    return set()


def _seen_by_others(site: Site, origin: int) -> bool:
    """Whether nodes other than the removed ones read the tensor in front of a removed node."""
    names = site.groups.members(site.sides(origin)[0])
    readers = (site.graph.readers.get(name, ()) for name in names)
    return any(
        index != origin and index not in site.removed for found in readers for index, _ in found
    )


def _total(site: Site, name: str, change: Affine) -> Affine:
    """Return the change of a tensor from the original to what it is after a change."""
    return site.change(name, change.rank).then(change)


def _offset(total: Affine, size: Affine, *, together: bool) -> float:
    """Return how large a channel becomes in units of what it was, at most.

    Args:
        total: the change of a tensor.
        size: the tensor as an image of standard normal numbers.
        together: its readers add up all channels, so that errors which are small beside the
            largest one do not count.
    """
    with np.errstate(all="ignore"):
        before = np.abs(size.scale) + np.abs(size.shift)
        after = np.abs(size.shift + total.shift / total.scale)
        ratio = np.where(after > 0, after / before, 0)
    constant = (total.scale == 0) | (np.abs(total.scale) >= VANISHED)
    small = after <= before.max(initial=0) if together else False
    return float(np.where(constant | small, 0, ratio).max(initial=0))


def _sums_over_channels(site: Site, index: int) -> bool:
    layer = site.layer_or_none(index)
    return layer is not None and layer.group == 1


def _is_rounded_before(site: Site, name: str, totals: Mapping[str, Affine]) -> bool:
    """Whether a tensor has the rounding error already that its readers would get.

    So it is behind a product with a constant that has been rounded before another constant was
    added to it, if the new values are those of the product. (Of other tensors that are large beside
    what is left we do not know: they may hold exact numbers, like pixels.)
    """
    index = by_constant(site, name, SUMS)
    while index is not None:
        name = site.sides(index)[0]
        total = totals.get(name) or site.total.get(name)
        product = by_constant(site, name, PRODUCTS)
        if product is not None and (total is None or not total.has_shift):
            factor = site.original_map(product).scale
            return bool((np.abs(np.frexp(factor)[0]) != 0.5).all())
        index = by_constant(site, name, SUMS)
    return False
