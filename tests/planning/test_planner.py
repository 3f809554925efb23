"""Plans: networks of many nodes, BNs that compete, affine nodes, and what the report says."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from graphs import IMAGE, Case, Cases, Net
from onnx import TensorProto, helper, numpy_helper
from support import assert_same_function, fold_checked, ops, reasons, run

import onnx_bnfold
from onnx_bnfold import Reason

layers = Cases()


@layers()
def conv_in_front(n):
    return n.bn(n.conv("x", 3))


@layers()
def conv_without_bias_in_front(n):
    return n.bn(n.conv("x", 3, 3, bias=False, pads=[1] * 4))


@layers()
def conv_behind(n):
    return n.conv(n.bn("x"), 3, 3)


@layers()
def conv_without_bias_behind(n):
    return n.conv(n.bn("x"), 3, 3, bias=False)


@layers()
def grouped_conv_behind(n):
    return n.conv(n.bn("x"), 6, 3, group=2)


@layers()
def depthwise_conv_behind(n):
    return n.conv(n.bn("x"), 4, 3, group=4)


@layers(1, Reason.PADDING)
def padded_conv_behind(n):
    return n.conv(n.bn("x"), 3, 3, pads=[1] * 4)


@layers(1, Reason.PADDING)
def conv_padded_on_one_side_behind(n):
    return n.conv(n.bn("x"), 3, 3, pads=[0, 0, 0, 1])


@layers(1, Reason.PADDING)
def conv_of_same_padding_behind(n):
    return n.conv(n.bn("x"), 3, 3, auto_pad="SAME_UPPER")


@layers()
def conv_of_valid_padding_behind(n):
    return n.conv(n.bn("x"), 3, 3, auto_pad="VALID")


@layers()
def padded_conv_behind_without_shift(n):
    return n.conv(n.bn("x", shift=False), 3, 3, pads=[1] * 4)


@layers()
def conv_of_same_padding_behind_without_shift(n):
    return n.conv(n.bn("x", shift=False), 3, 3, auto_pad="SAME_LOWER")


@layers()
def padded_conv_behind_and_a_layer_in_front_that_others_read(n):
    """The shift goes upstream, the scale downstream: an output of the graph fixes the scale."""
    t = n.conv("x", 4)
    return n.conv(n.bn(t), 3, 3, pads=[1] * 4), n.op("Add", t, n.conv("x", 4))


@layers()
def padded_conv_behind_a_padded_sibling(n):
    """Both readers of the layer's output refuse a shift, and the BN's own goes to the layer."""
    t = n.conv("x", 4)
    return n.conv(n.bn(t), 3, 3, pads=[1] * 4)


@layers(1, Reason.PADDING, Reason.NO_SHIFT, Reason.CONFLICT)
def padded_conv_on_both_branches(n):
    t = n.conv("x", 4)
    return n.conv(n.bn(t), 3, 3, pads=[1] * 4), n.conv(t, 3, 3, pads=[1] * 4)


@layers()
def unpadded_conv_on_the_other_branch(n):
    t = n.conv("x", 4)
    return n.conv(n.bn(t), 3, 3, pads=[1] * 4), n.conv(t, 3, 3)


@layers()
def conv_transpose_in_front(n):
    return n.bn(n._layer("ConvTranspose", "x", (4, 3, 2, 2), [3], strides=[2, 2]))


@layers()
def grouped_conv_transpose_in_front(n):
    return n.bn(n._layer("ConvTranspose", "x", (4, 3, 2, 2), None, group=2))


@layers()
def conv_transpose_behind_without_shift(n):
    return n._layer("ConvTranspose", n.bn("x", shift=False), (4, 3, 2, 2), [3], strides=[2, 2])


@layers()
def conv_transpose_1x1_behind(n):
    return n._layer("ConvTranspose", n.bn("x"), (4, 3, 1, 1), [3])


@layers(1, Reason.PADDING)
def conv_transpose_behind(n):
    """At the border fewer products meet: the shift is not the same everywhere."""
    return n._layer("ConvTranspose", n.bn("x"), (4, 3, 3, 3), [3])


@layers(shape=("N", 4))
def gemm_in_front(n):
    return n.bn(n.gemm("x", 3))


@layers(shape=("N", 4))
def gemm_with_factors(n):
    return n.bn(n._layer("Gemm", "x", (3, 4), [3], alpha=0.5, beta=2.0, transB=1))


@layers(shape=("N", 4))
def gemm_behind_with_factors(n):
    return n._layer("Gemm", n.bn("x"), (3, 4), [3], alpha=0.5, beta=2.0, transB=1)


@layers(shape=("N", 4))
def gemm_behind_with_factors_and_no_shift(n):
    """The bias stays as it is, and so does the factor before it."""
    return n._layer("Gemm", n.bn("x", shift=False), (3, 4), [3], alpha=0.5, beta=2.0, transB=1)


@layers(shape=("N", 4))
def matmul_behind(n):
    return n.matmul(n.bn("x"), 3)


@layers(shape=("N", 4))
def linear_in_front_and_behind(n):
    return n.linear(n.bn(n.linear("x", 3)), 3)


@layers(shape=("N", 3, 4))
def linear_of_three_axes(n):
    """BN acts on axis 1, the layer on the last: a row of the output has one scale."""
    t = n.op("Transpose", n.linear("x", 5), perm=[0, 2, 1])
    return n.op("Transpose", n.bn(t), perm=[0, 2, 1])


@layers(1, Reason.AXES, Reason.NOT_SMALLER, shape=("N", 3, 4))
def linear_whose_rows_are_channels(n):
    return n.bn(n.linear("x", 5))


@layers(1, Reason.AXES, Reason.NOT_SMALLER, shape=("N", 5, 4))
def linear_whose_rows_are_as_many_as_its_features(n):
    return n.bn(n.linear("x", 5))


@layers()
def flatten_then_gemm(n):
    return n.gemm(n.op("Flatten", n.bn("x")), 3)


@layers()
def pool_flatten_gemm(n):
    return n.gemm(n.op("Flatten", n.op("GlobalAveragePool", n.bn("x"))), 3)


@layers()
def channels_last_linear(n):
    return n.linear(n.op("Transpose", n.bn("x"), perm=[0, 2, 3, 1]), 3)


@layers()
def flatten_by_a_computed_shape(n):
    """What `x.view(x.size(0), -1)` is exported as."""
    t = n.bn("x")
    size = n.op("Gather", n.op("Shape", t), n.const(np.int64(0)), axis=0)
    shape = n.op("Concat", n.op("Unsqueeze", size, n.ints(0)), n.ints(-1), axis=0)
    return n.gemm(n.op("Reshape", t, shape), 3, channels=64)


@layers()
def channels_last_by_a_computed_shape(n):
    """(N, C, H, W) -> (N, C, H * W) -> (N, H * W, C), as in a vision transformer."""
    t = n.bn("x")
    size = n.op("Slice", n.op("Shape", t), n.ints(0), n.ints(2))
    shape = n.op("Concat", size, n.ints(-1), axis=0)
    tokens = n.op("Transpose", n.op("Reshape", t, shape), perm=[0, 2, 1])
    return n.op("MatMul", tokens, n.random(4, 3))


@layers(1, Reason.UNKNOWN_SHAPE, Reason.AXES, shape=("N", 4, "H", "W"))
def flatten_of_dynamic_space(n):
    return n.gemm(n.op("Flatten", n.bn("x")), 3, channels=16)


@pytest.mark.parametrize("case", layers)
def test_layer(case: Case):
    case.check(H=2, W=2)


networks = Cases()


def preactivation(n, t, out=4, **norm):
    """He et al. 2016: BN - ReLU - conv - BN - ReLU - conv, and the sum with the input."""
    y = n.conv(n.relu(n.bn(t, **norm)), out, 3, pads=[1] * 4, bias=False)
    y = n.conv(n.relu(n.bn(y, **norm)), out, 3, pads=[1] * 4, bias=False)
    return n.op("Add", y, t)


def head(n, t):
    return n.gemm(n.op("Flatten", n.op("GlobalAveragePool", t)), 3)


@networks()
def preactivation_blocks(n):
    t = n.conv("x", 4, 3, pads=[1] * 4)
    for _ in range(4):
        t = preactivation(n, t, signs="positive")
    return head(n, n.relu(n.bn(t, signs="positive")))


@networks(1, Reason.NEEDS_POSITIVE_SCALE)
def preactivation_block_of_mixed_signs(n):
    """The second BN has a conv of its own; the first one's scale must pass the ReLU."""
    t = n.conv("x", 4, 3, pads=[1] * 4)
    t = n.op("Add", n.conv(t, 4), preactivation(n, t, signs="mixed"))
    return t, n.relu(t)


