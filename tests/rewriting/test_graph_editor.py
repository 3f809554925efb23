"""What a fold leaves as it was: names, shared tensors, and everything it has nothing to do with."""

import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support import (
    Parts,
    all_nodes,
    assert_same_function,
    bn,
    constant_operand,
    conv,
    count,
    feeds_for,
    fold_checked,
    initializer,
    join,
    layer,
    model_of,
    node,
    ops,
    parsed,
    tensor,
    value_of,
)

import onnx_bnfold

X = {"x": (2, 3, 5, 6)}


def conv_bn(rng, *, bias=True, **options):
    parts = join(conv("x", "c", (4, 3, 3, 3), rng, bias=bias), bn("c", "y", 4, rng))
    return model_of(parts.nodes, X, ["y"], parts.initializers, **options)


def names(values) -> list[str]:
    return [v.name for v in values]


def float_tensor(name, rng, *shape):
    return tensor(name, rng.standard_normal(shape).astype(np.float32))


# --- names ---------------------------------------------------------------------------------------


def test_names_of_layer_weight_bias_and_output_stay(rng):
    folded, _ = fold_checked(conv_bn(rng))
    (only,) = folded.graph.node
    assert only.name == "n_c"
    assert list(only.input) == ["x", "c_W", "c_bias"]
    assert list(only.output) == ["y"]
    assert names(folded.graph.initializer) == ["c_W", "c_bias"]


def test_the_output_of_the_graph_keeps_its_name_where_others_read_it(rng):
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng), bn("c", "y", 4, rng), node("Relu", ["y"], ["r"])
    )
    folded, _ = fold_checked(model_of(parts.nodes, X, ["y", "r"], parts.initializers))
    assert names(folded.graph.output) == ["y", "r"]


@pytest.mark.parametrize("outputs", [["b", "y"], ["y", "b"]], ids=str)
def test_a_norm_between_two_outputs(outputs, rng):
    """b = BN(Conv(x)), y = BN(b): the layer can be one of them, not both."""
    parts = join(conv("x", "c", (4, 3, 1, 1), rng), bn("c", "b", 4, rng), bn("b", "y", 4, rng))
    folded, _ = fold_checked(model_of(parts.nodes, X, outputs, parts.initializers), kept=1)
    assert names(folded.graph.output) == outputs
    assert ops(folded) == ["Conv", "BatchNormalization"]


def test_an_identity_to_the_output(rng):
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng), bn("c", "b", 4, rng), node("Identity", ["b"], ["y"])
    )
    folded, _ = fold_checked(model_of(parts.nodes, X, ["y"], parts.initializers))
    assert names(folded.graph.output) == ["y"]


def test_one_value_listed_as_output_twice(rng):
    """The checker allows it; the fold keeps both entries."""
    model = conv_bn(rng)
    model.graph.output.append(model.graph.output[0])
    folded, _ = fold_checked(model, compare=False)
    assert names(folded.graph.output) == ["y", "y"]


TAKEN = ["c_bias", "c_W_bias", "c_W_bias_1", "n_c_bias", "n_c.bias", "bias", "y_bias", "c_W_1"]


@pytest.mark.parametrize("kind", ["initializer", "value", "input"])
def test_a_new_bias_takes_no_name_that_is_in_use(kind, rng):
    """The layer has no bias, and every name one could think of is taken by something else."""
    model = conv_bn(rng, bias=False)
    first, _ = onnx_bnfold.fold(model)
    (chosen,) = set(names(first.graph.initializer)) - {"c_W"}
    taken = {chosen, *TAKEN}
    for name in sorted(taken):
        if kind == "initializer":
            model.graph.initializer.append(float_tensor(name, rng, 4))
        elif kind == "input":
            model.graph.input.append(value_of(name, (4,)))
        else:
            model.graph.node.extend(node("Identity", ["x"], [name]).nodes)
        if kind != "value":
            model.graph.node.extend(node("Identity", [name], [f"{name}_read"]).nodes)
            name = f"{name}_read"
        model.graph.output.append(value_of(name, (4,) if kind != "value" else X["x"]))
    folded, _ = fold_checked(model)
    assert len(names(folded.graph.initializer)) == len(set(names(folded.graph.initializer)))
    bias = folded.graph.node[0].input[2]
    assert bias not in taken
    assert bias in names(folded.graph.initializer)


def test_a_new_name_is_none_inside_a_subgraph(rng):
    """A subgraph sees the names around it and may not define them again."""
    model = conv_bn(rng, bias=False)
    first, _ = onnx_bnfold.fold(model)
    (chosen,) = set(names(first.graph.initializer)) - {"c_W"}
    branch = helper.make_graph(
        node("Identity", ["x"], [chosen], name="inner").nodes,
        "branch",
        [],
        [value_of(chosen, X["x"])],
    )
    choice = node("If", ["flag"], ["z"], then_branch=branch, else_branch=branch)
    model.graph.node.extend(choice.nodes)
    model.graph.initializer.append(tensor("flag", np.array(True)))
    model.graph.output.append(value_of("z", X["x"]))
    folded, _ = fold_checked(model)
    assert folded.graph.node[0].input[2] != chosen


