"""Nodes in any order: runtimes load such models, and a fold puts every body in order."""

import json
import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support import (
    assert_same_function,
    bn,
    conv,
    feeds_for,
    join,
    model_of,
    node,
    ops,
    run,
    tensor,
    value_of,
)

import onnx_bnfold
from onnx_bnfold import ModelError
from onnx_bnfold.check import check
from onnx_bnfold.model.graph import graphs_of
from onnx_bnfold.model.validate import require_sound

SHAPE = (2, 3, 5, 5)


def residual(rng, x="x", y="y", prefix=""):
    """A residual block whose last BN has its mean behind a Constant and a Cast."""
    names = {n: f"{prefix}{n}" for n in "abcdst"}
    a, b, c, d, s, t = names.values()
    parts = join(
        conv(x, a, (3, 3, 3, 3), rng, pads=[1] * 4),
        bn(a, b, 3, rng),
        node("Relu", [b], [c]),
        conv(c, d, (3, 3, 1, 1), rng),
        node("Add", [d, x], [s]),
        bn(s, t, 3, rng),
        node("Relu", [t], [y]),
    )
    held = next(t for t in parts.initializers if t.name == f"{names['b']}_mean")
    wide = tensor(f"{held.name}_wide", onnx.numpy_helper.to_array(held).astype(np.float64))
    made = join(
        node("Constant", [], [wide.name], value=wide),
        node("Cast", [wide.name], [held.name], to=int(TensorProto.FLOAT)),
    )
    return [*made.nodes, *parts.nodes], [t for t in parts.initializers if t is not held]


def main_graph(rng):
    nodes, initializers = residual(rng)
    return model_of(nodes, {"x": SHAPE}, ["y"], initializers)


def branches(rng):
    """Both branches read a tensor of the main graph that a Conv and a BN compute."""
    graphs = []
    for way in ("then", "else"):
        nodes, initializers = residual(rng, "v", f"{way}_y", f"{way}_")
        outputs = [value_of(f"{way}_y", SHAPE)]
        graphs.append(helper.make_graph(nodes, way, [], outputs, initializers))
    outer = join(conv("x", "u", (3, 3, 1, 1), rng), bn("u", "v", 3, rng))
    choice = node("If", ["flag"], ["z"], then_branch=graphs[0], else_branch=graphs[1])
    model = model_of([*outer.nodes, *choice.nodes], {"x": SHAPE}, {"z": SHAPE}, outer.initializers)
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    return model


def loop(rng):
    nodes, initializers = residual(rng, "state", "next", "l_")
    body = helper.make_graph(
        [*nodes, *node("Identity", ["go"], ["again"]).nodes],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            value_of("state", SHAPE),
        ],
        [helper.make_tensor_value_info("again", TensorProto.BOOL, []), value_of("next", SHAPE)],
        initializers,
    )
    made = node("Loop", ["trips", "", "x"], ["y"], body=body)
    return model_of(made.nodes, {"x": SHAPE}, {"y": SHAPE}, [tensor("trips", np.int64(2))])


def scan(rng):
    nodes, initializers = residual(rng, "step", "out", "s_")
    body = helper.make_graph(
        nodes, "body", [value_of("step", SHAPE)], [value_of("out", SHAPE)], initializers
    )
    made = node("Scan", ["x"], ["y"], body=body, num_scan_inputs=1)
    shape = (2, *SHAPE)
    return model_of(made.nodes, {"x": shape}, {"y": shape})


def function(rng):
    nodes, initializers = residual(rng, "v", "w")
    held = [node("Constant", [], [t.name], value=t).nodes[0] for t in initializers]
    made = helper.make_function(
        "own", "Block", ["v"], ["w"], [*held, *nodes], [helper.make_opsetid("", 17)]
    )
    call = node("Block", ["x"], ["y"], domain="own")
    return model_of(call.nodes, {"x": SHAPE}, {"y": SHAPE}, functions=[made], imports={"own": 1})


MODELS = {"main": main_graph, "if": branches, "loop": loop, "scan": scan, "function": function}
ORDERS = {"reversed": None, "random-0": 0, "random-1": 1, "random-2": 2}


def bodies(model):
    found = [model.graph, *model.functions]
    for body in found:  # grows as bodies are met
        for n in body.node:
            found += [g for a in n.attribute for g in [a.g, *a.graphs] if g.node]
    return found


