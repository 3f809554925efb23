"""Constants: every way in which an exporter writes one, evaluated once and within a size limit."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import support
from graphs import IMAGE, Net
from onnx import TensorProto, helper
from support import fold_checked, ops, reasons, saved_external

import onnx_bnfold
from onnx_bnfold import ModelError, Options, Reason
from onnx_bnfold.model import constants as constants_of
from onnx_bnfold.storage import skeleton

CHANNELS = 4


def as_is(net, values):
    return net.const(values)


def constant_node(net, **attribute):
    return net.op("Constant", **attribute)


def computed(*steps):
    """A constant that passes nodes; a step is an operator, its attributes and further inputs."""

    def make(net, values):
        name = net.const(values)
        for op, attributes, *inputs in steps:
            name = net.op(op, name, *(net.const(np.asarray(i)) for i in inputs), **attributes)
        return name

    return make


def through_constant_node(net, values):
    return constant_node(net, value=support.tensor("", values.astype(np.float32)))


def value_floats(net, values):
    return constant_node(net, value_floats=[float(v) for v in values])


def sparse(net, values):
    dense = values.astype(np.float32)
    tensor = helper.make_sparse_tensor(
        support.tensor("", dense), support.tensor("", np.arange(len(dense))), [len(dense)]
    )
    return constant_node(net, sparse_value=tensor)


def arithmetic(net, values):
    """sqrt((v / 2 + v / 2) * v), up to the sign."""
    half = net.op("Mul", net.const(values), net.const(np.float32(0.5)))
    return net.op("Add", half, half)


def twice_reciprocal(net, values):
    return net.op("Reciprocal", net.op("Reciprocal", net.const(values)))


def root_of_square(net, values):
    return net.op("Sqrt", net.op("Mul", net.const(values**2), net.const(np.ones(1))))


def concat_of_parts(net, values):
    return net.op("Concat", net.const(values[:1]), net.const(values[1:]), axis=0)


def gathered(net, values):
    return net.op("Gather", net.const(values[::-1]), net.ints(3, 2, 1, 0))


def reshaped_by_a_shape(net, values):
    return net.op(
        "Reshape", net.const(values.reshape(2, 2)), net.op("Shape", net.const(np.zeros(4)))
    )


def from_double(net, values):
    return net.op("Cast", net.const(values, np.float64), to=TensorProto.FLOAT)


def cast_like(net, values):
    return net.op("CastLike", net.const(values, np.float64), net.const(np.zeros(1)))


FORMS = {
    "initializer": as_is,
    "constant-value": through_constant_node,
    "constant-value-floats": value_floats,
    "constant-sparse-value": sparse,
    "identity": computed(("Identity", {})),
    "two-identities": computed(("Identity", {}), ("Identity", {})),
    "identity-of-constant": lambda net, v: net.op("Identity", through_constant_node(net, v)),
    "cast": from_double,
    "cast-like": cast_like,
    "reshape": computed(("Reshape", {}, np.array([2, 2])), ("Reshape", {}, np.array([-1]))),
    "reshape-by-a-shape": reshaped_by_a_shape,
    "unsqueeze-squeeze": computed(("Unsqueeze", {}, np.array([0])), ("Squeeze", {}, np.array([0]))),
    "transpose": computed(("Transpose", {"perm": [0]})),
    "expand": computed(("Expand", {}, np.array([4]))),
    "flatten": computed(("Flatten", {"axis": 0}), ("Squeeze", {}, np.array([0]))),
    "slice": computed(("Slice", {}, np.array([0]), np.array([99]))),
    "neg-neg": computed(("Neg", {}), ("Neg", {})),
    "mul-add": arithmetic,
    "reciprocal": twice_reciprocal,
    "concat": concat_of_parts,
    "gather": gathered,
}
POSITIVE_FORMS = FORMS | {"sqrt": root_of_square}


def bn_of(net, x, forms):
    """A BN whose scale, B, mean and var are written in these forms."""
    rng = net.rng
    values = [
        net.values(CHANNELS),
        rng.standard_normal(CHANNELS),
        rng.standard_normal(CHANNELS),
        rng.uniform(0.3, 2, CHANNELS),
    ]
    names = [form(net, v) for form, v in zip(forms, values, strict=True)]
    return net.op("BatchNormalization", x, *names, epsilon=0.01)


@pytest.mark.parametrize("form", FORMS)
def test_parameters_of_a_bn(form):
    net = Net(IMAGE)
    folded, _ = fold_checked(net.model(bn_of(net, net.conv("x", CHANNELS), [FORMS[form]] * 4)))
    assert ops(folded)[-1] == "Conv"


@pytest.mark.parametrize("form", FORMS)
def test_constants_of_a_file_whose_values_are_left_in_it(form, tmp_path, monkeypatch):
    net, source, target = Net(IMAGE), tmp_path / "model.onnx", tmp_path / "folded.onnx"
    model = net.model(bn_of(net, net.conv("x", CHANNELS), [FORMS[form]] * 4))
    onnx.save(model, source)
    monkeypatch.setattr(skeleton, "SMALL", 1)
    onnx_bnfold.fold_file(source, target, Options(metadata=False))
    assert onnx.load(target) == onnx_bnfold.fold(model)[0]


def test_a_large_weight_of_a_constant_node(tmp_path):
    net, source, target = Net(IMAGE), tmp_path / "model.onnx", tmp_path / "folded.onnx"
    weight = net.rng.standard_normal((64, CHANNELS, 3, 3))
    assert weight.size * 4 > skeleton.SMALL
    model = net.model(net.bn(net.op("Conv", "x", through_constant_node(net, weight))))
    onnx.save(model, source)
    onnx_bnfold.fold_file(source, target, Options(metadata=False))
    folded, _ = fold_checked(model)
    assert onnx.load(target) == folded


def test_a_constant_node_without_all_of_its_values(tmp_path):
    net = Net(IMAGE)
    model = net.model(bn_of(net, net.conv("x", CHANNELS), [through_constant_node] * 4))
    node = next(n for n in model.graph.node if n.op_type == "Constant")
    node.attribute[0].t.raw_data = b"123"
    onnx.save(model, tmp_path / "model.onnx")
    for act in (onnx_bnfold.fold, lambda _: onnx_bnfold.plan_file(tmp_path / "model.onnx")):
        with pytest.raises(ModelError, match=f"{node.output[0]}.* 3 bytes"):
            act(model)


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("form", ["constant-value", "mul-add"])
def test_one_parameter_of_a_bn(form, position):
    forms = [FORMS[form] if i == position else as_is for i in range(4)]
    net = Net(IMAGE)
    fold_checked(net.model(bn_of(net, net.conv("x", CHANNELS), forms)))


def test_variance_of_a_computed_deviation():
    net = Net(IMAGE)
    fold_checked(net.model(bn_of(net, net.conv("x", CHANNELS), [as_is] * 3 + [root_of_square])))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("side", ["behind", "in front"])
def test_bias_of_a_layer(form, side):
    net = Net(IMAGE)
    x = net.bn("x") if side == "in front" else "x"
    y = net.op("Conv", x, net.random(CHANNELS, 4, 1, 1), FORMS[form](net, net.values(CHANNELS)))
    fold_checked(net.model(y if side == "in front" else net.bn(y)))


WEIGHTS = {
    "constant": through_constant_node,
    "identity": FORMS["identity"],
    "cast": from_double,
    "transpose": lambda net, w: net.op(
        "Transpose", net.const(w.transpose(1, 0, 2, 3)), perm=[1, 0, 2, 3]
    ),
    "reshape": lambda net, w: net.op("Reshape", net.const(w.ravel()), net.ints(*w.shape)),
    "mul": lambda net, w: net.op("Mul", net.const(w), net.random(4, 1, 1, 1)),
    "expand": lambda net, w: net.op("Expand", net.const(w[:1]), net.ints(*w.shape)),
    "constant-of-shape": lambda net, w: net.op(
        "ConstantOfShape", net.ints(*w.shape), value=helper.make_tensor("", 1, [1], [0.25])
    ),
}


@pytest.mark.parametrize("form", WEIGHTS)
@pytest.mark.parametrize("side", ["behind", "in front"])
def test_weight_of_a_layer(form, side):
    net = Net(IMAGE)
    x = net.bn("x") if side == "in front" else "x"
    y = net.op("Conv", x, WEIGHTS[form](net, net.values(CHANNELS, 4, 3, 3)))
    fold_checked(net.model(y if side == "in front" else net.bn(y)))


def test_transposed_weight_of_a_linear():
    """What a Linear on three axes is exported as: MatMul(x, Transpose(W)) + b."""
    net = Net((2, 3, 4))
    y = net.op("MatMul", "x", net.op("Transpose", net.random(5, 4), perm=[1, 0]))
    y = net.op("Transpose", net.op("Add", net.random(5), y), perm=[0, 2, 1])
    fold_checked(net.model(net.bn(y)))


def test_weight_computed_for_two_layers():
    net = Net(IMAGE)
    w = net.op("Mul", net.random(4, 4, 1, 1), net.const(np.float32(0.5)))
    a, b = net.op("Conv", "x", w), net.op("Conv", "x", w)
    fold_checked(net.model(net.bn(a), b, net.bn(b)), kept=1)


def test_computed_constant_that_others_read():
    net = Net(IMAGE)
    w = net.op("Identity", net.random(4, 4, 1, 1))
    y = net.bn(net.op("Conv", "x", w))
    fold_checked(net.model(y, net.op("Mul", w, w), w))


@pytest.mark.parametrize(
    "attribute",
    [
        {"value_float": 0.5},
        {"value_floats": [0.5]},
        {"value": helper.make_tensor("", TensorProto.FLOAT, [], [0.5])},
        {"value": helper.make_tensor("", TensorProto.FLOAT, [1, 1, 1], [0.5])},
    ],
    ids=["value-float", "value-floats", "value-scalar", "value-tensor"],
)
@pytest.mark.parametrize("op", ["Mul", "Add", "Sub", "Div"])
def test_constant_node_of_an_affine_node(op, attribute):
    net = Net(IMAGE)
    y = net.op(op, net.conv("x", 4), constant_node(net, **attribute))
    folded, _ = fold_checked(net.model(y))
    assert op not in ops(folded)


@pytest.mark.parametrize(
    "attribute", [{"value_int": -1}, {"value_ints": [-1]}], ids=["value-int", "value-ints"]
)
def test_integer_constant_node_as_axes(attribute):
    net = Net(("N", 4, 1))
    axes = constant_node(net, **attribute)
    if "value_int" in attribute:
        axes = net.op("Unsqueeze", axes, net.ints(0))
    fold_checked(net.model(net.bn(net.op("Squeeze", net.conv("x", 4), axes), channels=4)))


@pytest.mark.parametrize("value", [None, 2.0], ids=["default", "value"])
def test_constant_of_shape(value):
    """Without a value the elements are float zeros: here the mean of the BN."""
    net = Net(IMAGE)
    t = net.conv("x", 4)
    attributes = {} if value is None else {"value": helper.make_tensor("", 1, [1], [value])}
    filled = net.op("ConstantOfShape", net.ints(4), **attributes)
    parameters = [net.random(4), net.random(4), filled, net.const(np.full(4, 0.5))]
    fold_checked(net.model(net.op("BatchNormalization", t, *parameters)))


def test_a_value_that_lies_in_another_file(tmp_path, monkeypatch):
    """Of a node that is computed: it holds a tensor as a Constant does."""
    net = Net(IMAGE)
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], np.float32([2]).tobytes(), raw=True)
    filled = net.op("ConstantOfShape", net.ints(4), value=value)
    parameters = [net.random(4), net.random(4), filled, net.const(np.full(4, 0.5))]
    model = net.model(net.op("BatchNormalization", net.conv("x", 4), *parameters))
    path = saved_external(model, tmp_path / "m.onnx", convert_attribute=True)
    unloaded = onnx.load(path, load_external_data=False)
    folded, report = onnx_bnfold.fold(unloaded, base_dir=tmp_path)
    assert not report.kept
    assert ops(folded) == ["Conv"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)  # where a file of the same name says otherwise
    Path("weights.bin").write_bytes(bytes((tmp_path / "weights.bin").stat().st_size))
    assert onnx_bnfold.fold(unloaded, base_dir=tmp_path)[0] == folded


def missing_bias(net, x):
    """What PyTorch's dynamo exporter, unoptimised, writes for the bias of a Conv without one."""
    weight = net.random(4, 4, 3, 3)
    zero = net.op("CastLike", constant_node(net, value_float=0.0), x)
    shape = net.op("Shape", weight, start=0, end=1)
    return net.op("Conv", x, weight, net.op("Expand", zero, shape))


