"""What a folded model must hold; if it does not, that is our bug, and nothing is written."""

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support import Parts, bn, conv, counting_calls, join, model_of, node, tensor, value_of

import onnx_bnfold
from onnx_bnfold.batch import fold_store
from onnx_bnfold.cli.main import main
from onnx_bnfold.errors import BnFoldError, BrokenResult
from onnx_bnfold.model.graph import counterparts, graphs_of
from onnx_bnfold.rewriting import graph_editor
from onnx_bnfold.rewriting.integrity import Text, require_intact

SHAPE = (2, 3, 4, 4)


def sample(ir_version=10) -> onnx.ModelProto:
    """x -> Conv c -> Relu r -> If z, whose branches read r and have a Conv each; and a function."""
    rng = np.random.default_rng(0)
    branches = []
    for way in ("then", "else"):
        parts = join(conv("r", f"{way}_c", (3, 3, 1, 1), rng), node("Neg", [f"{way}_c"], [way]))
        outputs = [value_of(way, SHAPE)]
        graph = helper.make_graph(parts.nodes, way, [], outputs, parts.initializers)
        graph.value_info.append(value_of(f"{way}_c_W", (3, 3, 1, 1)))
        branches.append(graph)
    parts = join(
        conv("x", "c", (3, 3, 1, 1), rng),
        node("Relu", ["c"], ["r"]),
        node("If", ["flag"], ["z"], then_branch=branches[0], else_branch=branches[1]),
        Parts([], [tensor("flag", np.array(True)), tensor("spare", np.ones(2, np.float32))]),
    )
    twice = helper.make_function(
        "own",
        "Twice",
        ["a"],
        ["b"],
        node("Add", ["a", "a"], ["b"]).nodes,
        [helper.make_opsetid("", 17)],
    )
    call = node("Twice", ["r"], ["w"], domain="own")
    model = model_of(
        [*parts.nodes, *call.nodes],
        {"x": SHAPE},
        {"z": SHAPE, "w": SHAPE},
        parts.initializers,
        ir_version=ir_version,
        functions=[twice],
        imports={"own": 1},
        value_info={"c": SHAPE, "c_W": (3, 3, 1, 1)},
    )
    if ir_version >= 4:
        model.graph.input.append(value_of("spare", (2,)))
    return model


def branch(model, number=0) -> onnx.GraphProto:
    return next(n for n in model.graph.node if n.op_type == "If").attribute[number].g


def named(model, name):
    return next(t for t in model.graph.initializer if t.name == name)


def node_of(model, op):
    return next(n for n in model.graph.node if n.op_type == op)


def reorder(field, *order):
    kept = [type(m).FromString(m.SerializeToString()) for m in field]
    del field[:]
    field.extend(kept[i] for i in order)


def extend(field, *names):
    field.extend(tensor(name, np.ones(3, np.float32)) for name in names)