@networks()
def preactivation_block_without_a_skip_of_mixed_signs(n):
    return n.conv(n.relu(n.bn(n.conv("x", 4))), 3, 3, pads=[1] * 4)


@networks()
def postactivation_blocks(n):
    t = n.relu(n.bn(n.conv("x", 4)))
    for _ in range(3):
        y = n.relu(n.bn(n.conv(t, 4, 3, pads=[1] * 4, bias=False)))
        t = n.relu(n.op("Add", n.bn(n.conv(y, 4, 3, pads=[1] * 4, bias=False)), t))
    return head(n, t)


@networks()
def bn_after_each_sum(n):
    t = n.conv("x", 4)
    for _ in range(3):
        t = n.bn(n.op("Add", n.conv(t, 4), t))
    return n.conv(t, 3)


@networks()
def bn_in_front_of_padded_convs_with_skips(n):
    """ArcFace's block: BN - padded conv - BN - PReLU - padded conv - BN, and a sum."""
    t = n.bn(n.conv("x", 4))
    for _ in range(3):
        y = n.bn(n.conv(n.bn(t), 4, 3, pads=[1] * 4, bias=False))
        y = n.op("PRelu", y, n.const(n.rng.uniform(0.1, 0.9, (4, 1, 1))))
        t = n.op("Add", n.bn(n.conv(y, 4, 3, pads=[1] * 4, bias=False)), t)
    return n.gemm(n.op("Flatten", n.bn(t)), 3)


@networks()
def repvgg_blocks(n):
    t = n.relu(n.op("Add", n.bn(n.conv("x", 4, 3, pads=[1] * 4)), n.bn(n.conv("x", 4))))
    for _ in range(3):
        three = n.bn(n.conv(t, 4, 3, pads=[1] * 4, bias=False))
        one = n.bn(n.conv(t, 4, bias=False))
        t = n.relu(n.op("Sum", three, one, n.bn(t, signs="positive")))
    return head(n, t)


@networks()
def repvgg_blocks_to_a_graph_output(n):
    t = n.relu(n.bn(n.conv("x", 4)))
    for _ in range(2):
        branch = n.bn(n.conv(t, 4, 3, pads=[1] * 4, bias=False))
        t = n.relu(n.op("Add", branch, n.bn(t, signs="positive")))
    return t


@networks(1, Reason.NEEDS_POSITIVE_SCALE, Reason.NO_SHIFT)
def repvgg_block_of_mixed_signs(n):
    t = n.relu(n.bn(n.conv("x", 4)))
    return n.relu(n.op("Add", n.bn(n.conv(t, 4)), n.bn(t)))


@networks()
def squeeze_and_excite(n):
    t = n.relu(n.bn(n.conv("x", 4)))
    squeezed = n.conv(n.relu(n.conv(n.op("GlobalAveragePool", t), 2)), 4)
    gated = n.op("Mul", n.op("Sigmoid", squeezed), t)
    return n.bn(n.conv(gated, 3))


@networks()
def channel_shuffle_in_front_of_a_layer(n):
    t = n.op("Reshape", n.bn("x"), n.ints(-1, 2, 2, 4, 4))
    t = n.op("Transpose", t, perm=[0, 2, 1, 3, 4])
    return n.conv(n.op("Reshape", t, n.ints(-1, 4, 4, 4)), 3)


@networks()
def channel_shuffle_behind_a_layer(n):
    t = n.op("Reshape", n.conv("x", 6), n.ints(0, 3, 2, 4, 4))
    t = n.op("Transpose", t, perm=[0, 2, 1, 3, 4])
    return n.bn(n.op("Reshape", t, n.ints(0, -1, 4, 4)))


@networks()
def channel_shuffle_of_a_static_batch(n):
    t = n.op("Reshape", n.conv("x", 6), n.ints(2, 2, 3, 16))
    t = n.op("Transpose", t, perm=[0, 2, 1, 3])
    return n.bn(n.op("Reshape", t, n.ints(2, 6, 4, 4)))


@networks()
def shuffle_unit(n):
    left, right = n.op("Split", n.relu(n.bn(n.conv("x", 4))), outputs=2, axis=1)
    right = n.relu(n.bn(n.conv(right, 2)))
    right = n.bn(n.conv(right, 2, 3, pads=[1] * 4, group=2))
    right = n.relu(n.bn(n.conv(right, 2)))
    t = n.op("Concat", left, right, axis=1)
    t = n.op("Transpose", n.op("Reshape", t, n.ints(0, 2, 2, 16)), perm=[0, 2, 1, 3])
    return head(n, n.op("Reshape", t, n.ints(0, 4, 4, 4)))


@networks()
def concat_of_concats(n):
    a, b, c = n.conv("x", 2), n.conv("x", 3), n.conv("x", 1)
    t = n.op("Concat", n.op("Concat", a, b, axis=1), c, axis=1)
    return n.bn(t)


@networks(3, Reason.NO_SHIFT)
def dense_block(n):
    """Four BNs read the first layer's output, which can be shifted for one of them only."""
    t = n.conv("x", 4, 3, pads=[1] * 4)
    for _ in range(3):
        y = n.conv(n.relu(n.bn(t, signs="positive")), 2, bias=False)
        y = n.relu(n.bn(y, signs="positive"))
        t = n.op("Concat", t, n.conv(y, 2, 3, pads=[1] * 4, bias=False), axis=1)
    return head(n, n.relu(n.bn(t, signs="positive")))


@networks()
def inception(n):
    stem = n.relu(n.bn(n.conv("x", 4)))
    pool = n.op("AveragePool", stem, kernel_shape=[3, 3], pads=[1] * 4)
    branches = [n.conv(stem, 2), n.conv(stem, 3, 3, pads=[1] * 4), n.conv(pool, 2)]
    t = n.op("Concat", *(n.relu(n.bn(b)) for b in branches), axis=1)
    return n.bn(n.conv(t, 3))


@networks()
def bn_behind_a_pooled_concat(n):
    t = n.op("Concat", n.conv("x", 2), n.conv("x", 3), axis=1)
    return n.bn(n.op("MaxPool", t, kernel_shape=[2, 2]), signs="positive")


