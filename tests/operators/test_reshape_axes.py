"""Blocks of axes that hold the same elements in front of a Reshape and behind it."""

from onnx_bnfold.operators.reshape_axes import matching_blocks


def test_blocks_beside_sizes_that_are_not_known():
    """What lies behind a block, or in front of it, need not be known if it is all the same."""
    assert matching_blocks(("N", 4, None, None), ("N", 4, None), 1, 1) == ((1, 2), (1, 2))
    assert matching_blocks(("N", 4, None), ("N", 2, 2, None), 1, 1) == ((1, 2), (1, 3))
    assert matching_blocks((None, None, 4, 3), (None, 2, 2, 3), 2, 2) == ((2, 3), (1, 3))
