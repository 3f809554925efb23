"""A negative scale passes a PRelu with a constant slope, and a LeakyRelu: it is inverted."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import Net
from onnx import TensorProto
from support import fold_checked, initializer, ops, reasons

from onnx_bnfold import Options, Reason
from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.operators.entries import OUT

IMAGE = ("N", 4, 5, 6)


def prelu(net: Net, x: str, slope) -> str:
    return net.op("PRelu", x, slope if isinstance(slope, str) else net.const(np.array(slope)))


def per_channel(net: Net) -> np.ndarray:
    return net.values(4, 1, 1)


SLOPES = {
    "a value per channel": per_channel,
    "positive ones": lambda net: np.abs(per_channel(net)),
    "one value": lambda net: np.full((1,), 0.25),
    "a scalar": lambda net: np.full((), 0.25),
    "a value per channel and a batch axis": lambda net: net.values(1, 4, 1, 1),
    "small ones": lambda net: 1e-3 * np.abs(per_channel(net)),
}


@pytest.mark.parametrize("slopes", SLOPES.values(), ids=SLOPES)
def test_a_norm_of_both_signs_behind_it(slopes):
    """Its scale goes into the Conv in front, its shift into the one behind."""
    net = Net(IMAGE)
    y = net.bn(prelu(net, net.conv("x", 4), np.abs(slopes(net))))
    folded, _ = fold_checked(net.model(net.conv(y, 2)))
    assert ops(folded) == ["Conv", "PRelu", "Conv"]


@pytest.mark.parametrize("slopes", SLOPES.values(), ids=SLOPES)
def test_a_norm_of_both_signs_in_front_of_it(slopes):
    net = Net(IMAGE)
    y = prelu(net, net.bn("x", shift=False), slopes(net))
    folded, _ = fold_checked(net.model(net.conv(y, 2)))
    assert ops(folded) == ["PRelu", "Conv"]


def test_only_the_slopes_of_negative_channels_are_inverted():
    net = Net(IMAGE)
    slope = net.const(np.array([0.5, 0.25, 0.1, -0.3]).reshape(4, 1, 1))
    model = net.model(net.conv(prelu(net, net.bn("x", shift=False), slope), 2))
    folded, _ = fold_checked(model)
    before, after = (initializer(m, slope).reshape(-1) for m in (model, folded))
    np.testing.assert_array_equal(after, np.where([0, 1, 0, 1], 1 / before, before))


def test_one_slope_becomes_one_per_channel():
    net = Net(IMAGE)
    model = net.model(net.conv(prelu(net, net.bn("x", shift=False), [0.25]), 2))
    folded, _ = fold_checked(model)
    np.testing.assert_array_equal(
        initializer(folded, folded.graph.node[0].input[1]).reshape(-1), [0.25, 4, 0.25, 4]
    )


def test_twice_inverted_it_is_as_it_was():
    net = Net(IMAGE)
    slope = net.const(np.array([0.5, 0.3, 0.1, 0.7]).reshape(4, 1, 1))
    y = net.bn("x", shift=False)
    y = net.bn(prelu(net, y, slope), shift=False)
    model = net.model(net.conv(y, 2))
    folded, _ = fold_checked(model)
    assert ops(folded) == ["PRelu", "Conv"]


def test_a_shared_slope_is_copied():
    net = Net(IMAGE)
    slope = net.random(4, 1, 1)
    one, other = (prelu(net, x, slope) for x in (net.bn("x", shift=False), "x"))
    folded, _ = fold_checked(net.model(net.conv(one, 2), other))
    slopes = [node.input[1] for node in folded.graph.node if node.op_type == "PRelu"]
    assert len({*slopes}) == 2


def test_a_positive_scale_leaves_the_slope_alone():
    net = Net(IMAGE)
    slope = net.random(4, 1, 1)
    y = prelu(net, net.bn("x", shift=False, signs="positive"), slope)
    model = net.model(net.conv(y, 2))
    folded, _ = fold_checked(model)
    np.testing.assert_array_equal(initializer(folded, slope), initializer(model, slope))


@pytest.mark.parametrize("value", [0.0, 1e-32])
def test_a_slope_that_cannot_be_inverted_refuses(value):
    net = Net(IMAGE)
    y = prelu(net, net.bn("x", shift=False), [[[0.5]], [[value]], [[0.5]], [[0.5]]])
    _, report = fold_checked(net.model(net.conv(y, 2)), kept=1)
    assert Reason.NEEDS_POSITIVE_SCALE in reasons(report)[0]


def test_a_slope_of_zero_does_not_matter_in_a_positive_channel():
    net = Net(IMAGE)
    y = prelu(net, net.bn("x", shift=False), [[[0.0]], [[0.5]], [[0.0]], [[0.5]]])
    folded, _ = fold_checked(net.model(net.conv(y, 2)))
    assert ops(folded) == ["PRelu", "Conv"]


def test_nothing_negative_comes_back_through_a_negative_slope():
    net = Net(IMAGE)
    y = prelu(net, net.conv("x", 4), -np.abs(per_channel(net)))
    y = net.op("Sigmoid", net.bn(y, shift=False))
    _, report = fold_checked(net.model(y), kept=1)
    assert Reason.NEEDS_POSITIVE_SCALE in reasons(report)[0]


def test_a_computed_slope_takes_positive_scales_only():
    for signs, kept in (("positive", 0), ("mixed", 1)):
        net = Net(IMAGE)
        y = prelu(net, net.bn("x", shift=False, signs=signs), net.input("slope", (4, 1, 1)))
        _, report = fold_checked(net.model(net.conv(y, 2)), kept=kept)
    assert Reason.NEEDS_POSITIVE_SCALE in reasons(report)[0]


def test_a_norm_that_makes_the_slope_stays():
    net = Net(IMAGE)
    slope = net.bn(net.op("Sigmoid", net.conv("x", 4)))
    _, report = fold_checked(net.model(net.conv(prelu(net, "x", slope), 2)), kept=1)
    assert Reason.OPAQUE in reasons(report)[0]


def test_a_shift_stays():
    net = Net(IMAGE)
    _, report = fold_checked(net.model(net.conv(prelu(net, net.bn("x"), [0.25]), 2)), kept=1)
    assert Reason.NO_SHIFT in reasons(report)[0]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float16, 1e-2), (np.float64, 1e-12)], ids=["half", "double"]
)
def test_other_types(dtype, tolerance):
    net = Net()
    net.input("x", IMAGE, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    slope = net.const(np.abs(per_channel(net)), dtype)
    y = prelu(net, net.bn("x", shift=False, dtype=dtype), slope)
    weight = net.random(2, 4, 1, 1, dtype=dtype)
    model = net.model(net.op("Conv", y, weight))
    folded, _ = fold_checked(model, compare=dtype is np.float16, tolerance=tolerance)
    assert ops(folded) == ["PRelu", "Conv"]


def test_float16_limits_the_gain():
    """What a small slope makes of a scale may leave the range of the type."""
    for slope, kept in ((0.25, 0), (0.001, 1)):
        net = Net()
        net.input("x", IMAGE, TensorProto.FLOAT16)
        y = prelu(net, net.bn("x", shift=False, dtype=np.float16), net.const([slope], np.float16))
        model = net.model(net.op("Conv", y, net.random(2, 4, 1, 1, dtype=np.float16)))
        _, report = fold_checked(model, kept=kept)
    assert Reason.RANGE in reasons(report)[0]
    fold_checked(model, options=Options(max_rescale=2.0**12), tolerance=2e-2)


def alphas(model) -> list[float]:
    nodes = (node for node in model.graph.node if node.op_type == "LeakyRelu")
    return [{a.name: a.f for a in node.attribute}.get("alpha", 0.01) for node in nodes]


@pytest.mark.parametrize("alpha", [None, 0.25, 3.0, -0.5])
def test_a_leaky_relu_behind_a_norm_of_negative_scales(alpha):
    """Its one slope is inverted, the shift goes nowhere."""
    net = Net(IMAGE)
    given = {} if alpha is None else {"alpha": alpha}
    y = net.op("LeakyRelu", net.bn("x", shift=False, signs=[-1]), **given)
    folded, _ = fold_checked(net.model(net.conv(y, 2)))
    assert ops(folded) == ["LeakyRelu", "Conv"]
    assert alphas(folded) == [np.float32(1 / (alpha or np.float32(0.01)))]


def test_a_leaky_relu_in_front_of_a_norm_of_negative_scales():
    net = Net(IMAGE)
    y = net.op("LeakyRelu", net.conv("x", 4), alpha=0.1)
    folded, _ = fold_checked(net.model(net.op("Sigmoid", net.bn(y, signs=[-1], shift=False))))
    assert ops(folded) == ["Conv", "LeakyRelu", "Sigmoid"]
    np.testing.assert_allclose(alphas(folded), [10])


def test_a_leaky_relu_that_is_turned_twice_is_as_it_was():
    net = Net(IMAGE)
    y = net.op("LeakyRelu", net.bn("x", shift=False, signs=[-1]), alpha=0.1)
    y = net.op("LeakyRelu", net.bn(y, shift=False, signs=[-1]), alpha=0.3)
    y = net.op("LeakyRelu", net.bn(y, shift=False, signs=[-1]), alpha=0.7)
    folded, _ = fold_checked(net.model(net.conv(y, 2)))
    assert ops(folded) == ["LeakyRelu"] * 3 + ["Conv"]
    np.testing.assert_allclose(alphas(folded), [10, 0.3, 1 / 0.7], rtol=1e-6)


def test_a_leaky_relu_between_two_norms_of_negative_scales():
    """What the first has turned, the second turns back."""
    net = Net(IMAGE)
    y = net.op("LeakyRelu", net.bn(net.conv("x", 4), signs=[-1]), alpha=0.1)
    model = net.model(net.op("Sigmoid", net.bn(y, signs=[-1], shift=False)))
    folded, _ = fold_checked(model)
    assert ops(folded) == ["Conv", "LeakyRelu", "Sigmoid"]
    np.testing.assert_allclose(alphas(folded), [10])


def test_a_leaky_relu_that_has_been_turned_gives_back_what_it_took():
    net = Net(IMAGE)
    t = net.op("LeakyRelu", net.op("Tanh", "x"), alpha=0.25)
    state = net.state(t)
    turned = Affine(np.full((1, 1, 1, 1), -2.0), np.zeros((1, 1, 1, 1)))
    gone = []
    for _ in range(2):
        [both] = state.step(1, {0: turned}).alternatives
        gone.append(float(both[OUT].scale.item()))
        state.total[state.graph.reads[1][0]] = turned
    assert gone == [-8.0, -0.5]


LEAKY_MUST_STAY = {
    "scales of both signs": ("mixed", 0.1, Reason.NEEDS_POSITIVE_SCALE),
    "a slope of zero": ([-1], 0.0, Reason.NEEDS_POSITIVE_SCALE),
    "a slope whose inverse is no number": ([-1], 1e-39, Reason.NEEDS_POSITIVE_SCALE),
}


@pytest.mark.parametrize("why", LEAKY_MUST_STAY)
def test_what_a_leaky_relu_refuses(why):
    signs, alpha, reason = LEAKY_MUST_STAY[why]
    net = Net(IMAGE)
    y = net.op("LeakyRelu", net.bn("x", shift=False, signs=signs), alpha=alpha)
    _, report = fold_checked(net.model(net.conv(y, 2)), kept=1)
    assert reason in reasons(report)[0]


def test_nothing_negative_comes_back_through_a_leaky_relu_of_negative_slope():
    net = Net(IMAGE)
    y = net.op("LeakyRelu", net.conv("x", 4), alpha=-0.5)
    y = net.op("Sigmoid", net.bn(y, shift=False, signs=[-1]))
    _, report = fold_checked(net.model(y), kept=1)
    assert Reason.NEEDS_POSITIVE_SCALE in reasons(report)[0]


@pytest.mark.parametrize(("alpha", "kept"), [(0.25, 0), (0.1, 1)])
def test_float64_needs_a_slope_whose_inverse_is_exact(alpha, kept):
    net = Net(opset=16)
    net.input("x", IMAGE, TensorProto.DOUBLE)
    y = net.op("LeakyRelu", net.bn("x", shift=False, signs=[-1], dtype=np.float64), alpha=alpha)
    model = net.model(net.op("Conv", y, net.random(2, 4, 1, 1, dtype=np.float64)))
    _, report = fold_checked(model, kept=kept, compare=False)
    assert not kept or Reason.PRECISION in reasons(report)[0]


def test_a_leaky_relu_in_a_body_is_turned_there():
    net = Net(IMAGE)
    y = net.op("LeakyRelu", net.bn("x", shift=False, signs=[-1]), alpha=0.1)
    inner = net.graph(net.conv(y, 2), name="then")
    inner.input.pop()
    outer = Net(IMAGE)
    other = Net(IMAGE, prefix="e_", seed=1)
    del other.inputs[:]
    other.input("x", IMAGE)
    bare = other.graph(other.conv("x", 2), name="else")
    bare.input.pop()
    outer.input("choice", (), TensorProto.BOOL)
    y = outer.op("If", "choice", then_branch=inner, else_branch=bare)
    folded, _ = fold_checked(outer.model(outer.op("Identity", y)))
    [body] = [a.g for n in folded.graph.node for a in n.attribute if a.name == "then_branch"]
    assert [node.op_type for node in body.node] == ["LeakyRelu", "Conv"]
