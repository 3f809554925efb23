"""A DeformConv is a Conv to what stands behind it; its input takes a scale, and seldom a shift."""

from __future__ import annotations

import math

import numpy as np
import pytest
from graphs import Net
from onnx import TensorProto
from support import fold_checked, needs_kernels_as_read, ops, reasons

from onnx_bnfold import Reason
from onnx_bnfold.operators.table import entry_of

pytestmark = needs_kernels_as_read
OUT = (4, 5)  # sizes of the output that every layer here has


def net_of(*, opset: int = 22, pad: int = 1, batch: int | str = 2, channels: int = 4) -> Net:
    """A graph whose x is such that a kernel of 3x3 with this padding gives OUT."""
    return Net((batch, channels, *(n + 2 - 2 * pad for n in OUT)), opset=opset)


def deform(
    net: Net,
    x: str,
    *,
    out: int = 6,
    pad: int = 1,
    group: int = 1,
    offset_group: int = 1,
    bias: bool = True,
    offset: str | None = None,
    mask: str | None = None,
    dtype=np.float32,
    **attributes,
) -> str:
    """A DeformConv of 3x3, its offsets an input unless they are given; "": an input for a mask."""
    kind = {np.float16: TensorProto.FLOAT16, np.float64: TensorProto.DOUBLE}.get(dtype, 1)
    batch, channels = net.shape(x)[:2]
    inputs = [x, net.random(out, channels // group, 3, 3, dtype=dtype)]
    if offset is None:
        offset = net.input("offset", (batch, 18 * offset_group, *OUT), kind)
    if mask == "":
        mask = net.input("mask", (batch, 9 * offset_group, *OUT), kind)
    inputs += [offset, net.random(out, dtype=dtype) if bias else ""]
    inputs += [mask] if mask else []
    while not inputs[-1]:
        inputs.pop()
    settings = {"pads": [pad] * 4, "group": group, "offset_group": offset_group}
    return net.op("DeformConv", *inputs, **settings | attributes)


# --- behind it ------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [19, 22])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mask", [None, ""])
def test_a_norm_behind_goes_into_it(opset, bias, mask):
    """Offsets and mask stay where they are, a bias that was left out between them is added."""
    net = net_of(opset=opset)
    folded, report = fold_checked(net.model(net.bn(deform(net, "x", bias=bias, mask=mask))))
    (node,) = folded.graph.node
    assert node.op_type == "DeformConv"
    assert node.input[2] == "offset"
    assert node.input[3]
    assert list(node.input[4:]) == ([] if mask is None else ["mask"])
    assert report.folded[0].added == 0


def test_without_a_shift_no_bias_is_made():
    net = net_of()
    y = deform(net, "x", bias=False, mask="")
    folded, _ = fold_checked(net.model(net.bn(y, shift=False)))
    (node,) = folded.graph.node
    assert [bool(name) for name in node.input] == [True, True, True, False, True]


@pytest.mark.parametrize(
    "settings",
    [{"group": 2}, {"group": 4, "out": 4}, {"offset_group": 2, "mask": ""},
     {"group": 2, "offset_group": 2}, {"kernel_shape": [3, 3]}],
)  # fmt: skip
def test_groups_of_channels_and_of_offsets(settings):
    net = net_of()
    y = deform(net, net.bn("x", shift=False), **settings)
    folded, _ = fold_checked(net.model(net.bn(y)), tolerance=1e-5)
    assert ops(folded) == ["DeformConv"]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types(dtype):
    net = Net(opset=22)
    kind = {np.float16: TensorProto.FLOAT16, np.float64: TensorProto.DOUBLE}[dtype]
    net.input("x", (2, 4, *OUT), kind)
    y = net.bn(deform(net, "x", dtype=dtype), dtype=dtype)
    tolerance = 4e-3 if dtype is np.float16 else 1e-12
    folded, _ = fold_checked(net.model(y), tolerance=tolerance)
    assert ops(folded) == ["DeformConv"]


def test_a_quantised_weight():
    net = net_of()
    offset = net.input("offset", (2, 18, *OUT))
    integers = net.const(net.rng.integers(-90, 90, (6, 4, 3, 3)).astype(np.int8))
    real = net.op("DequantizeLinear", integers, net.const(np.float32(0.05)))
    y = net.op("DeformConv", "x", real, offset, net.random(6), pads=[1] * 4)
    folded, _ = fold_checked(net.model(net.bn(y)))
    assert ops(folded) == ["DequantizeLinear", "DeformConv"]


# --- in front of it -------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [None, ""])
def test_a_scale_in_front_goes_into_it(mask):
    net = net_of()
    y = deform(net, net.bn("x", shift=False), mask=mask)
    folded, _ = fold_checked(net.model(y), tolerance=1e-5)
    assert ops(folded) == ["DeformConv"]


def test_a_shift_goes_into_a_layer_in_front_of_a_scale():
    net = net_of()
    y = deform(net, net.bn(net.relu(net.conv("x", 4))))
    _, report = fold_checked(net.model(y), kept=1)
    assert Reason.PADDING in reasons(report)[0]
    net = net_of()
    folded, _ = fold_checked(net.model(deform(net, net.bn(net.conv("x", 4)))))
    assert ops(folded) == ["Conv", "DeformConv"]


def constants(net: Net, offset: float | np.ndarray, mask: float | np.ndarray | None):
    """Offsets and mask of a layer of one group."""
    given = {"offset": net.const(np.broadcast_to(offset, (2, 18, *OUT)).astype(np.float32))}
    if mask is not None:
        given["mask"] = net.const(np.broadcast_to(mask, (2, 9, *OUT)).astype(np.float32))
    return given


@pytest.mark.parametrize("mask", [None, 1.0])
@pytest.mark.parametrize("bias", [False, True])
def test_a_shift_in_front_goes_into_one_that_is_a_plain_convolution(bias, mask):
    net = net_of(pad=0)
    y = deform(net, net.bn("x"), pad=0, bias=bias, **constants(net, 0.0, mask))
    folded, _ = fold_checked(net.model(y), tolerance=1e-5)
    assert ops(folded) == ["DeformConv"]


one_moves = np.zeros((2, 18, *OUT))
one_moves[-1, -1, -1, -1] = 0.1  # out of the image
one_weighs = np.ones((2, 9, *OUT))
one_weighs[0, 0, 0, 0] = 0.5


@pytest.mark.parametrize(
    ("pad", "offset", "mask"),
    [(1, 0.0, None), (0, one_moves, None), (0, 0.0, one_weighs), (0, math.pi, None)],
)
def test_a_shift_in_front_of_any_other_stays(pad, offset, mask):
    net = net_of(pad=pad)
    y = deform(net, net.bn("x"), pad=pad, **constants(net, offset, mask))
    _, report = fold_checked(net.model(y), kept=1)
    assert Reason.PADDING in reasons(report)[0]


@pytest.mark.parametrize("computed", ["offset", "mask", "both"])
def test_a_shift_in_front_of_computed_offsets_or_a_computed_mask_stays(computed):
    net = net_of(pad=0)
    given = constants(net, 0.0, 1.0)
    if computed != "mask":
        del given["offset"]
    if computed != "offset":
        given["mask"] = ""
    y = deform(net, net.bn("x"), pad=0, **given)
    _, report = fold_checked(net.model(y), kept=1)
    assert Reason.PADDING in reasons(report)[0]


# --- its other inputs -----------------------------------------------------------------------


@pytest.mark.parametrize("role", ["offset", "mask"])
def test_offsets_and_mask_keep_their_values(role):
    """A norm that makes them goes into a layer in front, and into nothing behind."""
    for made, kept in ((net_of(), 0), (net_of(), 1)):
        net, channels = made, {"offset": 18, "mask": 9}[role]
        t = net.conv("x", channels, 1)
        t = net.bn(net.op("Sigmoid", t) if kept else t)
        _, report = fold_checked(net.model(deform(net, "x", **{role: t})), kept=kept)
        if kept:
            assert Reason.OPAQUE in reasons(report)[0]
            assert any("as a parameter" in refused.sentence for _, refused in report.kept[0].tried)


def test_offsets_that_are_made_of_the_data():
    """As exporters write it: the data's scale goes into both layers that read them."""
    net = net_of()
    x = net.bn("x", shift=False)
    offset = net.conv(x, 18, 3, pads=[1] * 4)
    mask = net.op("Sigmoid", net.conv(x, 9, 3, pads=[1] * 4))
    y = net.bn(deform(net, x, offset=offset, mask=mask))
    folded, _ = fold_checked(net.model(y), tolerance=1e-4)
    assert "BatchNormalization" not in ops(folded)


def test_data_that_are_their_own_offsets_stay():
    net = Net((2, 18, *OUT), opset=22)
    x = net.bn("x", shift=False)
    _, report = fold_checked(net.model(deform(net, x, offset=x)), kept=1)
    assert Reason.OPAQUE in reasons(report)[0]


# --- what it costs --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encrypted", "depth"),
    [("x", (1, 0)), ("x mask", (2, 0)), ("x offset", (2, 1)), ("x offset mask", (3, 1))],
)
def test_encrypted_offsets_are_no_polynomial(encrypted, depth):
    net = net_of()
    y = deform(net, "x", mask="")
    assert entry_of("DeformConv").depth(net.state(y).view(0), {*encrypted.split()}) == depth


# --- what it refuses ------------------------------------------------------------------------


def test_a_computed_weight_refuses():
    net = net_of()
    w = net.input("w", (6, 4, 3, 3))
    offset = net.input("offset", (2, 18, *OUT))
    y = net.op("DeformConv", "x", w, offset, pads=[1] * 4)
    _, report = fold_checked(net.model(net.bn(y)), kept=1)
    assert Reason.WEIGHT_NOT_CONSTANT in reasons(report)[0]


def test_a_computed_bias_refuses():
    net = net_of()
    b = net.input("b", (6,))
    offset = net.input("offset", (2, 18, *OUT))
    y = net.op("DeformConv", "x", net.random(6, 4, 3, 3), offset, b, pads=[1] * 4)
    _, report = fold_checked(net.model(net.bn(y)), kept=1)
    assert Reason.BIAS_NOT_CONSTANT in reasons(report)[0]


def test_a_norm_on_another_axis_refuses():
    net = net_of()
    y = net.op("Transpose", deform(net, "x"), perm=[0, 2, 1, 3])
    _, report = fold_checked(net.model(net.bn(y)), kept=1)
    assert Reason.AXES in reasons(report)[0]
