"""A normalisation's own scale and bias take what a BatchNormalization behind it does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import Net
from onnx import TensorProto
from support import fold_checked, initializer, needs_kernels_as_read, ops, reasons

import onnx_bnfold
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
    assert Reason.AXES in reasons(report)[0]
    net = Net(IMAGE)
    conv = net.conv("x", 4)
    y = net.op("Add", instance(net, conv), net.bn(conv))
    _, report = fold_checked(net.model(y), kept=1)
    assert "its one epsilon" in "\n".join(report.lines())


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
    assert Reason.AXES in reasons(report)[0]


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


# --- groups of channels ---------------------------------------------------------------------


def grouped(net: Net, x: str, groups: int = 2, size: int | None = None, **attributes) -> str:
    """A normalisation of four channels in groups."""
    size = size or (4 if net.opset >= 21 else groups)
    parameters = net.random(size), net.random(size)
    return net.op("GroupNormalization", x, *parameters, num_groups=groups, **attributes)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_norm_behind_a_group_normalization_goes_into_it(groups):
    net = Net(IMAGE, opset=21)
    folded, _ = fold_checked(net.model(net.bn(grouped(net, "x", groups), channels=4)))
    assert ops(folded) == ["GroupNormalization"]


def bn_of(net: Net, x: str, factors, summands) -> str:
    """A norm of given factors and summands."""
    parameters = [np.array(factors, float), np.array(summands, float), np.zeros(4), np.ones(4)]
    return net.op("BatchNormalization", x, *map(net.const, parameters), epsilon=0.0)


ALIKE = [1.5, 1.5, -0.5, -0.5], [2.0, 2.0, -1.0, -1.0]


@pytest.mark.parametrize("part", [0, 1])
def test_a_scale_per_group_takes_what_is_the_same_in_each_group(part):
    """So it was before opset 21."""
    net = Net(IMAGE, opset=18)
    folded, _ = fold_checked(net.model(bn_of(net, grouped(net, "x"), *ALIKE)))
    assert ops(folded) == ["GroupNormalization"]
    assert initializer(folded, folded.graph.node[0].input[1]).shape == (2,)
    net, given = Net(IMAGE, opset=18), [*ALIKE]
    given[part] = [1.0, 2.0, 3.0, 4.0]
    _, report = fold_checked(net.model(bn_of(net, grouped(net, "x"), *given)), kept=1)
    assert Reason.AXES in reasons(report)[0]


@pytest.mark.parametrize(("opset", "size"), [(18, 4), (18, 3), (21, 5)])
def test_groups_that_do_not_fit_refuse(opset, size):
    net = Net(IMAGE, opset=opset)
    y = net.bn(grouped(net, "x", size=size, groups=2), channels=4)
    _, report = fold_checked(net.model(y), kept=1, compare=False)
    assert Reason.INCONSISTENT_SHAPES in reasons(report)[0]


# --- in front -------------------------------------------------------------------------------


def behind_relu(net: Net) -> str:
    """What takes a positive scale, and no shift."""
    return net.relu(net.conv("x", 4))


def test_a_shift_in_front_of_an_instance_normalization_is_swallowed():
    net = Net(IMAGE)
    y = instance(net, net.bn(behind_relu(net), signs="positive"))
    model = net.model(y)
    folded, _ = fold_checked(model)
    assert ops(folded) == ["Conv", "Relu", "InstanceNormalization"]
    scale = model.graph.node[-1].input[1]
    np.testing.assert_array_equal(initializer(folded, scale), initializer(model, scale))


def test_signs_in_front_go_into_the_scale():
    net = Net(IMAGE)
    norm = bn_of(net, "x", [2, -2, 2, -2], net.values(4))
    model = net.model(instance(net, norm, epsilon=1.0))
    folded, _ = fold_checked(model)
    assert ops(folded) == ["InstanceNormalization"]
    scales = [initializer(m, m.graph.node[-1].input[1]) for m in (model, folded)]
    np.testing.assert_array_equal(scales[1], scales[0] * np.float32([1, -1, 1, -1]))


@pytest.mark.parametrize(("opset", "epsilon"), [(18, 1e-3), (21, None)])
def test_a_shift_per_group_is_swallowed(opset, epsilon):
    net = Net(IMAGE, opset=opset)
    given = {} if epsilon is None else {"epsilon": epsilon}
    factors = np.abs(net.values(4))
    norm = bn_of(net, behind_relu(net), factors, [0.5, 0.5, -0.2, -0.2])
    folded, _ = fold_checked(net.model(grouped(net, norm, **given)))
    assert ops(folded) == ["Conv", "Relu", "GroupNormalization"]


def test_signs_per_group_go_into_the_scale():
    for opset in (18, 21):
        net = Net((2, 4, 5), opset=opset)
        norm = bn_of(net, "x", [2, 2, -2, -2], [0.5, 0.5, -0.2, -0.2])
        folded, _ = fold_checked(net.model(grouped(net, norm, epsilon=1.0)))
        assert ops(folded) == ["GroupNormalization"]
        norm = bn_of(net, "x", [2, -2, -2, -2], np.zeros(4))
        _, report = fold_checked(net.model(grouped(net, norm)), kept=1)
        assert Reason.AXES in reasons(report)[0]


def test_a_shift_within_a_group_stays():
    net = Net(IMAGE, opset=21)
    norm = bn_of(net, behind_relu(net), np.ones(4), [0.5, 0.6, -0.2, -0.2])
    _, report = fold_checked(net.model(grouped(net, norm)), kept=1)
    assert Reason.AXES in reasons(report)[0]


def test_a_shift_in_front_of_a_layer_normalization_over_positions_is_swallowed():
    net = Net((2, 4, 5))
    norm = net.bn(behind_relu(net), signs="positive")
    folded, _ = fold_checked(net.model(layer(net, norm, 5)))
    assert ops(folded) == ["Conv", "Relu", "LayerNormalization"]


def test_a_shift_over_what_a_layer_normalization_normalises_stays():
    net = Net((2, 4, 5))
    norm = net.bn(behind_relu(net), signs="positive")
    _, report = fold_checked(net.model(layer(net, norm, 4, 5, axis=1)), kept=1)
    assert Reason.AXES in reasons(report)[0]


@pytest.mark.parametrize("read", [1, 2])
def test_a_shift_stays_if_the_statistics_are_read(read):
    net = Net((2, 4, 5))
    norm = net.bn(behind_relu(net), signs="positive")
    outputs = net.op("LayerNormalization", norm, net.random(5), outputs=3)
    _, report = fold_checked(net.model(outputs[0], outputs[read]), kept=1)
    assert Reason.OPAQUE in reasons(report)[0]
    assert "are read too" in "\n".join(report.lines())


def test_statistics_that_nobody_reads_do_not_matter():
    net = Net((2, 4, 5))
    norm = net.bn(behind_relu(net), signs="positive")
    y, *_ = net.op("LayerNormalization", norm, net.random(5), outputs=3)
    folded, _ = fold_checked(net.model(y))
    assert "BatchNormalization" not in ops(folded)


def alike(net: Net, x: str, factor: float) -> str:
    return bn_of(net, x, np.full(4, factor), [0.5, 0.1, -0.2, 0.7])


@pytest.mark.parametrize(("factor", "epsilon"), [(3.0, 0.1), (-0.3, 0.1), (1e3, None), (0.7, 0.0)])
def test_epsilon_takes_one_scale(factor, epsilon):
    """The data are those of a graph input, which cannot change."""
    net = Net(IMAGE)
    given = {} if epsilon is None else {"epsilon": epsilon}
    model = net.model(instance(net, alike(net, "x", factor), **given))
    folded, _ = fold_checked(model)
    assert ops(folded) == ["InstanceNormalization"]
    before = 1e-5 if epsilon is None else epsilon
    found = [a.f for a in folded.graph.node[0].attribute if a.name == "epsilon"]
    np.testing.assert_allclose(found, [before / factor**2], rtol=1e-6)


@pytest.mark.parametrize("factor", [2.0**-76, 2.0**60])
def test_an_epsilon_beyond_its_type_refuses(factor):
    net = Net((1, 4, 5))
    y = instance(net, alike(net, "x", factor))
    _, report = fold_checked(net.model(y), kept=1, compare=False,
                             options=onnx_bnfold.Options(max_rescale=2.0**90))  # fmt: skip
    assert Reason.PRECISION in reasons(report)[0]


def test_epsilon_is_too_coarse_for_float64():
    net = Net()
    net.input("x", (2, 4, 5), TensorProto.DOUBLE)
    for factor, kept in ((3.0, 1), (-1.0, 0)):
        one = Net()
        one.input("x", (2, 4, 5), TensorProto.DOUBLE)
        parameters = np.full(4, factor), np.ones(4), np.zeros(4), np.ones(4)
        constants = [one.const(value, np.float64) for value in parameters]
        norm = one.op("BatchNormalization", "x", *constants, epsilon=0.0)
        model = one.model(instance(one, norm, dtype=np.float64))
        fold_checked(model, kept=kept, compare=False)


def test_a_large_shift_stays_because_squares_lose_it():
    """A layer takes 16 times the size of its data: sums of squares lose digits twice as fast."""
    for far, kept in ((3.0, 0), (10.0, 1)):
        for reader in (instance, lambda net, x: net.conv(x, 2)):
            net = Net(IMAGE)
            factors = np.abs(net.values(4))
            parameters = [factors, np.zeros(4), far * np.ones(4), np.ones(4)]
            norm = net.op("BatchNormalization", behind_relu(net), *map(net.const, parameters))
            model = net.model(reader(net, norm))
            fold_checked(model, kept=kept if reader is instance else 0, tolerance=1e-4)


# --- without a mean -------------------------------------------------------------------------


def rms(net: Net, x: str, *shape: int, **attributes) -> str:
    return net.op("RMSNormalization", x, net.random(*shape), **attributes)


@needs_kernels_as_read
@pytest.mark.parametrize(
    ("shape", "own", "attributes"),
    [((2, 4), (4,), {}), ((2, 4, 5), (4, 5), {"axis": 1}), ((2, 4, 5), (4, 1), {"axis": -2}),
     ((2, 4, 5), (5,), {"axis": 1}), ((2, 4), (1,), {"epsilon": 0.1})],
)  # fmt: skip
def test_the_scale_of_a_norm_behind_an_rms_normalization_goes_into_it(shape, own, attributes):
    net = Net(shape, opset=23)
    model = net.model(net.bn(rms(net, "x", *own, **attributes), channels=4, shift=False))
    folded, _ = fold_checked(model)
    assert ops(folded) == ["RMSNormalization"]
    assert len(folded.graph.node[0].input) == 2


@needs_kernels_as_read
def test_the_shift_of_a_norm_behind_an_rms_normalization_goes_on():
    net = Net((2, 5, 4), opset=23)
    y = net.bn(net.op("Transpose", rms(net, "x", 4), perm=[0, 2, 1]))
    _, report = fold_checked(net.model(y), kept=1)
    assert Reason.NO_SHIFT in reasons(report)[0]
    folded, report = fold_checked(net.model(net.conv(y, 2)))
    assert ops(folded) == ["RMSNormalization", "Transpose", "Conv"]


@needs_kernels_as_read
@pytest.mark.parametrize(("factor", "epsilon"), [(3.0, 0.1), (-0.3, 0.1), (0.7, 0.0)])
def test_epsilon_of_an_rms_normalization_takes_one_scale(factor, epsilon):
    net = Net((2, 4), opset=23)
    norm = bn_of(net, "x", np.full(4, factor), np.zeros(4))
    folded, _ = fold_checked(net.model(rms(net, norm, 4, epsilon=epsilon)))
    assert ops(folded) == ["RMSNormalization"]
    found = [a.f for a in folded.graph.node[0].attribute if a.name == "epsilon"]
    np.testing.assert_allclose(found, [epsilon / factor**2], rtol=1e-6)


@needs_kernels_as_read
def test_a_shift_in_front_of_an_rms_normalization_stays():
    """An InstanceNormalization would take it: it is the same for all that is normalised."""
    net = Net((2, 4, 5), opset=23)
    norm = net.bn(behind_relu(net), signs="positive")
    _, report = fold_checked(net.model(rms(net, norm, 5)), kept=1)
    assert Reason.NO_SHIFT in reasons(report)[0]


@needs_kernels_as_read
@pytest.mark.parametrize(
    ("own", "reason"), [((4, 1), Reason.AXES), ((3,), Reason.INCONSISTENT_SHAPES)]
)
def test_an_rms_normalization_of_another_scale_refuses(own, reason):
    net = Net((2, 4, 5), opset=23)
    y = net.bn(rms(net, "x", *own), channels=4, shift=False)
    _, report = fold_checked(net.model(y), kept=1, compare=False)
    assert reason in reasons(report)[0]


@needs_kernels_as_read
def test_an_rms_normalization_by_a_computed_scale_refuses():
    net = Net((2, 4), opset=23)
    y = net.op("RMSNormalization", "x", net.input("scale", (4,)))
    _, report = fold_checked(net.model(net.bn(y, shift=False)), kept=1)
    assert Reason.WEIGHT_NOT_CONSTANT in reasons(report)[0]


@needs_kernels_as_read
@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_an_rms_normalization_of_other_types(kind):
    net, dtype = Net(opset=23), onnx.helper.tensor_dtype_to_np_dtype(kind)
    net.input("x", (2, 4), kind)
    y = net.op("RMSNormalization", "x", net.random(4, dtype=dtype), stash_type=1)
    model = net.model(net.bn(y, dtype=dtype, shift=False))
    folded, _ = fold_checked(model, compare=kind == TensorProto.FLOAT16, tolerance=5e-3)
    assert ops(folded) == ["RMSNormalization"]
    assert {tensor.data_type for tensor in folded.graph.initializer} == {kind}
