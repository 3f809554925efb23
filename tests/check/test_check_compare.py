"""The rule on made-up tensors."""

import numpy as np
import pytest

from onnx_bnfold.check import CheckOptions
from onnx_bnfold.check.compare import Comparison

SHAPE = (2, 8, 20, 20)
LEAST = CheckOptions().factor  # least limit
SIGMA = 1e-4  # far above float32's own unit in the last place


def compare(name, original, folded, draws, options):
    comparison = Comparison(name, np.asarray(original), np.asarray(folded))
    for draw in draws:
        comparison.add(np.asarray(draw))
    return comparison.judge(options)


def judge(original, folded, draws, **options):
    def as32(array):
        return np.asarray(array, np.float32)

    return compare(
        "t", as32(original), as32(folded), [as32(d) for d in draws], CheckOptions(**options)
    )


def noisy(rng, base, sigma=SIGMA, count=4):
    return [base + sigma * rng.standard_normal(base.shape) for _ in range(count)]


@pytest.mark.parametrize("shape", [(4,), (4, 10), SHAPE], ids=str)
def test_noise_of_the_same_size_holds(rng, shape):
    failed = 0
    for _ in range(200):
        base = rng.standard_normal(shape)
        folded, *draws = noisy(rng, base, count=1 + max(4, 16 // base.size))
        failed += not judge(base, folded, draws).holds
    assert failed <= 1


def test_equal_tensors_have_no_difference(rng):
    base = rng.standard_normal(SHAPE)
    found = judge(base, base, noisy(rng, base))
    assert found.holds
    assert (found.max_abs, found.times_noise, found.snr_db, found.worst_index) == (0, 0, None, None)


def test_larger_error_everywhere(rng):
    base = rng.standard_normal(SHAPE)
    found = judge(base, noisy(rng, base, 10 * SIGMA)[0], noisy(rng, base))
    assert found.times_noise == pytest.approx(10, rel=0.2)
    assert not found.holds
    assert "times the rounding noise" in found.reason


@pytest.mark.parametrize(("times", "holds"), [(1.6, True), (3.2, False)])
@pytest.mark.parametrize("count", [4, 64])
def test_a_few_times_the_noise_is_told_from_it(rng, times, holds, count):
    """Two thousand numbers scatter little, so that the least limit decides."""
    base = rng.standard_normal((2, 1000))
    folded = noisy(rng, base, times * SIGMA)[0]
    found = judge(base, folded, noisy(rng, base, count=count))
    assert (found.holds, found.limit) == (holds, LEAST)


def test_error_in_one_element(rng):
    base = rng.standard_normal(SHAPE)
    folded = base.copy()
    folded[1, 2, 3, 4] += 40 * SIGMA
    found = judge(base, folded, noisy(rng, base))
    assert found.statistic == "largest element"
    assert found.worst_index == (1, 2, 3, 4)
    assert not found.holds


def test_error_in_a_quiet_channel_beside_loud_ones(rng):
    # Boxes in pixels and scores in 0..1 in one tensor: (2, 4 + 80, 100).
    loud = np.ones((1, 84, 1))
    loud[:, :4] = 640
    base = loud * rng.standard_normal((2, 84, 100))
    draws = noisy(rng, base, SIGMA * loud)
    folded = base.copy()
    folded[:, 50] += 10 * SIGMA * rng.standard_normal((2, 100))
    found = judge(base, folded, draws)
    assert found.statistic == "rms over index 50 of axis 1"
    assert found.times_noise == pytest.approx(10, rel=0.3)


@pytest.mark.parametrize("dead", [[3], [1, 2, 3, 5, 6, 7]], ids=["one", "most"])
def test_channel_of_zeros_may_get_one_crossing(rng, dead):
    # Behind a Relu a channel can be zero in every draw; a rounding difference lifts one pixel.
    base = rng.standard_normal(SHAPE)
    draws = noisy(rng, base)
    for array in (base, *draws):
        array[:, dead] = 0
    folded = noisy(rng, base)[0]
    folded[:, dead] = 0
    folded[0, 3, 5, 5] = SIGMA
    assert judge(base, folded, draws).holds


def test_half_a_unit_in_the_last_place_is_no_fault():
    base = np.linspace(1, 2, 100, dtype=np.float32)
    folded = np.nextafter(base, np.float32(3))
    assert judge(base, folded, [base] * 4).holds
    assert not judge(base, base * np.float32(1 + 1e-6), [base] * 4).holds


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_values_that_are_not_finite(rng, value):
    base = rng.standard_normal(SHAPE)
    base[0, 0, 0, 0] = value
    draws = noisy(rng, base)
    folded = noisy(rng, base)[0]
    assert judge(base, folded, draws).holds
    folded[0, 0, 0, 0] = 0
    found = judge(base, folded, draws)
    assert found.mismatched == 1
    assert "in being finite" in found.reason
    folded[0, 0, 0, 0] = np.inf if value == -np.inf else -np.inf
    assert not judge(base, folded, draws).holds


def test_draws_that_overflow_hide_nothing(rng):
    base = rng.standard_normal(SHAPE)
    draws = [np.full(SHAPE, np.inf)] * 4
    assert not judge(base, base + 1, draws).holds


def test_integers_may_differ_where_the_noise_does(rng):
    base = rng.integers(0, 10, 500)
    draw, folded = base.copy(), base.copy()
    draw[:2] += 1
    folded[5:10] += 1
    options = CheckOptions()
    assert not compare("t", base, folded, [base] * 4, options).holds
    found = compare("t", base, folded, [base, base, base, draw], options)
    assert (found.mismatched, found.noise_mismatched, found.allowed_mismatches) == (5, 2, 9)
    assert found.holds


def test_one_integer_in_a_thousand_is_a_tie():
    base = np.zeros(2000, np.int64)
    folded = base.copy()
    folded[:2] = 1
    assert compare("t", base, folded, [base], CheckOptions()).holds
    folded[2] = 1
    assert not compare("t", base, folded, [base], CheckOptions()).holds


@pytest.mark.parametrize("dtype", [bool, object], ids=["bool", "string"])
def test_other_types_must_be_equal(dtype):
    base = np.array([True, False]) if dtype is bool else np.array(["a", "b"], object)
    assert compare("t", base, base.copy(), [base], CheckOptions()).holds
    assert not compare("t", base, base[::-1], [base], CheckOptions()).holds


def test_shape_that_noise_changes_cannot_be_compared(rng):
    base = rng.standard_normal((7, 6))
    found = judge(base, base[:5], [base, base[:6]])
    assert found.holds
    assert "cannot be compared" in found.reason
    assert not judge(base, base[:5], [base, base]).holds


def test_empty_tensors_agree():
    empty = np.zeros((0, 4))
    assert judge(empty, empty, [empty]).holds


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_without_axes(dtype):
    base = np.array(3, dtype)
    draws = [np.nextafter(base, np.array(base + k, dtype)) for k in (-1, 1)] * 8
    assert compare("t", base, draws[0], draws, CheckOptions()).holds
    found = compare("t", base, base + dtype_step(base, 100), draws, CheckOptions())
    assert not found.holds
    assert (found.shape, found.worst_index) == ((), ())


def dtype_step(base, count):
    return np.asarray(count * np.spacing(base), base.dtype)


def correlated(rng, rows=400, width=80):
    """Rows whose elements have one error in common, as those of a softmax do."""
    return SIGMA * rng.standard_normal((rows, 1)) * np.ones((1, width))


def test_worst_of_many_correlated_slices_is_no_fault(rng):
    # 64 draws give each of 400 slices its noise from 64 numbers: the worst exceeds 4 now and then.
    base = rng.standard_normal((400, 80))
    failed, above = 0, 0
    for _ in range(60):
        folded, *draws = (base + correlated(rng) for _ in range(65))
        found = judge(base, folded, draws)
        failed += not found.holds
        above += found.times_noise > 4
    assert above > 2
    assert failed == 0


def test_limit_of_other_statistics_stays_where_slices_are_correlated(rng):
    base = rng.standard_normal((400, 80))
    draws = [base + correlated(rng) for _ in range(64)]
    found = judge(base, base + 6 * SIGMA * rng.standard_normal(base.shape), draws)
    assert not found.holds
    assert found.times_noise > 5
    assert found.limit == LEAST


def test_few_draws_tell_no_scatter(rng):
    base = rng.standard_normal((400, 80))
    draws = [base + correlated(rng) for _ in range(4)]
    assert judge(base, base + 10 * correlated(rng), draws).limit == LEAST


def test_top1_counts_rows(rng):
    base = np.eye(4)
    folded = base.copy()
    folded[0] = folded[0, ::-1]
    assert judge(base, folded, [base]).top1_agreement == 0.75
    assert judge(base[None], folded[None], [base[None]]).top1_agreement is None


@pytest.mark.filterwarnings("error")
def test_float64_zeros_have_a_noise_too():
    base = np.zeros((2, 100))
    assert compare("t", base, base.copy(), [base], CheckOptions()).holds
    found = compare("t", base, base + 1e-300, [base], CheckOptions())
    assert np.isfinite(found.times_noise)
    found = compare("t", base, base + 1e-30, [base], CheckOptions())
    assert not found.holds
