"""Col2Im adds up blocks of an image; those that overlap are added where they do."""

from __future__ import annotations

import pytest
from graphs import Net
from onnx import TensorProto
from support import fold_checked, ops, reasons

from onnx_bnfold import Reason

SIDE_BY_SIDE = {"image": (4, 6), "block": (2, 3), "strides": [2, 3]}  # 2 x 2 blocks
OVERLAPPING = {"image": (3, 4), "block": (2, 3)}  # 2 x 2 blocks
TWICE_EVERYWHERE = {"image": (3, 3), "block": (2, 1), "pads": [1, 0, 1, 0]}  # 4 x 3 blocks


def columns(channels: int = 12, positions: int = 4) -> Net:
    return Net((2, channels, positions), opset=18)


def image(net: Net, x: str, *, image, block, **attributes) -> str:
    return net.op("Col2Im", x, net.ints(*image), net.ints(*block), **attributes)


@pytest.mark.parametrize("how", [SIDE_BY_SIDE, TWICE_EVERYWHERE], ids=["once", "twice"])
def test_a_norm_behind_goes_into_the_layer_in_front(how):
    net = columns(positions=4 if how is SIDE_BY_SIDE else 12)
    y = image(net, net.conv("x", 12), **how)
    folded, _ = fold_checked(net.model(net.bn(y)))
    assert ops(folded) == ["Conv", "Col2Im"]


def test_of_a_norm_behind_blocks_that_overlap_a_scale_passes():
    net = columns()
    y = image(net, net.conv("x", 12), **OVERLAPPING)
    folded, _ = fold_checked(net.model(net.bn(y, shift=False)))
    assert ops(folded) == ["Conv", "Col2Im"]
    net = columns()
    y = image(net, net.conv("x", 12), **OVERLAPPING)
    _, report = fold_checked(net.model(net.bn(y)), kept=1)
    assert Reason.NO_SHIFT in reasons(report)[0]


def of_blocks(net: Net, channels: int = 2) -> str:
    """A norm whose numbers are the same for all elements of a block."""
    rows = net.op("Reshape", "x", net.ints(0, channels, -1))
    return net.op("Reshape", net.bn(rows), net.ints(0, 12, -1))


@pytest.mark.parametrize(
    ("how", "channels", "positions"), [(SIDE_BY_SIDE, 2, 4), (TWICE_EVERYWHERE, 6, 12)]
)
def test_a_norm_in_front_goes_into_the_layer_behind(how, channels, positions):
    net = columns(positions=positions)
    y = net.conv(image(net, of_blocks(net, channels), **how), 3)
    folded, _ = fold_checked(net.model(y))
    assert "BatchNormalization" not in ops(folded)


@pytest.mark.parametrize(
    ("norm", "reason"),
    [(lambda net: net.bn("x"), Reason.AXES), (of_blocks, Reason.NO_SHIFT)],
    ids=["of its own channels", "overlapping"],
)
def test_a_norm_in_front_stays(norm, reason):
    net = columns()
    y = net.conv(image(net, norm(net), **OVERLAPPING), 3)
    _, report = fold_checked(net.model(y), kept=1)
    assert reason in reasons(report)[0]


def test_nothing_passes_blocks_of_three_axes():
    """onnxruntime puts some of their elements elsewhere; 1.23 adds what nobody has written."""
    net = columns(channels=8, positions=2)
    y = net.op("Col2Im", net.conv("x", 8), net.ints(1, 4, 2), net.ints(1, 2, 2), strides=[1, 2, 2])
    _, report = fold_checked(net.model(net.bn(y, channels=2)), kept=1, compare=False)
    assert Reason.OPAQUE in reasons(report)[0]


@pytest.mark.parametrize("slot", [1, 2])
def test_nothing_passes_a_shape_that_is_computed(slot):
    net = columns()
    reads = [net.conv("x", 12), net.ints(4, 6), net.ints(2, 3)]
    reads[slot] = net.input("shape", (2,), TensorProto.INT64)
    y = net.op("Col2Im", *reads, strides=[2, 3])
    _, report = fold_checked(net.model(net.bn(y, channels=2)), kept=1, compare=False)
    assert Reason.PARAMETERS_NOT_CONSTANT in reasons(report)[0]
