"""Float types and rounding to them."""

from __future__ import annotations

import ml_dtypes
import pytest
from onnx import TensorProto, helper

from onnx_bnfold.model.float_formats import FORMATS


@pytest.mark.parametrize("kind", FORMATS, ids=TensorProto.DataType.Name)
def test_limits_of_a_float_type(kind):
    known = ml_dtypes.finfo(helper.tensor_dtype_to_np_dtype(kind))
    assert FORMATS[kind] == (known.max, known.smallest_normal, known.eps / 2)
