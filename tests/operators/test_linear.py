"""Linear layers take in the BatchNormalizations behind them: every layer, attribute and axis."""

from itertools import pairwise

import numpy as np
import pytest
from graphs import Net
from reference import evaluate
from support import (
    Parts,
    bn,
    constant_operand,
    conv,
    count,
    feeds_for,
    fold_checked,
    initializer,
    join,
    layer,
    model_of,
    node,
    ops,
    reasons,
    run,
    tensor,
)

import onnx_bnfold
from onnx_bnfold import Reason
from onnx_bnfold.operators import linear

# x's shape, weight's shape (C_out, C_in / group, *kernel), attributes
CONVS = {
    "1d": ((2, 3, 9), (4, 3, 3), {}),
    "1d-stride-dilation-pads": (
        (2, 3, 11),
        (4, 3, 3),
        {"strides": [2], "dilations": [2], "pads": [2, 1]},
    ),
    "2d": ((2, 3, 6, 7), (4, 3, 3, 2), {}),
    "2d-pads": ((2, 3, 6, 7), (4, 3, 3, 3), {"pads": [1, 0, 2, 1]}),
    "2d-strides-dilations": ((2, 3, 9, 9), (4, 3, 3, 3), {"strides": [2, 3], "dilations": [2, 1]}),
    "2d-same-upper": ((2, 3, 6, 7), (4, 3, 2, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "2d-same-lower": ((2, 3, 6, 7), (4, 3, 2, 4), {"auto_pad": "SAME_LOWER"}),
    "2d-valid": ((2, 3, 6, 7), (4, 3, 3, 3), {"auto_pad": "VALID"}),
    "2d-group": ((2, 4, 5, 5), (6, 2, 3, 3), {"group": 2}),
    "2d-depthwise": ((2, 4, 5, 5), (4, 1, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
    "2d-depthwise-multiplier": ((2, 3, 5, 5), (6, 1, 3, 3), {"group": 3}),
    "2d-kernel-shape": ((2, 3, 6, 7), (4, 3, 3, 2), {"kernel_shape": [3, 2]}),
    "2d-one-channel": ((2, 1, 5, 5), (1, 1, 3, 3), {}),
    "2d-all-sizes-equal": ((4, 4, 4, 4), (4, 4, 1, 1), {}),
    "3d": ((2, 3, 4, 5, 6), (4, 3, 2, 3, 2), {}),
    "3d-group-pads": ((2, 4, 4, 5, 3), (6, 2, 2, 3, 2), {"group": 2, "pads": [1, 0, 1, 0, 1, 1]}),
}

# x's shape, weight's shape (C_in, C_out / group, *kernel), attributes
TRANSPOSED = {
    "1d": ((2, 3, 5), (3, 4, 3), {}),
    "1d-stride-output-padding": ((2, 3, 5), (3, 4, 3), {"strides": [3], "output_padding": [1]}),
    "2d": ((2, 3, 4, 5), (3, 4, 3, 2), {}),
    "2d-strides-pads-dilations": (
        (2, 3, 4, 5),
        (3, 4, 3, 3),
        {"strides": [2, 3], "pads": [1, 0, 0, 2], "dilations": [2, 1]},
    ),
    "2d-output-padding": (
        (2, 3, 4, 5),
        (3, 4, 3, 3),
        {"strides": [2, 2], "output_padding": [1, 1]},
    ),
    "2d-group": ((2, 4, 4, 5), (4, 3, 3, 3), {"group": 2}),
    "2d-depthwise": ((2, 4, 4, 5), (4, 1, 3, 3), {"group": 4, "strides": [2, 2]}),
    "2d-square-weight": ((2, 4, 4, 4), (4, 4, 2, 2), {}),
    "2d-group-square-weight": ((2, 4, 4, 5), (4, 2, 4, 2), {"group": 2}),
    "3d": ((2, 3, 3, 4, 2), (3, 4, 2, 3, 2), {"strides": [1, 2, 1]}),
    "3d-group-output-padding": (
        (2, 4, 3, 3, 2),
        (4, 2, 2, 2, 2),
        {"group": 2, "strides": [2, 2, 2], "output_padding": [1, 0, 1]},
    ),
}

LAYERS = {f"Conv-{k}": ("Conv", *v) for k, v in CONVS.items()} | {
    f"ConvTranspose-{k}": ("ConvTranspose", *v) for k, v in TRANSPOSED.items()
}


def norms(x: str, y: str, channels: int, rng, number: int) -> Parts:
    """`number` BatchNormalizations in a row from x to y."""
    names = [x, *(f"{y}_{i}" for i in range(1, number)), y]
    return join(*(bn(a, b, channels, rng) for a, b in pairwise(names)))


def count_kept(model) -> int:
    """How many BNs stay, where any number is right if the outputs are."""
    return len(onnx_bnfold.plan(model).kept)


def model_of_parts(parts: Parts, shape, **options):
    return model_of(parts.nodes, {"x": shape}, ["y"], parts.initializers, **options)


def channels_out(op: str, weight_shape, attributes) -> int:
    if op == "Conv":
        return weight_shape[0]
    return weight_shape[1] * attributes.get("group", 1)


def convolution(case: str, rng, *, bias: bool, number: int):
    """A model of one case of LAYERS with BatchNormalizations behind it."""
    op, x_shape, weight_shape, attributes = LAYERS[case]
    channels = channels_out(op, weight_shape, attributes)
    bias_shape = [channels] if bias else None
    linear = layer(op, "x", "c", weight_shape, rng, bias_shape=bias_shape, **attributes)
    return model_of_parts(join(linear, norms("c", "y", channels, rng, number)), x_shape)


@pytest.mark.parametrize("number", [1, 3], ids=["one", "three"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("case", LAYERS)
def test_convolution(case, bias, number, rng):
    model = convolution(case, rng, bias=bias, number=number)
    folded, report = fold_checked(model)
    assert ops(folded) == [LAYERS[case][0]]
    assert len(report.folded) == number
    assert len(folded.graph.initializer) == 2
    assert folded.graph.node[0].attribute == model.graph.node[0].attribute


@pytest.mark.parametrize("case", LAYERS)
def test_the_reference_of_these_tests_agrees_with_onnxruntime(case, rng):
    model = convolution(case, rng, bias=True, number=2)
    feeds = feeds_for(model)
    np.testing.assert_allclose(
        evaluate(model, feeds)[0], run(model, feeds)[0], rtol=1e-3, atol=1e-4
    )


SHIFTED = {
    "goik": ("Conv", [1, 4, 5, 5], (6, 2, 3, 3), 6, {"group": 2}),
    "oi": ("Gemm", [3, 4], (5, 4), 5, {"transB": 1, "alpha": 0.5}),
    "io": ("Gemm", [3, 4], (4, 5), 5, {}),
    "matmul": ("MatMul", [3, 4], (4, 5), None, {}),
}


@pytest.mark.parametrize("most", [1, 3, 7, 1000])
@pytest.mark.parametrize("case", SHIFTED)
def test_a_shift_is_summed_from_blocks_of_the_weight(case, most, rng, monkeypatch):
    """Of one element, of parts of a row, of several rows, and of the whole weight."""
    op, x, shape, bias, attributes = SHIFTED[case]
    monkeypatch.setattr(linear, "_BLOCK", most)
    made = layer(op, "n", "y", shape, rng, bias_shape=bias and [bias], **attributes)
    model = model_of_parts(join(bn("x", "n", 4, rng), made), x)
    folded, _ = fold_checked(model)
    assert count(folded) == 0
    feeds = {"x": np.zeros(x, np.float32)}  # what comes out is the bias alone
    expected, found = (evaluate(m, feeds)[0] for m in (model, folded))
    np.testing.assert_allclose(found, expected, atol=3e-6)


def test_convolution_with_its_bias_left_empty(rng):
    weight = tensor("W", rng.standard_normal((4, 3, 1, 1)).astype(np.float32))
    linear = Parts(node("Conv", ["x", "W", ""], ["c"]).nodes, [weight])
    folded, _ = fold_checked(model_of_parts(join(linear, bn("c", "y", 4, rng)), (2, 3, 4, 4)))
    assert ops(folded) == ["Conv"]
    assert len(folded.graph.initializer) == 2


@pytest.mark.parametrize("batch", [0, 1])
def test_a_batch_of_none_and_of_one(batch, rng):
    parts = join(conv("x", "c", (4, 3, 1, 1), rng), bn("c", "y", 4, rng))
    fold_checked(model_of_parts(parts, ("N", 3, "H", "W")), N=batch, H=1, W=2)


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_an_input_of_unknown_rank(op, rng):
    """The weight says how many axes there are."""
    linear = layer(op, "x", "c", (4, 4, 3, 3), rng)
    parts = join(linear, bn("c", "y", 4, rng))
    model = model_of(parts.nodes, {"x": None}, {"y": None}, parts.initializers)
    feeds = {"x": rng.standard_normal((2, 4, 5, 6)).astype(np.float32)}
    folded, _ = fold_checked(model, feeds=feeds)
    assert ops(folded) == [op]


def test_weight_and_input_are_one_constant(rng):
    weight = tensor("W", rng.standard_normal((3, 3, 3, 3)).astype(np.float32))
    parts = join(
        Parts(node("Conv", ["W", "W"], ["c"]).nodes, [weight]),
        bn("c", "b", 3, rng),
        node("Add", ["b", "x"], ["y"]),
    )
    model = model_of(parts.nodes, {"x": (1,)}, ["y"], parts.initializers)
    fold_checked(model, kept=count_kept(model))


# --- Gemm ----------------------------------------------------------------------------------------

N, K, M = 5, 3, 4  # rows, inner size, columns: the BN's channels
BIASES = {
    "no-C": None,
    "scalar": (),
    "1": (1,),
    "N": (M,),
    "1xN": (1, M),
    "1x1": (1, 1),
    "Mx1": (N, 1),
    "MxN": (N, M),
}


def gemm(rng, bias, *, trans_a=0, trans_b=0, rows=N, **attributes):
    shape, weight = (rows, K), (K, M)
    linear = layer(
        "Gemm",
        "x",
        "c",
        weight[::-1] if trans_b else weight,
        rng,
        bias_shape=bias,
        transA=trans_a,
        transB=trans_b,
        **attributes,
    )
    return linear, shape[::-1] if trans_a else shape


@pytest.mark.parametrize("number", [1, 2], ids=["one", "two"])
@pytest.mark.parametrize("factors", [(), (0.5, -3.0)], ids=["", "alpha-beta"])
@pytest.mark.parametrize("trans_b", [0, 1], ids=["", "transB"])
@pytest.mark.parametrize("trans_a", [0, 1], ids=["", "transA"])
@pytest.mark.parametrize("bias", BIASES)
def test_gemm(bias, trans_a, trans_b, factors, number, rng):
    attributes = dict(zip(["alpha", "beta"], factors, strict=False))
    linear, shape = gemm(rng, BIASES[bias], trans_a=trans_a, trans_b=trans_b, **attributes)
    folded, _ = fold_checked(model_of_parts(join(linear, norms("c", "y", M, rng, number)), shape))
    assert ops(folded) == ["Gemm"]
    assert len(folded.graph.initializer) == 2


@pytest.mark.parametrize("bias", ["N", "1xN", "scalar"])
def test_gemm_of_a_dynamic_batch(bias, rng):
    linear, _ = gemm(rng, BIASES[bias])
    model = model_of_parts(join(linear, bn("c", "y", M, rng)), ("batch", K))
    folded, _ = fold_checked(model, batch=7)
    assert ops(folded) == ["Gemm"]


@pytest.mark.parametrize("bias", ["no-C", "N", "MxN"])
@pytest.mark.parametrize(
    "factors", [(2.0, 0.0), (0.0, 1.5), (0.0, 0.0), (1.0, 1e-39), (1e-39, 1.0)], ids=str
)
def test_gemm_with_a_factor_that_nothing_may_be_divided_by(bias, factors, rng):
    linear, shape = gemm(rng, BIASES[bias], alpha=factors[0], beta=factors[1])
    fold_checked(model_of_parts(join(linear, bn("c", "y", M, rng)), shape))


@pytest.mark.parametrize("bias", ["N", "Mx1", "MxN"])
def test_gemm_with_all_sizes_equal(bias, rng):
    shape = {"N": (4,), "Mx1": (4, 1), "MxN": (4, 4)}[bias]
    linear = layer("Gemm", "x", "c", (4, 4), rng, bias_shape=shape, transB=1)
    folded, _ = fold_checked(model_of_parts(join(linear, bn("c", "y", 4, rng)), (4, 4)))
    assert ops(folded) == ["Gemm"]


def test_gemm_with_its_constant_on_the_left_stays(rng):
    """The channels of the output are the columns of the operand that is not constant."""
    weight = tensor("W", rng.standard_normal((N, K)).astype(np.float32))
    linear = Parts(node("Gemm", ["W", "x"], ["c"]).nodes, [weight])
    _, report = fold_checked(model_of_parts(join(linear, bn("c", "y", M, rng)), (K, M)), kept=1)
    assert reasons(report)[0] & {Reason.WEIGHT_NOT_CONSTANT, Reason.AXES}


# --- MatMul --------------------------------------------------------------------------------------


def matmul(rng, weight_shape, *, left=False, y="c") -> Parts:
    weight = tensor(f"{y}_W", rng.standard_normal(weight_shape).astype(np.float32))
    inputs = [weight.name, "x"] if left else ["x", weight.name]
    return Parts(node("MatMul", inputs, [y]).nodes, [weight])


@pytest.mark.parametrize("number", [1, 3], ids=["one", "three"])
@pytest.mark.parametrize("sizes", [(5, 3, 4), (4, 4, 4)], ids=["", "equal"])
@pytest.mark.parametrize("batch", [None, "batch"], ids=["static", "dynamic"])
def test_matmul_of_rank_2(sizes, number, batch, rng):
    rows, inner, columns = sizes
    parts = join(matmul(rng, (inner, columns)), norms("c", "y", columns, rng, number))
    folded, _ = fold_checked(model_of_parts(parts, (batch or rows, inner)), batch=rows)
    assert ops(folded) in (["MatMul", "Add"], ["Gemm"])


# Shapes of x and of the constant left operand; the BN's channels are the rows of their product.
LEFT = {
    "plain": ((2, 5, 6), (4, 5)),
    "weight-1x": ((2, 5, 6), (1, 4, 5)),
    "equal": ((4, 4, 4), (4, 4)),
}


@pytest.mark.parametrize("number", [1, 2], ids=["one", "two"])
@pytest.mark.parametrize("case", LEFT)
def test_matmul_with_its_constant_on_the_left(case, number, rng):
    shape, weight = LEFT[case]
    parts = join(matmul(rng, weight, left=True), norms("c", "y", 4, rng, number))
    folded, _ = fold_checked(model_of_parts(parts, shape))
    assert ops(folded) == ["MatMul", "Add"]


# Shapes of x and of the constant, and whether that is on the left. The channels of the BN are an
# axis that the constant does not have, or one of its batch axes.
STAYING_MATMULS = {
    "rank-2-left": ((5, 4), (3, 5), True),
    "rank-2-left-equal": ((4, 4), (4, 4), True),
    "rank-3-right": ((2, 4, 5), (5, 6), False),
    "rank-3-right-equal": ((4, 4, 4), (4, 4), False),
    "rank-3-right-equal-1x": ((4, 4, 4), (1, 4, 4), False),
    "vector-right": ((2, 4, 5), (5,), False),
    "vector-right-equal": ((4, 4, 4), (4,), False),
    "vector-left": ((2, 5, 4), (5,), True),
    "vector-left-equal": ((4, 4, 4), (4,), True),
    "rank-4-right": ((2, 4, 5, 5), (5, 5), False),
    "rank-4-right-equal": ((2, 4, 4, 4), (4, 4), False),
    "rank-4-left": ((2, 4, 5, 5), (5, 5), True),
    "rank-4-left-equal": ((2, 4, 4, 4), (4, 4), True),
    "batch-of-one-right": ((2, 4, 3, 5), (1, 5, 6), False),
    "batch-of-another-axis": ((2, 4, 3, 5, 2), (3, 2, 6), False),
}


@pytest.mark.parametrize("case", STAYING_MATMULS)
def test_matmul_whose_constant_has_no_row_or_column_per_channel_stays(case, rng):
    shape, weight, left = STAYING_MATMULS[case]
    parts = join(matmul(rng, weight, left=left), bn("c", "y", 4, rng))
    _, report = fold_checked(model_of_parts(parts, shape), kept=1)
    assert Reason.AXES in reasons(report)[0] or Reason.WEIGHT_NOT_CONSTANT in reasons(report)[0]


# The same, the channels being a batch axis of the constant.
BATCHES_OF_MATRICES = {
    "right": ((2, 4, 3, 5), (4, 5, 6), False),
    "right-equal": ((4, 4, 4, 4), (4, 4, 4), False),
    "left": ((2, 4, 5, 6), (4, 3, 5), True),
    "left-1x": ((2, 4, 5, 6), (1, 4, 3, 5), True),
    "left-equal": ((4, 4, 4, 4), (4, 4, 4), True),
    "two axes": ((2, 4, 3, 2, 5), (4, 3, 5, 6), False),
    "broadcast": ((2, 1, 3, 5), (4, 5, 6), False),
}


@pytest.mark.parametrize("opset", [7, 17])
@pytest.mark.parametrize("case", BATCHES_OF_MATRICES)
def test_a_norm_over_a_batch_of_matrices(case, opset, rng):
    """Behind it it becomes an Add; in front of it only a scale goes into the matrices."""
    shape, weight, left = BATCHES_OF_MATRICES[case]
    parts = join(matmul(rng, weight, left=left), bn("c", "y", 4, rng))
    folded, _ = fold_checked(model_of_parts(parts, shape, opset=opset))
    assert ops(folded) == ["MatMul", "Add"]


@pytest.mark.parametrize("case", sorted(BATCHES_OF_MATRICES.keys() - {"broadcast"}))
def test_a_norm_in_front_of_a_batch_of_matrices(case):
    shape, weight, left = BATCHES_OF_MATRICES[case]
    for shift in (False, True):
        net = Net(shape)
        x, constant = net.bn("x", shift=shift), net.random(*weight)
        model = net.model(net.op("MatMul", *((constant, x) if left else (x, constant))))
        folded, report = fold_checked(model, kept=shift)
        assert shift or ops(folded) == ["MatMul"]
    assert Reason.AXES in reasons(report)[0]


def test_norms_over_batch_and_columns_of_matrices():
    """Scales of both multiply the matrices; shifts of both would need an Add each."""
    net = Net((2, 4, 3, 5))
    y = net.op("MatMul", net.bn("x", shift=False), net.random(4, 5, 6))
    y = net.op("Transpose", y, perm=[0, 3, 1, 2])
    folded, _ = fold_checked(net.model(net.bn(y)))
    assert ops(folded) == ["MatMul", "Add", "Transpose"]
    net = Net((2, 4, 3, 5))
    y = net.bn(net.op("MatMul", "x", net.random(4, 5, 6)))
    y = net.bn(net.op("Transpose", y, perm=[0, 3, 1, 2]))
    fold_checked(net.model(y), kept=1)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_a_norm_in_front_of_a_product_with_a_vector(left):
    """Its channels become one value, and its shifts one number."""
    net = Net((2, 4, 5))
    x, vector = net.bn("x"), net.random(4)
    x = x if left else net.op("Transpose", x, perm=[0, 2, 1])
    model = net.model(net.op("MatMul", *((vector, x) if left else (x, vector))))
    folded, _ = fold_checked(model)
    assert ops(folded) == [*["Transpose"] * (not left), "MatMul", "Add"]


def test_a_norm_behind_a_product_with_a_vector():
    """A vector has one channel; of a matrix each row would have another scale."""
    net = Net(("N", 4))
    folded, _ = fold_checked(net.model(net.bn(net.op("MatMul", "x", net.random(4)), channels=1)))
    assert ops(folded) == ["MatMul", "Add"]
    net = Net((2, 4, 5))
    _, report = fold_checked(net.model(net.bn(net.op("MatMul", "x", net.random(5)))), kept=1)
    assert Reason.AXES in reasons(report)[0]


def test_a_product_of_two_vectors_stays():
    net = Net((4,))
    y = net.op("Reshape", net.op("MatMul", "x", net.random(4)), net.ints(1, 1))
    _, report = fold_checked(net.model(net.bn(y)), kept=1)
    assert Reason.AXES in reasons(report)[0]


def test_matmul_of_two_inputs_stays(rng):
    parts = join(node("MatMul", ["x", "w"], ["c"]), bn("c", "y", 4, rng))
    shapes = {"x": (2, 4), "w": (4, 4)}
    model = model_of(parts.nodes, shapes, ["y"], parts.initializers)
    _, report = fold_checked(model, kept=1)
    assert Reason.WEIGHT_NOT_CONSTANT in reasons(report)[0]


def test_matmul_of_unknown_rank_is_right_or_stays(rng):
    """A (4, 4) constant: the channels are its columns at rank 2, and no axis of it at rank 3."""
    parts = join(matmul(rng, (4, 4)), bn("c", "y", 4, rng))
    model = model_of(parts.nodes, {"x": None}, {"y": None}, parts.initializers)
    for shape in [(5, 4), (2, 4, 4)]:
        feeds = {"x": rng.standard_normal(shape).astype(np.float32)}
        _, report = fold_checked(model, kept=1, feeds=feeds)
        assert Reason.UNKNOWN_SHAPE in reasons(report)[0]


# --- a layer, an Add of a constant, a BN ---------------------------------------------------------

ADDED = {
    "scalar": (),
    "1": (1,),
    "Cx1x1": (4, 1, 1),
    "1xCx1x1": (1, 4, 1, 1),
    "W": (6,),
    "Hx1": (5, 1),
    "HxW": (5, 6),
    "CxHxW": (4, 5, 6),
}


@pytest.mark.parametrize("left", [False, True], ids=["x+c", "c+x"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("case", ADDED)
def test_conv_then_add(case, bias, left, rng):
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng, bias=bias),
        constant_operand("Add", "c", "a", ADDED[case], rng, left=left),
        bn("a", "y", 4, rng),
    )
    folded, _ = fold_checked(model_of_parts(parts, (2, 3, 5, 6)))
    per_channel = case in ("scalar", "1", "Cx1x1", "1xCx1x1")
    assert ops(folded) in ([["Conv"]] if per_channel else [["Conv", "Add"]])


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 4), (1, 4), (4, 1, 1)], ids=str)
def test_conv_then_add_with_all_sizes_equal(shape, rng):
    """A (C,) or (C, 1) constant broadcasts over W or H, not over the channels."""
    parts = join(
        conv("x", "c", (4, 4, 1, 1), rng),
        constant_operand("Add", "c", "a", shape, rng),
        bn("a", "y", 4, rng),
    )
    fold_checked(model_of_parts(parts, (4, 4, 4, 4)))


def test_an_add_that_puts_an_axis_in_front(rng):
    """Its constant has five axes: axis 1 of the sum is the batch axis of the layer."""
    parts = join(
        conv("x", "c", (4, 4, 1, 1), rng),
        constant_operand("Add", "c", "a", (1, 1, 1, 1, 1), rng),
        bn("a", "y", 4, rng),
    )
    fold_checked(model_of_parts(parts, (4, 4, 4, 4)), kept=1)


@pytest.mark.parametrize("left", [False, True], ids=["x+c", "c+x"])
@pytest.mark.parametrize("shape", [(), (1,), (4,), (1, 4), (5, 1), (5, 4)], ids=str)
def test_matmul_then_add(shape, left, rng):
    parts = join(
        matmul(rng, (3, 4)),
        constant_operand("Add", "c", "a", shape, rng, left=left),
        norms("a", "y", 4, rng, 2),
    )
    folded, _ = fold_checked(model_of_parts(parts, (5, 3)))
    assert ops(folded) in (["MatMul", "Add"], ["Gemm"])


@pytest.mark.parametrize("shape", [(6,), (4, 1), (4, 6), (1, 4, 1), (1,)], ids=str)
def test_matmul_of_rank_3_then_add(shape, rng):
    parts = join(
        matmul(rng, (4, 5), left=True),
        constant_operand("Add", "c", "a", shape, rng),
        bn("a", "y", 4, rng),
    )
    folded, _ = fold_checked(model_of_parts(parts, (2, 5, 6)))
    assert ops(folded) == ["MatMul", "Add"]


def test_norm_add_norm(rng):
    """The Add is absorbed between the two BatchNormalizations."""
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng),
        bn("c", "b", 4, rng),
        constant_operand("Add", "b", "a", (4, 1, 1), rng),
        bn("a", "y", 4, rng),
    )
    folded, _ = fold_checked(model_of_parts(parts, (2, 3, 5, 6)))
    assert ops(folded) == ["Conv"]


@pytest.mark.parametrize("op", ["Sub", "Mul", "Div"])
@pytest.mark.parametrize("left", [False, True], ids=["x-op-c", "c-op-x"])
def test_conv_then_another_affine_operator(op, left, rng):
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng),
        constant_operand(op, "c", "a", (4, 1, 1), rng, left=left),
        bn("a", "y", 4, rng),
    )
    quotient = op == "Div" and left  # c / x is not affine
    if quotient:
        parts.initializers[1] = tensor("c_bias", np.full(4, 100, np.float32))
    folded, report = fold_checked(model_of_parts(parts, (2, 3, 5, 6)), kept=int(quotient))
    assert ops(folded) == (["Conv", "Div", "BatchNormalization"] if quotient else ["Conv"])
    assert not quotient or Reason.NO_SHIFT in reasons(report)[0]


