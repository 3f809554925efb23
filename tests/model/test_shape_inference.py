"""Shapes: what inference does not say, what it is not shown, and what is said of nodes there."""

import numpy as np
import onnx
import pytest
from graphs import Net
from onnx import TensorProto, helper
from support import count, fold_checked, ops, saved_external

import onnx_bnfold
from onnx_bnfold import Reason
from onnx_bnfold.model import inference_guard
from onnx_bnfold.model.graph import graphs_of
from onnx_bnfold.model.inference_hints import ranks_by_layers
from onnx_bnfold.model.shape_inference import without_weights

WINDOW = {"kernel_shape": [2, 2]}
FEEDS = {"x": np.random.default_rng(0).standard_normal((2, 4, 3, 3)).astype(np.float32)}


def behind_slices(number):
    """A BN behind each of several Slices, none of which is known to be safe before the others."""
    net = Net(("N", 4, 8))
    y = net.relu("x")
    for _ in range(number):
        y = net.op(
            "Slice", net.conv(y, 4, channels=4, rank=3), net.ints(0), net.ints(4), net.ints(1)
        )
        y = net.relu(net.bn(y, channels=4, signs="positive"))
    return net.model(y)


@pytest.mark.parametrize(("number", "kept"), [(3, 0), (4, 1), (6, 2)])
def test_behind_too_many_slices_the_others_fold(number, kept, monkeypatch):
    """Behind the fourth no shape is known, but for the rank that a Conv gives."""
    monkeypatch.setattr(inference_guard, "MOST_LEVELS", 3)
    folded, report = fold_checked(behind_slices(number), kept=kept)
    assert count(folded, "Slice") == number
    for record in report.kept:
        assert record.refusal.reason is Reason.SEARCH_LIMIT
        assert "behind more than" in record.refusal.sentence


@pytest.mark.parametrize("between", [None, "Tanh"])
@pytest.mark.parametrize(("opset", "axes"), [(9, [3, 2]), (9, [-1])])
def test_behind_axes_that_are_misread(opset, axes, between):
    """The rank that inference would give is another than the real one."""
    net = Net(("N", 4, 1, 1), opset=opset)
    y = net.op("Squeeze", net.conv("x", 4), axes=axes)
    y = net.op(between, y) if between else y
    _, report = fold_checked(net.model(net.bn(y, channels=4)), kept=1)
    assert report.kept[0].refusal.reason is Reason.UNKNOWN_SHAPE
    assert "misreads" in report.kept[0].refusal.sentence


def test_what_is_beside_axes_that_are_misread_is_not_behind_them():
    net = Net(("N", 4, 1, 1), opset=9)
    beside = net.bn(net.op("Tanh", net.input("u", None)), channels=4)
    report = onnx_bnfold.plan(net.model(net.op("Squeeze", "x", axes=[3, 2]), beside))
    (refusal,) = (record.refusal for record in report.kept)
    assert refusal.reason is Reason.UNKNOWN_SHAPE
    assert "misreads" not in refusal.sentence


def test_axes_that_are_computed_from_constants():
    """As PyTorch's exporter writes them; the other input of the node is one of the graph."""
    net = Net(("N", 4, 3, 3), opset=18)
    axes = net.op("Reshape", net.ints(2), net.ints(-1))
    t = net.bn(net.op("ReduceMean", "x", axes, keepdims=0), channels=4)
    t = net.op("MatMul", net.random(2, 4), t)
    fold_checked(net.model(net.op("Add", t, net.random(2, 1))))


@pytest.mark.parametrize("made_by", ["initializer", "Constant"])
@pytest.mark.parametrize("upsampled", [False, True])
def test_a_shape_that_lies_in_another_file_is_read(upsampled, made_by, tmp_path):
    """Without it nobody knows the rank behind the Reshape, nor anything behind the Upsample."""
    net = Net((2, 4, 3, 3), opset=9 if upsampled else 17)
    y = net.conv("x", 4)
    if upsampled:
        y = net.op("Upsample", y, net.const(np.ones(4)))
    y = net.op("Reshape", y, net.ints(2, 2, 2, 9))
    model = net.model(net.bn(net.op("Reshape", y, net.ints(2, 4, 3, 3)), channels=4))
    if made_by == "Constant":
        shapes = [t for t in model.graph.initializer if t.data_type == TensorProto.INT64]
        for tensor in shapes:
            made = helper.make_node("Constant", [], [tensor.name], value=tensor)
            model.graph.node.insert(0, made)
            model.graph.initializer.remove(tensor)
    expected, _ = fold_checked(model)
    path = saved_external(model, tmp_path / "m.onnx", convert_attribute=True)
    unloaded = onnx.load(path, load_external_data=False)
    assert all(t.data_location == TensorProto.EXTERNAL for t in unloaded.graph.initializer)
    folded, report = onnx_bnfold.fold(unloaded, base_dir=tmp_path)
    assert not report.kept
    assert ops(folded) == ops(expected)


