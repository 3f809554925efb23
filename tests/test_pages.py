"""Memory that begins on a page."""

import numpy as np
import pytest

from onnx_bnfold.pages import PAGE, page_aligned
from onnx_bnfold.storage import files


@pytest.mark.parametrize("length", [1, PAGE, 3 * PAGE + 5])
def test_memory_begins_on_a_page(length):
    memory = page_aligned(length)
    assert len(memory) == length
    assert np.frombuffer(memory, np.uint8).ctypes.data % PAGE == 0


@pytest.mark.parametrize("offsets", [(0, 0), (3, PAGE - 3), (512, 1024), (64, 4000)])
def test_a_buffer_for_a_file_lies_apart_from_both_offsets(offsets):
    address = np.frombuffer(files._buffer(*offsets), np.uint8).ctypes.data
    for offset in offsets:
        assert min((address - offset) % PAGE, (offset - address) % PAGE) >= 64
