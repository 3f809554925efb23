"""What onnx's shape inference misreads is left open: ranks and sizes are those of the kernels."""

import numpy as np
import onnx
import pytest
from graphs import Net
from onnx import TensorProto, helper, numpy_helper
from support import feeds_for, fold_checked, needs_kernels_as_read, ops, run

import onnx_bnfold
from onnx_bnfold import Reason
from onnx_bnfold.model.constants import Constants
from onnx_bnfold.model.graph import graphs_of
from onnx_bnfold.model.shape_inference import Inference, Shapes

ONES = {"kernel_shape": [1, 1], "strides": [3, 3], "ceil_mode": 1}
PADDED = {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1}
GAPS = {"kernel_shape": [2, 2], "dilations": [3, 3], "auto_pad": "SAME_UPPER"}
INT_MAX, INT64_MAX = 2**31 - 1, 2**63 - 1


def ending(end, step=-1):
    """Bounds of a Slice on axis 2, from its last element."""
    return [[2], [end], [2], [step]]


# Opset, shape of the image, operator, lists that are inputs, attributes.
WRONG = {
    "a window behind the image": (12, [1, 4, 2, 2], "MaxPool", [], ONES),
    "a window in the padding behind": (11, [1, 4, 1, 1], "AveragePool", [], PADDED),
    "dilated windows, automatic pads": (12, [1, 4, 4, 4], "MaxPool", [], GAPS),
    "dilated windows, automatic pads, 22": (22, [1, 4, 4, 4], "AveragePool", [], GAPS),
    "a window of a norm behind the image": (18, [1, 4, 2, 2], "LpPool", [], ONES),
    "a Slice to the front": (13, [1, 4, 3, 3], "Slice", ending(INT_MAX), {}),
    "a Slice to the front, 64 bits": (13, [1, 4, 3, 3], "Slice", ending(INT64_MAX), {}),
    "an aspect ratio": (
        19, [1, 4, 2, 1], "Resize", ["", "", [3]],
        {"keep_aspect_ratio_policy": "not_smaller", "axes": [-1], "mode": "linear"},
    ),
    "axes that do not ascend": (9, [2, 4, 1, 1], "Squeeze", [], {"axes": [3, 2]}),
    "axes from the back": (9, [2, 4, 1, 1], "Squeeze", [], {"axes": [-1]}),
    "no axes": (13, [2, 4, 1, 1], "Squeeze", [[]], {}),
}  # fmt: skip
RIGHT = {
    "windows of a ceiling that fit": (12, [1, 4, 4, 4], "MaxPool", [], ONES),
    "windows of a ceiling, 22": (22, [1, 4, 2, 2], "MaxPool", [], ONES),
    "dilated windows": (12, [1, 4, 4, 4], "MaxPool", [], GAPS | {"auto_pad": "VALID"}),
    "a Slice to the end": (13, [1, 4, 3, 3], "Slice", ending(INT_MAX, 1), {}),
    "a Slice from behind": (13, [1, 4, 3, 3], "Slice", ending(-(2**31)), {}),
    "axes that ascend": (9, [2, 4, 1, 1], "Squeeze", [], {"axes": [2, 3]}),
}


def inferred(model, name):
    """What is known of a tensor of the main graph."""
    graphs = graphs_of(model)
    shapes = Shapes(graphs[0], Inference(model, graphs, numpy_helper.to_array), 0, None)
    return shapes.dims(name), shapes[name][1] if name in shapes else 0


def model_of(net, y):
    """The model; of its output it says nothing."""
    model = net.model(y)
    model.graph.output[0].ClearField("type")
    return model


def single(opset, shape, op, lists, attributes):
    net = Net(shape, opset=opset)
    inputs = [each and net.const(np.array(each, np.int64)) for each in lists if each != []]
    inputs += [net.const(np.zeros(0, np.int64)) for each in lists if each == []]
    y = net.op(op, "x", *inputs, **attributes)
    return net, y


@needs_kernels_as_read
@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_what_is_misread_is_left_open(case):
    """But for its type."""
    net, y = single(*case)
    real = run(model_of(net, y), feeds_for(model_of(net, y)))[0].shape
    assert net.shape(y) != [*real]
    assert inferred(model_of(net, net.relu(y)), y) == (None, TensorProto.FLOAT)


def spectra(net, x, *, window=True, length=True, **attributes):
    """The STFT of a signal, in frames of 4 samples."""
    step, count = (net.const(np.array(n, np.int64)) for n in (2, 4))
    taps = net.random(4) if window else ""
    return net.op("STFT", x, step, taps, *([count] if length else []), **attributes)


@pytest.mark.parametrize(
    ("given", "is_known"),
    [
        ({}, False),
        ({"window": False}, False),
        ({"length": False, "onesided": 0}, False),
        ({"length": False, "onesided": 1}, False),
        ({"onesided": 0}, True),
        ({"onesided": 1}, True),
        ({"window": False, "onesided": 1}, True),
    ],
)
def test_the_frames_of_a_spectrum(given, is_known):
    """Inference takes the length of the signal for that of a window, and 0 for ``onesided``."""
    net = Net([2, 12, 1])
    y = spectra(net, "x", **given)
    model = model_of(net, net.op("Relu", y))
    real = run(model, feeds_for(model))[0].shape
    assert inferred(model, y)[0] == (real if is_known else None)