def test_layers_without_a_name(rng):
    parts = join(
        conv("x", "a", (4, 3, 1, 1), rng, bias=False, name=""),
        bn("a", "b", 4, rng, name=""),
        conv("b", "c", (4, 4, 1, 1), rng, bias=False, name=""),
        bn("c", "d", 4, rng, name=""),
        layer("MatMul", "d", "e", (6, 6), rng, name=""),
        bn("e", "y", 4, rng, name=""),
    )
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    folded, report = fold_checked(model, kept=1)
    assert [n.name for n in folded.graph.node[:2]] == ["", ""]
    assert len({r.name for r in report.norms}) == 3


def test_norms_without_names_of_values_or_nodes_are_told_apart(rng):
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng),
        node("Sigmoid", ["c"], ["s"]),
        bn("s", "y", 4, rng, name=""),
        bn("s", "z", 4, rng, name=""),
    )
    model = model_of(parts.nodes, X, ["y", "z"], parts.initializers)
    report = onnx_bnfold.plan(model)
    assert len({r.name for r in report.norms}) == 2


@pytest.mark.parametrize("name", ["a b", "ünïcødé", "a/b:0", "%s{}", "é" * 200], ids=ascii)
def test_unusual_names(name, rng):
    parts = join(conv("x", name, (4, 3, 1, 1), rng, bias=False), bn(name, f"{name}'", 4, rng))
    folded, _ = fold_checked(model_of(parts.nodes, X, [f"{name}'"], parts.initializers))
    assert folded.graph.node[0].name == f"n_{name}"


def test_no_new_node_shares_a_name(rng):
    """onnxruntime refuses duplicate node names."""
    parts = join(
        layer("MatMul", "x", "a", (6, 6), rng, name="m"),
        node("Transpose", ["a"], ["t"], perm=[0, 3, 1, 2]),
        bn("t", "y", 6, rng),
    )
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    first, _ = onnx_bnfold.fold(model)
    others = {n.name for n in first.graph.node} - {"m", "n_t"}
    for name in others | {"m_bias", "m_add", "m_Add"}:
        model.graph.node.extend(node("Identity", ["x"], [f"{name}_v"], name=name).nodes)
        model.graph.output.append(value_of(f"{name}_v", X["x"]))
    folded, _ = fold_checked(model)
    assert len({n.name for n in folded.graph.node}) == len(folded.graph.node)


# --- tensors that something else reads too -------------------------------------------------------


@pytest.mark.parametrize("role", ["W", "bias"])
def test_a_weight_that_two_layers_share_is_copied(role, rng):
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng),
        bn("c", "y", 4, rng),
        conv("x", "d", (4, 3, 1, 1), rng),
        bn("d", "z", 4, rng),
    )
    parts.nodes[2].input[1 if role == "W" else 2] = f"c_{role}"
    initializers = [t for t in parts.initializers if t.name != f"d_{role}"]
    model = model_of(parts.nodes, X, ["y", "z"], initializers)
    folded, _ = fold_checked(model)
    assert ops(folded) == ["Conv", "Conv"]
    assert len(folded.graph.initializer) == 4


def test_a_weight_shared_with_a_layer_that_stays_keeps_its_values(rng):
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng),
        bn("c", "y", 4, rng),
        Parts(node("Conv", ["x", "c_W", "c_bias"], ["z"]).nodes, []),
    )
    model = model_of(parts.nodes, X, ["y", "z"], parts.initializers)
    folded, _ = fold_checked(model)
    np.testing.assert_array_equal(initializer(folded, "c_W"), initializer(model, "c_W"))
    assert list(folded.graph.node[1].input) == ["x", "c_W", "c_bias"]
    assert folded.graph.node[0].input[1] != "c_W"


@pytest.mark.parametrize("name", ["c_W", "c_bias", "y_scale"])
def test_a_parameter_that_is_a_graph_output_keeps_its_values(name, rng):
    model = conv_bn(rng)
    model.graph.output.append(value_of(name, initializer(model, name).shape))
    folded, _ = fold_checked(model)
    assert ops(folded) == ["Conv"]
    np.testing.assert_array_equal(initializer(folded, name), initializer(model, name))


@pytest.mark.parametrize("name", ["c_W", "y_mean"])
def test_a_parameter_that_a_subgraph_reads_keeps_its_values(name, rng):
    model = conv_bn(rng)
    shape = initializer(model, name).shape
    branch = helper.make_graph(
        node("Identity", [name], ["inner"], name="i").nodes, "b", [], [value_of("inner", shape)]
    )
    model.graph.node.extend(
        node("If", ["flag"], ["z"], then_branch=branch, else_branch=branch).nodes
    )
    model.graph.initializer.append(tensor("flag", np.array(True)))
    model.graph.output.append(value_of("z", shape))
    folded, _ = fold_checked(model)
    np.testing.assert_array_equal(initializer(folded, name), initializer(model, name))
    assert [n.op_type for n in folded.graph.node] == ["Conv", "If"]