@networks(opset=18)
def feature_pyramid(n):
    fine = n.conv("x", 4)
    pooled = n.op("AveragePool", "x", kernel_shape=[2, 2], pads=[0, 0, 1, 1], strides=[2, 2])
    up = n.op("Resize", n.conv(pooled, 4), "", "", n.ints(4, 4), axes=[2, 3], mode="linear")
    return n.bn(n.op("Add", fine, up))


@networks()
def two_readers_that_are_layers(n):
    t = n.bn("x")
    return n.conv(t, 2), n.conv(t, 3)


@networks(1, Reason.GRAPH_OUTPUT)
def one_reader_is_the_graph_output(n):
    t = n.bn("x")
    return n.conv(t, 2), t


@networks()
def layer_output_read_twice(n):
    """The other reader takes the inverse."""
    t = n.conv("x", 4)
    return n.bn(t), n.conv(t, 3)


@networks(1, Reason.GRAPH_OUTPUT)
def layer_output_is_a_graph_output(n):
    t = n.conv("x", 4)
    return n.bn(t), t


@networks(1, Reason.OPAQUE)
def layer_output_read_by_an_opaque_operator(n):
    t = n.conv("x", 4)
    return n.bn(t), n.op("Sigmoid", t)


@networks(1, Reason.GRAPH_OUTPUT)
def one_tensor_two_bns_to_graph_outputs(n):
    """One goes into the layer, the other one takes what the layer changes."""
    t = n.conv("x", 4)
    return n.bn(t), n.bn(t)


@networks()
def one_tensor_two_bns_in_front_of_layers(n):
    return n.conv(n.bn("x"), 2), n.conv(n.bn("x"), 3)


@networks()
def one_tensor_two_bns_in_front_of_padded_layers(n):
    """The layer in front can take one shift only, but a common reader can take the difference."""
    t = n.conv("x", 4)
    a, b = n.bn(t, shift=False), n.bn(t)
    return n.conv(a, 2, 3), n.conv(b, 3, 3, pads=[1] * 4)


@networks()
def shared_weight(n):
    """Two layers read one weight, and each has a BN of its own."""
    w = n.random(4, 4, 1, 1)
    return n.bn(n.op("Conv", "x", w)), n.bn(n.op("Conv", "x", w)), n.op("Conv", "x", w)


@networks()
def shared_layer_chain(n):
    w, b = n.random(4, 4, 1, 1), n.random(4)
    t = n.bn(n.op("Conv", "x", w, b))
    return n.bn(n.op("Conv", t, w, b))


@networks(1, Reason.OPAQUE)
def activation_between_conv_and_bn(n):
    return n.bn(n.op("Sigmoid", n.conv("x", 4)))


@networks()
def relu_between_conv_and_bn_in_front_of_a_layer(n):
    return n.conv(n.bn(n.relu(n.conv("x", 4))), 3)


@networks(1, Reason.PADDING)
def relu_between_conv_and_bn_in_front_of_a_padded_layer(n):
    return n.conv(n.bn(n.relu(n.conv("x", 4))), 3, 3, pads=[1] * 4)


@networks()
def several_producers_and_readers(n):
    t = n.op("Concat", n.op("Add", n.conv("x", 2), n.conv("x", 2)), n.conv("x", 2), axis=1)
    y = n.bn(t)
    pooled = n.op("MaxPool", n.relu(y), kernel_shape=[2, 2])
    return n.conv(pooled, 2), n.conv(y, 2), n.op("AveragePool", y, kernel_shape=[2, 2])


@pytest.mark.parametrize("case", networks)
def test_network(case: Case):
    case.check()


FIXED_SIZE = {
    bn_in_front_of_padded_convs_with_skips,
    channel_shuffle_in_front_of_a_layer,
    channel_shuffle_behind_a_layer,
    channel_shuffle_of_a_static_batch,
    shuffle_unit,
    feature_pyramid,
}
OF_ANY_SIZE = [p for p in networks if p.values[0].build not in FIXED_SIZE]


@pytest.mark.parametrize("shape", [("N", 4, "H", "W"), (None, 4, None, None)], ids=str)
@pytest.mark.parametrize("case", OF_ANY_SIZE)
def test_network_of_any_size(case: Case, shape):
    dataclasses.replace(case, shape=shape).check(H=5, W=6, feeds=image_feeds(5, 6))


def image_feeds(height, width):
    rng = np.random.default_rng(0)
    return {"x": rng.standard_normal((2, 4, height, width)).astype(np.float32)}


traps = Cases()


@traps(1, Reason.OPAQUE, Reason.BIAS_NOT_CONSTANT, shape=("N", 4))
def bn_that_is_the_bias_of_a_gemm(n):
    return n.op("Gemm", "x", n.random(4, 4), n.bn("x"))


@traps(1, shape=("N", 4))
def bn_that_is_both_inputs_of_a_gemm(n):
    t = n.bn("x")
    return n.op("Gemm", t, n.random(4, 4), t)


@traps(1, Reason.WEIGHT_NOT_CONSTANT, Reason.OPAQUE, shape=(3, 4, 5))
def bn_that_is_both_operands_of_a_matmul(n):
    t = n.bn("x")
    return n.op("MatMul", t, n.op("Transpose", t, perm=[0, 2, 1]))


@traps(1, Reason.WEIGHT_NOT_CONSTANT, Reason.OPAQUE, shape=(3, 4, 1, 1))
def bn_that_is_the_weight_of_a_conv(n):
    return n.op("Conv", "x", n.bn(n.op("Identity", "x"), channels=4))


@traps(1, Reason.OPAQUE, Reason.AXES, shape=(4, 4))
def transposed_input_of_a_gemm(n):
    """The rows of x, which are its batch, are summed over."""
    return n.op("Gemm", n.bn("x"), n.random(4, 3), n.random(3), transA=1)


@traps(shape=(5, 4))
def matmul_whose_constant_is_on_the_left(n):
    t = n.op("Transpose", n.op("MatMul", n.random(3, 4), n.op("Transpose", "x", perm=[1, 0])))
    return n.bn(t)


@traps()
def conv_with_an_empty_bias(n):
    return n.bn(n.op("Conv", "x", n.random(3, 4, 1, 1), ""))


@traps()
def one_channel(n):
    return n.bn(n.conv(n.bn(n.conv("x", 1)), 1))


@traps(shape=("N", 1, 1, 1))
def one_element(n):
    return n.conv(n.op("Add", n.bn("x"), n.conv("x", 1)), 2)


@traps(1)
def bns_that_share_their_parameters(n):
    """The BN that stays takes the other one; neither may write into what both read."""
    parameters = [n.random(4), n.random(4), n.random(4), n.const(np.full(4, 0.5))]
    t = n.op("BatchNormalization", n.op("Sigmoid", "x"), *parameters)
    return n.op("Tanh", n.op("BatchNormalization", t, *parameters))


@traps()
def parameters_that_others_read(n):
    scale, shift = n.random(4), n.random(4)
    t = n.op("Conv", "x", n.random(4, 4, 1, 1), shift)
    t = n.op("BatchNormalization", t, scale, shift, scale, n.const(np.full(4, 0.5)))
    return t, n.op("Mul", scale, shift)


@traps()
def affine_constant_that_others_read(n):
    c = n.random(4, 1, 1)
    return n.op("Add", n.op("Mul", n.conv("x", 4), c), c), n.op("Sigmoid", n.op("Add", "x", c))


