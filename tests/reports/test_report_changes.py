"""What a report says differs between a model and its fold, by name."""

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import parser
from reporting import half, report_of

from onnx_bnfold import plan_file
from onnx_bnfold.reports import fold_report
from onnx_bnfold.reports.changes import Changes, changes_of
from onnx_bnfold.reports.compared_files import changes_between

HEAD = '<ir_version: 10, opset_import: ["" : 21]> g (float[N, 4] x) => (float[N, 4] y)'


def names(items) -> list[str]:
    return [item.name for item in items]


def changes(before: str, after: str) -> Changes:
    models = (parser.parse_model(f"{HEAD} {text}") for text in (before, after))
    return changes_of(*models, ())


def test_a_fold(tmp_path, rng):
    found = report_of(half(rng), tmp_path).changes
    assert [(node.op, node.name) for node in found.removed_nodes] == [("BatchNormalization", "n_b")]
    [conv] = found.changed_nodes
    assert (conv.op, conv.name) == ("Conv", "n_c")
    assert conv.outputs == (("c", "b"),)
    assert conv.values == ("c_W", "c_bias")
    assert (conv.inputs, conv.attributes) == ((), ())
    assert (found.added_nodes, found.added_initializers) == ((), ())
    assert names(found.removed_initializers) == ["b_scale", "b_B", "b_mean", "b_var"]
    weight, bias = found.changed_initializers
    assert (weight.name, weight.data_type, weight.shape) == ("c_W", "float", (4, 3, 3, 3))
    assert (bias.name, bias.graph) == ("c_bias", "")


@pytest.mark.parametrize("is_external", [False, True])
def test_large_weights_and_a_plan(is_external, tmp_path, rng):
    """Tensors without values, in the model or in files, are told apart as small ones are."""
    model = half(rng)
    weight = rng.standard_normal((4, 3, 30, 30), np.float32)
    large = onnx.numpy_helper.from_array(weight, model.graph.initializer[0].name)
    model.graph.initializer[0].CopyFrom(large)
    other = onnx.numpy_helper.from_array(rng.standard_normal(9000), "other")
    model.graph.initializer.append(other)
    model.graph.node.add(op_type="Identity", input=["other"], output=["o"], name="keeps it")
    model.graph.output.add(name="o").type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    save = {"save_as_external_data": True, "location": "w.bin"} if is_external else {}
    folded = report_of(model, tmp_path, **save).changes
    assert names(folded.changed_initializers) == ["c_W", "c_bias"]
    assert "other" not in names(folded.removed_initializers + folded.added_initializers)
    assert changes_between(tmp_path / "m.onnx", tmp_path / "f.onnx") == folded
    planned = []
    plan_file(tmp_path / "m.onnx", inspect=lambda o: planned.append(fold_report(o, {}, None)))
    assert planned[0].changes == folded


@pytest.mark.parametrize("data_type", ["FLOAT", "BFLOAT16", "INT4", "STRING"])
def test_values_are_the_same_however_they_are_stored(data_type, tmp_path):
    text = "{ y = Relu(x) }"
    kind = getattr(onnx.TensorProto, data_type)
    values = ["a", "b"] if data_type == "STRING" else [1.0, -2.0]
    paths = tmp_path / "a.onnx", tmp_path / "b.onnx"
    models = [parser.parse_model(f"{HEAD} {text}") for _ in paths]
    for model in models:
        model.graph.initializer.append(onnx.helper.make_tensor("same", kind, [2], values))
        model.graph.initializer.append(onnx.helper.make_tensor("other", kind, [2], values))
    first, second = models
    second.graph.initializer[1].CopyFrom(onnx.helper.make_tensor("other", kind, [2], values[::-1]))
    if data_type != "STRING":
        array = onnx.numpy_helper.to_array(second.graph.initializer[0])
        second.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, "same"))
        assert second.graph.initializer[0] != first.graph.initializer[0]
    for model, path in zip(models, paths, strict=True):
        onnx.save(model, path)
    assert names(changes_between(*paths).changed_initializers) == ["other"]


def test_a_model_is_as_itself():
    text = "{ a = Relu(x) b = Constant<value_float=1.0>() y = Mul(a, b) }"
    assert not any(dataclasses.asdict(changes(text, text)).values())