def test_a_parameter_that_a_body_of_a_custom_operator_reads_keeps_its_values(rng):
    """Its attribute holds several graphs, which no standard operator has."""
    model = conv_bn(rng, imports={"my.domain": 1})
    body = helper.make_graph(
        node("Identity", ["c_W"], ["inner"]).nodes, "b", [], [value_of("inner", (4, 3, 3, 3))]
    )
    model.graph.node.extend(node("Odd", [], ["z"], domain="my.domain", bodies=[body, body]).nodes)
    model.graph.output.append(value_of("z", (1,)))
    folded, _ = fold_checked(model, compare=False)
    np.testing.assert_array_equal(initializer(folded, "c_W"), initializer(model, "c_W"))
    assert folded.graph.node[0].input[1] != "c_W"


def test_one_layer_after_another_with_one_weight(rng):
    """The same weight twice on one path, with a BN behind each."""
    weight = float_tensor("W", rng, 3, 3, 1, 1)
    parts = join(
        Parts(node("Conv", ["x", "W"], ["a"]).nodes, [weight]),
        bn("a", "b", 3, rng),
        node("Conv", ["b", "W"], ["c"]),
        bn("c", "y", 3, rng),
    )
    folded, _ = fold_checked(model_of(parts.nodes, X, ["y"], parts.initializers))
    assert ops(folded) == ["Conv", "Conv"]


def test_one_tensor_as_weight_and_bias(rng):
    """Both change, and not in the same way."""
    square = float_tensor("W", rng, 4, 4)
    parts = join(Parts(node("Gemm", ["x", "W", "W"], ["c"]).nodes, [square]), bn("c", "y", 4, rng))
    folded, _ = fold_checked(model_of(parts.nodes, {"x": (4, 4)}, ["y"], parts.initializers))
    assert ops(folded) == ["Gemm"]


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_one_weight_in_a_conv_and_a_conv_transpose(op, rng):
    """Their layouts differ: the output channels are axis 0 of one and axis 1 of the other."""
    second = {"Conv": "ConvTranspose", "ConvTranspose": "Conv"}[op]
    weight = float_tensor("W", rng, 4, 4, 1, 1)
    parts = join(
        Parts(node(op, ["x", "W"], ["a"]).nodes, [weight]),
        bn("a", "b", 4, rng),
        node(second, ["b", "W"], ["c"]),
        bn("c", "y", 4, rng),
    )
    folded, _ = fold_checked(model_of(parts.nodes, {"x": (2, 4, 5, 6)}, ["y"], parts.initializers))
    assert ops(folded) == [op, second]


def test_an_added_constant_that_another_node_reads_keeps_its_values(rng):
    parts = join(
        layer("MatMul", "x", "c", (3, 4), rng),
        constant_operand("Add", "c", "a", (4,), rng),
        bn("a", "y", 4, rng),
        node("Relu", ["a_const"], ["z"]),
    )
    model = model_of(parts.nodes, {"x": (5, 3)}, ["y", "z"], parts.initializers)
    folded, _ = fold_checked(model)
    np.testing.assert_array_equal(initializer(folded, "a_const"), initializer(model, "a_const"))


@pytest.mark.parametrize("freeze", [False, True], ids=["", "freeze"])
def test_an_added_constant_that_may_be_overridden(freeze, rng):
    """It is an input of the graph: the BN stays, unless the user says that it is constant."""
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng),
        constant_operand("Add", "c", "a", (4, 1, 1), rng),
        bn("a", "y", 4, rng),
    )
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    model.graph.input.append(value_of("a_const", (4, 1, 1)))
    options = onnx_bnfold.Options(freeze_initializers=freeze)
    folded, _ = fold_checked(model, kept=int(not freeze), options=options)
    assert names(folded.graph.input) == (["x"] if freeze else ["x", "a_const"])
    if not freeze:
        feeds = feeds_for(model) | {"a_const": np.ones((4, 1, 1), np.float32)}
        assert_same_function(model, folded, feeds=feeds)


def test_weight_and_operand_in_one_node(rng):
    """The constant is both sides of the MatMul: no input of run time is left."""
    square = float_tensor("W", rng, 4, 4)
    parts = join(
        Parts(node("MatMul", ["W", "W"], ["c"]).nodes, [square]),
        bn("c", "b", 4, rng),
        node("Add", ["b", "x"], ["y"]),
    )
    model = model_of(parts.nodes, {"x": (4, 4)}, ["y"], parts.initializers)
    _, report = onnx_bnfold.fold(model)
    fold_checked(model, kept=len(report.kept))