def test_missing_bias_of_the_dynamo_exporter():
    """`x` is the graph's input: only its type counts."""
    net = Net(IMAGE)
    fold_checked(net.model(net.bn(missing_bias(net, "x"))))


def test_missing_bias_of_the_dynamo_exporter_inside_a_network():
    net = Net(("N", 4, 9, 9))
    t = net.relu(net.bn(missing_bias(net, "x")))
    t = net.relu(net.bn(missing_bias(net, t)))
    fold_checked(net.model(net.conv(net.bn(t), 3)))


def test_cast_like_of_a_computed_tensor_of_known_type():
    net = Net(IMAGE)
    t = net.conv("x", 4)
    scale = net.op("CastLike", net.const(net.values(4), np.float64), t)
    parameters = [scale, net.random(4), net.random(4), net.const(np.full(4, 0.5))]
    fold_checked(net.model(net.op("BatchNormalization", t, *parameters)))


def test_cast_like_of_a_constant_to_its_own_type():
    """Of the input that gives the type, no value is computed: it is the other one, too."""
    net = Net(IMAGE)
    scale = net.const(net.values(4))
    parameters = [net.op("CastLike", scale, scale), *(net.random(4) for _ in range(2))]
    parameters.append(net.const(np.full(4, 0.5)))
    fold_checked(net.model(net.op("BatchNormalization", net.conv("x", 4), *parameters)))