def disordered(model, seed):
    """A copy with the nodes of every body in another order: reversed, or a random one."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for body in reversed(bodies(copy)):  # the inner ones first: of outer ones, copies are made
        nodes = []
        for n in body.node:
            kept = onnx.NodeProto()
            kept.CopyFrom(n)
            nodes.append(kept)
        order = range(len(nodes))[::-1]
        if seed is not None:
            order = np.random.default_rng(seed).permutation(len(nodes))
        del body.node[:]
        body.node.extend(nodes[i] for i in order)
    return copy


def assert_in_order(model):
    def names_read(n):
        inner = [m for a in n.attribute for g in [a.g, *a.graphs] for m in g.node]
        made = {o for m in inner for o in m.output}
        return set(n.input).union(*map(names_read, inner)) - made

    for body in bodies(model):
        made_here = {o for n in body.node for o in n.output}
        seen = set()
        for n in body.node:
            assert names_read(n) & made_here <= seen, n.name
            seen.update(n.output)


@pytest.mark.parametrize("seed", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_any_order_is_folded_like_the_right_one(build, seed, rng):
    model = build(rng)
    mixed = disordered(model, seed)
    before = mixed.SerializeToString()
    _, expected = onnx_bnfold.fold(model)
    folded, report = onnx_bnfold.fold(mixed)
    assert mixed.SerializeToString() == before, "the caller's model was changed"
    assert expected.folded
    assert len(report.folded) == len(expected.folded)
    assert_in_order(folded)
    onnx.checker.check_model(folded, full_check=True)
    assert_same_function(model, folded)
    again, _ = onnx_bnfold.fold(folded)
    assert again.SerializeToString() == folded.SerializeToString()


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_what_is_in_order_is_not_sorted(build, rng):
    model = build(rng)
    assert require_sound(graphs_of(model))
    assert not require_sound(graphs_of(disordered(model, None)))


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_files_plans_and_reports_of_any_order(build, rng, tmp_path):
    model = build(rng)
    source, target = tmp_path / "model.onnx", tmp_path / "folded.onnx"
    onnx.save(disordered(model, 0), source)
    report = onnx_bnfold.fold_file(source, target)
    planned = onnx_bnfold.plan(onnx.load(source))
    assert report.folded
    assert [r.name for r in planned.folded] == [r.name for r in report.folded]
    assert_in_order(onnx.load(target))
    assert_same_function(model, onnx.load(target))


def test_a_check_of_any_order(rng, tmp_path):
    model = main_graph(rng)
    folded, _ = onnx_bnfold.fold(model)
    assert not check(disordered(model, None), folded).failures


def test_reports_and_checks_of_any_order(rng, tmp_path):
    """A report counts what the nodes of both models cost; it needs the shapes for that."""
    from onnx_bnfold.cli.main import main

    found = []
    for name, model in (("s", main_graph(rng)), ("m", disordered(main_graph(rng), None))):
        source, target = tmp_path / f"{name}.onnx", tmp_path / f"{name}_folded.onnx"
        pages = [tmp_path / f"{name}.json", tmp_path / f"{name}.html"]
        onnx.save(model, source)
        reports = [word for page in pages for word in ("--report", os.fspath(page))]
        words = [os.fspath(source), "-o", os.fspath(target), "-q", "--check", "--merge-branches"]
        assert main([*words, *reports]) == 0
        assert_in_order(onnx.load(target))
        data = json.loads(pages[0].read_text())
        found.append((data["before"], data["after"]))
    assert found[0] == found[1]


def test_nodes_that_do_not_need_each_other_stay_as_they_were(rng):
    parts = join(
        node("Neg", ["r"], ["n"]),
        node("Abs", ["x"], ["a"]),
        node("Relu", ["x"], ["r"]),
        node("Exp", ["x"], ["e"]),
        node("Sin", ["n"], ["s"]),
    )
    model = model_of(parts.nodes, {"x": SHAPE}, dict.fromkeys("aes", SHAPE))
    folded, _ = onnx_bnfold.fold(model)
    assert ops(folded) == ["Abs", "Relu", "Neg", "Exp", "Sin"]


def test_what_a_branch_reads_is_computed_before_its_node(rng):
    """Every body is in order by itself, and only the captured tensor comes too late."""
    model = branches(rng)
    nodes = [*model.graph.node]
    reordered = [nodes[-1], *nodes[:-1]]
    mixed = onnx.ModelProto()
    mixed.CopyFrom(model)
    del mixed.graph.node[:]
    mixed.graph.node.extend(reordered)
    folded, _ = onnx_bnfold.fold(mixed)
    assert ops(folded)[-1] == "If"
    assert_same_function(model, folded)


def test_what_a_branch_within_a_branch_reads_is_computed_before_the_outer_node(rng):
    inner = helper.make_graph(
        node("Neg", ["y"], ["n"], name="n").nodes, "i", [], [value_of("n", SHAPE)]
    )
    middle = helper.make_graph(
        node("If", ["flag"], ["m"], name="m", then_branch=inner, else_branch=inner).nodes,
        "o", [], [value_of("m", SHAPE)],
    )  # fmt: skip
    made = node("If", ["flag"], ["z"], name="z", then_branch=middle, else_branch=middle)
    parts = join(conv("x", "u", (3, 3, 1, 1), rng), bn("u", "y", 3, rng))
    flag = tensor("flag", np.array(True))
    nodes = [*made.nodes, *parts.nodes]
    model = model_of(nodes, {"x": SHAPE}, {"z": SHAPE}, [flag, *parts.initializers])
    folded, _ = onnx_bnfold.fold(model)
    assert ops(folded) == ["Conv", "If"]


def test_only_the_main_graph_is_out_of_order(rng):
    model = branches(rng)
    model.graph.output.append(value_of("r", SHAPE))
    nodes = [*model.graph.node]
    relu = node("Relu", ["v"], ["r"]).nodes
    model.graph.node.extend(relu)
    mixed = onnx.ModelProto()
    mixed.CopyFrom(model)
    del mixed.graph.node[:]
    mixed.graph.node.extend([*relu, *nodes])
    folded, _ = onnx_bnfold.fold(mixed)
    assert ops(folded) == ["Conv", "Relu", "If"]
    assert_same_function(model, folded)


def test_a_name_that_a_branch_has_for_itself_is_no_capture(rng):
    """Branches may call their outputs what the If calls its own; nothing is out of order."""
    graphs = [
        helper.make_graph(
            node("Neg", ["x"], ["z"], name=way).nodes, way, [], [value_of("z", SHAPE)]
        )
        for way in ("then", "else")
    ]
    parts = join(
        conv("x", "u", (3, 3, 1, 1), rng),
        bn("u", "y", 3, rng),
        node("If", ["flag"], ["z"], then_branch=graphs[0], else_branch=graphs[1]),
    )
    flag = tensor("flag", np.array(True))
    model = model_of(
        parts.nodes, {"x": SHAPE}, {"y": SHAPE, "z": SHAPE}, [flag, *parts.initializers]
    )
    folded, report = onnx_bnfold.fold(model)
    assert len(report.folded) == 1
    assert ops(folded) == ["Conv", "If"]


def circle(count):
    """Nodes that read each other in a circle, one Conv in front and one Relu behind."""
    names = [f"t{i}" for i in range(count)]
    nodes = [
        node("Add", ["x", names[i - 1]], [names[i]], name=f"add{i}").nodes[0] for i in range(count)
    ]
    return [*nodes, *node("Relu", ["t0"], ["y"]).nodes]


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (1, ["Add 'add0' reads its own output"]),
        (2, ["Add 'add0', Add 'add1';", "cycle"]),
        (3, ["Add 'add0', Add 'add2', Add 'add1';", "cycle"]),
        (9, ["Add 'add4', 3 more;", "cycle"]),
    ],
)
@pytest.mark.parametrize("where", ["main", "branch"])
def test_a_cycle_is_named(where, count, said):
    nodes, flag = circle(count), tensor("flag", np.array(True))
    if where == "branch":
        inner = helper.make_graph(nodes, "b", [], [value_of("y", SHAPE)])
        nodes = node("If", ["flag"], ["y"], name="if", then_branch=inner, else_branch=inner).nodes
        said = [said[0].replace("Add", "if.else_branch/Add"), *said[1:]]
    model = model_of(nodes, {"x": SHAPE}, {"y": SHAPE}, [flag])
    with pytest.raises(ModelError) as failed:
        onnx_bnfold.fold(model)
    assert all(part in str(failed.value) for part in said), failed.value


def test_a_cycle_through_a_branch_is_named():
    """A branch reads what the If around it computes."""
    inner = helper.make_graph(
        node("Neg", ["z"], ["inner"]).nodes, "b", [], [value_of("inner", SHAPE)]
    )
    made = node("If", ["flag"], ["z"], then_branch=inner, else_branch=inner)
    flag = tensor("flag", np.array(True))
    model = model_of(made.nodes, {"x": SHAPE}, {"z": SHAPE}, [flag])
    with pytest.raises(ModelError, match="If 'n_z' reads its own output"):
        onnx_bnfold.fold(model)


def test_onnxruntime_runs_what_is_sorted_here(rng):
    """Else nobody would have such models."""
    model = main_graph(rng)
    feeds = feeds_for(model)
    expected, found = run(model, feeds), run(disordered(model, None), feeds)
    np.testing.assert_array_equal(expected[0], found[0])