# --- what goes, and what stays -------------------------------------------------------------------


def test_dead_initializers_go_and_others_stay(rng):
    model = conv_bn(rng)
    model.graph.initializer.append(float_tensor("unused_before", rng, 2))
    folded, _ = fold_checked(model)
    assert set(names(folded.graph.initializer)) - {"unused_before"} == {"c_W", "c_bias"}


def test_dead_initializers_of_ir_version_3_leave_the_inputs(rng):
    model = conv_bn(rng, bias=False, opset=8, ir_version=3)
    folded, _ = fold_checked(model)
    assert set(names(folded.graph.input)) == {"x", *names(folded.graph.initializer)}
    types = {i.name: i.type.tensor_type for i in folded.graph.input}
    for t in folded.graph.initializer:
        assert [d.dim_value for d in types[t.name].shape.dim] == list(t.dims)


def test_what_only_gave_its_shape_goes_unless_others_read_the_node(rng):
    """An operator of another domain may have the name of a standard one, and two outputs."""
    parts = join(
        node("Identity", ["x"], ["s", "z"], domain="own"), node("Shape", ["s"], ["n"]),
        node("Cast", ["n"], ["y_scale"], to=TensorProto.FLOAT),
        conv("x", "c", (4, 3, 1, 1), rng), bn("c", "y", 4, rng),
    )  # fmt: skip
    initializers = [t for t in parts.initializers if t.name != "y_scale"]
    model = model_of(parts.nodes, X, ["y", "z"], initializers, imports={"own": 1},
                     value_info={"s": (1, 2, 3, 4)})  # fmt: skip
    folded, _ = onnx_bnfold.fold(model)
    assert ops(folded) == ["Identity", "Conv"]


@pytest.mark.parametrize(("ir_version", "opset", "left"), [(3, 8, True), (4, 9, False)], ids=str)
def test_frozen_initializers_stay_inputs_where_the_format_wants_it(ir_version, opset, left, rng):
    model = conv_bn(rng, opset=opset, ir_version=ir_version)
    if ir_version > 3:
        model.graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, list(t.dims))
            for t in model.graph.initializer
        )
    folded, _ = fold_checked(model, options=onnx_bnfold.Options(freeze_initializers=True))
    assert set(names(folded.graph.input)) == {"x", *(names(folded.graph.initializer) * left)}


def test_a_frozen_sparse_initializer_is_no_input_any_more(rng):
    model = conv_bn(rng)
    dense = initializer(model, "c_W")
    kept = [t for t in model.graph.initializer if t.name != "c_W"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.sparse_initializer.add(
        values=tensor("c_W", dense.reshape(-1)),
        indices=tensor("", np.arange(dense.size)),
        dims=dense.shape,
    )
    model.graph.input.append(value_of("c_W", dense.shape))
    options = onnx_bnfold.Options(freeze_initializers=True)
    folded, report = onnx_bnfold.fold(model, options)
    assert len(report.folded) == 1
    assert names(folded.graph.input) == ["x"]


def test_value_info_of_vanished_values_goes(rng):
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng), bn("c", "b", 4, rng), node("Relu", ["b"], ["y"])
    )
    shape = (2, 4, 5, 6)
    model = model_of(
        parts.nodes, X, {"y": shape}, parts.initializers, value_info={"c": shape, "b": shape}
    )
    folded, _ = fold_checked(model)
    written = {o for n in folded.graph.node for o in n.output}
    assert len(names(folded.graph.value_info)) == 1
    assert set(names(folded.graph.value_info)) <= written


def test_a_declared_shape_goes_on_with_its_tensor(rng):
    """Runtimes misread the rank of a ConvTranspose with an output shape, unless it is declared."""
    deconvolution = layer(
        "ConvTranspose", "x", "c", (3, 4, 1, 3), rng, output_shape=[5, 4], bias_shape=(4,)
    )
    turned = node("Transpose", ["b"], ["y"], perm=[0, 1, 3, 2])
    parts = join(deconvolution, bn("c", "b", 4, rng), turned)
    declared = {"c": (2, 4, 5, 4)}
    outputs = {"y": (2, 4, 4, 5)}
    model = model_of(parts.nodes, X, outputs, parts.initializers, value_info=declared)
    folded, report = fold_checked(model)
    assert len(report.folded) == 1
    assert [
        [d.dim_value for d in v.type.tensor_type.shape.dim] for v in folded.graph.value_info
    ] == [[2, 4, 5, 4]]


def test_value_info_of_a_new_shape_is_not_stale(rng):
    """The constant grows from (6,) to (4, 5, 6) or so: nothing may still say (6,)."""
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng),
        constant_operand("Add", "c", "a", (6,), rng),
        bn("a", "y", 4, rng),
    )
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    inferred = onnx.shape_inference.infer_shapes(model)
    inferred.graph.value_info.append(value_of("a_const", (6,)))
    fold_checked(inferred)


