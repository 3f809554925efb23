"""Scopes: bodies of If, Loop and Scan, and local functions, each folded as a graph of its own.

What is inlined of functions, and what not, is in ``rewriting/test_inlining_choice.py``.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import support
from graphs import FLOAT, IMAGE, Net, assert_report_names_nodes
from onnx import TensorProto, helper
from support import assert_same_function, count, fold_checked, ops, reasons

import onnx_bnfold
from onnx_bnfold import Reason

DOMAIN = "local"


def body(outer: Net, prefix: str, build, inputs=()) -> onnx.GraphProto:
    """A body whose nodes may read the outer net; `inputs` are its own, (name, type, shape)."""
    inner = Net(seed=len(outer.nodes) + 1, opset=outer.opset, prefix=prefix)
    for name, kind, shape in inputs:
        inner.input(name, shape, kind)
    outputs = build(inner)
    outputs = [outputs] if isinstance(outputs, str) else outputs
    return inner.graph(*outputs, name=f"{prefix}body")


def conv_bn(inner: Net, x: str = "x") -> str:
    return inner.bn(inner.conv(x, 3, channels=4, rank=4), channels=3)


def branch(outer: Net, build_then, build_else) -> str:
    condition = outer.input("condition", [], TensorProto.BOOL)
    return outer.op(
        "If",
        condition,
        then_branch=body(outer, "then_", build_then),
        else_branch=body(outer, "else_", build_else),
    )


def both_ways(model: onnx.ModelProto, kept: int = 0):
    """Fold, and compare for each value of the condition."""
    folded, report = fold_checked(model, kept=kept, compare=False)
    for value in (False, True):
        feeds = support.feeds_for(model) | {"condition": np.array(value)}
        assert_same_function(model, folded, feeds=feeds)
    assert_report_names_nodes(model, report)
    return folded, report


def test_both_branches_of_an_if():
    net = Net(IMAGE)
    folded, report = both_ways(net.model(branch(net, conv_bn, conv_bn)))
    assert count(folded, "Conv") == 2
    assert report.nodes_before - report.nodes_after == 2


def test_indices_of_a_max_pool_that_a_branch_reads():
    """They would be the same ones, but for values that are alike."""
    net = Net(IMAGE)
    t, indices = net.op("MaxPool", net.conv("x", 4), outputs=2, kernel_shape=[2, 2])
    z = branch(
        net,
        lambda inner: inner.op("Cast", indices, to=FLOAT),
        lambda inner: inner.op("Cast", inner.op("Neg", indices), to=FLOAT),
    )
    _, report = both_ways(net.model(net.bn(t, channels=4, signs="positive"), z), kept=1)
    assert Reason.OPAQUE in reasons(report)[0]


def test_a_weight_of_a_branch_keeps_its_description():
    net = Net(IMAGE)
    model = net.model(branch(net, conv_bn, conv_bn))
    for item in model.graph.node[0].attribute:
        weight = item.g.initializer[0]
        weight.doc_string = f"of {weight.name}"
        weight.metadata_props.add(key="k", value=weight.name)
    folded, _ = both_ways(model)
    for before, after in zip(
        model.graph.node[0].attribute, folded.graph.node[0].attribute, strict=True
    ):
        weight, kept = before.g.initializer[0], after.g.initializer[0]
        assert kept.raw_data != weight.raw_data
        assert (kept.name, kept.doc_string) == (weight.name, weight.doc_string)
        assert kept.metadata_props == weight.metadata_props


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_a_weight_of_a_branch_is_defined_once_before_ir_version_4(bias):
    def layer_and_norm(inner: Net) -> str:
        return inner.bn(inner.conv("x", 3, channels=4, rank=4, bias=bias), channels=3)

    net = Net(IMAGE)
    model = net.model(branch(net, layer_and_norm, layer_and_norm))
    model.ir_version = 3
    folded, report = onnx_bnfold.fold(model)
    assert len(report.folded) == 2
    for item in folded.graph.node[0].attribute:
        defined = [t.name for t in item.g.initializer]
        defined += [name for node in item.g.node for name in node.output]
        assert len(defined) == len(set(defined))
        assert [n.op_type for n in item.g.node] == ["Conv"] if bias else ["Constant", "Conv"]


def test_bn_in_front_of_a_layer_in_a_branch():
    def build(inner):
        return inner.conv(inner.bn("x", channels=4), 3, channels=4, rank=4)

    net = Net(IMAGE)
    both_ways(net.model(branch(net, build, conv_bn)))


def test_bn_of_a_captured_value_in_front_of_a_layer():
    """The captured value stays as it is; its rank is known outside."""
    net = Net(IMAGE)
    t = net.conv("x", 4)

    def build(inner):
        y = inner.op("Transpose", inner.bn(t, channels=4), perm=[0, 2, 3, 1])
        return inner.op("MatMul", y, inner.random(4, 3))

    both_ways(net.model(branch(net, build, build)))


def test_report_has_the_path_of_the_graph():
    net = Net(IMAGE)
    _, report = both_ways(net.model(branch(net, conv_bn, conv_bn)))
    names = [r.name for r in report.norms]
    assert len(set(names)) == 2
    assert all(n.startswith("n_if") for n in names), names


def test_layer_in_the_body_of_a_captured_bn():
    """The BN's output crosses the border."""
    net = Net(IMAGE)
    y = net.bn("x")
    inside = lambda inner: inner.conv(y, 3, channels=4, rank=4)  # noqa: E731
    _, report = both_ways(net.model(branch(net, inside, inside)), kept=1)
    assert Reason.CAPTURED in reasons(report)[0]


