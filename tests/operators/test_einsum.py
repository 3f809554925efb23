"""An Einsum of data and a constant is a linear layer over the channels that its letters name."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import Net
from support import fold_checked, ops, reasons

from onnx_bnfold import Reason

# The data's shape, the equation, the constant's shape.
MAKES_CHANNELS = {
    "a convolution of 1x1": ((2, 3, 4, 5), "nchw,oc->nohw", (6, 3)),
    "the constant in front": ((2, 3, 4, 5), "oc,nchw->nohw", (6, 3)),
    "a product of matrices": ((2, 3), "nc,co->no", (3, 4)),
    "an implicit output": ((2, 3), "ab,bc", (3, 4)),
    "spaces": ((2, 3), " ab , bc -> ac ", (3, 4)),
    "an ellipsis": ((2, 3), "...c,oc->...o", (4, 3)),
    "a factor per channel": ((2, 3, 4, 5), "nchw,c->nchw", (3,)),
    "a factor per element": ((2, 3, 4, 5), "nchw,hcw->nchw", (4, 3, 5)),
    "a letter of the constant alone": ((2, 3, 4), "ncw,koc->now", (2, 6, 3)),
    "a matrix per position": ((2, 3, 4), "ncw,wco->now", (4, 3, 6)),
    "two letters are made": ((2, 5), "nc,cok->nok", (5, 3, 4)),
    "positions are added up": ((2, 3, 4, 5), "nchw,oc->no", (6, 3)),
    "an outer product": ((2, 4), "nw,o->now", (3,)),
    "a letter summed and one kept": ((2, 3, 4), "nhd,hd->nh", (3, 4)),
}  # fmt: skip


def einsum(net: Net, x: str, equation: str, shape, **options) -> str:
    terms = equation.replace(" ", "").split("->")[0].split(",")
    constant = net.random(*shape, **options)
    rank = len(net.shape(x))
    left = len(terms[0]) != rank and "..." not in terms[0]
    return net.op("Einsum", *((constant, x) if left else (x, constant)), equation=equation)


@pytest.mark.parametrize(("shape", "equation", "own"), MAKES_CHANNELS.values(), ids=MAKES_CHANNELS)
def test_a_norm_behind_goes_into_it(shape, equation, own):
    net = Net(shape)
    model = net.model(net.bn(einsum(net, "x", equation, own)))
    folded, report = fold_checked(model)
    assert ops(folded) == ["Einsum", "Add"]
    assert report.folded[0].added == 1


@pytest.mark.parametrize("shift", [False, True])
def test_without_a_shift_nothing_is_added(shift):
    net = Net((2, 3, 4))
    y = einsum(net, "x", "ncw,oc->now", (5, 3))
    folded, _ = fold_checked(net.model(net.bn(y, shift=shift)))
    assert ops(folded) == ["Einsum", "Add"][: 1 + shift]


def test_the_add_behind_takes_the_shift():
    net = Net((2, 3, 4))
    y = net.op("Add", einsum(net, "x", "ncw,oc->now", (5, 3)), net.random(5, 1))
    folded, _ = fold_checked(net.model(net.bn(y)))
    assert ops(folded) == ["Einsum", "Add"]


READS_CHANNELS = {
    "a convolution of 1x1": ("nchw,oc->nohw", (6, 3)),
    "a sum over channels": ("nchw,c->nhw", (3,)),
    "a sum over channels and positions": ("nchw,chw->n", (3, 4, 5)),
    "a factor per channel": ("nchw,c->nchw", (3,)),
    "positions are added up": ("nchw,oc->no", (6, 3)),
    "an output channel of both": ("nchw,ch->nh", (3, 4)),
}


@pytest.mark.parametrize(("equation", "own"), READS_CHANNELS.values(), ids=READS_CHANNELS)
def test_a_norm_in_front_goes_into_it(equation, own):
    net = Net((2, 3, 4, 5))
    y = einsum(net, net.bn("x"), equation, own)
    folded, _ = fold_checked(net.model(y), tolerance=1e-5)
    assert ops(folded) == ["Einsum", "Add"]


REFUSED = {
    "a diagonal": ("ncck,oc->nok", (6, 4), Reason.AXES),
    "axes without a letter": ("nchw,o...->nohw", (6, 3), Reason.AXES),
    "the norm's channels are not the constant's": ("nchw,hk->nckw", (4, 6), Reason.AXES),
}


@pytest.mark.parametrize(("equation", "own", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_layer_over_channels_refuses(equation, own, reason):
    net = Net((2, 3, 4, 4))
    y = net.op("Einsum", "x", net.random(*own), equation=equation)
    model = net.model(net.bn(y, channels=6 if "o" in equation else 3))
    _, report = fold_checked(model, kept=1, compare=False)  # onnxruntime takes no diagonal
    assert reason in reasons(report)[0]


@pytest.mark.parametrize(
    ("equation", "shape", "reason"),
    [("nchw,cohw->nohw", (3, 6, 4, 5), Reason.AXES), ("nchw,hc->nhw", (4, 3), None)],
)
def test_a_shift_in_front_of_a_bias_over_positions_stays(equation, shape, reason):
    """The bias would differ from position to position, as the constant does."""
    net = Net((2, 3, 4, 5))
    y = einsum(net, net.bn("x", shift=True), equation, shape)
    _, report = fold_checked(net.model(y), kept=int(reason is not None))
    assert reason is None or reason in reasons(report)[0]


def test_a_scale_in_front_of_a_constant_over_positions_goes():
    net = Net((2, 3, 4, 5))
    y = einsum(net, net.bn("x", shift=False), "nchw,cohw->nohw", (3, 6, 4, 5))
    folded, _ = fold_checked(net.model(y))
    assert ops(folded) == ["Einsum"]


def test_a_shift_of_positions_that_nobody_counted_stays():
    net = Net(("N", 3, "L"))
    y = einsum(net, net.bn("x"), "ncl,oc->no", (6, 3))
    _, report = fold_checked(net.model(y), kept=1, compare=False)
    assert Reason.UNKNOWN_SHAPE in reasons(report)[0]


@pytest.mark.parametrize("operands", [1, 3])
def test_other_numbers_of_operands_refuse(operands):
    net = Net((2, 3))
    equation = ",".join(["nc", "c", "c"][:operands]) + "->nc"
    y = net.op("Einsum", "x", *(net.random(3) for _ in range(operands - 1)), equation=equation)
    _, report = fold_checked(net.model(net.bn(y)), kept=1)
    assert Reason.OPAQUE in reasons(report)[0]


def test_two_computed_operands_refuse():
    net = Net((2, 3))
    y = net.op("Einsum", "x", "x", equation="nc,mc->nm")
    _, report = fold_checked(net.model(net.bn(y, channels=2)), kept=1)
    assert Reason.WEIGHT_NOT_CONSTANT in reasons(report)[0]


@pytest.mark.parametrize("equation", ["nc,co->no", "nc,c->nc"])
def test_a_quantised_constant(equation):
    net = Net((2, 4), opset=17)
    shape = (4, 4) if "o" in equation else (4,)
    integers = net.const(net.rng.integers(-90, 90, shape).astype(np.int8))
    real = net.op("DequantizeLinear", integers, net.const(np.float32(0.05)))
    y = net.op("Einsum", "x", real, equation=equation)
    folded, _ = fold_checked(net.model(net.bn(y, shift=False)))
    assert ops(folded) == ["DequantizeLinear", "Einsum"]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types(dtype):
    kind = {np.float16: 10, np.float64: 11}[dtype]
    net = Net()
    net.input("x", (2, 3, 4), kind)
    y = net.op("Einsum", "x", net.random(5, 3, dtype=dtype), equation="ncw,oc->now")
    folded, _ = fold_checked(
        net.model(net.bn(y, dtype=dtype)), tolerance=2e-3 if dtype is np.float16 else 1e-12
    )
    assert ops(folded) == ["Einsum", "Add"]
