"""Changes of tensors: many made at once are what each would be alone."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_bnfold.affine import Affine, all_along, along

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