def test_bn_in_the_body_behind_a_captured_layer():
    net = Net(IMAGE)
    y = net.conv("x", 3)
    inside = lambda inner: inner.relu(inner.bn(y, channels=3))  # noqa: E731
    _, report = both_ways(net.model(branch(net, inside, inside)), kept=2)
    border = {Reason.CAPTURED, Reason.GRAPH_INPUT}
    assert all(tried & border for tried in reasons(report)), report.lines()


def test_captured_output_of_a_layer_with_a_bn():
    net = Net(IMAGE)
    t = net.conv("x", 3)
    y = net.bn(t)
    inside = lambda inner: inner.relu(t)  # noqa: E731
    z = branch(net, inside, inside)
    _, report = both_ways(net.model(y, z), kept=1)
    assert Reason.CAPTURED in reasons(report)[0]


def test_value_captured_two_levels_down():
    net = Net(IMAGE)
    t = net.conv("x", 3)
    y = net.bn(t)

    def nested(inner):
        leaf = body(inner, f"{inner.prefix}leaf_", lambda n: n.relu(t))
        return inner.op("If", "condition", then_branch=leaf, else_branch=leaf)

    z = branch(net, nested, lambda n: n.relu("x") and n.conv("x", 3, channels=4, rank=4))
    _, report = both_ways(net.model(y, z), kept=1)
    assert Reason.CAPTURED in reasons(report)[0]


def test_branch_output_is_opaque():
    """Both ends of the BN are at the border of the body."""
    net = Net(IMAGE)
    inside = lambda inner: inner.bn("x", channels=4)  # noqa: E731
    both_ways(net.model(branch(net, inside, inside)), kept=2)


def test_bn_around_an_if():
    net = Net(IMAGE)
    inside = lambda inner: inner.conv("x", 3, channels=4, rank=4)  # noqa: E731
    y = branch(net, inside, inside)
    _, report = both_ways(net.model(net.bn(y, channels=3)), kept=1)
    assert reasons(report)[0] & {Reason.OPAQUE}


def test_constants_of_the_outer_scope():
    net = Net(IMAGE)
    w, b = net.random(3, 4, 1, 1), net.op("Identity", net.random(3))
    scale, shift, mean = (net.random(3) for _ in range(3))
    var = net.op("Constant", value_floats=[0.5, 1.0, 2.0])

    def inside(inner):
        return inner.op("BatchNormalization", inner.op("Conv", "x", w, b), scale, shift, mean, var)

    both_ways(net.model(branch(net, inside, inside)))


def test_outer_weight_read_by_the_outer_graph_as_well():
    net = Net(IMAGE)
    w = net.random(3, 4, 1, 1)
    inside = lambda inner: inner.bn(inner.op("Conv", "x", w), channels=3)  # noqa: E731
    y = branch(net, inside, lambda inner: inner.op("Conv", "x", w))
    both_ways(net.model(y, net.bn(net.op("Conv", "x", w)), w))