@pytest.mark.parametrize(
    ("op", "attributes"), [("AveragePool", WINDOW), ("MaxPool", WINDOW), ("Identity", {})]
)
@pytest.mark.parametrize("side", ["behind", "in front"])
def test_the_rank_that_a_layer_fixes_passes_an_operator(op, attributes, side):
    """The input has no shape: how many axes there are, only the layer's weight says."""
    net = Net(None)
    t = net.input("x", None)
    if side == "behind":
        t = net.op(op, net.conv(t, 4, channels=4, rank=4), **attributes)
        y = net.bn(t, channels=4, signs="positive")
    else:
        t = net.op(op, net.bn(t, channels=4, signs="positive"), **attributes)
        y = net.conv(t, 4, channels=4, rank=4)
    folded, _ = fold_checked(net.model(y), feeds=FEEDS)
    assert "BatchNormalization" not in ops(folded)


def test_the_shape_of_a_value_to_fill_in_is_not_that_of_the_constant():
    """A ConstantOfShape holds a tensor of one element, as a Constant does."""
    net = Net(None)
    x, shape = net.input("x", None), net.input("shape", (4,), TensorProto.INT64)
    value = helper.make_tensor("", TensorProto.FLOAT, [1], [0.5])
    y = net.op("Conv", x, net.op("ConstantOfShape", shape, value=value))
    (graph,) = graphs_of(net.model(y))
    assert ranks_by_layers(graph, {}) == {}


def test_inference_is_told_the_shape_of_a_sparse_initializer():
    net = Net((2, 4))
    model = net.model(net.op("MatMul", "x", "w"))
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [0.5])
    indices = helper.make_tensor("", TensorProto.INT64, [1], [0])
    sparse = helper.make_sparse_tensor(values, indices, [4, 5])
    model.graph.sparse_initializer.append(sparse)
    (told,) = without_weights(model).graph.initializer
    assert (told.name, told.dims, told.data_type) == ("w", [4, 5], TensorProto.FLOAT)


def test_inference_is_not_told_where_in_the_sources_a_node_comes_from():
    net = Net((2, 4))
    model = net.model(net.op("Relu", "x"))
    model.graph.node[0].metadata_props.add(key="stack_trace", value="model.py")
    function = helper.make_function(
        "own", "f", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], model.opset_import
    )
    function.node[0].metadata_props.add(key="stack_trace", value="model.py")
    model.functions.append(function)
    told, before = without_weights(model), model.SerializeToString()
    assert b"model.py" not in told.SerializeToString()
    assert [node.op_type for node in (*told.graph.node, *told.functions[0].node)] == ["Relu"] * 2
    assert model.SerializeToString() == before
    assert b"model.py" in before


def test_a_slice_of_another_domain_is_not_shown_as_a_standard_one():
    net = Net((2, 4))
    model = net.model(net.op("Slice", "x", net.ints(0), net.ints(1)))
    model.graph.node[0].domain = "own"
    model.opset_import.add(domain="own", version=1)
    inference_guard.hide_unsafe_slices(model, data_prop=False)
    assert model.graph.node[0].domain == "own"


def test_a_group_normalization_has_the_shape_of_its_data():
    """Of which onnx's inference knows nothing; so it is not known of what comes behind either."""
    net = Net((2, "C", 5), opset=21)
    y = net.op("GroupNormalization", "x", net.random(4), net.random(4), num_groups=2)
    shapes = net.state(net.relu(y)).shapes
    assert shapes.dims(y) == (2, "C", 5)
    assert shapes.type_of(y) == TensorProto.FLOAT


def test_each_level_of_slices_infers_what_lies_in_front_of_it(monkeypatch):
    """What lies behind a Slice that is still hidden is left out: of that nothing is known."""
    sizes = []
    infer = onnx.shape_inference.infer_shapes

    def watched(model, **options):
        sizes.append(len(model.graph.node))
        return infer(model, **options)

    model = behind_slices(3)
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", watched)
    inference_guard.hide_unsafe_slices(model, data_prop=False)
    assert sizes == sorted(set(sizes))
    assert len(sizes) == 3
    assert sizes[-1] < len(model.graph.node)
    assert all(node.domain == "" for node in model.graph.node)


def test_the_slices_of_all_functions_are_hidden_at_once(monkeypatch):
    """An exporter writes one for each module, hundreds, and each imports operator sets."""
    net = Net((2, 4))
    model = net.model(net.relu("x"))
    for number in range(50):
        body = [onnx.helper.make_node("Slice", ["x", "a", "b"], ["y"])]
        imports = [onnx.helper.make_opsetid("", 17)]
        inputs = ["x", "a", "b"]
        made = onnx.helper.make_function("own", f"f{number}", inputs, ["y"], body, imports)
        model.functions.append(made)
    hidden = []
    hide = inference_guard._hide
    monkeypatch.setattr(
        inference_guard, "_hide", lambda of, nodes: hide(of, hidden.append([*nodes]) or hidden[-1])
    )
    inference_guard.hide_unsafe_slices(model, data_prop=False)
    assert [len(nodes) for nodes in hidden] == [50]
    for function in model.functions:
        assert function.node[0].domain in {item.domain for item in function.opset_import} - {""}