def bn_whose_mean_is_the_shape_of_its_input(net):
    t = net.conv("x", 4)
    mean = net.op("Cast", net.op("Shape", t), to=TensorProto.FLOAT)
    parameters = [net.random(4), net.random(4), mean, net.const(np.full(4, 0.5))]
    return net.model(net.op("BatchNormalization", t, *parameters))


def test_what_only_gives_its_shape_is_not_evaluated():
    net = Net((2, 4, 3, 3))
    shape = net.op("Shape", net.op("Add", net.relu("x"), net.random(4, 1, 1)))
    assert net.state(shape).constants.value(shape).tolist() == [2, 4, 3, 3]


def test_sizes_are_asked_for_where_they_matter_only(monkeypatch):
    """PyTorch's dynamo exporter makes the bias of a layer from the type of the layer's input."""
    net = Net(IMAGE)
    x, weight, zero = net.relu(net.conv("x", 8)), net.random(4, 8, 1, 1), net.const(np.float32(0))
    size = net.op("Expand", net.const(4, np.int64), net.op("Shape", net.ints(1)))
    bias = net.op("Expand", net.op("CastLike", zero, x), size)
    y = net.op("Add", net.bn(net.op("Conv", x, weight, bias), channels=4), "x")
    flat = net.op("Reshape", y, net.op("Concat", net.op("Shape", y, end=1), net.ints(-1), axis=0))
    model, constants = net.model(flat), net.state(flat).constants
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", None)
    folded, report = onnx_bnfold.fold(model)
    assert not report.kept
    assert "BatchNormalization" not in ops(folded)
    assert constants.is_computed(bias)
    assert not constants.is_computed(y)


