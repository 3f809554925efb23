"""A BatchNormalization behind a layer of quantised weights goes into their scale."""

import ml_dtypes
import numpy as np
import pytest
from graphs import Net
from onnx import TensorProto, helper, numpy_helper
from support import bn, fold_checked, initializer, join, model_of, node, ops, reasons, tensor

import onnx_bnfold
from onnx_bnfold import Reason

X = {"x": ["N", 4, 6, 6]}


def quantised(rng, kind=np.int8, low=-127, high=128, zero=None, per_axis=True, axis=0):
    """A 1x1..3x3 weight of shape (5, 4, 3, 3) behind DequantizeLinear, and its Conv."""
    scale = rng.uniform(0.001, 0.02, 5 if axis == 0 else 4) if per_axis else np.array(0.01)
    initializers = [
        tensor("q", rng.integers(low, high, (5, 4, 3, 3)).astype(kind)),
        tensor("s", scale.astype(np.float32)),
    ]
    inputs = ["q", "s"]
    if zero is not None:
        initializers.append(tensor("z", np.full(scale.shape, zero, kind)))
        inputs.append("z")
    attributes = {"axis": axis} if per_axis else {}
    dequantize = node("DequantizeLinear", inputs, ["w"], **attributes)
    return join(
        dequantize._replace(initializers=initializers), node("Conv", ["x", "w"], ["c"]),
        bn("c", "y", 5, rng),
    )  # fmt: skip


CASES = {
    "int8": {},
    "uint8": {"kind": np.uint8, "low": 20, "high": 230, "zero": 128},
    "zero-point": {"low": -100, "high": 100, "zero": 3},
    "per-tensor": {"per_axis": False},
    "per-tensor-with-zero-point": {"per_axis": False, "zero": 1, "low": -100, "high": 100},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_scale_goes_into_the_quantisation_scale(case, rng):
    parts = quantised(rng, **case)
    folded, _ = fold_checked(model_of(parts.nodes, X, ["y"], parts.initializers))
    assert ops(folded) == ["DequantizeLinear", "Conv"]
    kinds = {t.name: t.data_type for t in folded.graph.initializer}
    assert kinds["q"] == parts.initializers[0].data_type


def test_a_quantization_annotation_of_a_weight_of_new_values_goes(rng):
    parts = quantised(rng)
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    for name in ("w", "x"):
        annotation = model.graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="y_var")
    folded, _ = fold_checked(model)
    assert [a.tensor_name for a in folded.graph.quantization_annotation] == ["x"]


@pytest.mark.filterwarnings("error::RuntimeWarning")  # numpy's
def test_an_infinite_scale_of_a_dead_channel_stays(rng):
    parts = quantised(rng)
    scale, gamma = (next(t for t in parts.initializers if t.name == n) for n in ("s", "y_scale"))
    for vector, first in ((scale, np.inf), (gamma, 0)):
        values = numpy_helper.to_array(vector).copy()
        values[0] = first
        vector.CopyFrom(numpy_helper.from_array(values, vector.name))
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    assert reasons(onnx_bnfold.fold(model)[1]) == [{Reason.NOT_FINITE}]


def test_a_negative_factor_of_the_lowest_integer_stays(rng):
    parts = quantised(rng, low=-128, high=-127)
    _, report = fold_checked(model_of(parts.nodes, X, ["y"], parts.initializers), kept=1)
    assert report.kept[0].refusal.reason is Reason.QUANTIZED


def test_small_negative_factors_mirror_the_integers(rng):
    """All of them lie between -1 and 0."""
    parts = quantised(rng)
    scale, _, _, variance = parts.initializers[-4:]
    scale.CopyFrom(tensor(scale.name, -rng.uniform(0.1, 0.9, 5).astype(np.float32)))
    variance.CopyFrom(tensor(variance.name, np.ones(5, np.float32)))
    fold_checked(model_of(parts.nodes, X, ["y"], parts.initializers))


def test_a_scale_along_another_axis_stays(rng):
    parts = quantised(rng, axis=1)
    _, report = fold_checked(model_of(parts.nodes, X, ["y"], parts.initializers), kept=1)
    assert Reason.QUANTIZED in reasons(report)[0]