# --- operators before opset 7 --------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(4, 5, 6), (4, 4, 4)], ids=["", "equal"])
def test_add_with_the_axis_attribute_of_opset_6(sizes, rng):
    """Its second operand starts at `axis`: (C,) at axis 1 is per channel."""
    channels, height, width = sizes
    parts = join(
        conv("x", "c", (channels, 3, 1, 1), rng),
        Parts(
            node("Add", ["c", "k"], ["a"], broadcast=1, axis=1).nodes,
            [tensor("k", rng.standard_normal(channels).astype(np.float32))],
        ),
        bn("a", "y", channels, rng, is_test=1),
    )
    model = model_of_parts(parts, (2, 3, height, width), opset=6, ir_version=3)
    fold_checked(model, kept=count_kept(model), engine=evaluate)


def test_gemm_of_opset_6_declares_its_broadcast(rng):
    """A bias that was absent is added; before opset 7 it broadcasts only where `broadcast` is 1."""
    linear = layer("Gemm", "x", "c", (K, M), rng, bias_shape=(M,), broadcast=1)
    parts = join(linear, bn("c", "y", M, rng, is_test=1))
    folded, _ = fold_checked(model_of_parts(parts, (N, K), opset=6, ir_version=3), engine=evaluate)
    assert ops(folded) == ["Gemm"]
    gemm_node = folded.graph.node[0]
    broadcast = any(a.name == "broadcast" and a.i == 1 for a in gemm_node.attribute)
    assert broadcast or initializer(folded, gemm_node.input[2]).shape == (N, M)