def test_nothing_to_fold_changes_nothing(rng):
    parts = conv("x", "c", (4, 3, 1, 1), rng)
    model = model_of(parts.nodes, X, ["c"], parts.initializers)
    model.graph.initializer.append(float_tensor("unused", rng, 2))
    folded, report = fold_checked(model)
    assert folded.SerializeToString() == model.SerializeToString()
    assert not report.records


def annotated(rng):
    """A model with something in every field that says more than the computation."""
    model = conv_bn(rng)
    model.graph.node.extend(node("Odd", ["y"], ["z"], domain="my.domain", level=3).nodes)
    model.graph.output.append(value_of("z", (1,)))
    model.opset_import.append(helper.make_opsetid("my.domain", 7))
    model.opset_import.append(helper.make_opsetid("com.unused", 1))
    model.doc_string, model.domain, model.model_version = "doc of the model", "org.test", 5
    model.producer_name, model.producer_version = "producer", "1.2"
    helper.set_model_props(model, {"author": "someone", "license": "none"})
    model.graph.doc_string, model.graph.name = "doc of the graph", "graph name"
    model.graph.metadata_props.add(key="g", value="1")
    model.graph.node[0].doc_string = "doc of the layer"
    model.graph.node[0].metadata_props.add(key="n", value="2")
    model.graph.initializer[0].doc_string = "doc of the weight"
    model.graph.input[0].doc_string = "doc of the input"
    model.graph.output[0].doc_string = "doc of the output"
    model.graph.input[0].metadata_props.add(key="v", value="3")
    annotation = model.graph.quantization_annotation.add(tensor_name="x")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="c_bias")
    model.functions.append(
        helper.make_function(
            "other.domain",
            "Twice",
            ["a"],
            ["b"],
            node("Add", ["a", "a"], ["b"]).nodes,
            [helper.make_opsetid("", 17)],
        )
    )
    return model


def test_everything_that_is_not_computation_stays(rng):
    model = annotated(rng)
    folded, report = onnx_bnfold.fold(model)
    assert len(report.folded) == 1
    for field in (
        "doc_string",
        "domain",
        "model_version",
        "producer_name",
        "producer_version",
        "ir_version",
        "opset_import",
        "metadata_props",
        "functions",
    ):
        assert getattr(folded, field) == getattr(model, field), field
    for field in ("doc_string", "name", "metadata_props", "input", "output"):
        assert getattr(folded.graph, field) == getattr(model.graph, field), field
    before, after = model.graph.node[0], folded.graph.node[0]
    for field in ("name", "doc_string", "metadata_props", "attribute", "op_type", "domain"):
        assert getattr(after, field) == getattr(before, field), field
    assert folded.graph.node[1] == model.graph.node[2]
    weight = next(t for t in folded.graph.initializer if t.name == "c_W")
    assert weight.doc_string == "doc of the weight"


def test_a_weight_without_a_doc_string_gets_none(rng):
    folded, _ = onnx_bnfold.fold(conv_bn(rng))
    assert not any(tensor.HasField("doc_string") for tensor in folded.graph.initializer)


def test_a_quantization_annotation_of_a_tensor_that_stays_stays(rng):
    model = annotated(rng)
    folded, _ = onnx_bnfold.fold(model)
    assert folded.graph.quantization_annotation == model.graph.quantization_annotation


def test_a_quantization_annotation_of_a_vanished_tensor_goes(rng):
    model = conv_bn(rng)
    annotation = model.graph.quantization_annotation.add(tensor_name="c")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="y_scale")
    folded, report = onnx_bnfold.fold(model)
    known = {n for v in folded.graph.node for n in [*v.input, *v.output]}
    assert len(report.folded) == 1
    for a in folded.graph.quantization_annotation:
        assert a.tensor_name in known
        for parameter in a.quant_parameter_tensor_names:
            assert parameter.value in names(folded.graph.initializer)


@pytest.mark.parametrize("kind", ["initializer", "node"])
def test_a_quantization_annotation_of_a_dropped_constant_goes(kind, rng):
    """The parameters of a BatchNormalization that is gone, and what is said of them."""
    model = conv_bn(rng)
    mean = model.graph.node[1].input[3]
    for name in ("mean_step", "y_step"):
        model.graph.initializer.append(float_tensor(name, rng, 1))
    annotate(model, **{mean: "mean_step", "y": "y_step"})
    if kind == "node":
        tensor = next(t for t in model.graph.initializer if t.name == mean)
        model.graph.initializer.remove(tensor)
        model.graph.node.insert(0, helper.make_node("Constant", [], [mean], value=tensor))
    folded, report = onnx_bnfold.fold(model)
    assert len(report.folded) == 1
    assert annotated_names(folded) == ["y"]
    assert "mean_step" not in names(folded.graph.initializer)
    assert "y_step" in names(folded.graph.initializer)


