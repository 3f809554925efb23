"""Windows of pooling layers that hold no element: as many as counting them one by one finds."""

import itertools

import numpy as np
import pytest
from graphs import Net
from support import fold_checked, run

from onnx_bnfold.operators.windows import _Axis

SIZES = range(1, 7)


def starts(axis, size):
    """Where the windows begin that the specification has, or onnxruntime."""
    room = size + axis.front + axis.back - (axis.kernel - 1) * axis.dilation - 1
    steps = -(-room // axis.stride) if axis.rounds_up else room // axis.stride
    return [step * axis.stride - axis.front for step in range(max(steps, 0) + 1)]


def is_filled(axis, size):
    taps = [tap * axis.dilation for tap in range(axis.kernel)]
    return all(any(0 <= start + tap < size for tap in taps) for start in starts(axis, size))


AXES = [
    _Axis(*each)
    for each in itertools.product(
        (1, 2, 3, 5), (1, 2, 3), (1, 2, 3), (0, 1, 2, 4), (0, 1, 3), (False, True)
    )
]


def test_every_window_is_counted():
    for axis, size in itertools.product(AXES, SIZES):
        assert axis.are_filled(size) == is_filled(axis, size), (axis, size)


def test_of_an_unknown_size_what_holds_for_all():
    for axis in AXES:
        everywhere = all(is_filled(axis, size) for size in range(1, 40))
        assert everywhere or not axis.are_filled(None), axis
        if axis.dilation == 1 and not axis.rounds_up:
            assert everywhere == axis.are_filled(None), axis


@pytest.mark.parametrize("beyond", [False, True])
def test_windows_beyond_a_number_are_not_examined(beyond):
    """All of them are filled."""
    front = 2**16 + beyond
    assert _Axis(front + 1, 1, 1, front, 0, False).are_filled(2**17) != beyond


RUNNING = [a for a in AXES[::11] if max(a.front, a.back) < a.kernel]


@pytest.mark.parametrize("axis", RUNNING, ids=str)
def test_onnxruntime_finds_an_element_in_every_window(axis):
    reach = (axis.kernel - 1) * axis.dilation
    for size in SIZES:
        if axis.are_filled(size) and size + axis.front + axis.back > reach:
            net = Net((1, 1, size))
            y = net.op(
                "MaxPool",
                "x",
                kernel_shape=[axis.kernel],
                strides=[axis.stride],
                dilations=[axis.dilation],
                pads=[axis.front, axis.back],
                ceil_mode=int(axis.rounds_up),
            )
            (found,) = run(net.model(y), {"x": np.ones((1, 1, size), np.float32)})
            assert (found == 1).all(), (size, found)


@pytest.mark.parametrize(("height", "kept"), [(2, 1), (3, 0)])
def test_a_window_larger_than_the_image_counts_what_is_not_there(height, kept):
    """The specification has no such window; onnxruntime has one, and divides by all of it."""
    net = Net((1, 4, height, 6))
    pool = {"kernel_shape": [3, 1], "strides": [2, 1], "count_include_pad": 1}
    x = net.op("AveragePool", net.conv("x", 4), **pool)
    model = net.model(net.bn(x, channels=4))
    model.graph.output[0].ClearField("type")
    fold_checked(model, kept=kept)
