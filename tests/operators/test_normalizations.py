"""A normalisation's own scale and bias take what a BatchNormalization behind it does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import Net
from onnx import TensorProto
from support import fold_checked, initializer, ops, reasons

from onnx_bnfold import Reason

IMAGE = ("N", 4, 5, 6)


def instance(net: Net, x: str, channels: int = 4, dtype=np.float32, **attributes) -> str:
    parameters = net.random(channels, dtype=dtype), net.random(channels, dtype=dtype)
    return net.op("InstanceNormalization", x, *parameters, **attributes)


@pytest.mark.parametrize("opset", [7, 13, 17, 22])
@pytest.mark.parametrize("shape", [(2, 4, 5), IMAGE, (1, 4, 3, 3, 3)], ids=str)
def test_a_norm_behind_an_instance_normalization_goes_into_it(shape, opset):
    net = Net(shape, opset=opset)
    folded, report = fold_checked(net.model(net.bn(instance(net, "x", epsilon=1e-3))))
    assert ops(folded) == ["InstanceNormalization"]
    assert report.folded[0].scale_to == report.folded[0].shift_to


def test_scale_and_bias_are_multiplied_and_moved():
    net = Net(IMAGE)
    model = net.model(net.bn(instance(net, "x")))
    folded, _ = fold_checked(model)
    scale, bias, gamma, beta, mean, variance = (
        onnx.numpy_helper.to_array(tensor).astype(float) for tensor in model.graph.initializer
    )
    a = gamma / np.sqrt(variance + model.graph.node[1].attribute[0].f)
    node = folded.graph.node[0]
    np.testing.assert_allclose(initializer(folded, node.input[1]), a * scale, rtol=1e-6)
    np.testing.assert_allclose(
        initializer(folded, node.input[2]), a * (bias - mean) + beta, rtol=1e-5
    )


def test_through_what_passes_a_change():
    net = Net(IMAGE)
    y = net.op("MaxPool", instance(net, "x"), kernel_shape=[2, 2])
    folded, _ = fold_checked(net.model(net.bn(y, signs="positive")))
    assert ops(folded) == ["InstanceNormalization", "MaxPool"]


def test_a_norm_over_positions_stays():
    net = Net((2, 4, 5, 6))
    y = net.bn(net.op("Transpose", instance(net, "x"), perm=[0, 2, 3, 1]))
    _, report = fold_checked(net.model(y), kept=1)
    assert Reason.AXES in reasons(report)[0]


def test_a_norm_in_front_of_an_instance_normalization_stays():
    net = Net(IMAGE)
    _, report = fold_checked(net.model(instance(net, net.bn("x"))), kept=1)
    assert Reason.OPAQUE in reasons(report)[0]
    net = Net(IMAGE)
    conv = net.conv("x", 4)
    y = net.op("Add", instance(net, conv), net.bn(conv))
    _, report = fold_checked(net.model(y), kept=1)
    assert "normalises its input" in "\n".join(report.lines())


@pytest.mark.parametrize("run_time", [1, 2])
def test_an_instance_normalization_by_computed_parameters_refuses(run_time):
    net = Net(IMAGE)
    parameters = [net.random(4), net.random(4)]
    parameters[run_time - 1] = net.input("p", (4,))
    y = net.op("InstanceNormalization", "x", *parameters)
    _, report = fold_checked(net.model(net.bn(y)), kept=1)
    expected = (Reason.WEIGHT_NOT_CONSTANT, Reason.BIAS_NOT_CONSTANT)[run_time - 1]
    assert expected in reasons(report)[0]


def test_a_shared_scale_is_copied():
    net = Net(IMAGE)
    scale = net.random(4)
    one, other = (
        net.op("InstanceNormalization", x, scale, net.random(4)) for x in ("x", net.relu("x"))
    )
    folded, _ = fold_checked(net.model(net.bn(one), other))
    scales = {node.input[1] for node in folded.graph.node if len(node.input) == 3}
    assert len(scales) == 2


@pytest.mark.parametrize(
    ("dtype", "kind", "tolerance"),
    [(np.float16, TensorProto.FLOAT16, 5e-3), (np.float64, TensorProto.DOUBLE, 1e-12)],
)
def test_an_instance_normalization_of_other_types(dtype, kind, tolerance):
    net = Net()
    net.input("x", (2, 4, 5), kind)
    y = net.bn(instance(net, "x", dtype=dtype), dtype=dtype)
    folded, _ = fold_checked(net.model(y), tolerance=tolerance, compare=dtype is not np.float64)
    assert ops(folded) == ["InstanceNormalization"]
    assert {tensor.data_type for tensor in folded.graph.initializer} == {kind}


def layer(net: Net, x: str, *shape: int, bias: bool = True, **attributes) -> str:
    parameters = [net.random(*shape) for _ in range(1 + bias)]
    return net.op("LayerNormalization", x, *parameters, **attributes)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "own", "attributes"),
    [((2, 4), (4,), {}), ((2, 4, 5), (4, 5), {"axis": 1}), ((2, 4, 5), (4, 5), {"axis": -2})],
)
def test_a_norm_behind_a_layer_normalization_goes_into_it(shape, own, attributes, bias):
    net = Net(shape)
    folded, _ = fold_checked(net.model(net.bn(layer(net, "x", *own, bias=bias, **attributes))))
    assert ops(folded) == ["LayerNormalization"]
    assert initializer(folded, folded.graph.node[0].input[2]).shape == own


def test_a_norm_behind_the_transposed_output():
    net = Net((2, 5, 4))
    y = net.op("Transpose", layer(net, "x", 4), perm=[0, 2, 1])
    folded, _ = fold_checked(net.model(net.bn(y)))
    assert ops(folded) == ["LayerNormalization", "Transpose"]


@pytest.mark.parametrize("shift", [False, True])
def test_a_bias_is_made_for_a_shift_alone(shift):
    net = Net((2, 4))
    model = net.model(net.bn(layer(net, "x", 4, bias=False), shift=shift))
    folded, _ = fold_checked(model)
    assert len(folded.graph.node[0].input) == 2 + shift


def test_mean_and_deviation_stay():
    """They are of the input, whatever becomes of scale and bias."""
    net = Net((2, 4))
    y, mean, deviation = net.op(
        "LayerNormalization", "x", net.random(4), net.random(4), outputs=3, stash_type=1
    )
    folded, _ = fold_checked(net.model(net.bn(y), mean, deviation))
    assert ops(folded) == ["LayerNormalization"]
    net = Net((2, 4, 5))
    _, mean = net.op("LayerNormalization", "x", net.random(4, 5), outputs=2, axis=1)
    _, report = fold_checked(net.model(net.bn(mean, channels=1)), kept=1)
    assert Reason.OPAQUE in reasons(report)[0]


def test_a_norm_over_what_is_not_normalised_stays():
    net = Net((2, 5, 4))
    _, report = fold_checked(net.model(net.bn(layer(net, "x", 4))), kept=1)
    assert Reason.AXES in reasons(report)[0]


def test_a_scale_over_what_is_not_normalised_refuses():
    net = Net((2, 5, 4))
    y = net.op("Transpose", layer(net, "x", 5, 1), perm=[0, 2, 1])
    _, report = fold_checked(net.model(net.bn(y)), kept=1, compare=False)
    assert Reason.AXES in reasons(report)[0]


def test_a_scale_of_another_size_refuses():
    net = Net((2, 4))
    y = layer(net, "x", 3)
    _, report = fold_checked(net.model(net.bn(y, channels=4)), kept=1, compare=False)
    assert Reason.INCONSISTENT_SHAPES in reasons(report)[0]


def test_a_norm_in_front_of_a_layer_normalization_stays():
    net = Net((2, 4))
    _, report = fold_checked(net.model(layer(net, net.bn("x"), 4)), kept=1)
    assert Reason.OPAQUE in reasons(report)[0]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_a_layer_normalization_of_other_types(kind):
    net, dtype = Net(), onnx.helper.tensor_dtype_to_np_dtype(kind)
    net.input("x", (2, 4), kind)
    scale, bias = net.random(4, dtype=dtype), net.random(4, dtype=dtype)
    y = net.op("LayerNormalization", "x", scale, bias, stash_type=1)
    model = net.model(net.bn(y, dtype=dtype))
    folded, _ = fold_checked(model, compare=kind == TensorProto.FLOAT16, tolerance=5e-3)
    assert ops(folded) == ["LayerNormalization"]
    assert {tensor.data_type for tensor in folded.graph.initializer} == {kind}