def test_shape_of_a_computed_tensor_of_known_dims():
    folded, _ = fold_checked(bn_whose_mean_is_the_shape_of_its_input(Net((2, 4, 3, 5))))
    assert ops(folded) == ["Conv"]


@pytest.mark.parametrize("shape", [("N", 4, 4, 4), (2, 4, 4, "W")])
def test_shape_of_a_computed_tensor_with_a_dynamic_axis(shape):
    _, report = fold_checked(bn_whose_mean_is_the_shape_of_its_input(Net(shape)), kept=1)
    assert report.kept[0].refusal.reason is Reason.PARAMETERS_NOT_CONSTANT


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"start": 1, "end": 2}, [4]),
        ({"start": -3}, [4, 3, 5]),
        ({"start": -1, "end": 9}, [5]),
        ({"start": -9, "end": 0}, []),
        ({"start": 3, "end": 2}, []),
        ({"start": 0, "end": 1}, None),
        ({"end": -1}, None),
        ({}, None),
    ],
    ids=str,
)
def test_a_shape_needs_only_the_axes_that_it_reads(bounds, expected):
    net = Net(("N", 4, 3, 5))
    shape = net.op("Shape", net.relu("x"), **bounds)
    constants = net.state(shape).constants
    assert (constants.get(shape) is None) == (expected is None)
    if expected is not None:
        assert constants.value(shape).tolist() == expected


