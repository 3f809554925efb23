"""A copy of a tensor that the original model has is not one with new values."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import Net
from onnx import TensorProto
from support import assert_same_function, reasons

import onnx_bnfold
from onnx_bnfold import Options, Reason

SHAPE = (2, 3, 6, 6)
MOVEMENTS = {
    "Identity": lambda net, x: net.op("Identity", x),
    "Dropout": lambda net, x: net.op("Dropout", x),
    "Transpose": lambda net, x: net.op(
        "Transpose", net.op("Transpose", x, perm=[0, 2, 3, 1]), perm=[0, 3, 1, 2]
    ),
    "Reshape": lambda net, x: net.op("Reshape", x, net.ints(2, 4, 36)),
    "Unsqueeze": lambda net, x: net.op("Unsqueeze", x, net.ints(4)),
    "Tile": lambda net, x: net.op("Tile", x, net.ints(1, 1, 2, 1)),
    "Concat": lambda net, x: net.op("Concat", x, net.conv("x", 2, bias=False), axis=1),
    "Slice": lambda net, x: net.op("Slice", x, net.ints(0), net.ints(3), net.ints(2)),
    "Gather": lambda net, x: net.op("Gather", x, net.ints(1, 0, 3), axis=2),
    "MaxPool": lambda net, x: net.op("MaxPool", x, kernel_shape=[2, 2]),
    "ReduceMax": lambda net, x: net.op("ReduceMax", x, axes=[2, 3], keepdims=1),
}
MEANS = {
    "AveragePool": lambda net, x: net.op("AveragePool", x, kernel_shape=[2, 2]),
    "GlobalAveragePool": lambda net, x: net.op("GlobalAveragePool", x),
    "Resize": lambda net, x: net.op(
        "Resize", x, "", net.const(np.array([1.0, 1, 2, 2])), mode="linear"
    ),
}
BOTH = MOVEMENTS | MEANS
INT8 = Options(profile="int8")


def half(net, *outputs):
    """The model in float16."""
    model = net.model(*outputs)
    for item in model.graph.initializer:
        if item.data_type == TensorProto.FLOAT:
            values = np.frombuffer(item.raw_data, np.float32).astype(np.float16)
            item.data_type, item.raw_data = TensorProto.FLOAT16, values.tobytes()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


def norm_of(net, x, deviation):
    """A BN that divides by a deviation."""
    channels = net.shape(x)[1]
    constants = [net.const(np.full(channels, float(v))) for v in (1, 0.1, 0, deviation**2)]
    return net.op("BatchNormalization", x, *constants, epsilon=1e-6)


def folded(model, **options):
    result, report = onnx_bnfold.fold(model, Options(**options))
    return result, len(report.kept), report


@pytest.mark.parametrize("deviation", [0.01, 50])
@pytest.mark.parametrize("movement", MOVEMENTS)
def test_a_float16_norm_behind_a_movement_folds_like_one_behind_a_layer(movement, deviation):
    """By a factor of 100 or 1/50; the layer's output would be that of the norm."""
    net = Net(SHAPE)
    x = net.conv("x", 4, bias=False)
    y = net.relu(norm_of(net, MOVEMENTS[movement](net, x), deviation))
    scaled = half(net, y)
    weight = next(t for t in scaled.graph.initializer if len(t.dims) == 4)
    values = np.frombuffer(weight.raw_data, np.float16) * np.float16(deviation)
    weight.raw_data = values.tobytes()
    result, kept, report = folded(scaled)
    assert not kept, report.lines()
    assert_same_function(scaled, result, tolerance=4e-3)  # that of float16


@pytest.mark.parametrize("movement", BOTH)
def test_int8_folds_behind_a_movement_and_a_pool(movement):
    net = Net(SHAPE)
    x = net.conv("x", 4)
    y = net.relu(net.bn(BOTH[movement](net, x), signs="positive"))
    model = net.model(y)
    result, kept, report = folded(model, profile="int8")
    assert not kept, report.lines()
    assert_same_function(model, result)


@pytest.mark.parametrize("movement", BOTH)
def test_int8_leaves_what_another_layer_reads(movement):
    """It would read the ranges of the norm's output in place of its own."""
    net = Net(SHAPE)
    x = net.conv("x", 4)
    y = net.relu(net.bn(BOTH[movement](net, x), signs="positive"))
    model = net.model(y, net.conv(x, 3))
    _, kept, report = folded(model, profile="int8")
    assert kept == 1
    assert Reason.RANGE in reasons(report)[0]
    assert not folded(model)[1]


@pytest.mark.parametrize("movement", ["Identity", "Transpose", "Slice", "MaxPool"])
def test_int8_leaves_what_another_layer_reads_behind_a_movement(movement):
    net = Net(SHAPE)
    x = net.conv("x", 4)
    y = net.relu(net.bn(x, signs="positive"))
    model = net.model(y, net.conv(MOVEMENTS[movement](net, x), 3))
    assert folded(model, profile="int8")[1] == 1
    assert not folded(model)[1]