@traps()
def weight_that_is_read_as_a_tensor(n):
    w = n.random(4, 4, 1, 1)
    return n.bn(n.op("Conv", "x", w)), n.op("Mul", w, w)


@traps()
def weight_that_a_convolution_of_itself_makes(n):
    w = n.random(4, 4, 1, 1)
    return n.bn(n.op("Conv", "x", n.op("Conv", w, w)))


@traps(shape=("N", 4, 4))
def reshape_that_cuts_channels_across(n):
    """(4, 4) -> (2, 8): two channels in a row; a Gemm can take a change per element."""
    t = n.op("Reshape", n.bn("x"), n.ints(0, 2, 8))
    return n.gemm(n.op("Flatten", t), 3)


@traps(1, Reason.AXES, shape=("N", 4, 4))
def reshape_that_cuts_channels_across_for_a_conv(n):
    return n.conv(n.op("Reshape", n.bn("x"), n.ints(0, 2, 8)), 3)


@traps(1, Reason.AXES, shape=("N", 4, 4))
def transpose_of_equal_axes(n):
    return n.conv(n.op("Transpose", n.bn("x"), perm=[0, 2, 1]), 4)


@traps(1, Reason.AXES, shape=(4, 4, 4))
def transpose_of_batch_and_channels(n):
    return n.conv(n.op("Transpose", n.bn("x"), perm=[1, 0, 2]), 4)


@traps(1, Reason.AXES, shape=(3, 4, 4, 4))
def expand_to_a_higher_rank(n):
    """The channel axis moves to the right: the BN acts on the former batch."""
    t = n.op("Expand", n.conv("x", 4), n.ints(2, 3, 4, 4, 4))
    return n.bn(t)


@traps(1, Reason.OPAQUE, Reason.UNSUPPORTED_TYPE)
def comparison(n):
    return n.op("Greater", n.bn("x"), n.const(np.zeros(1)))


@traps()
def where(n):
    condition = n.op("Greater", "x", n.const(np.zeros(1)))
    return n.conv(n.op("Where", condition, n.bn("x"), n.const(np.zeros(1))), 3)


@traps(shape=(2, 3))
def integer_arithmetic(n):
    t = n.op("Mul", n.input("i", [2, 3], TensorProto.INT64), n.ints(2, 3, 4))
    t = n.op("Cast", n.op("Add", t, n.ints(1)), to=TensorProto.FLOAT)
    return n.bn(n.gemm(n.op("Add", t, "x"), 3))


@traps(1, Reason.PARAMETERS_NOT_CONSTANT, Reason.UNKNOWN_SHAPE, Reason.AXES, opset=18)
def reduce_over_computed_axes(n):
    axes = n.op("Add", n.op("Shape", n.input("i", ["A"], TensorProto.INT64)), n.ints(1))
    return n.bn(n.op("ReduceMean", n.conv("x", 4), axes), channels=4)


@traps(1, Reason.PRECISION)
def dead_channels_times_a_tensor(n):
    """What was zero without them may overflow, and infinity times zero is no number."""
    return n.conv(n.op("Mul", n.bn("x", signs="some zero", shift=False), n.op("Tanh", "x")), 2)


@traps()
def tensor_that_is_an_output_under_two_names(n):
    t = n.bn(n.conv("x", 4))
    return t, n.op("Identity", t)


@traps(2)
def loop_of_residuals_around_one_tensor(n):
    """Any scale of t would have to be the one of t + BN(t)."""
    t = n.bn("x")
    u = n.op("Add", t, n.bn(t))
    return n.op("Sigmoid", u)


