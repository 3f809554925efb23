"""Small weights are judged by what the output of their channel shows of them."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import Net
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

import onnx_bnfold
from onnx_bnfold import Reason
from onnx_bnfold.operators.affine import Affine, along
from onnx_bnfold.planning.output_sizes import output_sizes

HALF = np.float16


def weak(layer, scale, bias, *, mean=0.0, data=1.0, dtype=HALF, behind=""):
    """A layer and a BN that all but removes channel 0 of 4, and what another layer makes of it."""
    net = Net(("N", 8, 5, 5) if layer == "Conv" else ("N", 8))
    x = "x"
    dims = (4, 8, 1, 1) if layer == "Conv" else (8, 4)
    weight = net.const(net.rng.standard_normal(dims) / 8**0.5, dtype)
    x = net.op(layer, x, weight)
    x = net.op(behind, x) if behind else x
    values = (
        np.array([scale, 1.3, 1, 1]),
        np.array([bias, 0.1, 0.2, 0.3]),
        np.array([mean, 30, 0, 0.0]),
        np.full(4, data**2),
    )
    y = net.op("BatchNormalization", x, *(net.const(v, dtype) for v in values), epsilon=1e-5)
    kind = TensorProto.FLOAT16 if dtype is HALF else TensorProto.FLOAT
    return declared(net.model(net.op("Tanh", y)), kind)


def declared(model, kind):
    """The model, its inputs and outputs declared to be of a type."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = kind
    return model


def product_and_norm(weight, *parameters):
    """A MatMul in float16 and the BN behind it: scale, B, mean and variance."""
    net = Net(("N", len(weight)))
    x = net.op("MatMul", "x", net.const(np.array(weight), HALF))
    constants = [net.const(np.array(p), HALF) for p in parameters]
    y = net.op("BatchNormalization", x, *constants, epsilon=1e-5)
    return declared(net.model(y), TensorProto.FLOAT16)


def in_double(model):
    wide = type(model).FromString(model.SerializeToString())
    for item in wide.graph.initializer:
        item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).astype("f8"), item.name))
    return declared(wide, TensorProto.DOUBLE)


def errors(model, folded, data):
    """Largest errors of channel 0 of both."""
    shape = [16, *(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:])]
    x = (np.random.default_rng(1).standard_normal(shape) * data).astype(HALF)
    exact, before, after = (
        ReferenceEvaluator(m).run(None, {"x": x.astype(kind)})[0].astype("f8")[:, 0]
        for m, kind in ((in_double(model), "f8"), (model, HALF), (folded, HALF))
    )
    return np.abs(before - exact).max(), np.abs(after - exact).max()


@pytest.mark.parametrize("behind", ["", "Identity"])
@pytest.mark.parametrize("layer", ["Conv", "MatMul"])
@pytest.mark.parametrize(("bias", "mean"), [(0.5, 0), (0, 3000)])
def test_what_a_bias_hides_is_no_reason_to_keep_a_norm(layer, behind, bias, mean):
    """The weights become 1e-6 beside 0.5, or beside the mean times the factor."""
    scale = 3e-6 if bias else -1e-4
    model = weak(layer, scale, bias, mean=mean, data=1.0, behind=behind)
    folded, report = onnx_bnfold.fold(model)
    assert not report.kept, report.lines()
    before, after = errors(model, folded, data=1.0)
    assert after <= before + 2.0**-12  # a Tanh's output is rounded by that


@pytest.mark.parametrize(
    ("scale", "bias", "data"),
    [(3e-6, 0.0, 1.0), (3e-6, 1e-4, 1.0), (1e-4, 2e-3, 250.0)],
    ids=["no-bias", "small-bias", "large-data"],
)
def test_what_is_seen_keeps_a_norm(scale, bias, data):
    """Without a bias, beside a small one, and by data of the size 10 that the statistics tell."""
    weight = Net(("N", 32)).rng.standard_normal((32, 2))
    model = product_and_norm(weight, (scale, 1.0), (bias, 0.1), (0.0, 0.0), (data**2, 1.0))
    _, report = onnx_bnfold.fold(model)
    assert [r.refusal.reason for r in report.kept] == [Reason.PRECISION]
    assert "its channel would show it" in report.kept[0].refusal.sentence


def test_an_output_is_not_rounded_finer_than_the_smallest_normal_number():
    """It would be 1e-6, of which rounding it loses as much as rounding the weights."""
    weight = [[0.3, 1], [0.4, 1]]
    model = product_and_norm(weight, [1e-6, 1.0], [0.0, 0.1], [0.0, 0.0], [1.0, 1.0])
    _, report = onnx_bnfold.fold(model)
    assert not report.kept, report.lines()


def sized(bias, into=None, shape=(4,)):
    """The sizes of a Gemm's output that a BN scales by 2 and shifts by 8."""
    net = Net(("N", 3))
    x = net.op("Sigmoid", "x")
    inputs = [net.random(3, 4), *([] if bias is None else [net.const(np.full(shape, bias))])]
    y = net.op("Gemm", x, *inputs)
    values = (6.0, 0.0, 4.0, 9.0)  # a deviation of 3, a mean of 4
    z = net.op("BatchNormalization", y, *(net.const(np.full(4, v)) for v in values), epsilon=0.0)
    state = net.state(net.op("Sigmoid", z))
    state.total[y] = Affine.of(along(np.full(4, 2.0), 1, 2), along(np.full(4, 8.0), 1, 2))
    if into is not None:
        state.total[x] = into
    return output_sizes(state, 1)


@pytest.mark.parametrize(
    ("bias", "products"), [(None, (14, 6)), (1.0, (12, 8))], ids=["no-bias", "bias"]
)
def test_sizes_with_and_without_the_mean(bias, products):
    """The mean is 4, or 0 of other data; the bias is no part of the products."""
    found = sized(bias)
    assert {size.products.shape for size in found} == {(1, 4)}
    assert [size.products.max() for size in found[:2]] == list(products)
    assert [size.whole.max() for size in found[:2]] == [22, 14]


def test_nothing_is_said_of_a_layer_whose_data_change_or_whose_bias_is_a_picture():
    assert not sized(None, into=Affine.of(np.full((1, 1), 2.0), np.zeros((1, 1))))
    assert not sized(1.0, shape=(2, 4))
    assert sized(1.0, shape=(1, 4))
