"""What a shift costs, and what rounding the constants costs that take it.

Who reads ``t' = s * t + h`` in place of ``t`` takes the shift back, and the rounding error of
``t'``, which is ``u * |t + h / s|`` in units of ``t``, remains where ``t`` had ``u * |t|``. So what
counts is how large a shift makes a channel in units of what it was (``sizes``). A constant that is
added is rounded, too, and its error is to be small beside what the sum leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from onnx import TensorProto

from onnx_bnfold import batchnorm
from onnx_bnfold.affine import VANISHED, Affine, Float64, along
from onnx_bnfold.constants import DIMS_ONLY, TYPE_ONLY
from onnx_bnfold.layers import LAYOUTS
from onnx_bnfold.reasons import Reason, Refused
from onnx_bnfold.rounding import as_type, unit_roundoff
from onnx_bnfold.site import Key, Site
from onnx_bnfold.sizes import PRODUCTS, SUMS, by_constant, sizes, usual_sizes

# Largest magnitude of a channel after a shift, in units of what it had before.
MAX_OFFSET: dict[int, float] = {
    TensorProto.FLOAT: 2.0**4,
    TensorProto.DOUBLE: 2.0**4,
    TensorProto.FLOAT16: 2.0**2,
    TensorProto.BFLOAT16: 2.0**2,
}


class Shifts:
    """The shifts that the removal of a node would leave.

    Args:
        site: the graph before the changes.
        origin: the node to be removed.
        changes: of every key, relative to now.
        type_of: tells what type a tensor is judged by.
    """

    def __init__(
        self,
        site: Site,
        origin: int,
        changes: Mapping[Key, Affine],
        type_of: Callable[[str], int],
    ) -> None:
        self._site = site
        self._origin = origin
        self._changes = changes
        self._type_of = type_of
        self._of_norm = site.graph.ops[origin] == batchnorm.OPERATOR

    def check(self) -> None:
        """Judge every tensor and every constant.

        Raises:
            Refused: a reader, or what a constant is added to, would lose precision.
        """
        for key in self._changes:
            if not isinstance(key, str):
                if self._site.graph.ops[key[0]] in SUMS:
                    self._check_summand(*key)
                continue
            self._check_means(key)
            total = self._total(key)
            if total is not None and total.has_shift:
                self._check_tensor(key, total)

    def _total(self, key: Key) -> Affine | None:
        """Return the change of a key from the original to what it would be."""
        before, more = self._site.total.get(key), self._changes.get(key)
        if before is None or more is None:
            return before or more
        return before.then(more)

    def _check_tensor(self, name: str, total: Affine) -> None:
        """Refuse to move a tensor far from where it was if somebody has to move it back."""
        site, readers = self._site, [*self._takers(name)]
        if not readers:
            return
        known = sizes(site, name)
        if all(site.graph.ops[index] == batchnorm.OPERATOR for index in readers):
            known = known[:1]  # a norm adds its mean to the size of any data
        if not self._of_norm:
            known += usual_sizes(site, name)
        if not known:
            if self._of_norm or self._is_rounded_before(name):
                return
            raise Refused(
                Reason.PRECISION,
                repr(name),
                "its readers would have to subtract a constant from values of unknown size, which "
                "may cost all their digits",
            )
        together = all(_sums_over_channels(site, index) for index in readers)
        worst = max(_offset(total, size, together=together) for size in known)
        if worst > min(MAX_OFFSET.values()) and worst > most(self._type_of(name)):
            raise Refused(
                Reason.PRECISION,
                repr(name),
                "a channel of it would be moved so far from zero that this dwarfs what its readers "
                "need of it",
            )

    def _takers(self, name: str) -> Iterator[int]:
        """Yield the nodes that stay and take the shift of a tensor back.

        The others hand it on, and what they write is judged by itself, unless it is of a type that
        has more digits.
        """
        graph = self._site.graph
        for index, slot in self._readers(name):
            op, after = graph.ops[index], graph.writes[index]
            if (op, slot) in TYPE_ONLY | DIMS_ONLY:
                continue
            if op not in LAYOUTS and op != batchnorm.OPERATOR:
                changes = (self._total(output) for output in after)
                handed_on = any(change is not None and change.has_shift for change in changes)
                if handed_on and not (op == "Cast" and self._gains_digits(name, after[0])):
                    continue
            yield index

    def _readers(self, name: str) -> Iterator[tuple[int, int]]:
        for index, slot in self._site.graph.readers.get(name, ()):
            if index != self._origin and index not in self._site.removed:
                yield index, slot

    def _gains_digits(self, before: str, after: str) -> bool:
        return unit_roundoff(self._type_of(before)) > unit_roundoff(self._type_of(after))

    def _is_rounded_before(self, name: str) -> bool:
        """Whether a tensor has the rounding error already that its readers would get.

        So it is behind a product with a constant that has been rounded before another constant was
        added to it, if the new values are those of the product. (Of other tensors that are large
        beside what is left we do not know: they may hold exact numbers, like pixels.)
        """
        site = self._site
        index = by_constant(site, name, SUMS)
        while index is not None:
            name = site.sides(index)[0]
            total, product = self._total(name), by_constant(site, name, PRODUCTS)
            if product is not None and (total is None or not total.has_shift):
                factor = site.original_map(product).scale
                return bool((np.abs(np.frexp(factor)[0]) != 0.5).all())
            index = by_constant(site, name, SUMS)
        return False

    def _check_summand(self, index: int, slot: int) -> None:
        """Refuse a new constant of a sum if the sum would show that it is rounded."""
        site, name = self._site, self._site.graph.writes[index][0]
        change, info = self._changes[index, slot], site.view(index).constant(slot)
        old = change.scale * site.present(index, slot)
        known, total = sizes(site, name), self._total(name)
        if known:
            now = known[0] if total is None else known[0].then(total)
            left = np.abs(now.scale) + np.abs(now.shift)
        elif change.has_shift:  # it is to be as exact as the parts that it is made of
            parts = np.abs(old), np.abs(change.shift)
            left = np.where(parts[0] * parts[1] > 0, np.minimum(*parts), np.maximum(*parts))
        else:
            return
        assert info is not None
        if _is_rounding_seen(old + change.shift, left, info.data_type, 0):
            raise Refused(Reason.PRECISION, site.view(index).label, _TOO_COARSE)

    def _check_means(self, name: str) -> None:
        """Refuse a new mean of a norm if the norm's output would show that it is rounded."""
        site, total = self._site, self._total(name)
        for index, slot in self._readers(name):
            if slot or total is None or not site.is_norm(index):
                continue
            norm = site.norm(index)
            vectors = total.vector(1, norm.channels)
            if vectors is None:
                continue
            scale, shift = vectors
            left = np.abs(scale) * (norm.spread + np.abs(norm.bias / norm.a))
            peak = np.abs(scale / norm.a) * (np.abs(norm.bias) + np.abs(norm.a) * norm.spread).max(
                initial=0
            )
            kind = batchnorm.parameter_type(site.view(index), 3)
            if _is_rounding_seen(scale * norm.mean + shift, left, kind, peak):
                raise Refused(Reason.PRECISION, site.view(index).label, _TOO_COARSE)


_TOO_COARSE = (
    "its constant would be so large beside what is left when it has been added that the digits "
    "which rounding it costs would be seen"
)


def check_product(site: Site, index: int, data_type: int) -> None:
    """Refuse to write a BatchNormalization as a product and a sum that cancel each other.

    It subtracts the mean first.

    Args:
        site: the graph with all changes.
        index: the node.
        data_type: of its input.

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
    if (seen & (product > most(data_type) * left)).any():
        raise Refused(
            Reason.PRECISION,
            site.view(index).label,
            "the mean of its input dwarfs what comes out, and without a BatchNormalization it "
            "would be subtracted after both have been rounded",
        )


def most(data_type: int) -> float:
    """Return the largest offset in a type, float32's for types that have none."""
    return MAX_OFFSET.get(data_type, MAX_OFFSET[TensorProto.FLOAT])


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


def _sums_over_channels(site: Site, index: int) -> bool:
    layer = site.layer_or_none(index)
    return layer is not None and layer.group == 1