@pytest.mark.parametrize("case", traps)
def test_trap(case: Case):
    case.check()


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("ReduceProd", {"axes": [2, 3]}),
        ("LpNormalization", {}),
        ("LRN", {"size": 3}),
        ("Softmax", {"axis": 1}),
        ("LogSoftmax", {"axis": 1}),
        ("Round", {}),
        ("Ceil", {}),
        ("Exp", {}),
        ("Selu", {}),
        ("ThresholdedRelu", {}),
        ("HardSigmoid", {}),
        ("Softsign", {}),
        ("Shrink", {}),
        ("Hardmax", {"axis": 1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_operator_without_a_rule_is_opaque(op, attributes):
    for signs in ("positive", "mixed"):
        net = Net(IMAGE)
        y = net.op(op, net.conv("x", 4), **attributes)
        _, report = fold_checked(net.model(net.bn(y, signs=signs)), kept=1)
        assert reasons(report)[0] & {Reason.OPAQUE}, report.lines()
        net = Net(IMAGE)
        y = net.op(op, net.bn("x", signs=signs), **attributes)
        fold_checked(net.model(net.op("Sigmoid", y)), kept=1)


def check_affine(build, shape=IMAGE, *, left: int, dtype=np.float32) -> onnx_bnfold.Report:
    """Fold a net; `left` of its Mul, Add, Sub and Div nodes stay."""
    net = Net(shape)
    folded, report = fold_checked(net.model(build(net)))
    assert sum(op in ("Mul", "Add", "Sub", "Div") for op in ops(folded)) == left, report.lines()
    return report


PER_CHANNEL = [(4, 1, 1), (1, 4, 1, 1), (1, 1, 1), (1,), ()]


@pytest.mark.parametrize("scale", PER_CHANNEL, ids=str)
@pytest.mark.parametrize("shift", PER_CHANNEL, ids=str)
def test_mul_and_add_behind_a_layer(scale, shift):
    def build(n):
        return n.op(
            "Add", n.random(*shift), n.op("Mul", n.conv("x", 4, 3, bias=False), n.random(*scale))
        )

    report = check_affine(build, left=0)
    assert [r.is_norm for r in report.records] == [False, False]
    assert all(r.folded for r in report.records)


@pytest.mark.parametrize("shape", PER_CHANNEL, ids=str)
@pytest.mark.parametrize("order", ["constant first", "constant second"])
@pytest.mark.parametrize("op", ["Mul", "Add", "Sub", "Div"])
@pytest.mark.parametrize("side", ["behind", "in front"])
def test_one_affine_node_and_a_layer(op, order, shape, side):
    """A sum in front stays: who knows how large x is beside what is left of it?"""

    def build(n):
        t = n.conv("x", 4, 3) if side == "behind" else "x"
        operands = [t, n.random(*shape)]
        y = n.op(op, *(operands[::-1] if order == "constant first" else operands))
        return y if side == "behind" else n.conv(y, 4, 3)

    is_divisor = op == "Div" and order == "constant first"
    is_sum_in_front = op in ("Add", "Sub") and side == "in front"
    check_affine(build, left=int(is_divisor or is_sum_in_front))


def test_affine_nodes_of_opset_7():
    net = Net(IMAGE, opset=7)
    folded, _ = fold_checked(net.model(net.affine(net.conv("x", 4), 4, 1, 1)))
    assert ops(folded) == ["Conv"]


def test_affine_nodes_before_opset_7_stay():
    """Their attributes say how they broadcast: (C,) is along axis 1 here, not along the last."""
    net = Net(IMAGE, opset=6)
    t = net.conv("x", 4, channels=4, rank=4)
    y = net.op("Mul", t, net.random(4), broadcast=1, axis=1)
    model = net.model(net.op("Add", y, net.random(4), broadcast=1, axis=1))
    folded, _ = onnx_bnfold.fold(model)
    assert folded.SerializeToString() == model.SerializeToString()


CHAINS = {
    "x*m+a": lambda n, t: n.affine(t, 4, 1, 1),
    "(x-a)*m": lambda n, t: n.op("Mul", n.op("Sub", t, n.random(4, 1, 1)), n.random(4, 1, 1)),
    "(x-a)/m": lambda n, t: n.op("Div", n.op("Sub", t, n.random(4, 1, 1)), n.random(4, 1, 1)),
    "(x-a)/s*m+b": lambda n, t: n.affine(
        n.op("Div", n.op("Sub", t, n.random(1, 4, 1, 1)), n.random(1, 4, 1, 1)), 1, 4, 1, 1
    ),
    "b-m*x": lambda n, t: n.op("Sub", n.random(4, 1, 1), n.op("Mul", n.random(4, 1, 1), t)),
    "m*(a+x)": lambda n, t: n.op("Mul", n.random(1), n.op("Add", n.random(4, 1, 1), t)),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_decomposed_bn_behind_a_layer(chain):
    check_affine(lambda n: CHAINS[chain](n, n.conv("x", 4)), left=0)


@pytest.mark.parametrize("chain", CHAINS)
def test_decomposed_bn_in_front_of_a_layer(chain):
    check_affine(lambda n: n.conv(CHAINS[chain](n, "x"), 3), left=0)


@pytest.mark.parametrize("chain", CHAINS)
def test_decomposed_bn_next_to_a_bn_is_merged_with_it(chain):
    net = Net(IMAGE)
    model = net.model(net.bn(CHAINS[chain](net, "x")))
    folded, report = onnx_bnfold.fold(model)
    assert_same_function(model, folded)
    assert len(ops(folded)) <= 2, report.lines()


@pytest.mark.parametrize(("number", "left"), [(1, 1), (2, 2), (3, 2), (4, 2)])
def test_nodes_behind_a_product_merge_into_two(number, left):
    """A Mul takes a scale, an Add takes a shift, and nobody else takes any."""
    net = Net(IMAGE)
    t = net.op("Div", net.op("Tanh", "x"), net.op("Exp", "x"))
    for op in ("Mul", "Add", "Mul", "Add")[:number]:
        t = net.op(op, t, net.random(4, 1, 1))
    folded, _ = fold_checked(net.model(net.op("Sigmoid", t)))
    assert len(folded.graph.node) == 4 + left


@pytest.mark.parametrize("chain", CHAINS)
def test_decomposed_bn_through_a_relu(chain):
    """The signs are mixed: none of them may pass the Relu."""
    check_affine(lambda n: n.relu(CHAINS[chain](n, n.conv("x", 4))), left=0)


@pytest.mark.parametrize(
    "shape", [(4,), (1, 4), (1, 1, 4), (4, 1), (1, 4, 1), (4, 4), (1, 1, 4, 4)], ids=str
)
@pytest.mark.parametrize("op", ["Mul", "Add", "Sub", "Div"])
@pytest.mark.parametrize("side", ["behind", "in front"])
def test_constant_over_space_is_not_per_channel(op, shape, side):
    """H and W are as many as the channels: only the axes tell them apart."""

    def build(n):
        t = n.conv("x", 4, 1) if side == "behind" else "x"
        y = n.op(op, t, n.random(*shape))
        return y if side == "behind" else n.conv(y, 4, 1)

    check_affine(build, left=1)


@pytest.mark.parametrize("op", ["Mul", "Add", "Sub", "Div"])
def test_constant_over_the_last_axis_is_per_feature_of_a_linear(op):
    check_affine(lambda n: n.op(op, n.gemm("x", 3), n.random(3)), (2, 4), left=0)
    scaled = op in ("Div", "Mul")
    check_affine(lambda n: n.gemm(n.op(op, "x", n.random(4)), 3), (2, 4), left=int(not scaled))
    check_affine(lambda n: n.op(op, n.linear("x", 3), n.random(3)), (2, 5, 4), left=1)
    check_affine(lambda n: n.linear(n.op(op, "x", n.random(4)), 3), (2, 5, 4), left=2 - int(scaled))


@pytest.mark.parametrize("side", ["behind", "in front"])
def test_constant_that_widens_its_operand_stays(side):
    def build(n):
        t = n.conv("x", 4) if side == "behind" else "x"
        y = n.op("Mul", t, n.random(3, 1, 1, 1))
        return y if side == "behind" else n.conv(y, 4)

    check_affine(build, (1, 4, 3, 3), left=1)


def test_constant_that_widens_the_channels_stays():
    check_affine(lambda n: n.conv(n.op("Mul", "x", n.random(4, 1, 1)), 2), ("N", 1, 3, 3), left=1)


@pytest.mark.parametrize(
    "build",
    [
        lambda n: n.affine("x", 4, 1, 1),
        lambda n: n.op("Add", n.relu("x"), n.random(4, 1, 1)),
        lambda n: n.relu(n.op("Mul", "x", n.random())),
        lambda n: n.op("Sigmoid", n.op("Div", n.op("Tanh", "x"), n.random(1))),
        lambda n: n.conv(n.op("Sub", "x", n.random(4, 1, 1)), 3, 3, pads=[1] * 4),
    ],
    ids=["affine", "behind-relu", "before-relu", "between-opaque", "before-padding"],
)
def test_affine_nodes_that_nobody_absorbs_stay(build):
    net = Net(IMAGE)
    model = net.model(build(net))
    folded, report = fold_checked(model)
    assert folded.SerializeToString() == model.SerializeToString()
    assert report.records == ()


def test_a_decomposed_bn_that_stays_says_why():
    net = Net(IMAGE)
    t = "x"
    for _ in range(3):
        t = net.affine(net.op("Sigmoid", t), 4, 1, 1)
    _, report = fold_checked(net.model(net.op("Sigmoid", t)))
    assert [r.name.split()[0] for r in report.kept_affine] == ["Mul", "Add"] * 3
    assert {r.refusal.reason for r in report.kept_affine} == {Reason.OPAQUE}
    assert all(r.tried and not r.is_norm and not r.folded for r in report.kept_affine)
    first = report.kept_affine[0].name
    (line,) = report.lines()
    assert line.startswith(f"kept    {first} and 5 more affine nodes: [opaque_operator] Sigmoid ")
    assert report.summary().startswith(
        "there is no BatchNormalization in this model, 6 affine nodes kept, "
    )


def test_affine_nodes_are_told_by_reason():
    net = Net(IMAGE)
    padded = net.conv(net.op("Sub", "x", net.random(4, 1, 1)), 4, 3, pads=[1] * 4)
    y = net.op("Abs", net.op("Mul", net.op("Abs", padded), net.random(4, 1, 1)))
    _, report = fold_checked(net.model(y))
    first, second = report.lines()
    assert first == report.kept_affine[0].sentence()
    assert first.startswith("kept    Sub ")
    assert second.startswith("kept    Mul ")


@pytest.mark.parametrize(
    "build",
    [
        lambda n: n.op("Abs", n.linear("x", 8)),
        lambda n: n.op("Abs", n.op("Add", n.op("Abs", "x"), n.random(1, 5, 4))),
        lambda n: n.op("Abs", n.op("Mul", n.op("Abs", "x"), n.random())),
        lambda n: n.op("Abs", n.op("Add", n.op("Shape", "x"), n.ints(1))),
        lambda n: n.linear(gelu(n, n.linear("x", 8)), 3),
        lambda n: n.linear(layer_norm(n, n.linear("x", 8), 8), 3),
    ],
    ids=["bias", "position", "factor", "integers", "gelu", "layer-norm"],
)
def test_what_is_no_decomposed_bn_is_not_told(build):
    net = Net((2, 5, 4))
    _, report = fold_checked(net.model(build(net)))
    assert report.kept_affine == ()
    assert "affine" not in report.summary()


@pytest.mark.parametrize("is_larger", [False, True])
def test_what_was_tried_again_and_went_is_not_told(is_larger):
    """The first Mul is not worth a copy of the weight, until the second has made one."""
    net = Net(("N", 2, 3, 3))
    weight = net.random(64, 1, 1, 1)
    scaled = net.op("Mul", net.op("Sigmoid", "x"), net.random(2, 1, 1))
    y = net.op("Conv", scaled, weight, group=2)
    if is_larger:
        y = net.op("Mul", y, net.random(64, 1, 1))
    other = net.op("Conv", "x", weight, group=2)
    model = net.model(net.op("Sigmoid", y), net.op("Sigmoid", other))
    _, report = fold_checked(model)
    assert len(report.kept_affine) == 1 - is_larger
    for kept in report.kept_affine:
        told = [r.sentence for _, r in kept.tried if r.reason is Reason.SHARED_WEIGHT]
        assert told[0].endswith("a copy of it would add 256 bytes, more than the node takes")


@pytest.mark.parametrize("form", ["keep", "mul-add"])
def test_what_a_bn_was_written_as_is_no_decomposed_one(form):
    net = Net(IMAGE)
    model = net.model(net.op("Abs", net.bn(net.op("Abs", "x"))))
    _, report = onnx_bnfold.fold(model, onnx_bnfold.Options(standalone=form))
    assert len(report.kept) == 1
    assert report.kept_affine == ()


def layer_norm(n, t, features):
    centred = n.op("Sub", t, n.op("ReduceMean", t, axes=[-1]))
    variance = n.op("ReduceMean", n.op("Pow", centred, n.const(np.float32(2))), axes=[-1])
    deviation = n.op("Sqrt", n.op("Add", variance, n.const(np.float32(1e-5))))
    return n.affine(n.op("Div", centred, deviation), features)


def gelu(n, t):
    erf = n.op("Erf", n.op("Div", t, n.const(np.float32(2**0.5))))
    product = n.op("Mul", t, n.op("Add", erf, n.const(np.float32(1))))
    return n.op("Mul", product, n.const(np.float32(0.5)))


def gelu_tanh(n, t):
    cubed = n.op("Mul", n.op("Pow", t, n.const(np.float32(3))), n.const(np.float32(0.044715)))
    inner = n.op("Mul", n.op("Add", t, cubed), n.const(np.float32(0.7978845608)))
    half = n.op("Mul", t, n.const(np.float32(0.5)))
    return n.op("Mul", half, n.op("Add", n.op("Tanh", inner), n.const(np.float32(1))))


@pytest.mark.parametrize(
    "build",
    [
        lambda n: n.linear(layer_norm(n, n.linear("x", 8), 8), 3),
        lambda n: n.linear(gelu(n, n.linear("x", 8)), 3),
        lambda n: n.linear(gelu_tanh(n, n.linear("x", 8)), 3),
        lambda n: n.linear(
            gelu(n, n.linear(layer_norm(n, n.op("Add", "x", n.linear("x", 4)), 4), 8)), 4
        ),
    ],
    ids=["layer-norm", "gelu", "gelu-tanh", "transformer"],
)
def test_patterns_that_runtimes_fuse_are_not_taken_apart(build):
    net = Net((2, 5, 4))
    model = net.model(build(net))
    folded, _ = fold_checked(model)
    assert ops(folded) == ops(model)


unknown_ranks = Cases()


def of_unknown_rank(n):
    """A graph input that has a type but no shape."""
    return n.input("free", None)


@unknown_ranks(1, Reason.UNKNOWN_SHAPE)
def linear_of_unknown_rank_in_front(n):
    """BN acts on axis 1, which is the last one only if there are two."""
    t = n.op("Add", n.op("MatMul", of_unknown_rank(n), n.random(4, 5)), n.random(5))
    return n.bn(t, channels=5)


@unknown_ranks(1, Reason.UNKNOWN_SHAPE)
def linear_behind_of_unknown_rank(n):
    return n.op("MatMul", n.bn(of_unknown_rank(n), channels=4), n.random(4, 5))


@unknown_ranks(1, Reason.UNKNOWN_SHAPE)
def flatten_of_unknown_rank(n):
    t = n.op("Flatten", n.bn(of_unknown_rank(n), channels=4))
    return n.op("Gemm", t, n.random(4, 3))


@unknown_ranks(1, Reason.UNKNOWN_SHAPE)
def constant_on_a_tensor_of_unknown_rank(n):
    """(4,) is per channel only if there are two axes."""
    t = n.op("Mul", n.bn(of_unknown_rank(n), channels=4), n.random(4))
    return n.op("MatMul", t, n.random(4, 3))


@pytest.mark.parametrize("case", unknown_ranks)
def test_unknown_rank_is_never_guessed(case: Case):
    case.check(feeds={"x": np.zeros((1, 4, 4, 4), np.float32), "free": np.ones((3, 4), np.float32)})


def with_parameters(scale, shift, mean=None, var=None, epsilon=0.0):
    """A BN of given parameters: y = scale * x + shift."""

    def add(n, x):
        ones = np.ones(len(scale))
        values = [scale, shift, 0 * ones if mean is None else mean, ones if var is None else var]
        constants = [n.const(np.asarray(v, float)) for v in values]
        return n.op("BatchNormalization", x, *constants, epsilon=epsilon)

    return add


@pytest.mark.parametrize("signs", ["zero", "some zero", "negative", "mixed"])
def test_layer_in_front_takes_any_scale(signs):
    net = Net(IMAGE)
    fold_checked(net.model(net.bn(net.conv("x", 4), signs=signs)))


@pytest.mark.parametrize("signs", ["zero", "some zero"])
def test_layer_behind_takes_a_zero_scale(signs):
    """Its weights become zero and its bias takes the shift: nothing is divided."""
    net = Net(IMAGE)
    fold_checked(net.model(net.conv(net.bn("x", signs=signs), 3)))


@pytest.mark.parametrize(
    ("scale", "shift"),
    [
        ([0.0, 1, 1, 1], [1.0, 1, 1, 1]),
        ([1e-40, 1, 1, 1], [1.0, 1, 1, 1]),
        ([1e-9, 1, 1, 1], [1.0, 1, 1, 1]),
    ],
    ids=["zero", "denormal", "shift-dwarfs-scale"],
)
def test_division_that_costs_precision_is_refused(scale, shift):
    """The shift must go upstream, divided by the scale, since the layer behind pads."""
    net = Net(IMAGE)
    t = net.conv("x", 4)
    y = net.conv(with_parameters(scale, shift)(net, t), 3, 3, pads=[1] * 4)
    _, report = fold_checked(net.model(y, net.op("Add", t, net.conv("x", 4))), kept=1)
    assert Reason.PRECISION in reasons(report)[0], report.lines()


@pytest.mark.parametrize("scale", [[1.0] * 4, [1.0, -1, 1, 1], [1.0, 0, 2, 1]], ids=str)
def test_relu_between_two_layers(scale):
    """A BN in front of a Relu goes upstream whatever its sign, one behind it only downstream."""
    net = Net(IMAGE)
    bn = with_parameters(scale, [0.5, -0.5, 1, 0])
    fold_checked(net.model(net.relu(bn(net, net.conv("x", 4)))))
    net = Net(IMAGE)
    fold_checked(net.model(net.conv(bn(net, net.relu(net.conv("x", 4))), 3)))


@pytest.mark.parametrize("op", ["Mul", "Add", "Sub"])
@pytest.mark.parametrize(
    "chain", ["conv-op-bn", "bn-op-conv", "bn-op", "op-bn", "op-conv", "conv-op"]
)
def test_constant_with_zeros(op, chain):
    """A factor of zero loses its tensor: nothing may be moved across it by division."""
    net = Net(IMAGE)
    y = "x"
    for step in chain.split("-"):
        if step == "op":
            y = net.op(op, y, net.const(np.array([0.0, 2, 0, -1]).reshape(4, 1, 1)))
        else:
            y = net.conv(y, 4) if step == "conv" else net.bn(y)
    model = net.model(y)
    folded, report = onnx_bnfold.fold(model)
    assert_same_function(model, folded)
    if "conv" in chain:
        assert not report.kept, report.lines()


def test_identity_bn_goes_from_anywhere():
    net = Net(IMAGE)
    y = with_parameters([1.0] * 4, [0.0] * 4)(net, "x")
    folded, _ = fold_checked(net.model(net.op("Sigmoid", y)))
    assert ops(folded) == ["Sigmoid"]


def test_the_bn_with_the_most_elements_goes_first():
    """Two BNs compete for the shift of one tensor; the order in the file does not matter."""
    for wide_first in (False, True):
        net = Net(IMAGE)
        t = net.conv("x", 2)
        concat = net.op("Concat", t, net.conv("x", 4), axis=1)
        first, second = (concat, t) if wide_first else (t, concat)
        outputs = net.bn(first), net.bn(second)
        _, report = fold_checked(net.model(*outputs), kept=1)
        assert [r.folded for r in report.norms] == [wide_first, not wide_first], report.lines()


def test_plan_says_what_fold_does():
    net = Net(IMAGE)
    t = preactivation(net, net.conv("x", 4))
    model = net.model(head(net, net.relu(net.bn(t))))
    before = model.SerializeToString()
    planned = onnx_bnfold.plan(model)
    assert model.SerializeToString() == before
    assert planned.records == onnx_bnfold.fold(model)[1].records
    assert planned.nodes_after is None


def test_report_of_a_direct_pair():
    net = Net(IMAGE)
    _, report = fold_checked(net.model(net.bn(net.conv("x", 4))))
    (record,) = report.records
    assert record.is_norm
    assert record.folded
    assert record.scale_to == record.shift_to == ("Conv 'n_conv0'",)
    assert (report.nodes_before, report.nodes_after) == (2, 1)
    assert "1 of 1 BatchNormalization folded" in report.summary()


def test_a_report_lists_nodes_in_their_order():
    """As numbers, from 8 on, do not come out of a set."""
    net = Net(IMAGE)
    t = "x"
    for _ in range(14):
        t = net.op("Tanh", t)
    t = net.bn(t)
    model = net.model(net.conv(t, 2), net.conv(t, 3))
    (record,) = onnx_bnfold.plan(model).records
    convs = [f"Conv '{node.name}'" for node in model.graph.node if node.op_type == "Conv"]
    assert list(record.scale_to) == list(record.shift_to) == convs


def test_report_of_a_shift_and_a_scale_that_part():
    net = Net(IMAGE)
    t = net.conv("x", 4)
    y = net.conv(net.bn(t), 3, 3, pads=[1] * 4)
    model = net.model(y, net.op("Add", t, net.conv("x", 4)))
    _, report = fold_checked(model)
    (record,) = report.records
    first, bn, behind, sibling, _ = model.graph.node
    assert record.name == f"BatchNormalization '{bn.name}'"
    assert record.scale_to == (f"Conv '{behind.name}'",)
    assert set(record.shift_to) == {f"Conv '{first.name}'", f"Conv '{sibling.name}'"}


def test_report_of_a_scale_names_who_takes_it():
    net = Net(IMAGE)
    x = net.conv("x", 4)
    y = net.op("Mul", x, net.random(4, 1, 1))
    (line,) = onnx_bnfold.plan(net.model(y)).lines()
    assert line.split() == ["folded", "Mul", f"'n_{y}'", "into", "Conv", f"'n_{x}'"]


def test_report_of_a_refusal_names_both_ways():
    net = Net(IMAGE)
    sigmoid = net.op("Sigmoid", "x")
    _, report = fold_checked(net.model(net.op("Tanh", net.bn(sigmoid))), kept=1)
    (record,) = report.records
    assert record.refusal.reason is Reason.OPAQUE
    assert record.refusal.culprit == f"Sigmoid 'n_{sigmoid}'"
    assert {r.culprit.split()[0] for _, r in record.tried} == {"Sigmoid", "Tanh"}
    (line,) = report.lines()
    assert "Sigmoid" in line
    assert "Tanh" in line


def test_model_without_bn_is_left_as_it_is():
    net = Net(IMAGE)
    model = net.model(net.relu(net.conv("x", 4)))
    folded, report = fold_checked(model)
    assert folded.SerializeToString() == model.SerializeToString()
    assert report.records == ()


@pytest.mark.parametrize("standalone", ["mul-add", "conv"])
def test_bn_that_stays_is_written_otherwise_on_request(standalone):
    net = Net(IMAGE)
    model = net.model(net.op("Tanh", net.bn(net.op("Sigmoid", "x"))))
    options = onnx_bnfold.Options(standalone=standalone)
    folded, _ = onnx_bnfold.fold(model, options)
    onnx.checker.check_model(folded, full_check=True)
    assert_same_function(model, folded)
    written = {"mul-add": ["Mul", "Add"], "conv": ["Conv"]}[standalone]
    assert ops(folded) == ["Sigmoid", *written, "Tanh"]


TYPED = [
    ("conv", TensorProto.BFLOAT16, 21, False),  # no Conv of bfloat16 before opset 22
    ("conv", TensorProto.BFLOAT16, 22, True),
    ("mul-add", TensorProto.BFLOAT16, 15, True),
    ("conv", TensorProto.FLOAT16, 15, True),
    ("conv", None, 14, True),  # of the type of its scale
    ("conv", None, 15, False),  # of any
    ("mul-add", None, 15, False),
]


@pytest.mark.parametrize(("standalone", "kind", "opset", "written"), TYPED)
def test_a_form_is_one_that_takes_the_type_of_the_data(standalone, kind, opset, written):
    """The parameters are of float32; of what an unknown operator writes nobody knows the type."""
    net = Net(opset=opset)
    t = net.input("x", IMAGE, kind or TensorProto.FLOAT)
    if kind is None:
        t = net.op("Strange", t, domain="strange")
    y = net.op("Cast", net.op("Sigmoid", net.bn(t, channels=4)), to=TensorProto.FLOAT)
    y = net.conv(y, 2, channels=4, rank=4)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("strange", 1)]
    model = helper.make_model(net.graph(y), ir_version=8, opset_imports=imports)
    output = helper.make_tensor_value_info(y, TensorProto.FLOAT, [None] * 4)
    model.graph.output[0].CopyFrom(output)
    folded, _ = onnx_bnfold.fold(model, onnx_bnfold.Options(standalone=standalone))
    assert ("BatchNormalization" not in ops(folded)) is written
    if kind is not None:
        onnx.checker.check_model(folded, full_check=True)
    if written:
        new = [t for t in folded.graph.initializer if t.name.endswith(("_factor", "_summand"))]
        kinds = {tensor.data_type for tensor in new}
        assert kinds == {kind or TensorProto.FLOAT}


def test_no_conv_of_empty_pictures():
    """onnxruntime computes a BatchNormalization of them, but no Conv."""
    net = Net((1, 4, 0, 2))
    model = net.model(net.op("Tanh", net.bn(net.op("Sigmoid", "x"))))
    folded, _ = onnx_bnfold.fold(model, onnx_bnfold.Options(standalone="conv"))
    assert ops(folded) == ["Sigmoid", "BatchNormalization", "Tanh"]


def function_of_norm(front, rng):
    """A float16 model that calls a function with a BatchNormalization of wider parameters.

    Args:
        front: what stands before it in the function.
        rng: of the values.
    """
    constants = {f"b_{i}": rng.uniform(0.5, 2, 4).astype(np.float32) for i in range(4)}
    constants["w"] = rng.standard_normal((4, 4, 1, 1)).astype(np.float16)
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
        for name, value in constants.items()
    ]
    nodes += [
        helper.make_node(front, ["f", "w"][: 1 + (front == "Conv")], ["t"], name="front"),
        helper.make_node("Sigmoid", ["t"], ["s"]),
        helper.make_node("BatchNormalization", ["s", *constants][:5], ["n"], name="norm"),
        helper.make_node("Tanh", ["n"], ["y"]),
    ]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    function = helper.make_function("local", "Block", ["f"], ["y"], nodes, imports)
    graph = helper.make_graph(
        [helper.make_node("Block", ["x"], ["y"], domain="local")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, (2, 4, 3, 3))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, (2, 4, 3, 3))],
    )
    return helper.make_model(graph, opset_imports=imports, ir_version=10, functions=[function])