@pytest.mark.parametrize("op", ["RandomNormal", "RandomUniform"])
def test_random_operator_is_not_a_constant(op):
    net = Net(IMAGE)
    parameters = [
        net.op(op, shape=[4], seed=1.0),
        net.random(4),
        net.random(4),
        net.const(np.ones(4)),
    ]
    y = net.op("BatchNormalization", net.conv("x", 4), *parameters)
    _, report = fold_checked(net.model(y), kept=1, compare=False)
    assert Reason.PARAMETERS_NOT_CONSTANT in reasons(report)[0]


@pytest.mark.parametrize("position", range(4))
def test_parameter_computed_at_run_time(position):
    net = Net(IMAGE)
    net.input("p", [4])
    parameters = [net.random(4), net.random(4), net.random(4), net.const(np.ones(4))]
    parameters[position] = net.op("Abs", "p")
    y = net.op("BatchNormalization", net.conv("x", 4), *parameters)
    _, report = fold_checked(net.model(y), kept=1)
    assert report.kept[0].refusal.reason is Reason.PARAMETERS_NOT_CONSTANT


@pytest.mark.parametrize("side", ["behind", "in front"])
@pytest.mark.parametrize("what", ["weight", "bias"])
def test_layer_computed_at_run_time(what, side):
    net = Net(IMAGE)
    w, b = net.random(4, 4, 1, 1), net.random(4)
    if what == "weight":
        w = net.op("Add", w, net.input("p", [4, 1, 1, 1]))
    else:
        b = net.op("Add", b, net.input("p", [4]))
    x = "x" if side == "behind" else net.bn("x")
    y = net.op("Conv", x, w, b)
    model = net.model(net.bn(y) if side == "behind" else y)
    _, report = fold_checked(model, kept=1)
    expected = {"weight": Reason.WEIGHT_NOT_CONSTANT, "bias": Reason.BIAS_NOT_CONSTANT}[what]
    assert expected in reasons(report)[0], report.lines()