@pytest.mark.parametrize("opset", [7, 8, 9, 11, 13])
@pytest.mark.parametrize("rank", [2, 3])
def test_matmul_of_old_opsets(rank, opset, rng):
    """What takes the BN's shift has the attributes of its opset, and no others."""
    shape = (5, 3) if rank == 2 else (2, 5, 6)
    linear = matmul(rng, (3, 4)) if rank == 2 else matmul(rng, (4, 5), left=True)
    parts = join(linear, bn("c", "y", 4, rng))
    ir_version = 3 if opset < 9 else 8
    fold_checked(model_of_parts(parts, shape, opset=opset, ir_version=ir_version))


@pytest.mark.parametrize("rank", [2, 3])
def test_matmul_before_opset_7(rank, rng):
    """The Add behind a MatMul is one of opset 6: it does not broadcast without `broadcast`."""
    shape = (5, 3) if rank == 2 else (2, 5, 6)
    linear = matmul(rng, (3, 4)) if rank == 2 else matmul(rng, (4, 5), left=True)
    parts = join(linear, bn("c", "y", 4, rng, is_test=1))
    model = model_of_parts(parts, shape, opset=6, ir_version=3)
    folded, _ = fold_checked(model, kept=count_kept(model), engine=evaluate)
    for n in folded.graph.node:
        if n.op_type in ("Add", "Gemm"):
            attributes = {a.name: a.i for a in n.attribute}
            assert attributes.get("broadcast") == 1
            constant = initializer(folded, n.input[-1])
            axis = attributes.get("axis", rank - constant.ndim)
            assert constant.shape == {2: (5, 4), 3: (2, 4, 6)}[rank][axis : axis + constant.ndim]


