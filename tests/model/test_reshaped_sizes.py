"""Reshapes to shapes that are computed, as PyTorch's exporters write view, flatten and the like."""

import numpy as np
import pytest
from graphs import Net
from support import fold_checked, reasons

from onnx_bnfold import Reason

AXES = {"axis": 0}


def sized(net, x, axis):
    """``x.size(axis)`` as the older exporter writes it, as a vector of one element."""
    size = net.op("Gather", net.op("Shape", x), net.const(np.int64(axis)))
    return net.op("Unsqueeze", size, net.ints(0))


def sized_by_dynamo(net, x, axis):
    """``x.size(axis)`` as the newer exporter writes it."""
    size = net.op("Squeeze", net.op("Shape", x, start=axis, end=axis + 1))
    return net.op("Reshape", size, net.ints(-1), allowzero=0)


BOTH = pytest.mark.parametrize("size", [sized, sized_by_dynamo])


def view(net, x, *sizes):
    """``x.view(...)``: names of vectors, and numbers."""
    parts = [each if isinstance(each, str) else net.ints(each) for each in sizes]
    return net.op("Reshape", x, net.op("Concat", *parts, **AXES))


def normalised(net, x, channels=None):
    return net.bn(net.relu(x), channels=channels, signs="positive")


@BOTH
def test_flattened_by_the_size_of_the_batch(size):
    """The BN in front goes into the Gemm behind."""
    net = Net(("N", 3, 4, 4))
    y = view(net, normalised(net, net.conv("x", 8)), size(net, "x", 0), -1)
    fold_checked(net.model(net.op("Gemm", y, net.random(128, 5))), N=3)


@BOTH
def test_positions_become_one_axis(size):
    net = Net(("N", 3, 4, 4))
    y = view(net, net.conv("x", 8), size(net, "x", 0), 8, -1)
    fold_checked(net.model(net.bn(y, channels=8)), N=3)


@BOTH
@pytest.mark.parametrize("shape", [("N", 3, 4, 5), ("N", 3, "H", "W")])
def test_shuffled_channels(size, shape):
    """The number of channels is divided, and two views follow one another."""
    net = Net(shape)
    y = net.conv("x", 8)
    batch, height, width = (size(net, y, axis) for axis in (0, 2, 3))
    half = net.op("Div", size(net, y, 1), net.ints(2))
    t = net.op("Transpose", view(net, y, batch, 2, half, height, width), perm=[0, 2, 1, 3, 4])
    fold_checked(net.model(net.bn(view(net, t, batch, -1, height, width), channels=8)), N=3)


@BOTH
@pytest.mark.parametrize("shape", [("N", 6, 5), ("N", "T", 5), (2, 6, 5)])
def test_batch_and_time_become_one_axis_and_come_back(size, shape):
    """As a BN over a sequence is written."""
    net = Net(shape)
    t = net.relu(net.op("MatMul", "x", net.random(5, 7)))
    batch, time = size(net, "x", 0), size(net, "x", 1)
    t = net.bn(view(net, t, net.op("Mul", batch, time), -1), channels=7)
    y = view(net, t, batch, time, -1)
    fold_checked(net.model(net.op("MatMul", y, net.random(7, 3))), N=3, T=4)


def test_frames_become_images_and_come_back():
    """The number of images is a product of two sizes, and a factor of another."""
    net = Net(("N", 4, 3, 5, 5))
    images = net.op("Reshape", "x", net.ints(-1, 3, 5, 5))
    t = normalised(net, net.conv(images, 8, channels=3, rank=4), 8)
    y = net.op("ReduceMean", view(net, t, sized(net, "x", 0), sized(net, "x", 1), -1), axes=[1])
    fold_checked(net.model(net.op("MatMul", y, net.random(200, 3))), N=3)


@pytest.mark.parametrize("allowzero", [0, 1])
def test_a_size_of_zero_is_that_of_the_input(allowzero):
    net = Net(("N", 3, 4, 4))
    shape = net.op("Concat", sized(net, "x", 0), net.ints(0, -1), **AXES)
    y = net.op("Reshape", net.conv("x", 8), shape, allowzero=allowzero)
    model = net.model(net.bn(y, channels=8))
    fold_checked(model, kept=allowzero, compare=not allowzero, N=3)


def test_part_of_a_shape_bounds_a_slice():
    """Only the batch is open, so half the width is a number."""
    net = Net(("N", 3, 4, 6))
    half = net.op("Div", sized(net, "x", 3), net.ints(2))
    y = net.op("Slice", normalised(net, net.conv("x", 8)), net.ints(0), half, net.ints(3))
    fold_checked(net.model(net.conv(y, 4, channels=8, rank=4)), N=3)