HUGE = 10**6
SIDES = ((HUGE, 1), (1, HUGE))
HUGE_CONSTANTS = {
    "ConstantOfShape": lambda net: net.op("ConstantOfShape", net.ints(HUGE, HUGE)),
    "Expand": lambda net: net.op("Expand", net.const(np.zeros(1)), net.ints(HUGE, HUGE)),
    "Tile": lambda net: net.op("Tile", net.const(np.zeros((1, 1))), net.ints(HUGE, HUGE)),
    "Mul": lambda net: net.op(
        "Mul", *(net.op("Expand", net.const(np.zeros(1)), net.ints(*s)) for s in SIDES)
    ),
    "MatMul": lambda net: net.op(
        "MatMul", *(net.op("ConstantOfShape", net.ints(*s)) for s in SIDES)
    ),
    "Range": lambda net: net.op("Range", *(net.const(np.int64(i)) for i in (0, HUGE**2, 1))),
    "Pad": lambda net: net.op("Pad", net.const(np.zeros(1)), net.ints(0, HUGE**2)),
    "Resize": lambda net: net.op(
        "Resize", net.const(np.zeros((1, 1, 1, 1))), "", net.const(np.array([1.0, 1, HUGE, HUGE]))
    ),
    "OneHot": lambda net: net.op(
        "OneHot", net.ints(0), net.const(np.int64(HUGE**2)), net.const(np.zeros(2))
    ),
}


def bn_with_a_huge_mean(huge, flat: bool) -> onnx.ModelProto:
    """A BN whose mean is four elements of a constant of 10**12, and a BN like any other."""
    net = Net(IMAGE)
    t, other = net.conv("x", 4), net.bn(net.conv("x", 4))
    name = huge(net)
    if flat:
        name = net.op("Gather", net.op("Reshape", name, net.ints(-1)), net.ints(0, 1, 2, 3))
    parameters = [net.random(4), net.random(4), name, net.const(np.ones(4))]
    y = net.op("BatchNormalization", t, *parameters)
    return helper.make_model(net.graph(y, other), opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.parametrize("flat", [False, True], ids=["as-it-is", "flat"])
def test_huge_constants_are_neither_evaluated_nor_fatal(flat, tmp_path):
    """In a process of its own: what this test guards against takes all memory of the machine."""
    for name, huge in HUGE_CONSTANTS.items():
        onnx.save(bn_with_a_huge_mean(huge, flat), tmp_path / f"{name}.onnx")
    script = """
import pathlib, resource, sys, onnx, onnx_bnfold
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.onnx")):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = onnx_bnfold.fold(onnx.load(path))[1]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    (kept,) = report.kept
    print(path.stem, kept.refusal.reason.value, grown // 1024, "MB")
    assert kept.refusal.reason.value == "parameters_not_constant", path.stem
    assert grown < 200 * 1024, f"{path.stem}: {grown} KB"
"""
    limit = 4 << 30
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "broken",
    [
        lambda net: net.op("Reshape", net.random(4), net.ints(3)),
        lambda net: net.op("Expand", net.random(4), net.ints(3)),
        lambda net: net.op("Gather", net.random(4), net.ints(9)),
        lambda net: net.op("Mul", net.random(4), net.random(3)),
        lambda net: net.op("Identity", net.random(4), domain="my.domain"),
        lambda net: net.op("ConstantOfShape", net.ints(-4)),
    ],
    ids=["reshape", "expand", "gather", "mul", "custom-domain", "negative-shape"],
)
def test_constant_that_cannot_be_evaluated_is_none(broken):
    net = Net(IMAGE)
    t = net.conv("x", 4)
    parameters = [net.random(4), net.random(4), broken(net), net.const(np.ones(4))]
    y = net.op("BatchNormalization", t, *parameters)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my.domain", 1)]
    model = helper.make_model(net.graph(y), opset_imports=imports)
    _, report = onnx_bnfold.fold(model)
    assert len(report.kept) == 1