# --- a layer that other nodes read too -----------------------------------------------------------


def test_a_layer_read_by_another_node_stays(rng):
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng), node("Relu", ["c"], ["r"]), bn("c", "y", 4, rng)
    )
    model = model_of(parts.nodes, {"x": (2, 3, 4, 4)}, ["r", "y"], parts.initializers)
    folded, report = fold_checked(model, kept=1)
    assert folded.graph.node == model.graph.node
    assert "Relu 'n_r'" in {r.culprit for _, r in report.kept[0].tried}


def test_a_layer_that_is_a_graph_output_stays(rng):
    parts = join(conv("x", "c", (4, 3, 1, 1), rng), bn("c", "y", 4, rng))
    model = model_of(parts.nodes, {"x": (2, 3, 4, 4)}, ["c", "y"], parts.initializers)
    _, report = fold_checked(model, kept=1)
    assert Reason.GRAPH_OUTPUT in reasons(report)[0]


def test_two_norms_of_one_layer(rng):
    """One goes into the layer, and the other, an affine node, makes up for it."""
    parts = join(conv("x", "c", (4, 3, 1, 1), rng), bn("c", "y", 4, rng), bn("c", "z", 4, rng))
    model = model_of(parts.nodes, {"x": (2, 3, 4, 4)}, ["y", "z"], parts.initializers)
    folded, _ = fold_checked(model, kept=1, tolerance=1e-5)
    assert count(folded) == 1