def annotate(model, **scales):
    """Give tensors quantization annotations, each with the initializer that has its scale."""
    for name, scale in scales.items():
        annotation = model.graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=scale)


def annotated_names(model) -> list[str]:
    return [a.tensor_name for a in model.graph.quantization_annotation]


def test_a_quantization_annotation_of_a_tensor_of_new_values_goes(rng):
    """x -> Conv -> c -> Relu -> r -> BN -> Sigmoid: c and r take the scale, s keeps its values."""
    norm = bn("r", "b", 4, rng, positive=True)
    for t in norm.initializers:
        if t.name in ("b_B", "b_mean"):
            t.raw_data = bytes(16)
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng),
        node("Relu", ["c"], ["r"]),
        norm,
        node("Sigmoid", ["b"], ["s"]),
        node("Neg", ["s"], ["y"]),
    )
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    for name in ("c_scale", "r_scale", "s_scale"):
        model.graph.initializer.append(float_tensor(name, rng, 1))
    annotate(model, c="c_scale", r="r_scale", s="s_scale", x="s_scale")
    folded, report = fold_checked(model)
    assert "'c'" in {r.name for r in report.rescaled}
    assert annotated_names(folded) == ["s", "x"]
    assert {"c_scale", "r_scale"}.isdisjoint(names(folded.graph.initializer))
    assert "s_scale" in names(folded.graph.initializer)


def test_a_quantization_annotation_of_a_constant_of_new_values_goes(rng):
    model = conv_bn(rng)
    model.graph.initializer.append(float_tensor("step", rng, 1))
    annotate(model, c_W="step", x="step")
    folded, _ = fold_checked(model)
    assert annotated_names(folded) == ["x"]


@pytest.mark.parametrize("name", ["c_W", "c_bias", "y_scale", "y_var"])
def test_a_quantization_parameter_keeps_its_values(name, rng):
    """What an annotation refers to is read, though no node may read it."""
    model = conv_bn(rng)
    annotate(model, x=name)
    folded, _ = fold_checked(model)
    assert annotated_names(folded) == ["x"]
    np.testing.assert_array_equal(initializer(folded, name), initializer(model, name))


def test_an_annotation_in_a_branch_refers_to_an_outer_parameter(rng):
    model = conv_bn(rng)
    inner = helper.make_graph(
        node("Sigmoid", ["x"], ["inner"]).nodes, "b", [], [value_of("inner", X["x"])]
    )
    note = inner.quantization_annotation.add(tensor_name="inner")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="c_bias")
    choice = node("If", ["flag"], ["z"], then_branch=inner, else_branch=inner)
    model.graph.node.extend(choice.nodes)
    model.graph.initializer.append(tensor("flag", np.array(True)))
    model.graph.output.append(value_of("z", X["x"]))
    folded, _ = fold_checked(model)
    np.testing.assert_array_equal(initializer(folded, "c_bias"), initializer(model, "c_bias"))


def test_what_a_node_says_of_the_devices_of_its_tensors_follows_them(rng):
    model = conv_bn(rng, ir_version=11, opset=17)
    model.configuration.add(name="two", num_devices=2)
    for n in model.graph.node:
        device = n.device_configurations.add(configuration_id="two")
        for name in [*n.input, *n.output]:
            device.sharding_spec.add(tensor_name=name, device=[0])
    folded, _ = fold_checked(model)
    (only,) = folded.graph.node
    shards = [s.tensor_name for s in only.device_configurations[0].sharding_spec]
    assert shards == ["x", "c_W", "c_bias", "y"]


def test_training_info_stays(rng):
    model = conv_bn(rng)
    info = model.training_info.add()
    info.algorithm.name = "algorithm"
    info.update_binding.add(key="c_W", value="c_W")
    folded, _ = onnx_bnfold.fold(model)
    assert folded.training_info == model.training_info
    assert "c_W" in names(folded.graph.initializer)


def test_fields_of_a_later_version_stay(rng):
    model = conv_bn(rng)
    unknown = b"\xca\x3e\x0csome content"  # field 1001, of no ONNX version
    model = onnx.ModelProto.FromString(model.SerializeToString() + unknown)
    folded, _ = onnx_bnfold.fold(model)
    assert unknown in folded.SerializeToString()


# --- counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 5])
def test_as_many_nodes_fewer_as_norms_removed(number, rng):
    layers = []
    for i in range(number):
        layers += [
            conv(f"v{i}", f"c{i}", (3, 3, 3, 3), rng, pads=[1, 1, 1, 1], bias=i % 2 == 0),
            bn(f"c{i}", f"b{i}", 3, rng),
            node("Relu", [f"b{i}"], [f"v{i + 1}"]),
        ]
    parts = join(*layers)
    model = model_of(parts.nodes, {"v0": (1, 3, 8, 8)}, [f"v{number}"], parts.initializers)
    folded, report = fold_checked(model)
    assert len(report.folded) == number
    assert len(model.graph.node) - len(folded.graph.node) == number
    assert report.nodes_before - report.nodes_after == number


