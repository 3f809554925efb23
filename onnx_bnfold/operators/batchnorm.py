"""BatchNormalization: its arithmetic, and what becomes of its parameters.

In inference ``y = scale * (x - input_mean) / sqrt(input_var + epsilon) + B`` (ONNX
BatchNormalization-15), per channel on axis 1: the affine map ``y = a * x + b`` with
``a = scale / sqrt(input_var + epsilon)`` and ``b = B - input_mean * a``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from onnx_bnfold.arrays import Array
from onnx_bnfold.model.float_formats import FORMATS, as_type
from onnx_bnfold.model.node_view import NodeView
from onnx_bnfold.operators.affine import AGREEMENT, Affine, Float64, along, divided
from onnx_bnfold.operators.entries import OUT, Given, Read, Revised, Sides
from onnx_bnfold.reasons import Reason, Refused

OPERATOR = "BatchNormalization"
# In the ``doc_string`` of a node whose ``input_var`` holds what ``scale`` was; see
# ``Scaled.equal_scales``.
EQUAL_SCALES = "onnx_bnfold: input_var holds the sizes of scale, not the variance of the input"
PARAMETERS = ("scale", "B", "input_mean", "input_var")
_LEAST = 2.0**-60  # of the variances that ``equal_scales`` makes; float32 has room on both sides


class BatchNorm:
    """A BatchNormalization as numbers, ``(C,)`` float64 each.

    Attributes:
        view: the node.
        epsilon: the attribute.
        cancellation: largest ratio of what the mean contributes to a channel's output and that
            output.

    Args:
        table: a row per vector, ``(6, C)``.
    """

    __slots__ = ("_table", "cancellation", "epsilon", "view")
    data_slot = 0
    factor_slot = 1

    def __init__(self, view: NodeView, table: Float64, epsilon: float, cancellation: float) -> None:
        self.view = view
        self._table = table
        self.epsilon = epsilon
        self.cancellation = cancellation

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self._table[0])

    @property
    def map(self) -> Float64:
        """``a`` and ``b``, ``(2, C)``."""
        return self._table[:2]

    @property
    def a(self) -> Float64:
        """The factor of its affine map ``y = a * x + b``."""
        return self._row(0)

    @property
    def b(self) -> Float64:
        """The summand of its affine map."""
        return self._row(1)

    @property
    def mean(self) -> Float64:
        """The mean that it says its input has: ``input_mean``."""
        return self._row(2)

    @property
    def deviation(self) -> Float64:
        """What it divides by: ``sqrt(input_var + epsilon)``."""
        return self._row(3)

    @property
    def spread(self) -> Float64:
        """The standard deviation that it says its input has, ``sqrt(input_var)``."""
        return self._row(4)

    @property
    def bias(self) -> Float64:
        """The parameter ``B``."""
        return self._row(5)

    def _row(self, index: int) -> Float64:
        row: Float64 = self._table[index]
        return row

    def between(self, into: Float64, out: Float64, data_type: int) -> Scaled:
        """Return what it becomes where its input and its output get other scales.

        The variance is scaled along, so that it goes on to say how the input is spread, unless its
        type does not hold that. The scale makes up for how it is rounded.

        Args:
            into, out: factors, ``(C,)`` each.
            data_type: of the new variance.
        """
        # A variance is known to more digits by its root than beside a large epsilon.
        given, beside = np.square(self.spread), np.square(self.deviation) - self.epsilon
        negative = np.where(beside < -AGREEMENT * np.square(self.deviation), beside, 0)
        before = np.where(given > 0, given, negative)
        after = as_type(np.square(into) * before, data_type).astype(np.float64)
        holds = (np.abs(into) != 1) & (before > 0) & (after > 0) & np.isfinite(after)
        variance = np.where(holds, after, before)
        deviation = np.where(holds, np.sqrt(variance + self.epsilon), self.deviation)
        return Scaled(divided(self.a * out, into) * deviation, variance, deviation, self.epsilon)

    def require(self, port: int, change: Affine) -> None:
        """Refuse a change of the data or the output that is not one of parameters.

        Raises:
            Refused: it is not per channel, or beyond what parameters can hold.
        """
        if per_channel(change, self.channels) is None:
            raise Refused(Reason.AXES, self.view.label, "the change is not one value per channel")
        if not change.is_ordinary or (port != OUT and not change.is_invertible):
            raise Refused(
                Reason.PRECISION,
                self.view.label,
                "the scale is zero or so small in a channel that it cannot be divided by",
            )

    def passed_on(self, into: Affine, sides: Sides) -> None:
        """Return None: the mean takes a shift of the data."""

    def altered(self, sides: Sides) -> Iterator[Read]:
        """Yield the parameters that get new values by changes of the two sides."""
        index, (into, out) = self.view.index, sides
        if sides.have_scale:
            yield index, 1
        if out is not None:
            yield index, 2
        if into is not None:
            yield index, 3
        if into is not None and into.has_scale:
            yield index, 4

    def revised(self, sides: Sides, *, even: bool = False) -> Iterator[Revised]:
        """Yield what becomes of the parameters; ``even`` gives the scales one size."""
        view, count = self.view, self.channels
        ones, zeros = np.ones(count), np.zeros(count)
        same = ones, zeros
        s_in, h_in = same if sides.into is None else _vectors(sides.into, count)
        s_out, h_out = same if sides.out is None else _vectors(sides.out, count)
        scale, variance, *_ = self.between(ones, ones, parameter_type(view, 4))
        scaled = self.between(s_in, s_out, parameter_type(view, 4))
        new_scale, new_variance = (even and scaled.equal_scales()) or scaled[:2]
        table = (
            (1, scale, new_scale),
            (2, self.bias, self.bias * s_out + h_out),
            (3, self.mean, self.mean * s_in + h_in),
            (4, variance, new_variance),
        )
        kinds = [parameter_type(view, slot) for slot, _, _ in table]
        altered = [not np.array_equal(old, new) for _, old, new in table]
        for position, (slot, _, new) in enumerate(table):
            info, kind = view.constant(slot), kinds[position]
            assert info is not None
            # Scale and B are of one type, and so are mean and variance: if one changes it, both do.
            partner = position ^ 1
            if altered[position] or (altered[partner] and info.data_type != kind):
                values = Given(new, () if slot in (1, 4) else None)
                yield Revised(view, slot, PARAMETERS[slot - 1], (count,), kind, values)

    def peaks(self, magnitude: Array) -> Array:
        """Return the largest magnitude of the scale per channel: its own."""
        return magnitude


def channel_axis(rank: int) -> int:
    """Return the axis of the channels: a vector has one channel."""
    return 1 if rank > 1 else 0


def per_channel(change: Affine, count: int) -> tuple[Float64, Float64] | None:
    """Return scale and shift of a change as vectors along the channels, see ``Affine.vector``."""
    return change.vector(channel_axis(change.rank), count)


def along_channels(vector: Float64, rank: int) -> Float64:
    """Return a vector over the channels as an array of some rank, see ``affine.along``."""
    return along(vector, channel_axis(rank), rank)


def _vectors(change: Affine, count: int) -> tuple[Float64, Float64]:
    vectors = per_channel(change, count)
    assert vectors is not None
    return vectors


class Scaled(NamedTuple):
    """The parts of a BatchNormalization that a scale of its input or its output changes.

    Attributes:
        scale, variance: its parameters, ``(C,)``.
        deviation: ``sqrt(variance + epsilon)``.
        epsilon: the attribute.
    """

    scale: Float64
    variance: Float64
    deviation: Float64
    epsilon: float

    def equal_scales(self) -> tuple[Float64, Float64] | None:
        """Move the sizes of the scale into the variance, which nobody rounds to int8.

        Returns:
            ``scale`` and ``input_var`` of the same function, the scales being of one size or zero;
            None if they are so already, or if it takes numbers beyond all use.
        """
        used = self.scale != 0
        size = np.abs(self.scale[used])
        if not size.size or size.max() - size.min() <= AGREEMENT * size.max():
            return None
        wanted = np.square(self.deviation[used] / size)
        if not ((wanted >= _LEAST) & (wanted <= 1 / _LEAST)).all():
            return None
        least = 2 * math.sqrt(max(self.epsilon, 0) / wanted.min())
        # A power of two, so that no variance becomes negative.
        factor = 2.0 ** math.ceil(math.log2(least)) if least > 1 else 1.0
        variance = self.variance.copy()
        variance[used] = factor**2 * wanted - self.epsilon
        if not (variance <= 1 / _LEAST).all():
            return None
        return factor * np.sign(self.scale), variance


def parameter_type(view: NodeView, slot: int) -> int:
    """Return the type that a new parameter is written in.

    From BatchNormalization-14 on the types of the statistics, and from 15 on those of scale and B,
    are free of that of the data: a narrower one would round the digits that come from elsewhere.
    Before, all of them are of one type.
    """
    info = view.constant(slot)
    assert info is not None
    kinds = (info.data_type, view.type_of(view.name_in(0)))
    return min(kinds, key=lambda kind: FORMATS[kind][2] if kind in FORMATS else 1.0)


def data_type(view: NodeView) -> int:
    """Return the type of a BN's data, UNDEFINED where it is not known.

    Before BatchNormalization-15 it is that of the scale.
    """
    for name in (view.name_in(0), view.writes[0]):
        if kind := view.type_of(name):
            return kind
    scale = view.constant(1)
    return scale.data_type if scale and view.opset < 15 else int(TensorProto.UNDEFINED)