def test_a_norm_in_front_of_quantised_weights_stays(rng):
    parts = quantised(rng)
    front = join(bn("x", "f", 4, rng), node("Conv", ["f", "w"], ["y"]))
    model = model_of([parts.nodes[0], *front.nodes], X, ["y"],
                     [*parts.initializers[:2], *front.initializers])  # fmt: skip
    _, report = fold_checked(model, kept=1)
    assert Reason.QUANTIZED in reasons(report)[0]


KINDS = {
    "int4": (ml_dtypes.int4, -8, 7),
    "uint4": (ml_dtypes.uint4, 0, 15),
    "int8": (np.int8, -128, 127),
    "uint8": (np.uint8, 0, 255),
    "int16": (np.int16, -(2**15), 2**15 - 1),
    "uint16": (np.uint16, 0, 2**16 - 1),
}


@pytest.mark.parametrize("beyond", [False, True])
@pytest.mark.parametrize("end", ["low", "high"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_integer_is_mirrored_as_far_as_its_type_goes(kind, end, beyond, rng):
    """A negative factor mirrors q at the zero point z: 2 * z - q may be the last integer."""
    dtype, low, high = KINDS[kind]
    zero = (low + high) // 2 + (-1 if end == "low" else 2)
    farthest = 2 * zero - (low if end == "low" else high)
    farthest += beyond * (1 if end == "low" else -1)
    parts = quantised(rng, zero=0)
    integers = np.full((5, 4, 3, 3), zero, np.int64)
    integers[:, 0, 0, 0] = farthest
    given = {"q": integers.astype(dtype), "z": np.full(5, zero).astype(dtype)}
    initializers = [tensor(t.name, given[t.name]) if t.name in given else t
                    for t in parts.initializers]  # fmt: skip
    model = model_of(parts.nodes, X, ["y"], initializers, opset=21, ir_version=10)
    _, report = fold_checked(model, kept=int(beyond))
    assert not beyond or Reason.QUANTIZED in reasons(report)[0]


@pytest.mark.parametrize(("channels", "size"), [(4, 2), (5, 3), (5, 4)])
def test_an_integer_is_mirrored_at_the_zero_point_of_its_block(channels, size, rng):
    """Of five channels, the first block may have three or four, and the second has the rest."""
    shape = 5, -(-channels // size), 3, 3
    initializers = [
        tensor("q", rng.integers(-50, 50, (5, channels, 3, 3)).astype(np.int8)),
        tensor("s", rng.uniform(0.001, 0.02, shape).astype(np.float32)),
        tensor("z", rng.integers(-9, 9, shape).astype(np.int8)),
    ]
    dequantize = node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=1, block_size=size)
    parts = join(dequantize, node("Conv", ["x", "w"], ["c"]), bn("c", "y", 5, rng))
    x = {"x": ["N", channels, 6, 6]}
    initializers += parts.initializers
    fold_checked(model_of(parts.nodes, x, ["y"], initializers, opset=21, ir_version=10))


@pytest.mark.parametrize("blocks", [(5, 3, 3, 3), (4, 2, 3, 3)], ids=str)
def test_blocks_of_another_number_stay(blocks, rng):
    parts = quantised(rng, zero=3)
    parts.nodes[0].attribute.append(helper.make_attribute("block_size", 2))
    parts.nodes[0].attribute[0].i = 1
    given = {"s": np.ones(blocks, np.float32), "z": np.ones(blocks, np.int8)}
    initializers = [tensor(t.name, given[t.name]) if t.name in given else t
                    for t in parts.initializers]  # fmt: skip
    model = model_of(parts.nodes, X, {"y": None}, initializers, opset=21, ir_version=10)
    _, report = fold_checked(model, kept=1, compare=False)
    assert Reason.INCONSISTENT_SHAPES in reasons(report)[0]


@pytest.mark.parametrize(("opset", "kept"), [(12, 1), (13, 0)])
@pytest.mark.parametrize("shape", [(), (1,)], ids=["scalar", "one element"])
def test_one_scale_becomes_one_per_channel_where_the_operator_takes_them(shape, opset, kept, rng):
    parts = quantised(rng, per_axis=False, zero=2, low=-100, high=100)
    initializers = [tensor(t.name, numpy_helper.to_array(t).reshape(shape)) if t.name in "sz" else t
                    for t in parts.initializers]  # fmt: skip
    model = model_of(parts.nodes, X, ["y"], initializers, opset=opset)
    _, report = fold_checked(model, kept=kept)
    assert not kept or Reason.QUANTIZED in reasons(report)[0]


def test_a_scale_of_another_length_than_the_channels_stays(rng):
    parts = quantised(rng)
    initializers = [tensor("s", np.ones(4, np.float32)) if t.name == "s" else t
                    for t in parts.initializers]  # fmt: skip
    model = model_of(parts.nodes, X, {"y": None}, initializers)
    _, report = fold_checked(model, kept=1, compare=False)
    assert Reason.INCONSISTENT_SHAPES in reasons(report)[0]


def test_a_zero_point_at_run_time_stays(rng):
    parts = quantised(rng, zero=3)
    initializers = [t for t in parts.initializers if t.name != "z"]
    model = model_of(parts.nodes, X | {"z": (np.int8, [5])}, ["y"], initializers)
    _, report = fold_checked(model, kept=1)
    assert Reason.QUANTIZED in reasons(report)[0]


def test_a_weight_of_another_type_than_its_scale_stays(rng):
    """Its scale is float32 and the weight float16."""
    parts = quantised(rng)
    parts.nodes[0].attribute.append(helper.make_attribute("output_dtype", TensorProto.FLOAT16))
    norm = bn("c", "y", 5, rng, dtype=np.float16)
    model = model_of(
        [*parts.nodes[:2], *norm.nodes],
        X,
        ["y"],
        [*parts.initializers[:2], *norm.initializers],
        dtype=np.float16,
        opset=23,
        ir_version=11,
    )
    _, report = fold_checked(model, kept=1, compare=False)
    assert Reason.QUANTIZED in reasons(report)[0]


LAYERS = {
    "ConvTranspose": ("ConvTranspose", X, (4, 5, 3, 3), 1, {}, 0),
    "ConvTranspose of groups": ("ConvTranspose", X, (4, 3, 3, 3), 1, {"group": 2}, 1),
    "Conv of groups": ("Conv", X, (6, 2, 3, 3), 0, {"group": 2}, 0),
    "Gemm": ("Gemm", {"x": ["N", 4]}, (4, 6), 1, {}, 0),
    "Gemm transposed": ("Gemm", {"x": ["N", 4]}, (6, 4), 0, {"transB": 1}, 0),
    "MatMul": ("MatMul", {"x": ["N", 4]}, (4, 6), 1, {}, 0),
}


@pytest.mark.parametrize(
    ("op", "x", "shape", "axis", "attributes", "kept"), LAYERS.values(), ids=LAYERS
)
def test_every_layer_finds_its_output_channels(op, x, shape, axis, attributes, kept, rng):
    channels = 6 if kept else shape[axis]
    initializers = [
        tensor("q", rng.integers(-127, 128, shape).astype(np.int8)),
        tensor("s", rng.uniform(0.001, 0.02, shape[axis]).astype(np.float32)),
    ]
    parts = join(
        node("DequantizeLinear", ["q", "s"], ["w"], axis=axis)._replace(initializers=initializers),
        node(op, ["x", "w"], ["c"], **attributes),
        bn("c", "y", channels, rng),
    )
    _, report = fold_checked(model_of(parts.nodes, x, ["y"], parts.initializers), kept=kept)
    assert not kept or Reason.QUANTIZED in reasons(report)[0]


# --- in front, and groups -------------------------------------------------------------------


def real(net: Net, *shape: int, scale=0.02, axis: int | None = None, zero: bool = False) -> str:
    """A weight behind DequantizeLinear; `scale` may be one per channel of an axis."""
    integers = net.const(net.rng.integers(-100, 100, shape).astype(np.int8))
    scale = np.float32(scale)
    points = [net.const(np.full(scale.shape, 2, np.int8))] if zero else []
    attributes = {} if axis is None else {"axis": axis}
    return net.op("DequantizeLinear", integers, net.const(scale), *points, **attributes)


SCALES = {"one scale": (0.02, None), "a scale per channel": (np.linspace(0.01, 0.02, 4), 0)}


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(("scale", "axis"), SCALES.values(), ids=SCALES)
def test_a_depthwise_layer_takes_what_is_in_front_and_behind(scale, axis, zero):
    """Its input channel is its output channel."""
    net = Net((2, 4, 6, 6))
    weight = real(net, 4, 1, 3, 3, scale=scale, axis=axis, zero=zero)
    y = net.op("Conv", net.bn("x"), weight, net.random(4), group=4)
    folded, _ = fold_checked(net.model(net.bn(y)))
    assert ops(folded) == ["DequantizeLinear", "Conv"]


def test_two_outputs_for_each_input_channel():
    net = Net((2, 4, 6, 6))
    y = net.op("Conv", net.bn("x"), real(net, 8, 1, 3, 3), net.random(8), group=4)
    folded, _ = fold_checked(net.model(net.bn(y)))
    assert ops(folded) == ["DequantizeLinear", "Conv"]


def test_padding_keeps_a_shift_out_of_a_depthwise_layer():
    net = Net((2, 4, 6, 6))
    y = net.op("Conv", net.bn("x"), real(net, 4, 1, 3, 3), net.random(4), group=4, pads=[1] * 4)
    _, report = fold_checked(net.model(y), kept=1)
    assert Reason.PADDING in reasons(report)[0]


@pytest.mark.parametrize("group", [1, 2])
def test_a_scale_in_front_of_other_layers_stays(group):
    net = Net((2, 4, 6, 6))
    y = net.op("Conv", net.bn("x", shift=False), real(net, 6, 4 // group, 3, 3), group=group)
    _, report = fold_checked(net.model(y), kept=1)
    assert Reason.QUANTIZED in reasons(report)[0]


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(("scale", "axis"), [(0.02, None), (np.linspace(0.01, 0.02, 6), 0)])
def test_a_shift_in_front_goes_into_the_bias(scale, axis, zero):
    """The scale goes through the Relu into the Conv in front."""
    net = Net((2, 4, 6, 6))
    weight = real(net, 6, 4, 3, 3, scale=scale, axis=axis, zero=zero)
    y = net.bn(net.relu(net.conv("x", 4)), signs="positive")
    folded, _ = fold_checked(net.model(net.op("Conv", y, weight)))
    assert "BatchNormalization" not in ops(folded)


def test_one_factor_for_all_channels_leaves_one_scale():
    net = Net((2, 4, 6, 6))
    parameters = [np.full(6, 2.0), np.ones(6), np.zeros(6), np.ones(6)]
    y = net.op("Conv", "x", real(net, 6, 4, 3, 3), net.random(6))
    y = net.op("BatchNormalization", y, *map(net.const, parameters))
    folded, _ = fold_checked(net.model(y))
    assert initializer(folded, folded.graph.node[0].input[1]).shape == ()


TRANSPOSED = {
    "depthwise": ((4, 1, 3, 3), 4, 4, 0),
    "one output of each group": ((4, 1, 3, 3), 2, 2, 0),
    "several of each group": ((4, 3, 3, 3), 2, 6, 1),
}


@pytest.mark.parametrize(
    ("shape", "group", "channels", "kept"), TRANSPOSED.values(), ids=TRANSPOSED
)
def test_a_transposed_layer_of_groups_with_one_scale(shape, group, channels, kept):
    """The scale gets one value per input channel, each of which has one output channel."""
    net = Net((2, 4, 6, 6))
    y = net.op("ConvTranspose", "x", real(net, *shape), net.random(channels), group=group)
    _, report = fold_checked(net.model(net.bn(y, channels=channels)), kept=kept)
    assert not kept or Reason.QUANTIZED in reasons(report)[0]


def test_a_product_by_a_quantised_matrix_per_batch_entry():
    net = Net((2, 4, 3, 5))
    y = net.op("MatMul", "x", real(net, 4, 5, 6))
    _, report = fold_checked(net.model(net.bn(y)), kept=1)
    assert Reason.AXES in reasons(report)[0]