@pytest.mark.parametrize(("front", "is_known"), [("Conv", True), ("Softmax", False)])
def test_bn_in_a_function_is_written_otherwise_where_its_type_is_known(front, is_known, rng):
    """A Conv's weight says it; where nothing in the function does, the call is inlined."""
    model = function_of_norm(front, rng)
    folded, _ = onnx_bnfold.fold(model, onnx_bnfold.Options(standalone="mul-add"))
    assert len(folded.functions) == is_known
    body = folded.functions[0] if is_known else folded.graph
    computed = [n.op_type for n in body.node if n.op_type != "Constant"]
    assert computed == [front, "Sigmoid", "Mul", "Add", "Tanh"]
    x = rng.standard_normal((2, 4, 3, 3)).astype(np.float16)
    (a,), (b,) = (run(m, {"x": x}) for m in (model, folded))
    np.testing.assert_allclose(a, b, atol=2e-3)


# --- a second fold changes nothing: `fold_checked` asserts it ----------------------------------


@pytest.mark.parametrize("norms", [2, 3])
@pytest.mark.parametrize("fixed", [False, True], ids=["free", "outputs"])
def test_equal_bns_on_one_tensor(norms, fixed):
    """When the first has gone upstream the others are identities, and go where a name is free."""
    net = Net(IMAGE)
    t = net.conv("x", 64)
    made = [net.bn(t)]
    for _ in range(norms - 1):
        made.append(net.op("BatchNormalization", *net.nodes[-1].input))
        net.nodes[-1].attribute.extend(net.nodes[-2].attribute)
    outputs = made if fixed else [net.op("Relu", y) for y in made]
    folded, report = fold_checked(net.model(*outputs), kept=norms - 1 if fixed else 0)
    assert {r.refusal.reason for r in report.kept} <= {Reason.GRAPH_OUTPUT}
    assert ops(folded).count("BatchNormalization") == len(report.kept)


