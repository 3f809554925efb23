"""A second fold changes nothing: there is another round, or a note at what would go then."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from graphs import IMAGE, Net
from onnx import ModelProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data
from support import all_nodes, assert_same_function, initializer, ops, tensor

import onnx_bnfold
from onnx_bnfold import Options, Reason, pipeline
from onnx_bnfold.planning import settle

MERGE = Options(merge_branches=True)
NARROW = Options(max_rescale=2)


def assert_settled(folded: ModelProto, options: Options) -> None:
    again, report = onnx_bnfold.fold(folded, options)
    assert again.SerializeToString() == folded.SerializeToString(), report.lines()


def notes(model: ModelProto) -> dict[str, str]:
    texts = {n.op_type: str(n.doc_string) for n in all_nodes(model)}
    return {operator: text for operator, text in texts.items() if "onnx_bnfold" in text}


def scaled_twice(*, norm: bool) -> ModelProto:
    """A tensor that either of two nodes may rescale by 1.8 and both together may not by 3.24."""
    net = Net(IMAGE)
    factor = net.const(np.full((4,) if norm else (4, 1, 1), 1.8))
    zeros, ones = net.const(np.zeros(4)), net.const(np.ones(4))
    x = net.conv("x", 4)
    for _ in range(2):
        x = net.relu(x)
        if norm:
            x = net.op("BatchNormalization", x, factor, zeros, zeros, ones, epsilon=0.0)
        else:
            x = net.op("Mul", x, factor)
    return net.model(net.op("Sigmoid", x))


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "affine"])
def test_what_a_limit_keeps_is_noted_and_stays(norm):
    model = scaled_twice(norm=norm)
    folded, report = onnx_bnfold.fold(model, NARROW)
    assert_same_function(model, folded)
    assert len(notes(folded)) == 1
    (note,) = notes(folded).values()
    assert note == "onnx_bnfold: left for range (profile float, rescaling 2.0)"
    assert_settled(folded, NARROW)
    if norm:
        assert [r.refusal.reason for r in report.kept] == [Reason.RANGE]
        (kept,) = onnx_bnfold.plan(folded, NARROW).kept
        assert kept.refusal.reason is Reason.RANGE
        assert "fold the original model" in kept.refusal.sentence


def test_other_limits_judge_anew():
    folded, _ = onnx_bnfold.fold(scaled_twice(norm=False), NARROW)
    wider, _ = onnx_bnfold.fold(folded, Options(max_rescale=4))
    assert ops(folded).count("Mul") == 1
    assert "Mul" not in ops(wider)


def test_a_note_keeps_what_the_doc_string_says():
    model = scaled_twice(norm=False)
    for node in model.graph.node:
        node.doc_string = f"{node.op_type} of ours"
    folded, _ = onnx_bnfold.fold(model, NARROW)
    assert notes(folded)["Mul"].startswith("Mul of ours onnx_bnfold: left")


def test_a_doc_string_may_be_no_text():
    model = scaled_twice(norm=False)
    for node in model.graph.node:
        node.doc_string = "\N{PILE OF POO}"
    content = model.SerializeToString().replace("\N{PILE OF POO}".encode(), b"\xff\xfe\xfd\xfc")
    folded, _ = onnx_bnfold.fold(ModelProto.FromString(content), NARROW)
    assert notes(folded)["Mul"].endswith(
        "onnx_bnfold: left for range (profile float, rescaling 2.0)"
    )


def test_what_goes_along_with_a_doubtful_node_is_not_noted(monkeypatch):
    plan = SimpleNamespace(doubtful={3: None}, left={})
    removed = [(0, 2, "axes"), (0, 3, "range")]
    monkeypatch.setattr(settle, "_equalized", lambda plans, later, measured: [])
    assert settle.leave([plan], [plan], removed, {}, measured=False)
    assert plan.left == {3: ["range"]}


def test_nothing_is_noted_where_nothing_goes():
    net = Net(IMAGE)
    model = net.model(net.bn("x"))
    folded, _ = onnx_bnfold.fold(model)
    assert folded.SerializeToString() == model.SerializeToString()


def merged_when_folded(*, named: bool = True) -> Net:
    """A Conv and its source meet in an Add, a Mul in between; a BN in front and one behind."""
    net = Net(IMAGE)
    x = net.relu(net.bn(net.conv("x", 4)))
    scaled = net.op("Mul", net.conv(x, 4), net.random(4, 1, 1))
    net.bn(net.op("Add", scaled, x))
    if not named:
        for node in net.nodes:
            node.name = ""
    return net


def test_branches_merge_when_what_lay_between_has_gone():
    net = merged_when_folded()
    model = net.model(net.nodes[-1].output[0])
    folded, report = onnx_bnfold.fold(model, MERGE)
    assert ops(folded) == ["Conv", "Relu", "Conv"]
    assert len(report.folded) == 2
    assert_same_function(model, folded)
    assert_settled(folded, MERGE)


def test_what_takes_two_rounds_is_rounded_once():
    net = merged_when_folded()
    *_, conv, mul, add, _ = net.nodes
    model = net.model(add.output[0])
    folded, _ = onnx_bnfold.fold(model, MERGE)
    weight, factor = (initializer(model, n.input[1]).astype(np.float64) for n in (conv, mul))
    exact = weight * factor.reshape(-1, 1, 1, 1) + np.eye(4).reshape(4, 4, 1, 1)
    merged = folded.graph.node[-1].input[1]
    assert np.array_equal(initializer(folded, merged), exact.astype(np.float32))


def test_the_report_of_two_rounds_has_the_names_of_the_original():
    net = merged_when_folded(named=False)
    _, first, _, conv, mul, _, second = (n.output[0] for n in net.nodes)
    report = onnx_bnfold.plan(net.model(second), MERGE)
    names = [f"BatchNormalization {first!r}", f"Mul {mul!r}", f"BatchNormalization {second!r}"]
    assert [r.name for r in report.records] == names
    assert report.records[1].scale_to == (f"Conv {conv!r}",)
    # Names may stand for other tensors after the first round: no index is better than a wrong one.
    assert {r.index for r in report.records} == {None}


@pytest.mark.parametrize("external", [False, True], ids=["one-file", "external"])
def test_two_rounds_from_file_to_file(tmp_path, monkeypatch, external):
    monkeypatch.setattr("onnx_bnfold.applying.MOST_AT_ONCE", 0)
    monkeypatch.setattr("onnx_bnfold.storage.skeleton.SMALL", 16)
    net = merged_when_folded()
    sigmoid = net.op("Sigmoid", net.nodes[-1].output[0])
    model = net.model(net.op("Mul", sigmoid, net.random(4, 1, 1)))  # of which shapes are asked
    in_memory, expected = onnx_bnfold.fold(model, MERGE)
    if external:
        convert_model_to_external_data(model, location="weights", size_threshold=0)
    onnx.save(model, tmp_path / "m.onnx")
    report = onnx_bnfold.fold_file(tmp_path / "m.onnx", tmp_path / "f.onnx", MERGE)
    assert report == expected
    lying = onnx.load(tmp_path / "f.onnx", load_external_data=False)
    assert any(t.external_data for t in lying.graph.initializer) == external
    loaded = onnx.load(tmp_path / "f.onnx")
    for name in {name for n in loaded.graph.node for name in n.input[1:]}:
        assert np.array_equal(initializer(loaded, name), initializer(in_memory, name))
    onnx_bnfold.fold_file(tmp_path / "f.onnx", tmp_path / "g.onnx", MERGE)
    again = onnx.load(tmp_path / "g.onnx")
    assert again.SerializeToString() == loaded.SerializeToString()


def test_measured_ranges_go_along(tmp_path):
    """Behind a BN that has gone a tensor has other values than the one of its name had."""
    net = Net(IMAGE)
    x = net.conv("x", 4)
    norm = net.bn(x)
    weight = net.initializers[0]
    spread = numpy_helper.to_array(weight) * np.float32([9, 1, 0.1, 1]).reshape(4, 1, 1, 1)
    weight.CopyFrom(tensor(weight.name, spread))
    model = net.model(net.op("Sum", net.conv(norm, 4, 3, pads=[1] * 4), x))
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(8, 4, 4, 4)).astype("f4"))
    options = Options(merge_branches=True, equalize=True, ranges=str(tmp_path / "x.npz"))
    onnx.save(model, tmp_path / "0.onnx")
    report = onnx_bnfold.fold_file(tmp_path / "0.onnx", tmp_path / "1.onnx", options)
    assert report.equalized
    onnx_bnfold.fold_file(tmp_path / "1.onnx", tmp_path / "2.onnx", options)
    assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes()
    assert_same_function(model, onnx.load(tmp_path / "2.onnx"))


def nothing_but_rounding_errors(net: Net) -> str:
    """What a BN leaves of images of ones: their mean is all that is there."""
    x = net.conv("x", 4)
    weight, bias = (numpy_helper.to_array(t) for t in net.initializers)
    mean = weight.sum(axis=(1, 2, 3)) + bias
    constants = np.ones(4), np.zeros(4), mean, np.full(4, 1e-9)
    return net.op("BatchNormalization", x, *map(net.const, constants))


def even_though_its_product_is_not(net: Net) -> str:
    """The output of a BN that is written as a Mul and an Add, whose own output is a new tensor."""
    constants = np.tile([1, 0.2], 2), np.tile([0, 1.6], 2), np.zeros(4), np.ones(4)
    return net.op("BatchNormalization", "x", *map(net.const, constants))


def inside_a_function(net: Net) -> str:
    """What is inlined has been measured by nobody: here two layers, uneven between them."""
    uneven = np.float32([9, 1, 0.1, 1]).reshape(4, 1, 1, 1)
    constants = {
        **{name: np.abs(net.values(4)) for name in "sbmv"},
        "u": net.values(4, 4, 1, 1) * uneven,
        "w": net.values(4, 4, 1, 1),
    }
    body = [
        helper.make_node("Constant", [], [name], value=tensor(name, np.float32(value)))
        for name, value in constants.items()
    ]
    body += [
        helper.make_node("BatchNormalization", ["f", *"sbmv"], ["n"]),
        helper.make_node("Sigmoid", ["n"], ["p"]),
        helper.make_node("Conv", ["p", "u"], ["t"]),
        helper.make_node("Conv", ["t", "w"], ["y"]),
    ]
    net.functions.append(
        helper.make_function("local", "F", ["f"], ["y"], body, [helper.make_opsetid("", net.opset)])
    )
    return net.op("F", net.conv("x", 4), domain="local")


@pytest.mark.parametrize(
    ("begin", "standalone", "images"),
    [
        (nothing_but_rounding_errors, "keep", np.ones((1, *IMAGE[1:]))),
        (
            even_though_its_product_is_not,
            "mul-add",
            np.random.default_rng(0).normal(size=(8, *IMAGE[1:])),
        ),
        (inside_a_function, "keep", np.random.default_rng(0).normal(size=(8, *IMAGE[1:]))),
    ],
    ids=["rounding", "new", "inlined"],
)
def test_what_another_fold_measures_anew_is_left(tmp_path, begin, standalone, images):
    net = Net(IMAGE)
    model = net.model(net.conv(begin(net), 4, 3, pads=[1] * 4))
    np.savez(tmp_path / "x.npz", x=images.astype(np.float32))
    ranges = str(tmp_path / "x.npz")
    options = Options(profile="int8", standalone=standalone, equalize=True, ranges=ranges)
    onnx.save(model, tmp_path / "0.onnx")
    for number in range(2):
        source, target = (tmp_path / f"{number + k}.onnx" for k in range(2))
        onnx_bnfold.fold_file(source, target, options)
    assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes()
    assert_same_function(model, onnx.load(tmp_path / "2.onnx"))


def test_what_stays_for_good_by_its_neighbours_is_not_planned_twice(monkeypatch):
    """So are the models that people fold, which must not take longer."""
    net = Net(IMAGE)
    x = net.relu(net.bn(net.conv("x", 4)))
    model = net.model(net.relu(net.conv(net.relu(net.bn(x)), 4, 3, pads=[1] * 4)))
    monkeypatch.delattr(pipeline.Pipeline, "_result")
    report = onnx_bnfold.plan(model)
    assert (len(report.folded), len(report.kept)) == (1, 1)


def test_a_norm_whose_scales_are_made_equal_only_later_is_noted():
    """Its shape shows only when the nodes between it and a node that is misread have gone."""
    net = Net(("N", 5, 4), opset=12)
    weight, factor = net.random(5, 3, 1), net.random(3, 1)
    x = net.op("ConvTranspose", "x", weight, kernel_shape=[1], output_shape=[3])
    x = net.op("Mul", x, factor)
    one, two, three = ([net.const(np.abs(net.values(3))) for _ in range(4)] for _ in range(3))
    y = net.op("BatchNormalization", x, *one)
    y = net.op("Conv", y, net.random(4, 3, 1), strides=[2])
    z = net.op("BatchNormalization", net.op("BatchNormalization", x, *two), *three)
    options = Options(equalize=True)
    folded, _ = onnx_bnfold.fold(net.model(y, z), options)
    assert_settled(folded, options)


def test_a_new_add_takes_what_the_matmul_in_front_of_it_does_not():
    net = Net((2, 1, 3, 6))
    x = net.op("Transpose", net.bn("x"), perm=[0, 3, 1, 2])
    x = net.op("MatMul", x, net.random(3, 5))
    x = net.relu(net.bn(x))
    model = net.model(net.conv(x, 4))
    folded, _ = onnx_bnfold.fold(model)
    assert_same_function(model, folded)
    assert_settled(folded, Options())


def test_an_affine_node_whose_shape_is_known_only_later_goes_at_once():
    """In a function nothing says the rank of what the Mul writes; the Conv says its own."""
    net = Net((3, 6, 1), opset=12)
    factor, summand = (np.full((1, 1), value, np.float32) for value in (1.5, -0.5))
    body = [
        helper.make_node("Constant", [], ["w"], value=tensor("w", np.ones((1, 6, 1), np.float32))),
        helper.make_node("Conv", ["f"], ["a"]),
    ]
    body[1].input.append("w")
    for op, x, y, value in (("Mul", "a", "b", factor), ("Add", "b", "y", summand)):
        body += [
            helper.make_node("Constant", [], [f"c_{y}"], value=tensor(f"c_{y}", value)),
            helper.make_node(op, [x, f"c_{y}"], [y]),
        ]
    net.functions.append(
        helper.make_function("local", "F", ["f"], ["y"], body, [helper.make_opsetid("", 12)])
    )
    model = net.model(net.op("F", "x", domain="local"))
    folded, _ = onnx_bnfold.fold(model)
    assert_same_function(model, folded)
    assert_settled(folded, Options())
    assert [n.op_type for n in folded.functions[0].node if n.op_type != "Constant"] == ["Conv"]


@pytest.mark.parametrize(
    ("take", "give", "value"),
    [("Div", "Mul", 1.26), ("Div", "Mul", 3.1), ("Sub", "Add", 1.26), ("Sub", "Add", 3.1)],
    ids=["factors alike", "factors of one", "summands alike", "summands of zero"],
)
def test_what_only_rounding_keeps_apart_is_alike(take, give, value):
    """What one node takes of a norm of another axis, it gives back for the one in front."""
    net = Net(("N", 4, 16, 16))
    zeros, ones = net.const(np.zeros(16)), net.const(np.ones(16))
    x = net.op(take, net.conv("x", 5), net.const(3.1))
    y = net.op(give, x, net.const(value))
    x = net.op("Transpose", x, perm=[0, 2, 1, 3])
    parts = (net.random(16), zeros) if take == "Div" else (ones, net.random(16))
    x = net.op("BatchNormalization", x, *parts, zeros, ones, epsilon=0.0)
    model = net.model(net.conv(x, 2), y)
    folded, _ = onnx_bnfold.fold(model)
    assert_same_function(model, folded)
    assert ops(folded) == ["Conv", "Transpose", "Conv"]
    assert_settled(folded, Options())


@pytest.mark.parametrize("times", [1, 2], ids=["one", "alike"])
def test_a_constant_is_alike_once_it_has_taken_what_another_was(times):
    net = Net(("N", 4, 128, 2))
    values = net.values(128, 1).astype(np.float32)
    x = net.op("Div", net.conv("x", 5), net.const(values))
    y = net.op("Mul", x, net.const(times * values))
    x = net.op("Transpose", x, perm=[0, 2, 1, 3])
    model = net.model(net.conv(x, 2), y)
    folded, _ = onnx_bnfold.fold(model)
    assert_same_function(model, folded)
    assert ops(folded) == ["Conv", "Transpose", "Conv"]
    assert_settled(folded, Options())