@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 3)], ids=["rank-2", "rank-3"])
def test_an_added_node_is_reported(shape, rng):
    """A MatMul has no bias: where its BN needs an Add, the report says so."""
    weight = layer("MatMul", "x", "c", (3, 4), rng)
    if len(shape) == 3:
        weight = join(weight, node("Transpose", ["c"], ["t"], perm=[0, 2, 1]))
    parts = join(weight, bn("c" if len(shape) == 2 else "t", "y", 4, rng))
    model = model_of(parts.nodes, {"x": shape}, ["y"], parts.initializers)
    folded, report = fold_checked(model)
    (record,) = report.norms
    added = ops(folded).count("Add")
    assert record.added == added
    assert len(model.graph.node) - len(folded.graph.node) == 1 - added


# --- the same every time -------------------------------------------------------------------------

SCRIPT = """
import hashlib, sys, onnx, onnx_bnfold
folded, report = onnx_bnfold.fold(onnx.load(sys.argv[1]))
text = "\\n".join(report.lines())
print(hashlib.sha256(folded.SerializeToString() + text.encode()).hexdigest(), len(report.folded))
"""


def test_the_result_does_not_depend_on_the_hash_seed(tmp_path, rng):
    """Shared weights, branches, new names: what a set or dict might put in another order."""
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng, bias=False),
        bn("c", "b", 4, rng),
        *(
            join(
                Parts(node("Conv", ["b", "shared"], [f"d{i}"]).nodes, []),
                bn(f"d{i}", f"e{i}", 4, rng),
            )
            for i in range(6)
        ),
        node("Concat", [f"e{i}" for i in range(6)], ["k"], axis=1),
        bn("k", "y", 24, rng),
    )
    shared = float_tensor("shared", rng, 4, 4, 1, 1)
    path = tmp_path / "m.onnx"
    onnx.save(model_of(parts.nodes, X, ["y"], [*parts.initializers, shared]), path)
    results = set()
    for seed in ("0", "1", "4321"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT, path],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        results.add(run.stdout)
    (result,) = results
    assert result.endswith(" 8\n")


def test_two_folds_of_one_model_are_the_same_bytes(rng):
    model = conv_bn(rng)
    first, second = onnx_bnfold.fold(model)[0], onnx_bnfold.fold(model)[0]
    assert first.SerializeToString() == second.SerializeToString()


def test_the_folded_model_shares_no_memory_with_the_original(rng):
    model = conv_bn(rng)
    before = model.SerializeToString()
    folded, _ = onnx_bnfold.fold(model)
    folded.graph.initializer[0].raw_data = b""
    folded.graph.node[0].name = "changed"
    folded.metadata_props.add(key="k", value="v")
    assert model.SerializeToString() == before


# --- order of nodes ------------------------------------------------------------------------------


def test_the_nodes_stay_in_an_order_that_can_run(rng):
    """Another node stands between the layer and its BN; one reads the BN early."""
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng),
        conv("x", "d", (4, 3, 1, 1), rng),
        bn("c", "b", 4, rng),
        bn("d", "e", 4, rng),
        node("Add", ["b", "e"], ["y"]),
    )
    folded, _ = fold_checked(model_of(parts.nodes, X, ["y"], parts.initializers))
    assert ops(folded) == ["Conv", "Conv", "Add"]


def test_text_models(rng):
    """A model as people write it by hand."""
    model = parsed(
        """
        <ir_version: 8, opset_import: ["" : 15]>
        agraph (float[N, 3, H, W] x) => (float[N, 4, H, W] y) {
            c = Conv <kernel_shape = [1, 1]> (x, W)
            y = BatchNormalization (c, s, b, m, v)
        }
        """,
        float_tensor("W", rng, 4, 3, 1, 1),
        *(tensor(n, rng.uniform(0.5, 1.5, 4).astype(np.float32)) for n in "sbmv"),
    )
    folded, _ = fold_checked(model, N=2, H=3, W=3)
    assert_same_function(model, folded, N=1, H=7, W=2)


# --- a norm that is written anew, wherever its parameters come from -------------------------------

PARAMETERS = {"scale": [0.01, 1.0, -2.0], "B": [1.0, 2.0, 3.0], "mean": [1.0, 0.5, 2.0],
              "var": [1.0, 2.0, 0.5]}  # fmt: skip
STAYING = {
    "evened": onnx_bnfold.Options(equalize=True),
    "mul-add": onnx_bnfold.Options(standalone="mul-add"),
    "conv": onnx_bnfold.Options(standalone="conv"),
    "evened-conv": onnx_bnfold.Options(equalize=True, standalone="conv"),
}
SOURCES = ("initializer", "Constant", "Cast", "Identity", "shared", "mixed")


