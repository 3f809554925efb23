"""Blocks of large products; test_numerics.py compares their values with those of whole products."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_bnfold.rewriting import blocked_products


@given(
    st.lists(st.integers(1, 6), max_size=4).map(tuple),
    st.sets(st.integers(0, 3)),
    st.sampled_from([np.float32, np.float64, np.float16, ml_dtypes.bfloat16]),
    st.integers(-160, 160),
    st.integers(0, 1000),
)
@settings(max_examples=300, derandomize=True, deadline=None)
def test_a_size_is_near_the_peak_and_not_above_it(shape, axes, dtype, power, seed):
    """Nor is it zero, unless a square may be: then a slower look decides."""
    result = np.random.default_rng(seed).standard_normal(shape) * 2.0**power
    with np.errstate(over="ignore"):
        result = np.asarray(result).astype(dtype)
    summed = tuple(sorted(axis for axis in axes if axis < len(shape)))
    with blocked_products._calculating():
        size = blocked_products.sizes_of(result, summed).astype(np.float64)
    peak = blocked_products.peaks_of(result, summed).astype(np.float64)
    assert size.shape == peak.shape
    assert np.array_equal(np.isfinite(size), np.isfinite(peak))
    finite = np.isfinite(peak)
    assert (size[finite] <= peak[finite] * (1 + 1e-6)).all()
    seen = finite & (peak > 2.0**-60)
    count = result.size / max(1, peak.size)
    assert (size[seen] >= peak[seen] / np.sqrt(count) * (1 - 1e-6)).all()


def test_a_size_is_a_root_mean_square_where_that_is_faster():
    result = np.array([[[3, 4]], [[5, 12]]], np.float32)
    np.testing.assert_allclose(
        blocked_products.sizes_of(result, (1, 2)), np.sqrt([[[12.5]], [[84.5]]])
    )


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_seen(wrong):
    result = np.ones((3, 4), np.float32)
    result[1, 2] = wrong
    assert np.isfinite(blocked_products.sizes_of(result, (1,))).reshape(-1).tolist() == [
        True,
        False,
        True,
    ]