def test_inner_name_shadows_no_outer_constant():
    """A computed value of the outer graph is no constant inside."""
    net = Net(IMAGE)
    mean = net.op("Abs", net.input("p", [3]))

    def inside(inner):
        t = inner.conv("x", 3, channels=4, rank=4)
        constants = [inner.random(3), inner.random(3), mean, inner.const(np.ones(3))]
        return inner.op("BatchNormalization", t, *constants)

    _, report = both_ways(net.model(branch(net, inside, inside)), kept=2)
    assert all(Reason.PARAMETERS_NOT_CONSTANT in tried for tried in reasons(report))


def test_nested_ifs():
    net = Net(IMAGE)

    def nested(inner):
        one = body(inner, f"{inner.prefix}one_", conv_bn)
        two = body(inner, f"{inner.prefix}two_", conv_bn)
        return inner.op("If", "condition", then_branch=one, else_branch=two)

    both_ways(net.model(branch(net, nested, conv_bn)))


def test_new_names_differ_across_scopes():
    """Folding adds biases in the outer graph and in the bodies: no name may shadow another."""
    net = Net(IMAGE)
    plain = lambda inner: inner.bn(inner.conv("x", 3, bias=False, channels=4, rank=4), channels=3)  # noqa: E731
    y = branch(net, plain, plain)
    folded, _ = both_ways(net.model(net.bn(net.conv("x", 3, bias=False)), y))
    graphs = [folded.graph] + [a.g for n in folded.graph.node for a in n.attribute]
    names = [t.name for g in graphs for t in g.initializer]
    assert len(names) == len(set(names))


def loop_inputs(shape=(2, 4, 3, 3)):
    return [
        ("i", TensorProto.INT64, []),
        ("go", TensorProto.BOOL, []),
        ("state", FLOAT, list(shape)),
    ]


def loop(net: Net, build, trips: int = 3) -> str:
    """A Loop with one carried tensor, starting with x."""

    def inside(inner):
        return inner.op("Identity", "go"), build(inner)

    graph = body(net, "loop_", inside, loop_inputs())
    return net.op("Loop", net.const(np.int64(trips)), "", "x", body=graph)


def test_body_of_a_loop():
    net = Net((2, 4, 3, 3))
    inside = lambda inner: inner.relu(inner.bn(inner.conv("state", 4)))  # noqa: E731
    fold_checked(net.model(loop(net, inside)))


def test_bn_in_front_of_a_layer_in_a_loop():
    net = Net((2, 4, 3, 3))
    inside = lambda inner: inner.relu(inner.conv(inner.bn("state"), 4))  # noqa: E731
    fold_checked(net.model(loop(net, inside)))


def test_carried_tensor_is_opaque():
    """Each turn reads what the last one wrote: it must not be changed."""
    net = Net((2, 4, 3, 3))
    _, report = fold_checked(net.model(loop(net, lambda inner: inner.bn("state"))), kept=1)
    assert reasons(report)[0] & {Reason.GRAPH_INPUT, Reason.GRAPH_OUTPUT}


def test_start_of_a_loop_is_opaque():
    net = Net((2, 4, 3, 3))
    t = net.bn("x")
    inside = lambda inner: inner.conv("state", 4)  # noqa: E731

    def build(inner):
        return inner.op("Identity", "go"), inside(inner)

    graph = body(net, "loop_", build, loop_inputs())
    y = net.op("Loop", net.const(np.int64(2)), "", t, body=graph)
    _, report = fold_checked(net.model(net.conv(y, 2, channels=4, rank=4)), kept=1)
    assert Reason.OPAQUE in reasons(report)[0]


def test_scan_output_of_a_loop_is_opaque():
    net = Net((2, 4, 3, 3))

    def inside(inner):
        t = inner.conv("state", 4)
        return inner.op("Identity", "go"), inner.relu(inner.bn(t)), t

    graph = body(net, "loop_", inside, loop_inputs())
    y, z = net.op("Loop", net.const(np.int64(2)), "", "x", outputs=2, body=graph)
    _, report = fold_checked(net.model(y, z), kept=1)
    assert Reason.GRAPH_OUTPUT in reasons(report)[0]