TWO_VALUES = {"value": support.tensor("", np.zeros(4, np.float32)), "value_floats": [1.0] * 4}


@pytest.mark.parametrize(
    ("attributes", "use"),
    [({}, "mean"), (TWO_VALUES, "mean"), ({}, "type of the mean")],
    ids=["no-value", "two-values", "no-value-as-a-type"],
)
def test_malformed_constant_node_is_none(attributes, use):
    """As an output of the graph it has a type all the same."""
    net = Net(IMAGE)
    t, mean = net.conv("x", 4), constant_node(net, **attributes)
    declared = helper.make_tensor_value_info(mean, TensorProto.FLOAT, [4])
    if use == "type of the mean":
        mean = net.op("CastLike", net.random(4, dtype=np.float64), mean)
    parameters = [net.random(4), net.random(4), mean, net.const(np.ones(4))]
    y = net.op("BatchNormalization", t, *parameters)
    model = helper.make_model(net.graph(y), opset_imports=[helper.make_opsetid("", 17)])
    model.graph.output.append(declared)
    folded, report = onnx_bnfold.fold(model)
    assert [kept.refusal.reason for kept in report.kept] == [Reason.PARAMETERS_NOT_CONSTANT]
    assert ops(folded) == ops(model)


def test_constant_evaluated_with_the_opset_of_the_model():
    """Squeeze and Unsqueeze have axes as attributes before opset 13."""
    net = Net(IMAGE, opset=11)
    mean = net.op("Squeeze", net.op("Unsqueeze", net.random(4), axes=[0]), axes=[0])
    parameters = [net.random(4), net.random(4), mean, net.const(np.ones(4))]
    fold_checked(net.model(net.op("BatchNormalization", net.conv("x", 4), *parameters)))


def test_division_of_integers_truncates():
    """-3 / 2 is -1 in ONNX: a flooring evaluation would move the mean."""
    net = Net(IMAGE)
    mean = net.op("Cast", net.op("Div", net.ints(-3, 3, -5, 5), net.ints(2)), to=TensorProto.FLOAT)
    parameters = [net.random(4), net.random(4), mean, net.const(np.ones(4))]
    fold_checked(net.model(net.op("BatchNormalization", net.conv("x", 4), *parameters)))


def test_cycle_of_nodes_is_bad_input_or_left_alone():
    nodes = [
        helper.make_node("Identity", ["b"], ["a"]),
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("BatchNormalization", ["x", "a", "a", "a", "a"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(n, 1, [1, 4]) for n in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:]))
    try:
        _, report = onnx_bnfold.fold(model)
    except onnx_bnfold.BnFoldError:
        return
    assert len(report.kept) == 1


def test_nodes_of_constants_that_nobody_reads_any_more_go():
    net = Net(IMAGE)
    y = bn_of(net, net.conv("x", CHANNELS), [FORMS["mul-add"]] * 4)
    folded, _ = fold_checked(net.model(y))
    assert ops(folded) == ["Conv"]
    assert {t.name for t in folded.graph.initializer} == set(folded.graph.node[0].input[1:])


def test_constant_output_of_the_graph_stays():
    net = Net(IMAGE)
    w = net.op("Identity", net.random(4, 4, 1, 1))
    model = net.model(net.bn(net.op("Conv", "x", w)), w)
    folded, _ = fold_checked(model)
    assert [o.name for o in folded.graph.output] == [o.name for o in model.graph.output]


def test_bn_of_a_constant():
    """Nothing of it depends on the input of the graph; whatever is done, the function stays."""
    net = Net(IMAGE)
    y = net.bn(net.random(1, 4, 4, 4), channels=4)
    model = net.model(net.op("Add", net.conv("x", 4), y))
    folded, _ = onnx_bnfold.fold(model)
    onnx.checker.check_model(folded, full_check=True)
    support.assert_same_function(model, folded)