def test_a_sum_over_frequencies_that_are_misread():
    """Four were added up for three, and the shift was a third too large."""
    net = Net([2, 12, 1])
    y = net.relu(net.conv(spectra(net, "x"), 4, channels=5, rank=4))
    y = net.op("ReduceSum", net.bn(y, channels=4), net.ints(2))
    model = model_of(net, net.conv(y, 3, channels=4, rank=4))
    _, report = fold_checked(model, kept=1)
    assert "give it a frame_length" in report.lines()[0]


@pytest.mark.parametrize("case", RIGHT.values(), ids=RIGHT)
def test_what_is_read_right_is_known(case):
    net, y = single(*case)
    real = run(model_of(net, y), feeds_for(model_of(net, y)))[0].shape
    assert inferred(model_of(net, net.relu(y)), y) == (real, TensorProto.FLOAT)


@pytest.mark.parametrize(
    ("equation", "shape", "other", "dims"),
    [
        ("nc,nc->nc", (2, 1), (2, 3), None),
        ("...c,bc->b...c", (2, 1), (4, 3), None),
        ("nc,nc->nc", (2, 3), (2, 1), (2, 3)),
        ("nc,co->no", (2, 1), (3, 4), (2, 4)),
    ],
)
def test_an_einsum_that_stretches_its_first_operand(equation, shape, other, dims):
    net = Net(shape)
    y = net.op("Einsum", "x", net.random(*other), equation=equation)
    real = run(model_of(net, y), feeds_for(model_of(net, y)))[0].shape
    assert inferred(model_of(net, net.relu(y)), y)[0] == dims
    assert (net.shape(y) == [*real]) is (dims is not None)


@pytest.mark.parametrize(("axis", "dims"), [(3, None), (2, ("N", 4, 1, "W"))])
def test_an_open_size_that_is_sliced_is_another(axis, dims):
    """The Slice of opset 10 is said to leave it as it is."""
    net = Net(("N", 4, 3, "W"), opset=10)
    y = net.op("Slice", "x", *(net.ints(n) for n in (1, 2, axis)))
    assert net.shape(y)[3] == "W"
    assert inferred(model_of(net, net.relu(y)), y) == (dims, TensorProto.FLOAT)


@pytest.mark.parametrize("end", [INT_MAX, INT64_MAX])
@pytest.mark.parametrize("axis", [1, 2])
def test_a_slice_to_the_front_stays(end, axis):
    """Onnxruntime reads an end behind the input as one in front of it, and takes all."""
    net = Net(("N", "C", 3, 3))
    t = net.conv("x", 4, channels=4, rank=4)
    y = net.op("Slice", t, *(net.ints(each) for each in (3, end, axis, -1)))
    _, report = fold_checked(model_of(net, net.affine(y, 4, 1, 1)), compare=False)
    assert not report.records
    assert {r.refusal.reason for r in report.kept} <= {Reason.OPAQUE, Reason.UNKNOWN_SHAPE}


@pytest.mark.parametrize("end", [INT_MAX, -(2**31)])
def test_a_constant_behind_a_slice_to_the_front_is_none(end):
    """onnx's own evaluator leaves nothing of it."""
    net = Net((2, 4, 3, 3))
    net.op("Slice", net.random(4), *(net.ints(n) for n in (3, end, 0, -1)))
    model = model_of(net, net.nodes[-1].output[0])
    (main,) = graphs_of(model)
    constants = Constants(main, numpy_helper.to_array, {}, None)
    found = constants.get(net.nodes[-1].output[0])
    assert (found is None) == (end == INT_MAX)


@pytest.mark.parametrize("standalone", ["keep", "mul-add", "conv"])
def test_behind_a_transposed_convolution_that_makes_less_than_it_reads(standalone):
    """Inference gives up at a size below that of the image, with two axes of four.

    So does onnxruntime's, which would load no Conv behind it.
    """
    net = Net((2, 3, 3, 4))
    t = net.op("ConvTranspose", "x", net.random(3, 4, 2, 2), output_shape=[2, 4])
    assert len(net.shape(t)) == 2
    model = model_of(net, net.bn(net.relu(t), channels=4))
    options = onnx_bnfold.Options(standalone=standalone)
    folded, _ = fold_checked(model, kept=1, options=options)
    assert ops(folded) == ops(model)


@pytest.mark.parametrize("declared", [True, False])
def test_a_transposed_convolution_that_makes_less_than_it_reads(declared):
    """onnxruntime takes its output for one of two axes, and lets it lie where such a one lay."""
    net = Net((3, 4, 6, 2), opset=12)
    t = net.op("ConvTranspose", "x", net.random(4, 3, 1, 1), output_shape=[5, 2])
    x = net.bn(t, channels=3)
    x = net.op("Mul", x, net.op("GlobalAveragePool", x))
    model = model_of(net, net.relu(net.op("Softmax", x)))
    if declared:
        shape = helper.make_tensor_value_info(t, TensorProto.FLOAT, [3, 3, 5, 2])
        model.graph.value_info.append(shape)
    _, report = fold_checked(model, kept=0 if declared else 1)
    assert [r.refusal.reason for r in report.kept] == ([] if declared else [Reason.UNKNOWN_SHAPE])