def norm_from(source: str, x: str, y: str) -> Parts:
    """A BN whose parameters are initializers, or outputs of nodes over constants."""
    norm = node("BatchNormalization", [x, *(f"{y}_{role}" for role in PARAMETERS)], [y])
    made = []
    for number, (role, values) in enumerate(PARAMETERS.items()):
        kind = SOURCES[number] if source == "mixed" else source
        name, array = f"{y}_{role}", np.array(values, np.float32)
        if kind == "Constant":
            made.append(node("Constant", [], [name], value=tensor("", array)))
        elif kind == "Cast":
            wide = tensor(f"{name}_wide", array.astype(np.float64))
            cast = node("Cast", [wide.name], [name], to=int(onnx.TensorProto.FLOAT))
            made.append(Parts(cast.nodes, [wide]))
        elif kind == "Identity":
            made.append(Parts(node("Identity", ["shared"], [name]).nodes, []))
        elif kind == "shared":
            norm.nodes[0].input[number + 1] = "shared"
        else:
            made.append(Parts([], [tensor(name, array)]))
    shared = Parts([], [tensor("shared", np.array([2.0, 0.01, 1.0], np.float32))])
    return join(*([shared] if source in ("Identity", "shared", "mixed") else []), *made, norm)


def main_graph(parts, **options):
    return model_of(parts.nodes, {"x": (2, 3, 4, 4)}, ["y"], parts.initializers, **options)


def branches(parts, ir_version, **options):
    """The same in both branches of an If; below IR version 4 their constants are nodes."""
    shape = (2, 3, 4, 4)
    nodes, initializers = parts.nodes, parts.initializers
    if ir_version < 4:
        held = [node("Constant", [], [t.name], value=t) for t in initializers]
        nodes, initializers = [*join(*held).nodes, *nodes], []
    graphs = [
        helper.make_graph(
            [_prefixed(n, way) for n in nodes],
            way,
            [],
            [value_of(f"{way}_y", shape)],
            [tensor(f"{way}_{t.name}", onnx.numpy_helper.to_array(t)) for t in initializers],
        )
        for way in ("then", "else")
    ]
    choice = node("If", ["flag"], ["z"], then_branch=graphs[0], else_branch=graphs[1])
    return model_of(choice.nodes, {"x": shape, "flag": (bool, [])}, {"z": shape},
                    ir_version=ir_version, **options)  # fmt: skip


def _prefixed(n, way):
    copy = onnx.NodeProto()
    copy.CopyFrom(n)
    copy.name = f"{way}_{n.name}"
    for field in (copy.input, copy.output):
        field[:] = [name if name == "x" else f"{way}_{name}" for name in field]
    return copy


def function(parts, opset, ir_version, **options):
    """The same in a local function, whose constants are nodes, behind a layer that stays as well.

    Without the layer nothing says which rank the tensors of a function have.
    """
    weight = tensor("W", np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1))
    held = [node("Constant", [], [t.name], value=t) for t in (weight, *parts.initializers)]
    nodes = join(*held, node("Conv", ["v", "W"], ["x"]), parts).nodes
    made = helper.make_function(
        "own", "Norm", ["v"], ["y", "x"], nodes, [helper.make_opsetid("", opset)]
    )
    shape = (2, 3, 4, 4)
    call = node("Norm", ["v"], ["z", "c"], domain="own")
    return model_of(call.nodes, {"v": shape}, {"z": shape, "c": shape}, functions=[made],
                    imports={"own": 1}, opset=opset, ir_version=ir_version, **options)  # fmt: skip


BODIES = {
    "main-3": lambda parts: main_graph(parts, opset=8, ir_version=3),
    "main-10": lambda parts: main_graph(parts, ir_version=10),
    "if-3": lambda parts: branches(parts, opset=8, ir_version=3),
    "if-10": lambda parts: branches(parts, ir_version=10),
    "function-10": lambda parts: function(parts, opset=17, ir_version=10),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("build", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("options", STAYING.values(), ids=STAYING)
def test_a_norm_that_stays_is_written_whole(options, build, source):
    """Each name once, each constant in the shape that its new reader takes."""
    parts = join(norm_from(source, "x", "b"), node("Sigmoid", ["b"], ["y"]))
    model = build(parts)
    folded, report = onnx_bnfold.fold(model, options)
    assert report.kept
    assert not report.folded
    onnx.checker.check_model(folded, full_check=True)
    assert folded.SerializeToString() != model.SerializeToString(), "nothing was written anew"
    assert_same_function(model, folded)
    form = "BatchNormalization" if options.standalone == "keep" else None
    assert count(folded) == (count(model) if form else 0)
    again, _ = onnx_bnfold.fold(folded, options)
    assert again.SerializeToString() == folded.SerializeToString()
    made = [o for n in all_nodes(folded) for o in n.output]
    assert len(made) == len(set(made))
