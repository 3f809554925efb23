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