# What is done to the model -> a part of the sentence, and the names that are in it.
BROKEN = {
    "a-tensor-twice": (
        lambda m: m.graph.node.extend(node("Neg", ["x"], ["c"], name="").nodes),
        "'c' is defined twice",
    ),
    "one-node-twice-the-same": (
        lambda m: node_of(m, "Relu").output.append("r"),
        "'r' is defined twice",
    ),
    "a-tensor-and-an-input": (
        lambda m: m.graph.node.extend(node("Neg", ["c"], ["x"]).nodes),
        "'x' is defined twice",
    ),
    "a-tensor-and-an-initializer": (
        lambda m: m.graph.node.extend(node("Constant", [], ["c_W"]).nodes),
        "'c_W' is defined twice",
    ),
    "two-initializers": (
        lambda m: extend(m.graph.initializer, "c_bias"),
        "two initializers are named 'c_bias'",
    ),
    "a-sparse-initializer-of-the-name": (
        lambda m: m.graph.sparse_initializer.add(values=tensor("c_W", np.ones(1, np.float32))),
        "two initializers are named 'c_W'",
    ),
    "two-nodes-of-a-name": (
        lambda m: m.graph.node.extend(node("Neg", ["x"], ["new"], name="n_c").nodes),
        "two nodes are named 'n_c'",
    ),
    "a-dangling-input": (
        lambda m: node_of(m, "Relu").input.__setitem__(0, "lost"),
        "'lost' is read and nothing defines it",
    ),
    "a-lost-node": (lambda m: m.graph.node.pop(1), "'r' is read and nothing defines it"),
    "a-lost-initializer": (
        lambda m: m.graph.initializer.remove(named(m, "c_bias")),
        "'c_bias' is read and nothing defines it",
    ),
    "an-output-that-nothing-computes": (lambda m: m.graph.node.pop(3), "'w' is read"),
    "an-output-of-a-branch-that-nothing-computes": (
        lambda m: branch(m).node.pop(1),
        "'else' is read and nothing defines it",
    ),
    "a-branch-reads-what-is-lost": (
        lambda m: branch(m, 1).node[1].input.__setitem__(0, "lost"),
        "'lost' is read and nothing defines it",
    ),
    "a-late-node": (
        lambda m: reorder(m.graph.node, 1, 0, 2, 3),
        "'c' is read before it is computed",
    ),
    "a-late-node-in-a-branch": (
        lambda m: reorder(branch(m).node, 1, 0),
        "in the body n_z.else_branch, as folded, 'else_c' is read before it is computed",
    ),
    "a-capture-of-a-late-node": (
        lambda m: reorder(m.graph.node, 0, 2, 1, 3),
        "'r' is read before it is computed",
    ),
    "a-function-reads-an-outer-name": (
        lambda m: m.functions[0].node[0].input.__setitem__(0, "x"),
        "in the body own::Twice, as folded, 'x' is read and nothing defines it",
    ),
    "a-lost-input": (lambda m: m.graph.input.pop(0), "'x' is read"),
    "a-lost-input-that-nobody-reads": (
        lambda m: m.graph.node[0].input.__setitem__(0, "flag") or m.graph.input.pop(0),
        "the inputs are not those that it had",
    ),
    "an-input-of-another-shape": (
        lambda m: m.graph.input[0].type.tensor_type.shape.dim.add(dim_value=1),
        "the inputs are not those that it had",
    ),
    "a-new-input": (
        lambda m: m.graph.input.append(value_of("more", SHAPE)),
        "the inputs are not those that it had",
    ),
    "inputs-of-a-function": (
        lambda m: m.functions[0].input.append("more"),
        "the inputs are not those that it had",
    ),
    "a-lost-overridable-initializer": (
        lambda m: m.graph.initializer.remove(named(m, "spare")) or m.graph.input.pop(1),
        "the input 'spare' is lost",
    ),
    "an-initializer-that-can-be-overridden": (
        lambda m: m.graph.input.append(value_of("c_W", (3, 3, 1, 1))),
        "the constant 'c_W' has become an input",
    ),
    "a-lost-output": (lambda m: m.graph.output.pop(1), "the outputs are not those that it had"),
    "another-order-of-outputs": (
        lambda m: reorder(m.graph.output, 1, 0),
        "the outputs are not those that it had",
    ),
    "an-output-of-another-type": (
        lambda m: setattr(m.graph.output[0].type.tensor_type, "elem_type", 11),
        "the outputs are not those that it had",
    ),
    "outputs-of-a-function": (
        lambda m: m.functions[0].output.append("a"),
        "the outputs are not those that it had",
    ),
    "a-shape-that-is-not-declared": (
        lambda m: named(m, "c_W").dims.append(1),
        "'c_W' is declared in another shape or type",
    ),
    "a-type-that-is-not-declared": (
        lambda m: setattr(named(m, "c_W"), "data_type", TensorProto.DOUBLE),
        "'c_W' is declared in another shape or type",
    ),
    "an-input-declares-another-shape": (
        lambda m: named(m, "spare").dims.__setitem__(0, 5),
        "'spare' is declared in another shape or type",
    ),
    "a-branch-declares-another-shape": (
        lambda m: branch(m).initializer[0].dims.append(1),
        "'else_c_W' is declared in another shape or type",
    ),
    "a-lost-branch": (
        lambda m: node_of(m, "If").attribute.pop(1),
        "the body 'n_z.then_branch' is lost",
    ),
    "a-new-name-hides-an-outer-one": (
        lambda m: extend(branch(m).initializer, "c_W"),
        "the new name 'c_W' is one of another body",
    ),
    "one-new-name-in-two-bodies": (
        lambda m: [extend(branch(m, i).initializer, "new") for i in (0, 1)],
        "the new name 'new' is one of another body",
    ),
}
BROKEN_OF_IR_3 = {
    "an-initializer-that-is-no-input": (
        lambda m: extend(m.graph.initializer, "new"),
        "the input 'new' is lost",
    ),
    "an-initializer-that-is-no-input-any-more": (
        lambda m: m.graph.input.remove(next(i for i in m.graph.input if i.name == "c_W")),
        "the input 'c_W' is lost",
    ),
}


