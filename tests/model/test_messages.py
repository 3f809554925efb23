"""Messages are read and made as onnx's own helper does it."""

import numpy as np
import pytest
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from onnx_bnfold.model.messages import (
    new_attribute,
    new_node,
    new_tensor,
    new_value_info,
    value_of,
)

TENSOR = numpy_helper.from_array(np.float32([1, 2]), "t")
GRAPH = helper.make_graph([], "g", [], [])
SPARSE = helper.make_sparse_tensor(
    TENSOR, helper.make_tensor("i", TensorProto.INT64, [2], [0, 3]), [5]
)
BFLOAT16 = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
TYPE = helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 3])


@pytest.mark.parametrize(
    "value", [2, 0.5, "word", TENSOR, GRAPH, SPARSE, TYPE], ids=lambda v: type(v).__name__
)
def test_the_value_of_an_attribute(value):
    one, several = helper.make_attribute("a", value), helper.make_attribute("a", [value, value])
    expected = value.encode() if isinstance(value, str) else value
    assert value_of(one) == value
    assert value_of(several) == [expected, expected]


def test_a_word_that_is_not_utf_8_is_spelled_out():
    assert value_of(AttributeProto(name="a", type=AttributeProto.STRING, s=b"\xffa")) == r"\xffa"


def test_an_attribute_without_a_type_has_no_value():
    with pytest.raises(ValueError, match="'a' has the unknown type 0"):
        value_of(AttributeProto(name="a"))


@pytest.mark.parametrize("value", [-3, np.int64(4), 0.25, [1, 2], (3,), TENSOR], ids=str)
def test_an_attribute(value):
    assert new_attribute("a", value) == helper.make_attribute("a", value)


def test_a_node():
    words = "Conv", ["x", "w"], ["y"], "name"
    made = new_node(*words, strides=[2, 2], group=2)
    assert made == helper.make_node(*words, strides=[2, 2], group=2)
    assert [each.name for each in made.attribute] == ["group", "strides"]
    assert not new_node("Relu", ["x"], ["y"]).HasField("name")
    assert new_node("F", [], ["y"], domain="d") == NodeProto(op_type="F", output=["y"], domain="d")


@pytest.mark.parametrize("kind", [*"fdeblqBHIQ?", BFLOAT16])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)], ids=str)
def test_a_tensor(kind, shape):
    dtype = (
        np.dtype(kind) if len(kind) == 1 else helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    )
    values = np.zeros(shape, dtype)
    assert new_tensor(values, "t") == numpy_helper.from_array(values, "t")
    assert new_tensor(values) == numpy_helper.from_array(values)
    assert new_tensor(values.T) == numpy_helper.from_array(values.T)


@pytest.mark.parametrize("dims", [None, [], [2, "N", None]], ids=str)
def test_an_entry_of_a_tensor(dims):
    made = new_value_info("t", TensorProto.FLOAT, dims)
    assert made == helper.make_tensor_value_info("t", TensorProto.FLOAT, dims)