@pytest.mark.parametrize("bias", [False, True])
def test_mul_by_one_between_tensors_that_change_alike(bias):
    """Both sides get one change; their quotient is 1 only up to rounding."""
    net = Net(IMAGE)
    x = net.bn("x", signs="positive")
    d = net.conv(x, 4, bias=bias)
    u = net.op("Mul", d, net.const(np.float32(1)))
    y, z = (net.conv(net.op("Max", x, each), 2) for each in (u, d))
    folded, _ = fold_checked(net.model(y, z))
    assert sorted(ops(folded)) == ["Conv", "Conv", "Conv", "Max", "Max"]


def test_rank_of_a_convolution_whose_weight_is_a_node():
    """A folded weight is an initializer; what its shape tells must have been known before."""
    net = Net(None)
    net.input("x", None)
    value = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32))
    weight = net.op("Constant", value=value)
    y = net.bn(net.op("Conv", "x", weight), channels=4)
    model = net.model(net.op("Sigmoid", net.op("Mul", y, net.const(np.ones(1)))), y)
    once, _ = onnx_bnfold.fold(model)
    twice, _ = onnx_bnfold.fold(once)
    assert once.SerializeToString() == twice.SerializeToString()
    assert "Mul" not in ops(once)


# --- what single changes of the planner would break --------------------------------------------