def test_two_layers_in_a_row(rng):
    parts = join(
        conv("x", "c", (4, 3, 3, 3), rng, pads=[1, 1, 1, 1]),
        bn("c", "b", 4, rng),
        node("Relu", ["b"], ["r"]),
        conv("r", "d", (5, 4, 3, 3), rng, pads=[1, 1, 1, 1], bias=False),
        bn("d", "y", 5, rng),
    )
    folded, _ = fold_checked(model_of_parts(parts, (2, 3, 6, 6)))
    assert ops(folded) == ["Conv", "Relu", "Conv"]


def test_a_sum_with_itself(rng):
    """The layer's shift arrives twice."""
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng), node("Add", ["c", "c"], ["a"]), bn("a", "y", 4, rng)
    )
    folded, _ = fold_checked(model_of_parts(parts, (2, 3, 4, 4)))
    assert ops(folded) == ["Conv", "Add"]


def test_a_product_with_itself_stays(rng):
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng), node("Mul", ["c", "c"], ["a"]), bn("a", "y", 4, rng)
    )
    fold_checked(model_of_parts(parts, (2, 3, 4, 4)), kept=1)


def test_a_norm_that_nobody_reads(rng):
    parts = join(conv("x", "y", (4, 3, 1, 1), rng), bn("y", "dead", 4, rng))
    model = model_of_parts(parts, (2, 3, 4, 4))
    fold_checked(model, kept=count_kept(model))