@pytest.mark.parametrize("dims", [(1, 1, 1, 1), ()])
def test_what_keeps_a_wrong_rank_from_the_nodes_behind_stays(dims):
    """The sum is of as many axes as its constant has; without it the Softmax would be of two."""
    net = Net(("N", 4, 6, 2), opset=13)
    t = net.op("ConvTranspose", "x", net.random(4, 3, 1, 1), output_shape=[5, 2])
    x = net.op("Softmax", net.op("Add", net.bn(t, channels=3), net.random(*dims)))
    folded, _ = fold_checked(net.model(x) if dims else model_of(net, x), kept=1)
    assert ("Add" in ops(folded)) == bool(dims)
    if dims:
        onnx.checker.check_model(folded, full_check=True)


def test_a_declared_norm_behind_a_transposed_convolution_that_inference_contradicts():
    """Inference stops there, and says nothing of any tensor; handed on, the shape is a lie."""
    net = Net((3, 7, 1, 7), opset=23)
    w = net.random(7, 3, 3, 1)
    x = net.bn(net.op("ConvTranspose", "x", w, output_shape=[1, 6], dilations=[1, 2]), channels=3)
    y = net.op("Conv", x, net.random(5, 3, 1, 1), kernel_shape=[1, 1], pads=[0] * 4)
    model = net.model(y, w)
    shapes = {x: [3, 3, 1, 6], "x": [3, 7, 1, 7]}
    del model.graph.value_info[:]
    for name, shape in shapes.items():
        made = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        model.graph.value_info.append(made)
    folded, _ = fold_checked(model)
    assert x not in folded.graph.node[0].output, "it goes into the layer behind"


def if_node(net, *builds):
    """An If with two branches that read x."""
    branches = []
    for build in builds:
        branch = Net(opset=net.opset, prefix=f"b{len(branches)}_")
        out = build(branch)
        listed = [helper.make_empty_tensor_value_info(out)]
        branches.append(helper.make_graph(branch.nodes, "b", [], listed, branch.initializers))
    go = net.input("go", [], TensorProto.BOOL)
    return net.op("If", go, then_branch=branches[0], else_branch=branches[1])


def lifted(branch):
    return branch.op("Unsqueeze", "x", axes=[1])


def mean(branch):
    return branch.op("ReduceMean", "x", axes=[2], keepdims=1)


def unknown(branch):
    """Reshaped to what nothing tells."""
    return branch.op("Reshape", "x", "shape")


def same(branch):
    return branch.relu("x")


BRANCHES = {
    "another rank": (lifted, same, None),
    "an unknown rank": (unknown, lifted, None),
    "an unknown rank behind": (lifted, unknown, None),
    "another size": (mean, same, None),
    "alike": (same, same, (2, 4, 3, 3)),
}


@pytest.mark.parametrize(("then", "other", "dims"), BRANCHES.values(), ids=BRANCHES)
def test_behind_branches_of_other_sizes(then, other, dims):
    """Before opset 11 inference takes what it knows of one branch for both."""
    net = Net((2, 4, 3, 3), opset=10)
    net.input("shape", [None], TensorProto.INT64)
    y = if_node(net, then, other)
    assert inferred(model_of(net, net.relu(y)), y)[0] == dims


def test_the_bodies_of_such_an_if_are_known():
    """A norm in them folds as it would elsewhere."""
    net = Net((2, 4, 3, 3), opset=10)
    net.input("shape", [4], TensorProto.INT64)
    y = if_node(net, lambda b: b.bn(b.conv("x", 4, channels=4, rank=4), channels=4), unknown)
    folded, _ = fold_checked(model_of(net, net.relu(y)), compare=False)
    assert ops(folded) == ["If", "Relu"]


def test_in_a_local_function_no_sizes_tell():
    """What some sizes of its input would mislead is left open for all."""
    opset = helper.make_opsetid("", 12)
    pool = helper.make_node("MaxPool", ["a"], ["b"], **ONES)
    net = Net((1, 4, 2, 2), opset=12)
    net.functions.append(helper.make_function("local", "Pool", ["a"], ["b"], [pool], [opset]))
    y = net.op("Pool", "x", domain="local")
    model = model_of(net, net.relu(y))
    assert inferred(model, y) == (None, TensorProto.FLOAT)
    node = model.functions[0].node[0]
    (mode,) = (item for item in node.attribute if item.name == "ceil_mode")
    mode.CopyFrom(onnx.AttributeProto(name="ceil_mode", ref_attr_name="m", type=mode.type))
    assert inferred(model, y) == (None, TensorProto.FLOAT)
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("kernel_shape", [1, 1]))
    assert inferred(model, y) == ((1, 4, 2, 2), TensorProto.FLOAT)