def test_body_of_a_scan():
    net = Net((5, 4, 3, 3))

    def inside(inner):
        t = inner.op("Unsqueeze", "element", inner.ints(0))
        t = inner.bn(inner.conv(t, 4))
        return inner.op("Squeeze", t, inner.ints(0))

    graph = body(net, "scan_", inside, [("element", FLOAT, [4, 3, 3])])
    fold_checked(net.model(net.op("Scan", "x", num_scan_inputs=1, body=graph)))


def test_loop_inside_an_if():
    net = Net((2, 4, 3, 3))

    def build(inner):
        def inside(deep):
            return deep.op("Identity", "go"), deep.relu(deep.bn(deep.conv("state", 4)))

        graph = body(inner, f"{inner.prefix}loop_", inside, loop_inputs())
        return inner.op("Loop", inner.const(np.int64(2)), "", "x", body=graph)

    both_ways(net.model(branch(net, build, lambda inner: inner.relu("x"))))


def function(
    name: str, build, inputs=("a",), *, opset: int = 17, attributes=()
) -> onnx.FunctionProto:
    """A local function; what it needs of constants is in Constant nodes."""
    inner = Net(opset=opset, prefix=f"{name}_")
    outputs = build(inner, *inputs)
    constants = [
        helper.make_node("Constant", [], [t.name], name=f"n_{t.name}", value=t)
        for t in inner.initializers
    ]
    return helper.make_function(
        DOMAIN,
        name,
        inputs,
        [outputs] if isinstance(outputs, str) else outputs,
        constants + inner.nodes,
        [helper.make_opsetid("", opset)],
        attributes=attributes,
    )


def call(net: Net, name: str, *inputs: str) -> str:
    return net.op(name, *inputs, domain=DOMAIN)


def block(inner: Net, a: str) -> str:
    return inner.relu(inner.bn(inner.conv(a, 4, channels=4, rank=4), channels=4))


def test_function_called_once():
    net = Net(IMAGE)
    net.functions = [function("Block", block)]
    folded, report = fold_checked(net.model(call(net, "Block", "x")))
    assert [n.op_type for n in folded.functions[0].node if n.op_type != "Constant"] == [
        "Conv",
        "Relu",
    ]
    assert_report_names_nodes(net.model(call(net, "Block", "x")), report)


def test_function_called_twice():
    net = Net(IMAGE)
    net.functions = [function("Block", block)]
    t = call(net, "Block", "x")
    folded, _ = fold_checked(net.model(call(net, "Block", net.conv(t, 4, channels=4, rank=4))))
    assert len(folded.functions) == 1
    assert ops(folded).count("Block") == 2


def test_function_that_calls_a_function():
    net = Net(IMAGE)
    inner = function("Block", block)
    outer = function(
        "Stage", lambda n, a: n.op("Block", n.op("Block", a, domain=DOMAIN), domain=DOMAIN)
    )
    outer.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    net.functions = [inner, outer]
    fold_checked(net.model(call(net, "Stage", "x")))


def test_parameters_that_a_function_gets_from_its_caller():
    """Different calls may pass different values."""

    def parametrised(inner, a, mean):
        t = inner.conv(a, 4, channels=4, rank=4)
        constants = [inner.random(4), inner.random(4), mean, inner.const(np.ones(4))]
        return inner.op("BatchNormalization", t, *constants)

    net = Net(IMAGE)
    net.functions = [function("Norm", parametrised, ("a", "mean"))]
    t = call(net, "Norm", "x", net.random(4))
    y = call(net, "Norm", net.relu(t), net.random(4))
    fold_checked(net.model(y))


def test_border_of_a_function_is_crossed():
    net = Net(IMAGE)
    net.functions = [function("Norm", lambda inner, a: inner.bn(a, channels=4))]
    y = call(net, "Norm", net.conv("x", 4))
    fold_checked(net.model(net.conv(y, 2, channels=4, rank=4)))


def test_call_of_a_function_is_looked_into():
    net = Net(IMAGE)
    net.functions = [function("Act", lambda inner, a: inner.relu(a))]
    y = call(net, "Act", net.conv("x", 4))
    fold_checked(net.model(net.bn(y, channels=4, signs="positive", shift=False)))