def test_a_norm_of_a_constant(rng):
    constant = tensor("k", rng.standard_normal((1, 4, 1, 1)).astype(np.float32))
    parts = join(bn("k", "b", 4, rng), node("Add", ["b", "x"], ["y"]))
    model = model_of(parts.nodes, {"x": (2, 4, 3, 3)}, ["y"], [*parts.initializers, constant])
    fold_checked(model, kept=count_kept(model))


def test_a_norm_of_a_vector(rng):
    """BatchNormalization takes one axis too: its C is 1 then, and the axis is the batch."""
    parts = join(matmul(rng, (5,)), bn("c", "y", 1, rng))
    model = model_of(parts.nodes, {"x": (3, 5)}, {"y": (3,)}, parts.initializers)
    fold_checked(model, kept=count_kept(model), compare=not count_kept(model), engine=evaluate)


LONG = 2000  # deeper than Python's stack of calls


@pytest.mark.parametrize("between", ["Identity", "Relu"])
def test_a_long_way_from_the_layer_to_its_norm(between, rng):
    values = ["c", *(f"v{i}" for i in range(LONG))]
    way = [node(between, [a], [b]) for a, b in pairwise(values)]
    parts = join(
        conv("x", "c", (2, 2, 1, 1), rng), *way, bn(values[-1], "y", 2, rng, positive=True)
    )
    model = model_of(parts.nodes, {"x": (1, 2, 1, 1)}, ["y"], parts.initializers)
    _, report = onnx_bnfold.fold(model)
    assert len(report.kept) == (between == "Relu")