def test_int8_leaves_a_rectified_tensor():
    """A Relu makes values of its own, as long as the norm stands behind it."""
    net = Net(SHAPE)
    x = net.op("Identity", net.relu(net.conv("x", 4)))
    model = net.model(net.relu(net.bn(x, signs="positive", shift=False)))
    assert folded(model, profile="int8")[1] == 1
    assert not folded(model)[1]


def test_int8_leaves_a_part_of_a_split_whose_other_part_is_another():
    """In one tensor, with one scale, there would be the ranges of both."""
    net = Net(SHAPE)
    first, second = net.op("Split", net.conv("x", 4), outputs=2, axis=1)
    y = net.relu(net.bn(first, signs="positive"))
    assert folded(net.model(y, net.conv(second, 3)), profile="int8")[1] == 1


def test_a_shape_is_not_read_as_values():
    net = Net(SHAPE)
    x = net.conv("x", 4)
    y = net.relu(net.bn(net.op("Identity", x), signs="positive"))
    assert not folded(net.model(y, net.op("Shape", x)), profile="int8")[1]


@pytest.mark.parametrize(
    ("movement", "kept"),
    [("Identity", 0), ("Slice", 1), ("MaxPool", 1), ("GlobalAveragePool", 1)],
)
def test_who_reads_the_other_elements_is_protected(movement, kept):
    """What a Slice drops is not in the norm's output, and might not fit the type."""
    net = Net(SHAPE)
    x = net.conv("x", 4, bias=False)
    y = net.op("Sigmoid", norm_of(net, BOTH[movement](net, x), 0.01))
    _, found, report = folded(half(net, y, net.conv(x, 3)))
    assert found == kept
    assert not kept or Reason.RANGE in reasons(report)[0]


def test_what_is_behind_another_movement_is_judged_by_both():
    """What the Slice drops lies in the Conv's output, too, which another layer reads."""
    net = Net(SHAPE)
    x = net.conv("x", 4, bias=False)
    y = MOVEMENTS["Slice"](net, net.op("Identity", x))
    y = net.op("Sigmoid", norm_of(net, y, 0.01))
    assert folded(half(net, y, net.conv(x, 3)))[1] == 1


def test_what_is_made_of_the_other_elements_is_judged():
    """A second Slice takes what the first one drops."""
    net = Net(SHAPE)
    x = net.conv("x", 4, bias=False)
    y = net.op("Sigmoid", norm_of(net, MOVEMENTS["Slice"](net, x), 0.01))
    rest = net.op("Slice", x, net.ints(3), net.ints(6), net.ints(2))
    _, kept, report = folded(half(net, y, net.conv(rest, 3)))
    assert kept == 1
    assert Reason.RANGE in reasons(report)[0]


def test_what_is_made_of_copies_holds_values_of_the_original():
    """Another layer reads the norm's output in place of its input, behind a movement."""
    net = Net(SHAPE)
    x = net.conv("x", 4, bias=False)
    y = net.op("Sigmoid", norm_of(net, x, 0.01))
    model = half(net, y, net.conv(MOVEMENTS["Transpose"](net, x), 3))
    _, kept, report = folded(model)
    assert not kept, report.lines()


def test_a_copy_is_found_through_a_norm_that_has_gone():
    net = Net(SHAPE)
    x = norm_of(net, net.conv("x", 4, bias=False), 1.0)
    x = norm_of(net, net.op("Identity", x), 0.01)
    assert not folded(half(net, net.op("Sigmoid", x)))[1]


def test_what_a_mean_is_made_of_may_be_larger_than_the_mean():
    net = Net(SHAPE)
    x = net.op("GlobalAveragePool", net.conv("x", 4, bias=False))
    _, kept, report = folded(half(net, net.op("Sigmoid", norm_of(net, x, 0.01))))
    assert kept == 1
    assert Reason.RANGE in reasons(report)[0]


def test_two_parts_of_a_split_are_values_of_two_norms():
    """Both fold in float16: every channel gets the values of one of them."""
    net = Net(SHAPE)
    parts = net.op("Split", net.conv("x", 4, bias=False), outputs=2, axis=1)
    ends = [net.op("Sigmoid", norm_of(net, part, 0.01)) for part in parts]
    assert not folded(half(net, *ends))[1]


@pytest.mark.parametrize(("narrow", "kept"), [(TensorProto.FLOAT16, 1), (TensorProto.FLOAT, 0)])
def test_a_copy_in_a_narrower_type_is_judged_by_it(narrow, kept):
    """A float32 norm's output may be beyond the range of float16."""
    net = Net(SHAPE)
    x = net.conv("x", 4, bias=False)
    x = net.op("Cast", net.op("Cast", x, to=narrow), to=TensorProto.FLOAT)
    _, found, report = folded(net.model(net.op("Sigmoid", norm_of(net, x, 1e-3))))
    assert found == kept
    assert not kept or Reason.RANGE in reasons(report)[0]
