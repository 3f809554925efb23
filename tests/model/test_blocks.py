"""Blocks of large arrays; test_rounded_products.py compares products in blocks with whole ones."""

import numpy as np
import pytest

from onnx_bnfold.model.blocks import InMemory, Streamed, block_indices, blocks_of, combined, part_of


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (120,)], ids=str)
def test_blocks_are_as_large_as_they_may_be(shape):
    sizes = [np.ones(shape)[place].size for place in block_indices(shape, 10)]
    assert max(sizes) == 10
    assert sum(sizes) == 120


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3, 4, 5), (7, 11)], ids=str)
@pytest.mark.parametrize("most", [1, 10, 1000])
def test_blocks_hold_every_element_once(shape, most):
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found = np.full(shape, np.nan, np.float32)
    for where, values in blocks_of(InMemory(array), shape, most):
        assert values.size <= most
        part_of(found, where)[...] = values
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 2), (1, 2), (0, 1, 2), ()], ids=str)
@pytest.mark.parametrize("most", [1, 7, 30, 2000])
def test_sums_and_peaks_of_blocks_are_those_of_the_array(axes, most):
    """Sums are of float64: they may differ in the last bit, far below that of the weight's type."""
    rng, shape = np.random.default_rng(0), (7, 5, 11)
    array, factor = rng.standard_normal(shape).astype(np.float32), rng.standard_normal((5, 1))
    product = array.astype(np.longdouble) * factor
    size = np.abs(product).sum(axis=axes, keepdims=True)

    def found(combine, of):
        blocks = blocks_of(InMemory(array), shape, most)
        return combined(blocks, shape, combine, axes, [factor[None]], of)

    assert (
        np.abs(found(np.add, np.positive) - product.sum(axes, keepdims=True)) < 1e-15 * size
    ).all()
    assert (np.abs(found(np.add, np.absolute) - size) < 1e-15 * size).all()
    peaks = np.abs(array * factor).max(axes, keepdims=True)
    np.testing.assert_array_equal(found(np.maximum, np.absolute), peaks)


def test_what_is_not_a_number_is_in_its_sum_and_its_peak_alone():
    array = np.array([[1, np.nan, 2], [3, -4, 5]], np.float32)
    for combine, other in ((np.add, 4), (np.maximum, 5)):
        blocks = blocks_of(InMemory(array), array.shape, 2)
        of = np.absolute if combine is np.maximum else np.positive
        found = combined(blocks, array.shape, combine, (1,), of=of)
        np.testing.assert_array_equal(found, [[np.nan], [other]])


@pytest.mark.parametrize("made", [1, 4, 100])
@pytest.mark.parametrize("most", [1, 7, 100])
def test_what_is_made_in_blocks_is_read_in_others_as_often_as_wanted(made, most):
    """Each block is made where the one before was, and what follows the last one is run, too."""
    array, ended = np.arange(50.0), []

    def make():
        block = np.empty(made)
        for start in range(0, 50, made):
            part = block[: min(made, 50 - start)]
            part[:] = array[start : start + made]
            yield part
        ended.append(True)

    streamed = Streamed(make, 50, array.dtype)
    for times in (1, 2):
        found = [values.copy() for _, values in blocks_of(streamed, (50,), most)]
        np.testing.assert_array_equal(np.concatenate(found), array)
        assert len(ended) == times
