"""Changes of tensors: many made at once are what each would be alone."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_bnfold.operators import affine
from onnx_bnfold.operators.affine import (
    AGREEMENT,
    VANISHING,
    Affine,
    all_along,
    along,
    close,
    summed,
)

PROPERTIES = ("has_scale", "has_shift", "is_identity", "is_finite", "is_ordinary", "is_invertible")
VALUES = st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, 0.5, 3.0, 2.0**-200, 2.0**100, 2.0**101, 1e308, np.inf, -np.inf, np.nan]
)


@st.composite
def vectors(draw):
    """Scale and shift of some channels, often all alike, and the rank of their tensor."""
    count = draw(st.integers(0, 4))
    sides = []
    for _ in range(2):
        if draw(st.booleans()):
            sides.append(np.full(count, draw(VALUES)))
        else:
            sides.append(np.array([draw(VALUES) for _ in range(count)], np.float64))
    return tuple(sides), draw(st.integers(2, 4))


@given(st.lists(vectors(), max_size=5))
@settings(max_examples=400, derandomize=True, deadline=None)
def test_many_changes_at_once_are_what_each_is_alone(cases):
    made = all_along([np.array(sides) for sides, _ in cases], 1, [rank for _, rank in cases])
    assert len(made) == len(cases)
    for change, ((scale, shift), rank) in zip(made, cases, strict=True):
        alone = Affine.of(along(scale, 1, rank), along(shift, 1, rank))
        np.testing.assert_array_equal(change.scale, alone.scale)
        np.testing.assert_array_equal(change.shift, alone.shift)
        assert change.shape == alone.shape
        for name in PROPERTIES:
            assert getattr(change, name) == getattr(alone, name), name


def of_channels(scale, shift):
    return Affine.of(along(np.array(scale, float), 1, 4), along(np.array(shift, float), 1, 4))


AGREE = {
    "rounding": (([1, 3], [5, 7]), ([1 + 1e-13, 3], [5, 7 - 1e-12])),
    "a constant channel": (([1 / VANISHING, 3], [0, 7]), ([1 / VANISHING, 3], [0, 7])),
    "uniform and per channel": (([2, 2], [1, 1]), ([2, 2 + 1e-13], [1, 1 - 1e-13])),
}
DISAGREE = {
    "another scale": (([1, 3], [5, 7]), ([1, 3 + 1e-11], [5, 7])),
    "another shift": (([1, 3], [5, 7]), ([1, 3], [5 + 1e-11, 7])),
    "a scale beside that of a constant channel": (
        ([1 / VANISHING, 3], [0, 0]), ([1 / VANISHING, 5], [0, 0]),
    ),
    "a scale beside one of 1e16": (([1e16, 1, 3], [0, 0, 0]), ([1e16, 3, 1], [0, 0, 0])),
    "a shift beside one of 1e16": (([1, 1, 1], [1e16, 1, 3]), ([1, 1, 1], [1e16, 3, 1])),
    "a shift and none": (([1, 1], [1e16, 1e-9]), ([1, 1], [1e16, 0])),
    "other sizes": (([1, 2, 3], [0, 0, 0]), ([1, 2], [0, 0])),
}  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        pytest.param(*pair, agree, id=id)
        for agree, pairs in ((True, AGREE), (False, DISAGREE))
        for id, pair in pairs.items()
    ],
)
def test_changes_agree_in_every_element_or_not_at_all(one, other, agree):
    assert of_channels(*one).agrees_with(of_channels(*other)) is agree
    assert of_channels(*other).agrees_with(of_channels(*one)) is agree


@pytest.mark.parametrize(
    ("scale", "may"),
    [
        *((size, True) for size in (1, -1, 2.0**-100, 2.0**100, 1 / VANISHING, -1 / VANISHING)),
        *((size, False) for size in (0, 2.0**-101, -(2.0**101), 1 / VANISHING**0.5, np.nan)),
    ],
)
def test_a_scale_is_divided_by_where_that_keeps_its_precision(scale, may):
    assert of_channels([1, scale, 2], [0, 0, 0]).is_invertible is may


def test_what_cancels_is_zero_and_what_is_small_stays():
    a, b = np.array([0.1, 1.0, 1e16, 1e-300]), np.array([0.2, 1e-14, 1.0, 0.0])
    total = summed(a, b, np.array([-0.3, -1.0, -1e16, 0.0]))
    np.testing.assert_array_equal(total == 0, [True, False, True, False])
    assert close(total[[1, 3]], a[[1, 3]] + b[[1, 3]] - [1.0, 0.0])
    np.testing.assert_array_equal(summed(a, np.zeros((3, 1))), np.broadcast_to(a, (3, 4)))


def test_a_scale_that_has_vanished_stays_what_it_stands_for():
    """Its shift stands for the constant that the channel was."""
    both = of_channels([2.0**200, 2.0**199], [0, 0]).then(of_channels([2.0**200] * 2, [3, 3]))
    assert both.scale.reshape(-1).tolist() == [1 / VANISHING, 2.0**399]
    assert both.shift.reshape(-1).tolist() == [3 * 2.0**100, 3]


def test_a_change_undone_leaves_no_shift():
    change = of_channels([3.0, 0.7], [0.1, 1 / 3])
    for both in (change.then(change.inverse()), change.inverse().then(change)):
        assert not both.has_shift


def test_of_no_elements_a_change_is_none():
    """It would else come to a tensor that has some, behind an operator that drops an axis."""
    change = Affine.of(np.empty((3, 0)), np.empty((0, 1)))
    assert change.shape == (1, 1)
    assert change.is_identity
    assert Affine.of(np.full((3, 1), 2.0), np.empty((3, 0))).agrees_with(
        Affine.of(np.full((1, 1), 2.0), np.zeros((1, 1)))
    )


def test_what_is_composed_varies_by_no_rounding_error():
    many = np.random.default_rng(0).uniform(0.5, 2, (1, 64, 1))
    zeros = np.zeros((1, 1, 1))
    there, back = Affine.of(many, zeros), Affine.of(1 / many, zeros)
    assert there.then(back).is_identity
    tripled = there.then(Affine.of(3 / many, zeros))
    assert tripled.scale.shape == (1, 1, 1)
    apart = Affine.identity(3).then(Affine.of(np.array([[[1.5], [1.5 + 1e-14]]]), zeros))
    assert apart.scale.shape == (1, 2, 1)


FIRST = [0.0, 1.0, 1 + 1e-13, 1 + 1e-11, -1.0, 1e300, np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("second", [0.0, 1.0, np.inf, np.nan])
def test_close_is_what_all_elements_say(second):
    """The first one is looked at before the others."""
    with np.errstate(invalid="ignore"):
        for one, other in product(FIRST, repeat=2):
            a, b = np.array([one, second]), np.array([other, second])
            limit = AGREEMENT * np.maximum(np.abs(a), np.abs(b))
            assert close(a, b) == ((a == b).all() or (np.abs(a - b) <= limit).all())


def test_many_that_differ_in_the_first_element_are_compared_no_further(monkeypatch):
    compared = []
    monkeypatch.setattr(affine.np, "abs", compared.append)
    assert not close(np.array([1.0, 2.0]), np.array([1.5, 2.0]))
    assert not compared