@pytest.mark.parametrize("matmul_first", [True, False])
def test_a_direct_pair_whose_output_has_changed_already(matmul_first):
    """The shift behind the MatMul goes through the Add into what the Conv's BN writes."""
    net = Net(("N", 4, 6))
    layers = [lambda: net.op("MatMul", net.random(4, 4), "x"), lambda: net.conv("x", 4)]
    made = [net.bn(layer()) for layer in (layers if matmul_first else layers[::-1])]
    folded, _ = fold_checked(net.model(net.op("Sigmoid", net.op("Add", *made))))
    assert sorted(ops(folded)) == ["Add", "Conv", "MatMul", "Sigmoid"]


def test_a_shift_passes_a_matmul_whose_weight_has_changed_already():
    """The Add behind it takes what the shift is by now; no further Add is made."""
    net = Net(("N", 4, 6))
    t = net.op("Sigmoid", "x")
    one = net.bn(net.conv(t, 4))
    other = net.bn(net.op("MatMul", net.random(4, 4), net.bn(t)))
    folded, _ = fold_checked(net.model(net.op("Add", one, other)))
    assert sorted(ops(folded)) == ["Add", "Conv", "MatMul", "Sigmoid"]


def test_only_sign_and_shift_go_upstream():
    """Of rows a MatMul takes what all have in common; the ReLU lets their sizes pass."""
    net = Net(("N", 4, 6))
    t = net.linear("x", 5)
    scale, shift = np.array([-0.5, -2, -3, -4]), np.array([0.5, 2, 3, 4])
    zero, one = net.const(np.zeros(4)), net.const(np.ones(4))
    y = net.op("BatchNormalization", t, net.const(scale), net.const(shift), zero, one, epsilon=0.0)
    folded, report = fold_checked(net.model(net.conv(net.relu(y), 3)))
    assert report.folded[0].way == "shift and sign upstream, magnitude downstream"
    assert ops(folded) == ["MatMul", "Add", "Relu", "Conv"]


@pytest.mark.parametrize(("opset", "written"), [(6, "BatchNormalization"), (7, "Mul")])
def test_mul_and_add_are_written_from_opset_7_on(opset, written):
    """Before that they broadcast by attributes."""
    net = Net(IMAGE, opset=opset)
    attributes = {"is_test": 1} if opset < 7 else {}
    model = net.model(net.op("Tanh", net.bn(net.op("Sigmoid", "x"), **attributes)))
    folded, _ = onnx_bnfold.fold(model, onnx_bnfold.Options(standalone="mul-add"))
    assert ops(folded)[1] == written
