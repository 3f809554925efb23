"""Layers whose weight is computed at run time: a shift of their output goes into their bias."""

import pytest
from graphs import Net
from onnx import helper
from support import fold_checked, ops, reasons

from onnx_bnfold import Reason


def net_of(*weight, shape=("N", 3, 4, 4), opset=17):
    """A net, and a weight that is an input."""
    net = Net(shape, opset=opset)
    return net, net.input("w", list(weight))


LAYERS = {
    "conv": (lambda net, w, b: net.op("Conv", "x", w, *b(4)), (4, 3, 1, 1)),
    "padded conv": (lambda net, w, b: net.op("Conv", "x", w, *b(4), pads=[1] * 4), (4, 3, 3, 3)),
    "grouped conv": (lambda net, w, b: net.op("Conv", "x", w, *b(6), group=3), (6, 1, 1, 1)),
    "conv-transpose": (
        lambda net, w, b: net.op("ConvTranspose", "x", w, *b(4), strides=[2, 2]),
        (3, 4, 3, 3),
    ),
    "gemm": (lambda net, w, b: net.op("Gemm", net.op("Flatten", "x"), w, *b(4)), (48, 4)),
    "gemm of factors": (
        lambda net, w, b: net.op("Gemm", net.op("Flatten", "x"), w, *b(1), alpha=0.5, beta=0.25,
                                 transB=1),
        (4, 48),
    ),
}  # fmt: skip
BIASES = {
    "a bias": lambda net: lambda size: [net.random(size)],
    "none": lambda net: lambda size: [],
}


def shifted(net, y, channels, op="Add"):
    rank = len(net.shape(y))
    return net.op(op, y, net.random(channels, *[1] * (rank - 2)))


@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
@pytest.mark.parametrize(("layer", "weight"), LAYERS.values(), ids=LAYERS)
def test_an_add_behind_goes_into_the_bias(layer, weight, bias):
    net, w = net_of(*weight)
    y = layer(net, w, bias(net))
    model = net.model(net.op("Sigmoid", shifted(net, y, net.shape(y)[1])))
    folded, _ = fold_checked(model)
    assert ops(folded) == [op for op in ops(model) if op != "Add"]


def test_the_scale_of_a_norm_goes_downstream():
    net, w = net_of(4, 3, 1, 1)
    y = net.bn(net.op("Conv", "x", w, net.random(4)), channels=4)
    folded, _ = fold_checked(net.model(net.conv(y, 2, 3, channels=4, rank=4, pads=[1] * 4)))
    assert ops(folded) == ["Conv", "Conv"]


def test_a_weight_that_callers_may_override():
    net = Net(("N", 3, 4, 4))
    y = net.op("Conv", "x", net.random(4, 3, 1, 1))
    model = net.model(net.op("Sigmoid", shifted(net, y, 4)))
    weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
    given = helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
    model.graph.input.append(given)
    folded, _ = fold_checked(model)
    assert ops(folded) == ["Conv", "Sigmoid"]


REFUSED = {
    "a scale behind": lambda net, w: net.op("Mul", net.op("Conv", "x", w), net.random(4, 1, 1)),
    "a shift that varies": lambda net, w: net.op(
        "Add", net.op("Conv", "x", w), net.random(4, 4, 4)
    ),
    "a shift in front": lambda net, w: net.op("Conv", shifted(net, "x", 3), w),
    "a computed bias": lambda net, w: shifted(
        net, net.op("Conv", "x", w, net.op("ReduceSum", w, net.ints(1, 2, 3), keepdims=0)), 4
    ),
    "sizes that are not known": lambda net, w: shifted(
        net, net.op("Conv", "x", net.input("u", [None, 3, 1, 1])), 4
    ),
}


@pytest.mark.parametrize("build", REFUSED.values(), ids=REFUSED)
def test_what_stays(build):
    net, w = net_of(4, 3, 1, 1)
    model = net.model(net.op("Sigmoid", build(net, w)))
    folded, _ = fold_checked(model, compare=False)
    assert ops(folded) == ops(model)


def test_a_norm_in_front_of_what_takes_no_scale_stays():
    net, w = net_of(4, 3, 1, 1)
    y = net.bn(net.op("Conv", "x", w, net.random(4)), channels=4)
    _, report = fold_checked(net.model(net.op("Sigmoid", y)), kept=1)
    assert Reason.WEIGHT_NOT_CONSTANT in reasons(report)[0]