def test_a_constant_of_which_onnx_infers_a_wrong_rank():
    """Before opset 11 it leaves out the axes of a Squeeze that are not in ascending order."""
    net = Net(("N", 3), opset=9)
    constant = net.op("Squeeze", net.random(1, 1, 4), axes=[1, 0])
    y = net.bn(net.op("Add", net.gemm("x", 4), constant), channels=4)
    fold_checked(net.model(y))


def test_a_constant_that_onnx_evaluates_in_another_shape_than_it_infers():
    """A backward Slice takes the first element where it starts in front of it; onnx's, none."""
    net = Net(("N", 3))
    bounds = (net.ints(bound) for bound in (-9, -(2**40), 0, -1))
    constant = net.op("Slice", net.random(4), *bounds)
    y = net.bn(net.op("Add", net.gemm("x", 4), constant), channels=4)
    fold_checked(net.model(y), kept=1)


def chain_of_constants(length):
    """The constants of a graph that computes them, each of the one before, and their names."""
    net = Net(IMAGE)
    names = [net.const(np.ones(CHANNELS))]
    for number in range(length):
        names.append(net.op(("Mul", "Add")[number % 2], names[-1], net.const(np.full(1, 0.5))))
    return net.state(names[-1]).constants, names[1:]


class Counting(dict):
    """Counts how often it is asked."""

    asked = 0

    def __getitem__(self, key):
        self.asked += 1
        return super().__getitem__(key)


def test_what_a_constant_is_computed_of_is_looked_for_once():
    """By the square it would take more than 15 times as much."""

    def asked(length):
        constants, names = chain_of_constants(length)
        constants.graph.producer = Counting(constants.graph.producer)
        assert all(constants.get(name) is not None for name in names)
        assert all(constants.value(name).size == CHANNELS for name in names)
        return constants.graph.producer.asked

    assert asked(80) <= 4.1 * asked(20)


def test_all_values_are_not_looked_through_whenever_one_is_asked_for(monkeypatch):
    """By the square it would take more than 15 times as much."""

    class Bound(int):
        compared = 0

        def __lt__(self, size):
            self.compared += 1
            return int(self) < size

        def __ge__(self, size):
            self.compared += 1
            return int(self) >= size

    def compared(length):
        constants, names = chain_of_constants(length)
        bound = Bound(constants_of.LARGEST_SHAPE_INPUT)
        monkeypatch.setattr(constants_of, "LARGEST_SHAPE_INPUT", bound)
        assert all(constants.value(name).size == CHANNELS for name in names)
        return bound.compared

    assert compared(80) <= 4.1 * compared(20)


def test_whether_sizes_of_integers_are_constants_is_not_asked(monkeypatch):
    """Exporters compute the groups of a channel shuffle from the sizes of its input."""
    net = Net(IMAGE)
    y = net.bn(net.conv("x", 4))
    channels = net.op("Gather", net.op("Shape", y), net.const(1, np.int64))
    groups = net.op("Unsqueeze", net.op("Div", channels, net.const(2, np.int64)), net.ints(0))
    shape = net.op("Concat", net.ints(-1, 2), groups, net.ints(4, 4), axis=0)
    model = net.model(net.op("Reshape", y, shape))
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", None)
    _, report = onnx_bnfold.fold(model)
    assert not report.kept


def test_the_tensor_of_a_constant_node_is_not_copied_for_its_shape(monkeypatch):
    monkeypatch.setattr(onnx.shape_inference, "infer_node_outputs", None)
    net = Net(IMAGE)
    held = [np.zeros((2, 3), np.float16), np.zeros(5000, np.float32)]
    names = [constant_node(net, value=support.tensor("", value)) for value in held]
    constants = net.state(*names).constants
    for name, value in zip(names, held, strict=True):
        assert constants.get(name).dims == value.shape
        assert constants.value(name).dtype == value.dtype
