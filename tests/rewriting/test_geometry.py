"""In which kernel others can be embedded, by trying each kernel that there might be."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from onnx_bnfold.rewriting.geometry import Extent, Geometry


def taps(part):
    """Where the elements of a kernel lie, from the position of what is written."""
    [kernel], [dilation], [before] = part.kernel, part.dilations, part.before
    return {position * dilation - before for position in range(kernel)}


def lost(part):
    """How many positions fewer are written than read, with a stride of one."""
    [kernel], [dilation], [before], [after] = (
        part.kernel,
        part.dilations,
        part.before,
        part.after,
    )
    return (kernel - 1) * dilation - before - after


def holds(whole, parts):
    """Whether a kernel that fits the output has an element wherever one of some others has."""
    return all(taps(part) <= taps(whole) and lost(part) == lost(whole) for part in parts)


def one(kernel, dilation, before, after, group=1, stride=1):
    dilation = dilation if kernel > 1 else 1
    return Geometry(group, (kernel,), (stride,), (dilation,), (before,), (after,))


def joined(parts):
    extent = Extent.of(parts[0])
    for part in parts[1:]:
        extent = None if extent is None else extent.joined(Extent.of(part))
    return extent


@pytest.mark.parametrize("seed", range(300))
def test_all_are_embedded_or_none_of_the_smallest_extent_holds_them(seed):
    draw = random.Random(seed)
    kernels = [
        (draw.choice((1, 1, 2, 3)), draw.choice((1, 2)), draw.randrange(5), draw.randrange(5))
        for _ in range(draw.choice((2, 3)))
    ]
    parts = [one(*each) for each in kernels]
    most = [max(part.before[0] for part in parts), max(part.after[0] for part in parts)]
    step = max(part.dilations[0] for part in parts)
    possible = (one(kernel, step, *most) for kernel in range(1, 16))
    fitting = [whole for whole in possible if holds(whole, parts)]
    extent = joined(parts)
    if extent is None:
        assert not [whole for whole in fitting if whole.dilations == (step,)]
    else:
        assert holds(extent.geometry, parts)
        assert extent.geometry in fitting


@pytest.mark.parametrize("seed", range(30))
def test_the_order_does_not_matter(seed):
    draw = random.Random(seed)
    parts = [one(1, 1, a, 4 - a) for a in draw.sample(range(5), 2)]
    parts.append(one(3, 2, 4, 4))
    found = [joined(each) for each in itertools.permutations(parts)]
    assert len({extent and extent.geometry for extent in found}) == 1


def test_single_elements_that_lie_apart_wait_for_a_dilation():
    """Both are elements of a kernel of dilation 2, but not of one of dilation 3."""
    apart = [one(1, 1, 0, 4), one(1, 1, 4, 0)]
    assert joined(apart).geometry == one(5, 1, 4, 4)
    assert joined([*apart, one(3, 2, 4, 4)]).geometry == one(3, 2, 4, 4)
    assert joined([*apart, one(3, 3, 5, 5)]) is None


def test_groups_and_strides_are_equal():
    assert joined([one(1, 1, 0, 0), one(1, 1, 0, 0, group=2)]) is None
    assert joined([one(1, 1, 0, 0), one(1, 1, 0, 0, stride=2)]) is None


def test_the_merged_kernel_computes_the_sum():
    """What the words of the module mean, in numbers."""
    rng = np.random.default_rng(0)
    data = rng.standard_normal(12)

    def run(part, weight):
        [kernel], [dilation] = part.kernel, part.dilations
        padded = np.pad(data, (part.before[0], part.after[0]))
        count = len(padded) - (kernel - 1) * dilation
        ends = ((i, i + count) for i in range(0, kernel * dilation, dilation))
        return sum(w * padded[a:b] for w, (a, b) in zip(weight, ends, strict=True))

    parts = [one(1, 1, 0, 0), one(3, 2, 2, 2)]
    whole = joined(parts).geometry
    weights = [rng.standard_normal(part.kernel[0]) for part in parts]
    total = np.zeros(whole.kernel[0])
    for part, weight in zip(parts, weights, strict=True):
        start = (whole.before[0] - part.before[0]) // whole.dilations[0]
        total[start : start + part.kernel[0]] += weight
    expected = sum(run(part, weight) for part, weight in zip(parts, weights, strict=True))
    assert np.allclose(run(whole, total), expected)