def test_a_long_row_of_layers(rng):
    number = LONG // 2
    pairs = [
        join(conv(f"v{i}", f"c{i}", (1, 1, 1, 1), rng), bn(f"c{i}", f"v{i + 1}", 1, rng))
        for i in range(number)
    ]
    parts = join(*pairs)
    model = model_of(parts.nodes, {"v0": (1, 1, 1, 1)}, [f"v{number}"], parts.initializers)
    folded, report = onnx_bnfold.fold(model)
    assert not report.kept
    assert len(folded.graph.node) == number


def test_a_norm_of_a_graph_input_and_output_stays(rng):
    parts = bn("x", "y", 4, rng)
    _, report = fold_checked(model_of_parts(parts, (2, 4, 3, 3)), kept=1)
    assert reasons(report)[0] >= {Reason.GRAPH_INPUT, Reason.GRAPH_OUTPUT}


@pytest.mark.parametrize("op", ["Sigmoid", "Softmax", "Elu", "Tanh"])
def test_a_norm_behind_another_operator_stays(op, rng):
    parts = join(conv("x", "c", (4, 3, 1, 1), rng), node(op, ["c"], ["s"]), bn("s", "y", 4, rng))
    _, report = fold_checked(model_of_parts(parts, (2, 3, 4, 4)), kept=1)
    assert report.kept[0].refusal.reason == Reason.OPAQUE
    assert report.kept[0].refusal.culprit == f"{op} 'n_s'"


@pytest.mark.parametrize("case", ["Conv", "ConvTranspose", "Gemm"])
def test_a_weight_of_run_time_stays(case, rng):
    shapes = {"Conv": (4, 3, 1, 1), "ConvTranspose": (3, 4, 1, 1), "Gemm": (3, 4)}
    x = (2, 3) if case == "Gemm" else (2, 3, 4, 4)
    parts = join(node(case, ["x", "w"], ["c"]), bn("c", "y", 4, rng))
    model = model_of(parts.nodes, {"x": x, "w": shapes[case]}, ["y"], parts.initializers)
    _, report = fold_checked(model, kept=1)
    assert report.kept[0].refusal.reason == Reason.WEIGHT_NOT_CONSTANT
    assert report.kept[0].refusal.culprit == f"{case} 'n_c'"


@pytest.mark.parametrize("case", ["Conv", "ConvTranspose", "Gemm"])
def test_a_bias_of_run_time_stays(case, rng):
    shapes = {"Conv": (4, 3, 1, 1), "ConvTranspose": (3, 4, 1, 1), "Gemm": (3, 4)}
    x = (2, 3) if case == "Gemm" else (2, 3, 4, 4)
    weight = tensor("W", rng.standard_normal(shapes[case]).astype(np.float32))
    linear = Parts(node(case, ["x", "W", "b"], ["c"]).nodes, [weight])
    parts = join(linear, bn("c", "y", 4, rng))
    model = model_of(parts.nodes, {"x": x, "b": (4,)}, ["y"], parts.initializers)
    _, report = fold_checked(model, kept=1)
    assert report.kept[0].refusal.reason == Reason.BIAS_NOT_CONSTANT


# --- Identity and Dropout pass a change on -------------------------------------------------------


@pytest.mark.parametrize("op", ["Identity", "Dropout"])
def test_through_identity_and_dropout(op, rng):
    parts = join(conv("x", "c", (4, 3, 1, 1), rng), node(op, ["c"], ["d"]), bn("d", "y", 4, rng))
    folded, _ = fold_checked(model_of_parts(parts, (2, 3, 4, 4)))
    assert ops(folded) == ["Conv", op]