def checked(model, damage, freeze=False):
    graphs = graphs_of(model, freeze_initializers=freeze)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    bodies = counterparts(copy, graphs)
    damage(copy)
    require_intact(graphs, [*map(Text, bodies)], model.ir_version)


@pytest.mark.parametrize("name", BROKEN)
def test_each_break_is_named(name):
    damage, said = BROKEN[name]
    with pytest.raises(BrokenResult) as failed:
        checked(sample(), damage)
    assert said in str(failed.value)
    assert str(failed.value).endswith("nothing was written")


def test_the_name_of_a_body_does_not_steer_the_terminal():
    model = sample()
    node_of(model, "If").name = "\x1b[2J"
    with pytest.raises(BrokenResult) as failed:
        checked(model, lambda m: reorder(branch(m).node, 1, 0))
    assert str(failed.value).isprintable()


@pytest.mark.parametrize("name", BROKEN_OF_IR_3)
def test_each_break_of_ir_version_3_is_named(name):
    damage, said = BROKEN_OF_IR_3[name]
    with pytest.raises(BrokenResult) as failed:
        checked(sample(ir_version=3), damage)
    assert said in str(failed.value)


def late_type(model):
    """A new shape is declared along with it."""
    named(model, "c_W").dims.append(1)
    info = next(v for v in model.graph.value_info if v.name == "c_W")
    info.type.tensor_type.shape.dim.add(dim_value=1)


def frozen(model):
    model.graph.input.pop(1)


INTACT = {
    "untouched": lambda m: None,
    "a-new-node-and-constant": lambda m: (
        extend(m.graph.initializer, "new"),
        m.graph.node.extend(node("Neg", ["new"], ["newer"]).nodes),
    ),
    "a-constant-that-goes": lambda m: (
        m.graph.initializer.remove(named(m, "c_bias")),
        m.graph.node[0].input.pop(),
    ),
    "outputs-that-are-left-out": lambda m: [node_of(m, "Relu").output.append("") for _ in "ab"],
    "outputs-that-are-left-out-in-two-bodies": lambda m: [
        each.output.append("") for each in (node_of(m, "Relu"), branch(m).node[0])
    ],
    "a-shape-that-is-declared": late_type,
    "a-declaration-without-a-shape": lambda m: (
        named(m, "c_W").dims.append(1),
        m.graph.value_info[1].type.tensor_type.ClearField("shape"),
    ),
    "another-order-that-is-one": lambda m: reorder(m.graph.node, 0, 1, 3, 2),
}


@pytest.mark.parametrize("change", INTACT.values(), ids=INTACT)
def test_what_may_change(change):
    checked(sample(), change)


def test_a_declaration_that_was_wrong_before_is_no_break():
    model = sample()
    (info,) = (v for v in model.graph.value_info if v.name == "c_W")
    info.type.tensor_type.shape.dim[0].dim_value = 7
    checked(model, lambda m: None)


def test_frozen_initializers_leave_the_inputs():
    checked(sample(), frozen, freeze=True)
    with pytest.raises(BrokenResult, match="the constant 'spare' is still an input"):
        checked(sample(), lambda m: None, freeze=True)


def test_a_name_that_was_there_twice_before_is_no_break():
    """Some models have nodes of one name; that they cannot be run is not our doing."""
    model = sample()
    for n in model.graph.node[:2]:
        n.name = "same"
    checked(model, lambda m: None)
    with pytest.raises(BrokenResult, match="two nodes are named 'same'"):
        checked(model, lambda m: setattr(node_of(m, "If"), "name", "same"))


