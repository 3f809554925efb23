"""Shapes: what inference does not say, what it is not shown, and what is said of nodes there."""

import numpy as np
import onnx
import pytest
from graphs import Net
from onnx import TensorProto, helper, numpy_helper
from support import fold_checked, ops, saved_external

import onnx_bnfold
from onnx_bnfold import Reason
from onnx_bnfold.model import inference_guard
from onnx_bnfold.model.bare import without_weights
from onnx_bnfold.model.graph import bodies_of, graphs_of
from onnx_bnfold.model.inference_hints import ranks_by_layers, types_by_constants
from onnx_bnfold.model.shape_inference import Inference
from onnx_bnfold.model.suspects import Integers

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


def test_behind_any_number_of_slices_nodes_fold():
    """Each level of Slices once took a run of the inference, and behind 100 it was given up."""
    report = onnx_bnfold.plan(behind_slices(130))
    assert (len(report.folded), len(report.kept)) == (130, 0)
    fold_checked(behind_slices(3))


@pytest.fixture
def inferred(monkeypatch):
    """The models that are inferred, in order."""
    models = []
    infer = onnx.shape_inference.infer_shapes

    def watched(model, **options):
        models.append(model)
        return infer(model, **options)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", watched)
    return models


def test_slices_are_inferred_once_each_behind_a_guard(inferred):
    model = behind_slices(9)
    del inferred[:]
    onnx_bnfold.plan(model)
    (light,) = inferred
    called = [node for node in light.graph.node if node.domain == inference_guard.DOMAIN]
    assert len(light.graph.node) == len(model.graph.node) + 9
    assert [node.op_type for node in called] == ["Guard"] * 9
    assert all("Guard" not in node.op_type for node in model.graph.node)


def test_a_slice_of_sizes_hands_their_values_on(inferred):
    """No guard is in front of it, behind which inference would know no values."""
    net = Net(("N", 4, 3, 3))
    y = net.conv("x", 4)
    sizes = net.op("Concat", net.op("Slice", net.op("Shape", y), *map(net.ints, (0, 2))),
                   net.ints(9), axis=0)  # fmt: skip
    y = net.op("Reshape", y, sizes)
    assert net.state(y).shapes.dims(y) == ("N", 4, 9)
    (_, light) = inferred[-2:]
    assert not light.functions


def test_a_slice_along_axes_that_are_not_known_keeps_the_rank():
    net = Net(("N", 4, 3, 3))
    axes = net.input("axes", (1,), TensorProto.INT64)
    y = net.op("Slice", net.conv("x", 4), net.ints(0), net.ints(2), axes)
    dims = net.state(y).shapes.dims(y)
    assert len(dims) == 4
    assert not any(isinstance(size, int) for size in dims)


def test_bounds_without_axes_cut_the_first_ones():
    net = Net((5, 4, 3, 3))
    y = net.op("Slice", net.conv("x", 4), net.ints(1, 0), net.ints(3, 1))
    assert net.state(y).shapes.dims(y) == (2, 1, 3, 3)


@pytest.mark.parametrize("inside", ["branch", "function"])
def test_slices_inside_of_other_bodies_are_behind_guards(inside):
    """A tensor that comes from outside may have any size."""
    call = {"branch": BRANCH, "function": "y = local.f(c, W, s, e)"}[inside]
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[2,2,5,5] x) => (float[N,M,H,V] z)
        <int64[1] s = {{1}}, int64[1] e = {{3}}, bool t = {{1}},
         float[2,2,1,1] W = {{1, 2, 3, 4}}>
        {{ c = Conv(x, W) {call} g = Constant <value_ints = [0]> () z = Slice(y, s, e, g) }}
        <domain: "local", opset_import: ["": 13]> f (b, W, s, e) => (y)
        {{ a = Constant <value_ints = [2]> () d = Conv(b, W) y = Slice(d, s, e, a) }}"""
    )
    graphs = graphs_of(model)
    inference = Inference(model, graphs, numpy_helper.to_array)
    at, name = {"branch": (2, "h"), "function": (0, "y")}[inside]
    assert inference.types(at)[name][0] == (2, 2, 2, 5)
    safe = inference_guard.guarded(model, graphs, Integers(graphs, model))
    calls = [node for body in bodies_of(safe) for node in body.node if node.op_type == "Guard"]
    assert len(calls) == sum(n.op_type == "Slice" for b in bodies_of(model) for n in b.node)


BRANCH = """y = If(t) <
    then_branch = p () => (float[N,M,H,V] u) { SLICE u = Relu(h) },
    else_branch = q () => (float[N,M,H,V] v) { SLICE v = Relu(h) }>""".replace(
    "SLICE",
    """s1 = Constant <value_ints = [1]> () e1 = Constant <value_ints = [3]> ()
    a1 = Constant <value_ints = [2]> () h = Slice(c, s1, e1, a1)""",
)


def test_behind_a_negative_size_nothing_is_inferred():
    """The product of two negative sizes is none: onnxruntime takes one window, say."""
    net = Net((2, 4, 3, 3))
    y = net.op("MaxPool", net.conv("x", 4), kernel_shape=[5, 5])
    flat = net.op("Flatten", y)
    shapes = net.state(net.bn(flat, channels=4)).shapes
    assert shapes.dims(flat) != (2, 4)
    assert "negative size" in shapes.why_unknown([flat])[1]
    assert shapes.dims("x") == (2, 4, 3, 3)


@pytest.mark.parametrize(("sized", "runs"), [(False, 1), (True, 2)])
def test_values_are_propagated_where_there_are_any(sized, runs, inferred):
    net = Net(("N", 4, 3, 3))
    y = net.conv("x", 4)
    shape = net.op("Shape", y) if sized else net.ints(0, 4, 9)
    shapes = net.state(net.op("Reshape", y, shape)).shapes
    del inferred[:]
    shapes.dims(y)
    shapes.dims("x")
    assert len(inferred) == runs


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


def test_a_function_called_constant_holds_nothing():
    """What it returns need not be of the shape or type of the tensor that it is given."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "my": 1]> g (float[] x) => (float[] y)
        { w = my.Constant <value = float[1, 1, 1] {0.5}> () y = Conv(x, w) }"""
    )
    (graph,) = graphs_of(model)
    assert ranks_by_layers(graph, {}) == {}
    assert types_by_constants(graph) == {}


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


def test_a_slice_of_another_domain_needs_no_guard():
    net = Net((2, 4))
    model = net.model(net.op("Slice", "x", net.ints(0), net.ints(1)))
    model.graph.node[0].domain = "own"
    model.opset_import.add(domain="own", version=1)
    graphs = graphs_of(model)
    assert inference_guard.guarded(model, graphs, Integers(graphs, model)) is model


def test_a_group_normalization_has_the_shape_of_its_data():
    """Of which onnx's inference knows nothing; so it is not known of what comes behind either."""
    net = Net((2, "C", 5), opset=21)
    y = net.op("GroupNormalization", "x", net.random(4), net.random(4), num_groups=2)
    shapes = net.state(net.relu(y)).shapes
    assert shapes.dims(y) == (2, "C", 5)
    assert shapes.type_of(y) == TensorProto.FLOAT