def test_parameters_that_are_computed_when_the_model_runs():
    def parametrised(inner, a, mean):
        return inner.op("BatchNormalization", a, mean, mean, mean, mean)

    net = Net(IMAGE)
    net.functions = [function("Norm", parametrised, ("a", "mean"))]
    mean = net.op("Exp", net.input("given", [4]))
    _, report = fold_checked(net.model(call(net, "Norm", net.conv("x", 4), mean)), kept=1)
    (kept,) = report.kept
    assert kept.refusal.reason is Reason.PARAMETERS_NOT_CONSTANT
    assert repr(mean) in kept.refusal.sentence, "it names what the call gives"


def test_function_that_has_the_name_of_an_operator():
    """local::Conv and local::BatchNormalization are not the operators of ONNX."""
    net = Net(IMAGE)
    net.functions = [
        function("Conv", lambda inner, a: inner.op("Tanh", a)),
        function("BatchNormalization", lambda inner, a: inner.op("Sin", a)),
    ]
    y = net.op("Conv", "x", domain=DOMAIN)
    y = net.bn(net.relu(net.op("BatchNormalization", y, domain=DOMAIN)), channels=4)
    fold_checked(net.model(y), kept=1)


def test_function_of_another_opset():
    """Squeeze has its axes as an attribute in the function, as an input in the graph."""

    def squeezed(inner, a):
        t = inner.op("Squeeze", inner.conv(a, 4, channels=4, rank=3), axes=[2])
        return inner.bn(t, channels=4)

    net = Net((2, 4, 1))
    net.functions = [function("Head", squeezed, opset=11)]
    model = net.model(call(net, "Head", "x"))
    _, report = onnx_bnfold.fold(model)
    assert not report.kept or Reason.UNKNOWN_SHAPE in reasons(report)[0], report.lines()


def norm_of_a_parameter(inner, a):
    """A Conv and a BN whose epsilon is given by the caller."""
    y = inner.bn(inner.conv(a, 4, channels=4, rank=4), channels=4)
    (attribute,) = inner.nodes[-1].attribute
    attribute.CopyFrom(onnx.AttributeProto(name="epsilon", type=1, ref_attr_name="eps"))
    return y


def test_attribute_of_a_function():
    net = Net(IMAGE)
    net.functions = [function("Block", norm_of_a_parameter, attributes=["eps"])]
    a = net.op("Block", "x", domain=DOMAIN, eps=0.1)
    b = net.op("Block", a, domain=DOMAIN, eps=0.9)
    fold_checked(net.model(b))


def test_attribute_of_a_function_that_cannot_be_inlined():
    net = Net(IMAGE)
    net.functions = [function("Block", norm_of_a_parameter, attributes=["eps"], opset=13)]
    model = net.model(net.op("Block", "x", domain=DOMAIN, eps=0.1))
    _, report = fold_checked(model, kept=1)
    assert Reason.FUNCTION_ATTRIBUTE in reasons(report)[0]
    assert "is not inlined: it uses version 13" in report.lines()[0]


def test_constant_of_a_function_attribute():
    def build(inner, a):
        t = inner.conv(a, 4, channels=4, rank=4)
        mean = inner.op("Constant", value_floats=[0.0])
        (attribute,) = inner.nodes[-1].attribute
        attribute.CopyFrom(
            onnx.AttributeProto(
                name="value_floats", type=onnx.AttributeProto.FLOATS, ref_attr_name="mean"
            )
        )
        constants = [inner.random(4), inner.random(4), mean, inner.const(np.ones(4))]
        return inner.op("BatchNormalization", t, *constants)

    net = Net(IMAGE)
    net.functions = [function("Block", build, attributes=["mean"])]
    a = net.op("Block", "x", domain=DOMAIN, mean=[1.0, 2.0, 3.0, 4.0])
    b = net.op("Block", a, domain=DOMAIN, mean=[4.0, 3.0, 2.0, 1.0])
    fold_checked(net.model(b))


@pytest.mark.parametrize("used", [True, False], ids=["called", "never-called"])
def test_function_that_is_kept_in_the_model(used):
    net = Net(IMAGE)
    net.functions = [function("Block", block)]
    y = call(net, "Block", "x") if used else net.relu("x")
    folded, _ = fold_checked(net.model(y))
    assert [f.name for f in folded.functions] == ["Block"]