@pytest.mark.parametrize(
    ("opset", "attributes", "kept"),
    [(6, {}, 1), (6, {"is_test": 1}, 0), (7, {}, 0), (10, {"ratio": 0.3}, 0)],
    ids=["6-training", "6-is_test", "7", "10"],
)
def test_dropout_of_old_opsets(opset, attributes, kept, rng):
    """Before opset 7 a Dropout drops unless it says `is_test`."""
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng),
        node("Dropout", ["c"], ["d"], **attributes),
        bn("d", "y", 4, rng, **({"is_test": 1} if opset < 7 else {})),
    )
    model = model_of_parts(parts, (2, 3, 4, 4), opset=opset, ir_version=3)
    fold_checked(model, kept=kept, engine=evaluate)


@pytest.mark.parametrize("training", ["true", "input", "false"])
def test_dropout_with_its_training_input(training, rng):
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng),
        Parts(node("Dropout", ["c", "ratio", "train"], ["d"]).nodes, []),
        bn("d", "y", 4, rng),
    )
    constants = [tensor("ratio", np.float32(0.5))]
    inputs = {"x": (2, 3, 4, 4)}
    if training == "input":
        inputs["train"] = (np.bool_, ())
    else:
        constants.append(tensor("train", np.array(training == "true")))
    model = model_of(parts.nodes, inputs, ["y"], [*parts.initializers, *constants])
    kept = int(training != "false")
    _, report = fold_checked(model, kept=kept, compare=not kept)
    assert not kept or "Dropout 'n_d'" in {r.culprit for _, r in report.kept[0].tried}


@pytest.mark.parametrize("left", [0.0, 1e-10])
def test_a_bias_that_nearly_cancels_is_made_and_one_that_cancels_is_not(left):
    """The shift 1 of both features comes to ``left`` behind a MatMul that subtracts them."""
    x, ones = ["N", 2], np.ones(2)
    values = {"s": ones, "b": ones, "m": 0 * ones, "v": ones, "W": np.array([[1.0], [left - 1]])}
    norm = node("BatchNormalization", ["x", "s", "b", "m", "v"], ["t"], epsilon=1e-5)
    nodes = [*norm.nodes, *node("MatMul", ["t", "W"], ["y"]).nodes]
    initializers = [tensor(name, value) for name, value in values.items()]
    folded, _ = fold_checked(model_of(nodes, {"x": x}, ["y"], initializers, dtype=np.float64))
    assert ops(folded) == (["Gemm"] if left else ["MatMul"])


def test_no_bias_is_made_of_what_a_norm_behind_nearly_cancels():
    """The rounding of the mean 0.17, times the scale behind, is small beside 170,000."""
    x, one, ones = ["N", 2], np.ones(1), np.ones(2)
    front = {"s": ones, "b": np.array([0.1, 0.2]), "m": 0 * ones, "v": ones}
    behind = {"S": 1e6 * one, "B": 0 * one, "M": np.array([np.nextafter(0.17, 1)]), "V": one}
    nodes = [
        *node("BatchNormalization", ["x", *front], ["t"], epsilon=1e-5).nodes,
        *node("MatMul", ["t", "W"], ["u"]).nodes,
        *node("BatchNormalization", ["u", *behind], ["y"], epsilon=1e-5).nodes,
    ]
    values = {**front, **behind, "W": np.array([[0.3], [0.7]])}
    initializers = [tensor(name, value) for name, value in values.items()]
    folded, _ = fold_checked(model_of(nodes, {"x": x}, ["y"], initializers, dtype=np.float64))
    assert ops(folded) == ["MatMul"]


def test_an_add_behind_a_matmul_takes_the_whole_shift(rng):
    """What the weights make of a shift is rounded on the way; that is no bias to be added."""
    weight = tensor("W", rng.standard_normal((32, 64)).astype(np.float32))
    parts = join(
        bn("x", "t", 64, rng),
        Parts(node("MatMul", ["W", "t"], ["m"]).nodes, [weight]),
        constant_operand("Add", "m", "a", (32, 1), rng),
        bn("a", "y", 32, rng),
    )
    folded, _ = fold_checked(model_of(parts.nodes, {"x": ["N", 64, 3]}, ["y"], parts.initializers))
    assert ops(folded) == ["MatMul", "Add"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_channel_of_gamma_zero_becomes_zero_in_the_layer_behind(dtype, rng):
    """In float64, too, which has numbers as small as the scale that stands for zero."""
    norm = bn("x", "a", 3, rng, dtype=dtype)
    norm.initializers[0].CopyFrom(tensor("a_scale", np.zeros(3, dtype)))
    norm.initializers[1].CopyFrom(tensor("a_B", np.zeros(3, dtype)))
    parts = join(
        node("Sigmoid", ["z"], ["x"]), norm, layer("MatMul", "a", "y", (3, 2), rng, dtype=dtype)
    )
    folded, _ = fold_checked(
        model_of(parts.nodes, {"z": (4, 3)}, ["y"], parts.initializers, dtype=dtype)
    )
    assert not initializer(folded, "y_W").any()


@pytest.mark.parametrize(("wanted", "kept"), [(None, 0), ([5, 4], 1)])
def test_no_shift_reaches_positions_beyond_the_input_of_a_conv_transpose(wanted, kept):
    """The bias alone is there, if a runtime takes such an output_shape at all."""
    net = Net(("N", 4, 4, 4))
    y = net.op("ConvTranspose", net.bn("x"), net.random(4, 3, 1, 1), output_shape=wanted)
    report = onnx_bnfold.plan(net.model(y))
    assert len(report.kept) == kept
    assert all(Reason.PADDING in found for found in reasons(report))
