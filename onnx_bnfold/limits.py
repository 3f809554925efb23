"""How far a tensor that stays may be re-parametrised before its data type loses something.

In exact arithmetic every plan is right. In floating point a scale is harmless as long as nothing
leaves the range of the type, and a shift costs the bits by which it exceeds the tensor's own
spread. A BatchNormalization knows mean and variance of its input, so both can be judged without
data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import TensorProto

from onnx_bnfold import batchnorm
from onnx_bnfold.affine import VANISHED, Affine, Float64
from onnx_bnfold.reasons import Reason, Refused
from onnx_bnfold.rounding import unit_roundoff
from onnx_bnfold.site import Key, Site

# Largest factor, up or down, by which a channel of a staying tensor may be rescaled.
# float16 ends at 65504 and loses bits below 6e-5; the others have room to spare.
MAX_RESCALE: dict[int, float] = {
    TensorProto.FLOAT: 2.0**40,
    TensorProto.DOUBLE: 2.0**80,
    TensorProto.FLOAT16: 2.0**5,
    TensorProto.BFLOAT16: 2.0**40,
}
# Largest offset of a channel, in units of its standard deviation plus the offset it had.
MAX_OFFSET: dict[int, float] = {
    TensorProto.FLOAT: 2.0**6,
    TensorProto.DOUBLE: 2.0**12,
    TensorProto.FLOAT16: 2.0**2,
    TensorProto.BFLOAT16: 2.0**2,
}
# Largest mean that readers may have to subtract, in units of the largest value that is left.
MAX_MEAN: dict[int, float] = {
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
            self._check_cancellation(site, origin, changes)
            self.check_rounding(site, origin)
        existing = _existing(site, origin, changes)
        staying = {k: c for k, c in changes.items() if isinstance(k, str) and k not in existing}
        if not staying and not _seen_by_others(site, origin):
            return
        if self.profile == "int8":
            raise Refused(
                Reason.RANGE,
                repr(next(iter(staying), site.sides(origin)[0])),
                "it would get ranges that no tensor had; --profile float folds it all the same",
            )
        data_type = self._data_type(site, origin)
        self._check_scales(site, data_type, staying)
        for index in _judges(site, origin, staying):
            _check_offset(site, index, data_type, changes)

    def check_scales(self, site: Site, name: str, changes: Mapping[Key, Affine]) -> None:
        """Refuse changes that rescale a tensor beyond what its type may hold.

        Args:
            site: the graph before the changes.
            name: one of the tensors.
            changes: relative to now.

        Raises:
            Refused: a scale is too large or too small.
        """
        producer = site.view(site.graph.producer[name])
        names = {key: change for key, change in changes.items() if isinstance(key, str)}
        self._check_scales(site, self._type(producer.type_of(name)), names)

    def _data_type(self, site: Site, origin: int) -> int:
        return self._type(site.view(origin).type_of(site.sides(origin)[1]))

    def _type(self, data_type: int) -> int:
        if self.profile == "fp16":
            return int(TensorProto.FLOAT16)
        return data_type or int(TensorProto.FLOAT)

    def _check_cancellation(self, site: Site, origin: int, changes: Mapping[Key, Affine]) -> None:
        """Refuse what leaves it to the readers of a norm's output to subtract a large mean.

        The norm subtracts it exactly where a channel is constant, or nearly so; a sum of products
        rounds it.
        """
        norm, (x, y) = site.norm(origin), site.sides(origin)
        change = changes.get(y)
        if change is None or not change.has_shift:
            return
        count, rank = norm.channels, change.rank
        upstream = site.change(x, rank).vector(1, count)
        present, downstream = site.affine_of(origin).vector(1, count), change.vector(1, count)
        if upstream is None or present is None or downstream is None:
            return  # of single elements the norm says nothing
        (p, q), (a, b), (r, u) = upstream, present, downstream
        mean, spread = a * (p * norm.mean + q) + b, np.abs(a * p) * norm.spread
        peak = (np.abs(mean) + spread).max(initial=0)
        bound = _bound(MAX_MEAN, self._data_type(site, origin))
        with np.errstate(over="ignore", invalid="ignore"):
            offset = np.abs(mean + u / r)
        if (offset[np.abs(r) < VANISHED] > bound * peak).any():
            raise Refused(
                Reason.PRECISION,
                repr(y),
                "the mean of its input dwarfs what comes out, and its readers would have to "
                "subtract it in a sum of rounded products",
            )

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
        unit = unit_roundoff(self._data_type(site, origin))
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

    def _check_scales(self, site: Site, data_type: int, changes: Mapping[str, Affine]) -> None:
        bound = self.max_rescale or _bound(MAX_RESCALE, data_type)
        for key, change in changes.items():
            if not change.has_scale:
                continue
            magnitude = np.abs(site.change(key, change.rank).then(change).scale)
            magnitude = magnitude[magnitude < VANISHED]
            if (magnitude > bound).any() or (magnitude[magnitude > 0] < 1 / bound).any():
                raise Refused(
                    Reason.RANGE,
                    repr(key),
                    f"a channel of it would be rescaled by more than {bound:g}, which its data "
                    "type may not hold; --max-rescale sets the limit",
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


def _judges(site: Site, origin: int, staying: Mapping[str, Affine]) -> Iterator[int]:
    """Yield the BatchNormalizations that say how widely a changed tensor that stays is spread."""
    if site.graph.ops[origin] == batchnorm.OPERATOR:
        yield origin
    for name, change in staying.items():
        if change.has_shift:
            for index, slot in site.graph.readers.get(name, ()):
                kept = index != origin and index not in site.removed
                if kept and slot == 0 and site.graph.ops[index] == batchnorm.OPERATOR:
                    yield index


def _check_offset(site: Site, origin: int, data_type: int, changes: Mapping[Key, Affine]) -> None:
    name = site.graph.reads[origin][0]
    norm = site.norm(origin)
    change = changes.get(name)
    if change is None or not change.has_shift:
        return
    total = site.change(name, change.rank).then(change)
    vectors = total.vector(1, norm.channels)
    assert vectors is not None
    scale, shift = vectors
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = np.abs(norm.mean + shift / scale) / norm.deviation
    bound = _bound(MAX_OFFSET, data_type)
    allowed = bound * (1 + np.abs(norm.mean) / norm.deviation)
    if not (offset[scale != 0] <= allowed[scale != 0]).all():
        raise Refused(
            Reason.PRECISION,
            repr(name),
            "its shift dwarfs the spread of a channel (gamma is close to zero there), and other "
            "readers of the tensor would lose precision",
        )