def test_a_slice_bounded_by_the_batch():
    """Where it ends is not known, but it cuts no channels."""
    net = Net(("N", 3, 4, 6))
    y = net.op("Slice", normalised(net, net.conv("x", 8)), net.ints(0), sized(net, "x", 0),
               net.ints(1))  # fmt: skip
    _, report = fold_checked(net.model(net.conv(y, 4, channels=8, rank=4)), kept=1, N=8)
    assert Reason.PARAMETERS_NOT_CONSTANT in reasons(report)[0]


def less_two(net, x, axis, size=sized):
    return net.op("Sub", size(net, x, axis), net.ints(2))


@BOTH
def test_cropped_and_its_positions_become_one_axis(size):
    """``x[:, :, :h - 2, :w - 2].reshape(b, 8, (h - 2) * (w - 2))``, of any height and width."""
    net = Net(("N", 3, "H", "W"))
    y = net.conv("x", 8)
    height, width = (less_two(net, y, axis, size) for axis in (2, 3))
    for axis, end in ((2, height), (3, width)):
        y = net.op("Slice", y, net.ints(0), end, net.ints(axis), net.ints(1))
    y = view(net, y, size(net, "x", 0), 8, net.op("Mul", height, width))
    fold_checked(net.model(net.bn(y, channels=8)), N=3, H=6, W=5)


SLICED = {
    "steps": lambda net, y: net.op(
        "Slice", y, net.ints(1), less_two(net, y, 2), net.ints(2), net.ints(2)
    ),
    "counted from the end": lambda net, y: net.op(
        "Slice", y, net.ints(1), less_two(net, y, 2), net.ints(-2)
    ),
    "from a computed start": lambda net, y: net.op(
        "Slice", y, less_two(net, y, 2), net.ints(99), net.ints(2)
    ),
    "the batch": lambda net, y: net.op("Slice", y, net.ints(1), sized(net, y, 0)),
    "by a length that is measured": lambda net, y: net.op(
        "Slice", y, net.ints(0), net.op("ReduceMax", net.op("Shape", y)), net.ints(3)
    ),
}


@pytest.mark.parametrize("cut", SLICED.values(), ids=SLICED)
@pytest.mark.parametrize("before", [True, False], ids=["in front", "behind"])
def test_slices_whose_bounds_are_computed(cut, before):
    """On another axis than that of the channels; the other sizes are still known."""
    net = Net(("N", 3, "H", 4))
    y = net.conv("x", 8)
    y = cut(net, normalised(net, y)) if before else cut(net, y)
    y = view(net, y, sized(net, y, 0), 8, -1)
    y = net.conv(y, 4, channels=8, rank=3) if before else net.bn(y, channels=8)
    fold_checked(net.model(y), N=3, H=6)


NOT_SLICED = {
    "backwards": lambda net, y, n: net.op(
        "Slice", y, net.ints(-1), n, net.ints(2), net.ints(-1)
    ),
    "along an axis that is computed": lambda net, y, n: net.op(
        "Slice", y, net.ints(0), net.ints(3), net.op("ReduceMin", net.op("Shape", y))
    ),
    "by steps that are computed": lambda net, y, n: net.op(
        "Slice", y, net.ints(0), net.ints(9), net.ints(2), n
    ),
    "the channels": lambda net, y, n: net.op("Slice", y, net.ints(0), n, net.ints(1)),
    "all axes": lambda net, y, n: net.op("Slice", y, net.ints(0, 0, 0, 0), net.op("Shape", y)),
}  # fmt: skip


@pytest.mark.parametrize("cut", NOT_SLICED.values(), ids=NOT_SLICED)
def test_slices_that_may_cut_channels_keep_their_bn(cut):
    net = Net(("N", 3, "H", 4))
    y = cut(net, normalised(net, net.conv("x", 8)), sized(net, "x", 0))
    _, report = fold_checked(net.model(net.conv(y, 4, channels=8, rank=4)), kept=1, compare=False)
    assert Reason.PARAMETERS_NOT_CONSTANT in reasons(report)[0]


MIXED = {
    "rows of a number of elements": lambda net, y, n: view(net, y, -1, 64),
    "twice as many rows": lambda net, y, n: view(net, y, net.op("Mul", n, net.ints(2)), -1),
    "half as many rows": lambda net, y, n: view(net, y, net.op("Div", n, net.ints(2)), -1),
}


@pytest.mark.parametrize("mixed", MIXED.values(), ids=MIXED)
def test_what_mixes_channels_with_the_batch_keeps_its_bn(mixed):
    net = Net(("N", 3, 4, 4))
    y = mixed(net, normalised(net, net.conv("x", 8)), sized(net, "x", 0))
    _, report = fold_checked(net.model(net.op("Softmax", y)), kept=1, N=2)
    assert Reason.UNKNOWN_SHAPE in reasons(report)[0]
