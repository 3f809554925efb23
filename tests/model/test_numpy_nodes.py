"""Nodes that numpy computes: what onnx's reference evaluator would, or nothing."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnx_bnfold.model.determinism import is_deterministic
from onnx_bnfold.model.evaluate import _by_runtime, _model_of
from onnx_bnfold.model.numpy_nodes import MOVING, by_numpy

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # also of the other evaluator
RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 1, 3, 1)).astype(np.float32)
TYPES = ("?", "u1", "i1", "i4", "i8", "f2", "f4", "f8")


def ints(*values):
    return np.array(values, np.int64)


def by_reference(node, opset, feeds):
    model = _model_of(node, node.output, opset, feeds, {})
    return np.asarray(ReferenceEvaluator(model).run(None, feeds)[0])


def compared(op, inputs, opset=21, **attributes):
    """What numpy makes of a node, which is what the reference evaluator makes of it."""
    feeds = {f"x{i}": value for i, value in enumerate(inputs)}
    node = helper.make_node(op, [*feeds], ["y"], **attributes)
    made = by_numpy(node, opset, feeds)
    assert made is not None
    expected = by_reference(node, opset, feeds)
    assert made.dtype == expected.dtype
    assert made.shape == expected.shape
    assert made.tobytes() == expected.tobytes()
    return made


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("shape", [(), (3, 1), (2, 4, 3, 5)], ids=str)
def test_arithmetic(op, dtype, shape):
    values = 10 ** RNG.uniform(-5, 5, shape), [*X.reshape(-1), 0.0, -0.0, np.inf, np.nan]
    compared(op, [np.array(v, dtype) for v in (values[0], values[1][0])])
    compared(op, [np.array(values[1], dtype), np.array(values[1][::-1], dtype)])
    compared(op, [X.astype(dtype), np.asarray(values[0], dtype)])


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul"])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i4", "i8"])
def test_arithmetic_of_integers(op, dtype):
    values = np.array([0, 1, 100, np.iinfo(dtype).max], dtype)
    compared(op, [values, values.reshape(-1, 1)])
    compared(op, [values[1], values[3]])


def test_roots():
    compared("Sqrt", [np.float32([0, -0.0, 2, 1e-40, np.inf, -1])])
    compared("Sqrt", [np.float16(7)[None]])
    compared("Sqrt", [np.asarray(7.0)])


@pytest.mark.parametrize("op", ["ReduceL1", "ReduceL2", "ReduceSumSquare"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        *(((2, 500), (1,)), ((500, 3), (-2,)), ((30, 64, 3, 3), (1, 2, 3)), ((1, 40, 37), (0, 2))),
        *(((3, 64, 11), (0, 2)), ((3, 7, 11), (1,)), ((9, 3000), (1,)), ((5, 1, 6), (1, 0))),
    ],
    ids=str,
)
def test_sums_are_those_of_onnxruntime(op, dtype, shape, axes):
    """Where they are added up one after another: in another order they are others."""
    values = (RNG.standard_normal(shape) * 10 ** RNG.uniform(-3, 3, shape)).astype(dtype)
    for keepdims in (0, 1):
        node = helper.make_node(op, ["x"], ["y"], axes=axes, keepdims=keepdims)
        made, expected = by_numpy(node, 17, {"x": values}), _by_runtime(node, 17, {"x": values})
        assert made.dtype == values.dtype
        assert made.shape == expected["y"].shape
        assert made.tobytes() == expected["y"].tobytes()
    node = helper.make_node(op, ["x", "a"], ["y"])
    made = by_numpy(node, 18, {"x": values, "a": ints(*axes)})
    assert made.tobytes() == expected["y"].tobytes()


@pytest.mark.parametrize("source", TYPES)
@pytest.mark.parametrize("target", TYPES)
def test_casts(source, target):
    values = np.array([0, 1, 1, 0, 1, 5, 100, 3], source)
    if np.dtype(source).kind == "f":
        values += np.array([0.5, 0.25, -0.75, 0, 1e-4, 0.1, 0.3, 0.7], source)
        values = np.abs(values)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(target))
    for opset in (9, 13, 19, 21):
        compared("Cast", [values], opset, to=kind)
    compared("CastLike", [values, np.zeros((2, 0), target)])


def test_values_that_are_too_large_become_infinite():
    values = np.float32([1e6, -1e6, np.nan, 65519, 65520])
    compared("Cast", [values], to=TensorProto.FLOAT16)


@pytest.mark.parametrize("attributes", [{}, {"start": 1}, {"end": 3}, {"start": 1, "end": 9}])
def test_shapes(attributes):
    compared("Shape", [X], **attributes)
    compared("Shape", [np.float32(1)])


def test_reshapes():
    compared("Reshape", [X, ints(6)])
    compared("Reshape", [X, ints(0, -1)])
    compared("Reshape", [X, ints(3, 2, 1)], allowzero=1)
    compared("Reshape", [X[:1, :, :1], ints()])
    compared("Reshape", [X[:, :, :0], ints(0, 4, 0)])
    compared("Reshape", [X[:, :, :0], ints(3, 0)], allowzero=1)


@pytest.mark.parametrize("shape", [(), (1,), (5, 2, 4, 3, 2), (2, 4, 1, 1), (0,)], ids=str)
def test_expansions(shape):
    compared("Expand", [X if 0 not in shape else X[:, :, :, :0], ints(*shape)])
    compared("Expand", [np.bool_([True]), ints(*shape)])


def test_other_moves():
    compared("Identity", [X])
    compared("Transpose", [X])
    compared("Transpose", [X], perm=[2, 0, 3, 1])
    for opset, axes in ((11, (1,)), (11, (1, 3)), (13, (1,)), (13, (1, 3)), (13, (3, 1))):
        inputs, attributes = ([X], {"axes": axes}) if opset < 13 else ([X, ints(*axes)], {})
        compared("Squeeze", inputs, opset, **attributes)
        compared("Unsqueeze", inputs, opset, **attributes)
    compared("Concat", [X, X[:, :, :2]], axis=2)
    compared("Concat", [X, X], axis=-4)


@pytest.mark.parametrize("axes", [(3, 1), (1, -1), (-1, 1)], ids=str)
def test_axes_in_any_order(axes):
    """Of those before opset 13, the reference evaluator goes by one after the other."""
    squeeze = helper.make_node("Squeeze", ["x"], ["y"], axes=axes)
    assert by_numpy(squeeze, 11, {"x": X}).shape == (2, 3)
    unsqueeze = helper.make_node("Unsqueeze", ["x"], ["y"], axes=axes)
    assert by_numpy(unsqueeze, 11, {"x": X[:, 0, :, 0]}).shape == X.shape


def test_sizes_and_what_has_them():
    compared("Size", [X])
    compared("ConstantOfShape", [ints(2, 3)])
    compared("ConstantOfShape", [ints()], value=numpy_helper.from_array(np.int32([7])))
    compared("ConstantOfShape", [ints(0, 3)], value=numpy_helper.from_array(np.float16([0.5])))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_what_is_picked(axis):
    data = RNG.standard_normal((2, 3, 4)).astype(np.float32)
    compared("Gather", [data, ints(-1, 0, 1)], axis=axis)
    compared("Gather", [data, np.int32(1)], axis=axis)
    compared("Gather", [data, ints(0)])
    compared("Slice", [data, ints(1), ints(9)])
    compared("Slice", [data, ints(-2, -9), ints(-1, 9), ints(axis, 1 - axis)])
    compared("Slice", [data, ints(-1), ints(-9), ints(axis), ints(-1)])
    compared("Slice", [data, ints(9), ints(-(2**62)), ints(axis), ints(-2)])
    compared("Slice", [data, ints(-1), ints(-2), ints(axis), ints(-1)])
    compared("Slice", [data, np.int32([1]), np.int32([2**30]), np.int32([axis])])
    compared("Slice", [data, ints(0, 1), ints(4, 2**62), ints(2, 1), ints(2, 1)])


@pytest.mark.parametrize(
    "attributes",
    [{"value_float": 0.1}, {"value_floats": [0.1, 2]}, {"value_int": 3}, {"value_ints": [3, -1]}],
    ids=str,
)
def test_constants(attributes):
    compared("Constant", [], 13, **attributes)


@pytest.mark.parametrize(
    ("op", "inputs", "opset", "attributes"),
    [
        ("ReduceL2", [X.astype("f2")], 17, {"axes": [2]}),
        ("ReduceL2", [X], 17, {"axes": [0, 2]}),
        ("ReduceL2", [X], 17, {}),
        ("ReduceL2", [X], 17, {"axes": [2, -2]}),
        ("ReduceL2", [X], 17, {"axes": [4]}),
        ("ReduceL2", [X[:, :, :0]], 17, {"axes": [2]}),
        ("Add", [np.bool_([1]), np.bool_([1])], 21, {}),
        ("Div", [ints(1), ints(2)], 21, {}),
        ("Add", [X, X.astype("f8")], 21, {}),
        ("Add", [X, X[0, 0, :, 0]], 6, {"broadcast": 1, "axis": 2}),
        ("Add", [X, X[:, :, :2]], 21, {}),
        ("Concat", [X, ints(1)], 21, {"axis": 0}),
        ("Concat", [X, X], 21, {"axis": 4}),
        ("Constant", [], 21, {"value_string": "a"}),
        ("Cast", [X], 21, {"to": TensorProto.BFLOAT16}),
        ("ConstantOfShape", [ints(2), ints(2)], 21, {}),
        ("ConstantOfShape", [ints(-2)], 21, {}),
        ("ConstantOfShape", [ints(2)], 21, {"value": numpy_helper.from_array(ints(1, 2))}),
        ("Gather", [X, ints(7)], 21, {}),
        ("Slice", [X, ints(-1), ints(2**31 - 1), ints(0), ints(-1)], 21, {}),
        ("Slice", [X, ints(-3), ints(-9), ints(0), ints(-1)], 21, {}),
        ("Slice", [X, ints(0), ints(1, 2)], 21, {}),
        ("Slice", [X], 9, {"starts": [0], "ends": [1]}),
        ("Cast", [X], 21, {"to": TensorProto.STRING}),
        ("Cast", [np.array(["1"], object)], 21, {"to": TensorProto.FLOAT}),
        ("Expand", [X, ints(-1, 3, 1)], 21, {}),
        ("Reshape", [X], 1, {"shape": [6]}),
        ("Reshape", [X, ints(4)], 21, {}),
        ("Reshape", [X, np.float32([6])], 21, {}),
        ("Shape", [X], 21, {"start": -1}),
        ("Squeeze", [X], 21, {}),
        ("Squeeze", [X, ints(0)], 21, {}),
        ("Unsqueeze", [X, ints(1, 1)], 21, {}),
        ("Transpose", [X], 21, {"perm": [0, 1]}),
        ("Neg", [X], 21, {}),
    ],
    ids=str,
)
def test_what_is_unusual_or_wrong_is_left_to_the_evaluators(op, inputs, opset, attributes):
    feeds = {f"x{i}": value for i, value in enumerate(inputs)}
    node = helper.make_node(op, [*feeds], ["y"], **attributes)
    assert by_numpy(node, opset, feeds) is None


def test_an_input_or_output_that_there_is_not():
    assert by_numpy(helper.make_node("Squeeze", ["x", ""], ["y"]), 21, {"x": X}) is None
    assert by_numpy(helper.make_node("Identity", ["x"], ["y", "z"]), 21, {"x": X}) is None


def test_all_of_them_are_deterministic():
    from onnx_bnfold.model import numpy_nodes

    assert numpy_nodes._TABLE.keys() >= MOVING
    assert all(is_deterministic(op, 21) for op in numpy_nodes._TABLE)