# --- where a fold meets it ------------------------------------------------------------------------


@pytest.fixture
def broken_editor(monkeypatch):
    """The editor loses the name of a tensor."""
    original = graph_editor._Editor._rename

    def wrong(self, mapping):
        original(self, dict.fromkeys(mapping, "l\nost"))

    monkeypatch.setattr(graph_editor._Editor, "_rename", wrong)


def model_with_norm(name="y", **options):
    rng = np.random.default_rng(0)
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng), bn("c", "b", 4, rng), node("Relu", ["b"], [name])
    )
    return model_of(parts.nodes, {"x": SHAPE}, [name], parts.initializers, **options)


@pytest.mark.usefixtures("broken_editor")
def test_a_fold_in_memory_raises():
    with pytest.raises(BrokenResult) as failed:
        onnx_bnfold.fold(model_with_norm())
    assert not isinstance(failed.value, BnFoldError)


@pytest.mark.usefixtures("broken_editor")
@pytest.mark.parametrize("options", [[], ["--dry-run", "--report", "r.json"]], ids=str)
def test_the_command_line_calls_it_a_bug_of_ours(options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(model_with_norm(), "model.onnx")
    assert main(["model.onnx", "-o", "folded.onnx", *options]) == 2
    said = capsys.readouterr().err
    assert "internal error, please report it: BrokenResult: in the graph, as folded, 'b'" in said
    assert "nothing was written" in said
    assert said.count("\n") == 1
    assert os.listdir(tmp_path) == ["model.onnx"]


@pytest.mark.usefixtures("broken_editor")
def test_a_store_names_the_file(tmp_path):
    (tmp_path / "in").mkdir()
    onnx.save(model_with_norm(), tmp_path / "in" / "model.onnx")
    report = fold_store(tmp_path / "in", tmp_path / "out", jobs=1)
    (error,) = report.errors()
    assert "model.onnx: internal error, please report it: BrokenResult: " in error
    assert not (tmp_path / "out" / "model.onnx").exists()


def test_merged_branches_are_checked_too(monkeypatch):
    """Else the next look at the graph would blame the model."""
    from onnx_bnfold.rewriting import branch_merging

    rng = np.random.default_rng(0)
    parts = join(
        *(conv("x", name, (3, 3, 1, 1), rng) for name in "abcd"),
        node("Add", ["a", "b"], ["y"]),
        node("Add", ["c", "d"], ["z"]),
    )
    model = model_of(parts.nodes, {"x": SHAPE}, ["y", "z"], parts.initializers)
    original = branch_merging._write

    def wrong(n, found, names, output):
        original(n, found, names, "y")

    monkeypatch.setattr(branch_merging, "_write", wrong)
    with pytest.raises(BrokenResult, match="'y' is defined twice"):
        onnx_bnfold.fold(model, onnx_bnfold.Options(merge_branches=True))


# --- what it costs --------------------------------------------------------------------------------


def calls_of(pairs, *, reverse):
    """How many functions a fold calls, Python's and others': the same on every machine."""
    rng = np.random.default_rng(0)
    layers = [
        join(
            conv(f"v{i}", f"c{i}", (2, 2, 1, 1), rng, bias=False), bn(f"c{i}", f"v{i + 1}", 2, rng)
        )
        for i in range(pairs)
    ]
    parts = join(*layers)
    nodes = parts.nodes[::-1] if reverse else parts.nodes
    ends = {"v0": (1, 2, 3, 3)}, {f"v{pairs}": (1, 2, 3, 3)}
    model = model_of(nodes, *ends, parts.initializers)
    report, count = counting_calls(lambda: onnx_bnfold.fold(model)[1])
    assert len(report.folded) == pairs
    return count


@pytest.mark.parametrize("reverse", [False, True], ids=["in-order", "reversed"])
def test_the_work_grows_as_the_nodes_do(reverse):
    """Peers need time quadratic in the nodes."""
    calls_of(5, reverse=reverse)  # what is made once
    few, many = calls_of(50, reverse=reverse), calls_of(400, reverse=reverse)
    assert many < 8.5 * few
