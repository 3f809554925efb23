"""Groups of tensors whose channels share free factors, and the int8 noise of a choice of these.

See ``equalize`` for the formula. Weights are read in blocks, as often as a question about them is
asked: no array here has a number per pair of channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnx_bnfold.model.blocks import part_of
from onnx_bnfold.operators.affine import Float64
from onnx_bnfold.operators.entries import Sides
from onnx_bnfold.operators.factors import Factor
from onnx_bnfold.operators.linear import LinearLayer
from onnx_bnfold.operators.weight_axes import broadcast_shape
from onnx_bnfold.planning.ranges import Range

_ALPHAS = np.linspace(0, 1, 21)
_WORTHWHILE = 0.9  # of the noise before: what gains less is left alone
_SMALLEST = 2.0**-6  # of the largest peak; smaller ones are raised as if they were of this size
_LEVELS, _WEIGHT_LEVELS = 255, 127

# Returns the largest magnitude of a reader's weights per output channel where those of each input
# channel are divided by a factor, ``(choices, groups, C_out / groups)``, for each of several
# choices of the factors, ``(C_in,)``.
Largest = Callable[[Sequence[Float64]], Float64]


@dataclass(frozen=True, eq=False)
class Member:
    """A tensor of a group.

    Attributes:
        channels: for each of its channels the channel of the group, -1 for none.
        range: as it is by now.
    """

    channels: np.ndarray[tuple[int], np.dtype[np.intp]]
    range: Range

    def factors(self, s: Float64) -> Float64:
        """Return the factor of each of its channels."""
        return np.where(self.channels < 0, 1.0, s[self.channels])

    def onto(self, values: Float64, size: int) -> Float64:
        """Sum a value per channel of the tensor over the channels of the group."""
        known = self.channels >= 0
        return np.bincount(self.channels[known], values[known], size).astype(np.float64)

    def spent(self, s: Float64, gain: Float64) -> Float64:
        """Return what noise of one in each of its channels is in the readers' outputs."""
        known = np.maximum(self.channels, 0)
        return np.where(self.channels < 0, 0.0, gain[known] / s[known] ** 2)

    def noises(self, choices: Sequence[Float64], gain: Float64) -> list[float]:
        """Return what rounding the tensor adds, for each choice of the factors."""
        return [self._noise(s, gain) for s in choices]

    def _noise(self, s: Float64, gain: Float64) -> float:
        f = self.factors(s)
        step = ((self.range.high * f).max() - (self.range.low * f).min()) / _LEVELS
        return float(step**2 / 12 * self.spent(s, gain).sum())


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer, or a BatchNormalization that stays, that reads a member.

    Attributes:
        largest: of its weights, which have a step per output channel.
        gain: ``(C,)``: what noise of one in a channel is beside the power of its output.
        power: ``(C,)``: what a weight's noise of one is beside it.
    """

    member: Member
    largest: Largest
    gain: Float64
    power: Float64

    def noises(self, choices: Sequence[Float64], gain: Float64) -> list[float]:
        """Return what rounding the weights adds, for each choice of the factors."""
        factors = [self.member.factors(s) for s in choices]
        return [
            self._noise(largest / _WEIGHT_LEVELS, f)
            for largest, f in zip(self.largest(factors), factors, strict=True)
        ]

    def _noise(self, steps: Float64, f: Float64) -> float:
        sums = (self.power * f**2).reshape(len(steps), -1).sum(axis=1)
        return float((np.square(steps).sum(axis=1) / 12 * sums).sum())


@dataclass(frozen=True, eq=False)
class Group:
    """Tensors that share their factors.

    Attributes:
        members: those whose range is known; one that a Relu cuts off counts whole, since how far
            it reaches beyond the cut differs from input to input.
        rounded: what a runtime rounds: those of them that it quantises, and constants.
        gain: ``(C,)``: what noise of one in a channel is in the readers' outputs.
    """

    members: tuple[Member, ...]
    rounded: tuple[Member | Reader, ...]
    gain: Float64

    def factors(self) -> Float64 | None:
        """Return the factors of least noise; None if none is worth its while."""
        peaks = np.zeros(len(self.gain))
        for member in self.members:
            known = member.channels >= 0
            peak = member.range.peak
            np.maximum.at(peaks, member.channels[known], peak[known] / (peak.max() or 1))
        relative = np.clip(peaks / (peaks.max() or 1), _SMALLEST, 1)
        choices = [relative**-alpha for alpha in _ALPHAS]
        # Relative to the readers' outputs, in the order in which they are rounded.
        each = [one.noises(choices, self.gain) for one in self.rounded]
        noises = [sum(parts) for parts in zip(*each, strict=True)]
        best = int(np.argmin(noises))
        return choices[best] if noises[best] < _WORTHWHILE * noises[0] else None


def no_steps(factors: Sequence[Float64]) -> Float64:
    """Return ``Largest`` of weights that are not rounded."""
    return np.zeros((len(factors), 1, 1))


def reader_of(layer: LinearLayer, sides: Sides, member: Member) -> Reader:
    """Return what a layer makes of a member.

    Args:
        layer: the layer; its input channels are those of the member.
        sides: the changes of its data and its output.
        member: what it reads.
    """
    factor = layer.weight_factor(*sides)
    energy = layer.combined(np.add, layer.axes("okb"), factor, of=np.square)
    energy, power = _in_order(layer, energy, "gi").reshape(-1), member.range.power
    signal = float((energy * power).sum()) or 1.0
    taps = math.prod(layer.grouped[axis] for axis in layer.axes("k"))
    largest = partial(_largest, layer, factor)
    return Reader(member, largest, energy / signal, taps * power / signal)


def _largest(layer: LinearLayer, factor: Factor, divisors: Sequence[Float64]) -> Float64:
    """Do what ``Largest`` says for a layer, whose weight is multiplied by a factor before."""
    inner, summed = layer.axes("kb"), layer.axes("ikb")
    laid = [each.reshape(broadcast_shape(layer.layout, layer.grouped, "gi")) for each in divisors]
    shape = [1 if axis in summed else size for axis, size in enumerate(layer.grouped)]
    found = np.zeros((len(laid), *shape))
    for where, values in layer.blocks():
        block = values.astype(np.float64)
        np.multiply(block, part_of(factor, where), out=block)
        size = np.abs(block, out=block).max(axis=inner, keepdims=True, initial=0)
        divided = block[tuple(slice(n) for n in size.shape)]  # whose elements are not needed
        for total, divisor in zip(found, laid, strict=True):
            part = part_of(total, where)
            np.divide(size, part_of(divisor, where), out=divided)
            np.maximum(part, divided.max(axis=summed, keepdims=True, initial=0), out=part)
        del block, size, divided  # before there are others
    return np.array([_in_order(layer, total, "go").reshape(layer.group, -1) for total in found])


def _in_order(layer: LinearLayer, array: Float64, letters: str) -> Float64:
    """Return an array of the rank of the grouped weight, some axes first and in this order."""
    first = [layer.layout.index(letter) for letter in letters if letter in layer.layout]
    rest = [axis for axis in range(array.ndim) if axis not in first]
    return array.transpose(first + rest)