CASES = {
    "a node without a name, by what it writes": (
        "{ a = Relu(x) y = Clip(a) }", "{ a = Abs(x) y = Clip(a) }", ["a"], [], ["a"],
    ),
    "by all that it reads": (
        "{ a = Relu(x) y = Tanh(a) }", "{ b = Relu(x) y = Tanh(b) }", [], ["a", "y"], [],
    ),
    "by the first that it reads": (
        "{ a = Min(x, x) y = Abs(a) }", "{ y = Min(x) }", ["y"], ["a"], [],
    ),
    "not if it may be either": (
        "{ a = Abs(x) b = Abs(x) y = Add(a, b) }", "{ y = Abs(x) }", ["a", "b", "y"], [], ["y"],
    ),
    "an attribute": (
        "{ y = Softmax<axis=1>(x) }", "{ y = Softmax<axis=0>(x) }", [], ["y"], [],
    ),
    "a constant": (
        "{ c = Constant<value_float=1.0>() y = Mul(x, c) }",
        "{ c = Constant<value_float=2.0>() y = Mul(x, c) }", [], ["c"], [],
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "removed", "changed", "added"), CASES.values(), ids=CASES
)
def test_nodes(before, after, removed, changed, added):
    found = changes(before, after)
    told = (found.removed_nodes, found.changed_nodes, found.added_nodes)
    assert list(map(names, told)) == [removed, changed, added]


def test_a_name_tells_more_than_what_is_read():
    """A node of another name is another node, though it reads and writes the same."""
    found = changes('{ ["a"] y = Relu(x) }', '{ ["b"] y = Relu(x) }')
    assert (names(found.removed_nodes), names(found.added_nodes)) == (["a"], ["b"])
    found = changes('{ ["a"] y = Relu(x) }', '{ ["a"] y = Abs(x) }')
    assert (names(found.removed_nodes), names(found.added_nodes)) == (["a"], ["a"])


def test_how_inputs_differ():
    [node] = changes("{ y = Clip(x, x) }", "{ y = Clip(x, , x) }").changed_nodes
    assert node.inputs == (("x", ""), ("", "x"))
    assert (node.outputs, node.attributes, node.values) == ((), (), ())


WEIGHTS = "<float[4] w = {1, 2, 3, 4}, float[4] v = {1, 2, 3, 4}>"


@pytest.mark.parametrize("is_elsewhere", [True, False])
def test_values_that_the_fold_computes(is_elsewhere):
    """Those that are not in the message differ; of others it is seen."""
    model = parser.parse_model(f"{HEAD} {WEIGHTS} {{ a = Mul(x, w) y = Add(a, v) }}")
    if is_elsewhere:
        for tensor in model.graph.initializer:
            tensor.external_data.add(key="place", value=tensor.name)
    found = changes_of(model, model, {"w"})
    assert names(found.changed_initializers) == (["w"] if is_elsewhere else [])
    read = [(node.name, node.values) for node in found.changed_nodes]
    assert read == ([("a", ("w",))] if is_elsewhere else [])


def test_a_body_that_reads_what_has_changed_around_it():
    text = (
        "<float[4] w = {N, 2, 3, 4}, bool[1] c = {1}> { y = If (c) <"
        "then_branch = t () => (float[N, 4] p) { p = Mul(x, w) },"
        "else_branch = e () => (float[N, 4] q) <float[4] v = {5, 6, 7, 8}> { q = Mul(x, v) }> }"
    )
    before, after = text.replace("N, 2", "1, 2"), text.replace("N, 2", "9, 2").replace("5,", "6,")
    found = changes(before, after)
    assert [(t.name, bool(t.graph)) for t in found.changed_initializers] == [
        ("w", False),
        ("v", True),
    ]
    told = [(node.name, bool(node.graph), node.values) for node in found.changed_nodes]
    assert told == [("p", True, ("w",)), ("q", True, ("v",))]
    gone = changes(text.replace("N, 2", "1, 2"), "{ y = Relu(x) }")
    assert names(gone.removed_nodes) == ["y", "p", "q"]
    assert names(gone.removed_initializers) == ["w", "c", "v"]
