"""A BatchNormalization behind a layer of quantised weights goes into their scale."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import support
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


# --- quantised in the graph ----------------------------------------------------------------------


def trained_for_int8(rng, kind=np.int8, zero=0, axis=0, signs=(1, -1)):
    """A float weight behind QuantizeLinear and DequantizeLinear of one scale, Conv, BN."""
    rows = 5 if axis == 0 else 4
    net = Net((2, 4, 6, 6), opset=21)
    net.rng = rng
    scale = net.const(rng.uniform(0.02, 0.04, rows))
    point = net.const(np.full(rows, zero).astype(kind))
    weight = net.const(rng.uniform(-0.12, 0.12, (5, 4, 3, 3)))
    integers = net.op("QuantizeLinear", weight, scale, point, axis=axis)
    w = net.op("DequantizeLinear", integers, scale, point, axis=axis)
    return net, net.bn(net.op("Conv", "x", w), channels=5, signs=signs)


@pytest.mark.parametrize("signs", [(1,), (1, -1)], ids=["positive", "mixed"])
@pytest.mark.parametrize(
    ("kind", "zero"), [(np.int8, 0), (np.int8, 3), (np.uint8, 128), (np.int16, 0)]
)
def test_a_weight_that_is_quantised_in_the_graph_stays_quantised(kind, zero, signs, rng):
    net, y = trained_for_int8(rng, kind, zero, signs=signs)
    model = net.model(y)
    folded, _ = fold_checked(model)
    assert ops(folded) == ["DequantizeLinear", "Conv"]
    stored = {t.data_type for t in folded.graph.initializer if len(t.dims) == 4}
    assert stored == {helper.np_dtype_to_tensor_dtype(np.dtype(kind))}, "the float weight goes"
    assert folded.ByteSize() < model.ByteSize()


def test_a_weight_that_is_quantised_along_its_input_channels_stays(rng):
    net, y = trained_for_int8(rng, axis=1)
    model = net.model(y)
    folded, report = fold_checked(model, kept=1)
    refusal = report.kept[0].refusal
    assert refusal.reason is Reason.QUANTIZED
    assert "before quantising" in refusal.sentence
    assert folded == model


def test_four_bits_that_onnxruntime_does_not_hand_out(rng):
    """Nothing is folded, or the weight stays in four bits."""
    net, y = trained_for_int8(rng, ml_dtypes.int4)
    folded, report = onnx_bnfold.fold(net.model(y))
    if report.kept:
        assert report.kept[0].refusal.reason is Reason.PARAMETERS_NOT_CONSTANT
    else:
        support.assert_same_function(net.model(y), folded)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32])
def test_parameters_and_biases_behind_a_dequantizer(kind, rng):
    """As quantize_static writes them; they end as numbers of their own."""
    net = Net((2, 4, 6, 6))
    q = net.const(rng.integers(20, 100, 4).astype(kind))
    made = net.op("DequantizeLinear", q, net.const(np.float32(0.02)))
    conv = net.op("Conv", "x", net.random(4, 4, 1, 1), made)
    rest = (net.random(4), net.random(4), net.const(np.ones(4)))
    folded, _ = fold_checked(net.model(net.op("BatchNormalization", conv, made, *rest)))
    assert ops(folded) == ["Conv"]


def test_an_operand_behind_a_dequantizer(rng):
    net = Net((2, 4, 6, 6))
    q = net.const(rng.integers(20, 100, (4, 1, 1)).astype(np.int8))
    made = net.op("DequantizeLinear", q, net.const(np.float32(0.02)))
    folded, _ = fold_checked(net.model(net.op("Add", net.conv("x", 4), made)))
    assert ops(folded) == ["Conv"]


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


# --- read by several nodes ------------------------------------------------------------------


def shared(rng, *, second=True, low=-127, positive=False):
    """Two Convs of one weight, a BN behind the first, and perhaps behind the second."""
    parts = quantised(rng, low=low)
    dequantize, first, norm = parts.nodes
    other = node("Conv", ["x", "w"], ["d"])
    end = bn("d", "z", 5, rng, positive=positive) if second else node("Tanh", ["d"], ["z"])
    more = join(other, end)
    nodes = [dequantize, first, norm, *more.nodes]
    return model_of(nodes, X, ["y", "z"], [*parts.initializers, *more.initializers])


def scales(model):
    nodes = (n for n in model.graph.node if n.op_type == "DequantizeLinear")
    return [initializer(model, n.input[1]) for n in nodes]


def test_a_shared_weight_is_copied_for_the_layer_that_changes(rng):
    model = shared(rng, second=False)
    folded, report = fold_checked(model)
    assert sorted(ops(folded)) == ["Conv", "Conv", "DequantizeLinear", "DequantizeLinear", "Tanh"]
    assert any(np.array_equal(each, scales(model)[0]) for each in scales(folded))
    assert report.copied_bytes == 5 * 4 * 3 * 3 + 5 * 4
    _, report = fold_checked(model, kept=1, options=onnx_bnfold.Options(keep_shared_weights=True))
    assert report.kept[0].refusal.reason is Reason.SHARED_WEIGHT


def test_a_shared_weight_of_two_layers_that_change(rng):
    """The one that nobody reads any more goes."""
    folded, _ = fold_checked(shared(rng))
    assert sorted(ops(folded)) == ["Conv", "Conv", "DequantizeLinear", "DequantizeLinear"]
    assert len({each.tobytes() for each in scales(folded)}) == 2


def test_a_shared_weight_that_is_an_output_stays_as_it_is(rng):
    parts = quantised(rng)
    folded, _ = fold_checked(model_of(parts.nodes, X, ["y", "w"], parts.initializers))
    assert sorted(ops(folded)) == ["Conv", "DequantizeLinear", "DequantizeLinear"]


def test_a_shared_weight_whose_integers_cannot_be_mirrored_stays(rng):
    model = shared(rng, second=False, low=-128)
    integers = next(t for t in model.graph.initializer if t.name == "q")
    integers.CopyFrom(tensor("q", np.full((5, 4, 3, 3), -128, np.int8)))
    _, report = fold_checked(model, kept=1)
    assert report.kept[0].refusal.reason is Reason.QUANTIZED


def test_a_shared_weight_that_a_body_reads(rng):
    """The copy is of the main graph; what the body reads stays."""
    parts = quantised(rng)
    body = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["b"])],
        "then",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["w"], ["e"])],
        "else",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)],
    )
    choice = node("If", ["which"], ["z"], then_branch=body, else_branch=other)
    inputs = X | {"which": (np.bool_, ())}
    model = model_of([*parts.nodes, *choice.nodes], inputs, ["y", "z"], parts.initializers)
    folded, _ = fold_checked(model)
    assert ops(folded).count("DequantizeLinear") == 2


def test_integers_are_mirrored_in_blocks(rng):
    size = 2000  # 4 MB, of which int64 has 32
    q = np.resize(rng.integers(-100, 100, 1009).astype(np.int8), (size, size))
    initializers = [
        tensor("q", q), tensor("s", np.linspace(0.01, 0.02, size).astype(np.float32)),
        tensor("z", np.resize(np.array([3, -3], np.int8), size)),
    ]  # fmt: skip
    dequantize = node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=1)
    parts = join(
        dequantize._replace(initializers=initializers),
        node("MatMul", ["x", "w"], ["m"]), bn("m", "y", size, rng),
    )  # fmt: skip
    signs = np.resize(np.array([1, -1, -1], np.float32), size)
    at = next(i for i, t in enumerate(parts.initializers) if t.name == "y_scale")
    parts.initializers[at] = tensor("y_scale", signs)
    model = model_of(parts.nodes, {"x": ["N", size]}, ["y"], parts.initializers)
    tracemalloc.start()
    folded, _ = onnx_bnfold.fold(model)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    made = initializer(folded, "q")
    z = np.resize([3, -3], size)
    np.testing.assert_array_equal(made, np.where(signs < 0, 2 * z - q, q))
    assert peak < 40e6
