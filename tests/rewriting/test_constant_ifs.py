"""Ifs whose condition is a constant become the branch that they take, where a BN goes by that."""

import json

import numpy as np
import onnx
import pytest
from graphs import Net
from onnx import TensorProto, helper, numpy_helper
from support import assert_same_function, fold_checked, ops, parsed, saved_external, tensor

import onnx_bnfold
from onnx_bnfold import Options
from onnx_bnfold.cli.main import main
from onnx_bnfold.rewriting import constant_ifs

IMAGE = ("N", 4, 6, 6)


def branch(build, *, seed=1, prefix="b_", x="x", shape=IMAGE):
    """A branch that reads x from outside."""
    net = Net(seed=seed, prefix=prefix)
    net.input(x, shape)
    outputs = build(net, x)
    graph = net.graph(*([outputs] if isinstance(outputs, str) else outputs), name=prefix)
    del graph.input[:]
    return graph


def norm(net, x):
    return net.bn(x, channels=4)


def identity(net, x):
    return net.op("Identity", x)


def chosen(net: Net, condition: str, then_build, else_build, x: str, **options) -> str:
    then, other = (
        branch(build, seed=seed, prefix=prefix, x=x, **options)
        for seed, prefix, build in ((1, "t_", then_build), (2, "e_", else_build))
    )
    return net.op("If", condition, then_branch=then, else_branch=other)


def layer_and_branch(value, then_build=norm, else_build=identity):
    """Conv → If of a constant condition → Sigmoid."""
    net = Net(IMAGE)
    y = net.conv("x", 4)
    y = chosen(net, net.const(np.array(value)), then_build, else_build, y)
    return net.model(net.op("Sigmoid", y))


@pytest.mark.parametrize("value", [True, [True]], ids=["a scalar", "a vector of one"])
def test_a_norm_in_the_branch_that_is_taken(value):
    folded, report = fold_checked(layer_and_branch(value))
    assert ops(folded) == ["Conv", "Sigmoid"]
    assert not [t for t in folded.graph.initializer if t.data_type == TensorProto.BOOL]
    [record] = report.folded
    assert record.scale_to == ("Conv 'n_conv0'",)


def layer_and_norm(net, x):
    return net.bn(net.conv(x, 4, channels=4, rank=4), channels=4)


def norm_of_what_is_positive(net, x):
    return net.op("Sigmoid", net.bn(net.relu(net.bn(x, channels=4)), channels=4))


@pytest.mark.parametrize("taken", [norm, norm_of_what_is_positive], ids=["settled", "open"])
def test_an_if_that_another_fold_would_replace_is_left(taken, monkeypatch):
    """As a second fold must find nothing, whatever the first has not found."""
    net = Net(IMAGE)
    y = chosen(net, net.const(np.array(True)), taken, identity, net.conv("x", 4))
    model = net.model(net.op("Sigmoid", y), layer_and_norm(net, net.op("Tanh", "x")))
    resolved, first = constant_ifs.resolved, []

    def not_at_first(given, *arguments):
        first.append(given)
        return None if given is first[0] else resolved(given, *arguments)

    monkeypatch.setattr(constant_ifs, "resolved", not_at_first)
    folded, report = onnx_bnfold.fold(model)
    monkeypatch.undo()
    assert_same_function(model, folded)
    assert report.kept
    [if_] = (n for n in folded.graph.node if n.op_type == "If")
    assert "onnx_bnfold: left for branch" in if_.doc_string
    again, _ = onnx_bnfold.fold(folded)
    assert again.SerializeToString() == folded.SerializeToString()


def bare_norm(net, x):
    """One that stays in its branch."""
    return net.op("Sigmoid", net.bn(net.op("Sigmoid", x), channels=4))


def branch_that_never_runs(net, x):
    return chosen(net, net.const(np.array(True)), bare_norm, bare_norm, x)


@pytest.mark.parametrize(
    ("never", "norms"),
    [(bare_norm, 1), (layer_and_norm, 1), (branch_that_never_runs, 2)],
    ids=["stays in it", "goes in it", "in two branches"],
)
@pytest.mark.parametrize("taken", [norm, identity], ids=["norm", "none"])
def test_norms_of_a_branch_that_is_never_run(taken, never, norms):
    """They go with the branch, unless nothing is gained by that."""
    folded, report = fold_checked(layer_and_branch(True, taken, never))
    gained = taken is norm or never is not layer_and_norm
    assert ("If" not in ops(folded)) == gained
    ways = [record.way for record in report.records]
    assert ways.count("never run") == (norms if gained else 0)
    assert len(report.records) == norms + (taken is norm)
    if gained:
        assert any("into nothing: its branch of an If is never run" in line
                   for line in report.lines())  # fmt: skip


def test_a_norm_of_a_branch_that_is_never_run_is_kept_by_its_name():
    """And with it the If, by which another norm stays."""
    model = layer_and_branch(True, norm, bare_norm)
    folded, _ = fold_checked(model, kept=2, options=Options(keep=("n_e_",)))
    assert ops(folded) == ["Conv", "If", "Sigmoid"]


def test_the_report_of_a_file_has_the_norms_that_are_never_run(tmp_path):
    onnx.save(layer_and_branch(True, norm, bare_norm), tmp_path / "a.onnx")
    command = [str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx"), "--require-all"]
    assert main([*command, "--report", str(tmp_path / "r.json")]) == 0
    records = json.loads((tmp_path / "r.json").read_text())["batch_normalizations"]
    [never] = (each for each in records if each["way"] == "never run")
    assert never["graph"].endswith("else_branch")
    assert (never["status"], never["taken_by"], len(records)) == ("folded", [], 2)


def test_the_other_branch():
    folded, _ = fold_checked(layer_and_branch(False, identity, norm))
    assert ops(folded) == ["Conv", "Sigmoid"]


def test_a_norm_in_front_of_the_branch():
    """As of a Squeeze that an exporter does only where there is something to squeeze."""
    net = Net(IMAGE)
    y = net.bn(net.op("Sigmoid", "x"))
    y = chosen(net, net.const(np.array(True)), lambda n, x: n.conv(x, 2, channels=4, rank=4),
               lambda n, x: n.op("Neg", x), y)  # fmt: skip
    folded, _ = fold_checked(net.model(y))
    assert ops(folded) == ["Sigmoid", "Conv"]


def test_a_norm_behind_the_branch():
    net = Net(IMAGE)
    y = chosen(net, net.const(np.array(True)), lambda n, x: n.conv(x, 4, channels=4, rank=4),
               identity, "x")  # fmt: skip
    folded, _ = fold_checked(net.model(net.bn(y, channels=4)))
    assert ops(folded) == ["Conv"]


def test_a_condition_that_is_computed_from_constants():
    net = Net(IMAGE)
    rank = net.op("Size", net.ints(1, 2, 3))
    y = net.conv("x", 4)
    y = chosen(net, net.op("Equal", rank, net.const(np.int64(3))), norm, identity, y)
    folded, _ = fold_checked(net.model(net.op("Sigmoid", y)))
    assert ops(folded) == ["Conv", "Sigmoid"]


def test_an_if_by_which_nothing_goes_stays():
    net = Net(IMAGE)
    condition = net.const(np.array(True))
    y = chosen(net, condition, norm, identity, net.conv("x", 4))
    z = chosen(net, condition, lambda n, x: n.op("Tanh", x), identity, "x")
    folded, _ = fold_checked(net.model(net.op("Sigmoid", y), z))
    assert sorted(ops(folded)) == ["Conv", "If", "Sigmoid"]


def test_a_norm_that_goes_in_its_branch_leaves_the_if():
    folded, _ = fold_checked(
        layer_and_branch(True, lambda n, x: norm(n, n.conv(x, 4, channels=4, rank=4)))
    )
    assert ops(folded) == ["Conv", "If", "Sigmoid"]


def test_a_branch_in_a_branch():
    def inner(net, x):
        return chosen(net, net.const(np.array(False)), lambda n, t: n.op("Neg", t), norm, x)

    folded, _ = fold_checked(layer_and_branch(True, inner))
    assert ops(folded) == ["Conv", "Sigmoid"]


def test_a_branch_whose_shape_an_if_hides():
    """Before opset 11 inference takes the size of one branch; without that If it is known."""

    def lower(net, x):
        return net.op("ReduceSum", norm(net, x), axes=[3])

    def inner(net, x):
        taken = lambda n, t: n.conv(t, 4, channels=4, rank=4)  # noqa: E731
        return chosen(net, net.const(np.array(True)), taken, lower, x)

    net = Net(IMAGE, opset=7)
    y = chosen(net, net.const(np.array(False)), norm, inner, "x")
    # onnxruntime loads it only if it cannot infer the size of the branch that is never run.
    folded, report = onnx_bnfold.fold(net.model(net.op("Sigmoid", y)))
    assert ops(folded) == ["Conv", "Sigmoid"]
    assert len(report.folded) == 2
    assert onnx_bnfold.fold(folded)[0] == folded


def test_names_that_other_bodies_have_are_new():
    net = Net(IMAGE)
    condition = net.const(np.array(True))
    parts = [net.conv("x", 4), net.conv("x", 4)]
    bodies = [branch(norm, prefix="same_", x=x) for x in parts]
    bare = [branch(lambda n, x: n.op("Neg", x), prefix="same_", x=x) for x in parts]
    ends = [
        net.op("Sigmoid", net.op("If", condition, then_branch=b, else_branch=e))
        for b, e in zip(bodies, bare, strict=True)
    ]
    folded, _ = fold_checked(net.model(*ends))
    assert ops(folded) == ["Conv", "Conv", "Sigmoid", "Sigmoid"]


def test_what_a_branch_hands_on():
    """A constant gets an Identity."""
    net = Net(IMAGE)
    y = net.conv("x", 4)

    def build(n, t):
        z = norm(n, t)
        return n.random(3), z, n.op("Identity", t)

    def other(n, t):
        return n.random(3), n.op("Neg", t), n.op("Abs", t)

    then, bare = branch(build, prefix="t_", x=y), branch(other, prefix="e_", x=y)
    outs = net.op("If", net.const(np.array(True)), then_branch=then, else_branch=bare, outputs=3)
    model = net.model(*(net.op("Sigmoid", each) for each in outs))
    for value in model.graph.output:
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, None))
    folded, report = onnx_bnfold.fold(model, Options(bn_free=True))
    assert_same_function(model, folded)
    assert "BatchNormalization" not in ops(folded)
    assert len(report.norms) == 1


MUST_STAY = {
    "the condition is computed": {"condition": "x"},
    "an old model cannot hold the constants": {"ir_version": 3},
}


@pytest.mark.parametrize("why", MUST_STAY)
def test_what_stays(why):
    given = MUST_STAY[why]
    net = Net(IMAGE, opset=11 if "ir_version" in given else 17)
    y = net.conv("x", 4)
    if "condition" in given:
        condition = net.input("c", (), TensorProto.BOOL)
    else:
        condition = net.op("Constant", value=numpy_helper.from_array(np.array(True)))
    y = chosen(net, condition, norm, identity, y)
    model = net.model(net.op("Sigmoid", y))
    if "ir_version" in given:
        model.ir_version = 3
        listed = [helper.make_tensor_value_info(t.name, t.data_type, t.dims)
                  for t in model.graph.initializer]  # fmt: skip
        model.graph.input.extend(listed)
    folded, report = onnx_bnfold.fold(model, Options(freeze_initializers=True))
    assert "If" in ops(folded)
    assert report.kept


def test_an_old_model_takes_a_branch_without_constants():
    net = Net(IMAGE, opset=11)
    y = net.bn(net.conv("x", 4))
    condition = net.op("Constant", value=numpy_helper.from_array(np.array(True)))
    y = chosen(net, condition, lambda n, t: n.op("Relu", n.op("Neg", t)), identity, y)
    y = net.bn(y, channels=4, shift=False, signs=[1])
    model = net.model(net.op("Sigmoid", y))
    model.ir_version = 3
    listed = [helper.make_tensor_value_info(t.name, t.data_type, t.dims)
              for t in model.graph.initializer]  # fmt: skip
    model.graph.input.extend(listed)
    folded, report = onnx_bnfold.fold(model, Options(freeze_initializers=True))
    assert ops(folded) == ["Conv", "Neg", "Relu", "Sigmoid"]
    assert not report.kept
    assert_same_function(model, folded)


def test_a_branch_that_hands_on_more_than_its_if_is_left():
    """Nobody loads such a model; a fold must not end in it."""
    model = layer_and_branch(True, lambda n, t: (norm(n, t), n.op("Neg", t)))
    folded, report = onnx_bnfold.fold(model)
    assert ops(folded) == ["Conv", "If", "Sigmoid"]
    assert report.kept


def test_an_if_that_keeps_a_misread_shape_from_the_nodes_behind_stays():
    """Inference takes the output of the branch for one of two axes, a Conv behind refuses that."""
    net = Net((2, 4, 3, 1), opset=16)
    shape = net.input("s", ("R",), TensorProto.INT64)

    def misread(n, x):
        return n.bn(n.op("ConvTranspose", x, n.random(4, 6, 1, 2), output_shape=[2, 2]), channels=6)

    y = chosen(
        net, net.const(np.array(True)), misread, lambda n, x: n.op("Reshape", x, shape), "x",
        shape=(2, 4, 3, 1),
    )  # fmt: skip
    model = net.model(net.conv(y, 5, channels=6, rank=4))
    folded, report = onnx_bnfold.fold(model)
    for each in (model, folded):
        onnx.shape_inference.infer_shapes(each, strict_mode=True)
    assert ops(folded) == ["If", "Conv"]
    assert report.kept


def tall(net, x):
    return net.conv(norm(net, x), 64, 3, channels=4, rank=4, pads=[1] * 4)


def test_constants_in_files_go_along(tmp_path):
    model = layer_and_branch(True, tall)
    source, target = tmp_path / "a.onnx", tmp_path / "b.onnx"
    saved_external(model, source)
    onnx_bnfold.fold_file(source, target)
    folded = onnx.load(target)
    assert ops(folded) == ["Conv", "Conv", "Sigmoid"]
    assert_same_function(onnx.load(source), folded)


def test_an_if_of_a_function_that_is_inlined():
    """What the call gives as its condition is a constant."""
    model = parsed(
        '<ir_version: 9, opset_import: ["": 17, "local": 1]>'
        "g (float[N, 3, 4, 4] x) => (float[N, 3, 4, 4] y) {"
        "flag = Constant <value = bool {1}> ()\n a = Conv(x, w)\n"
        "r = local.part(a, s, b, m, v, w, flag)\n y = Sigmoid(r) }"
        '<domain: "local", opset_import: ["": 17]> part (a, s, b, m, v, w, flag) => (r) {'
        "n = BatchNormalization(a, s, b, m, v)\n h = Sigmoid(n)\n c = Conv(h, w)\n r = If (flag) <"
        "then_branch = t () => (float[N, 3, 4, 4] k) { k = BatchNormalization(c, s, b, m, v) },"
        "else_branch = e () => (float[N, 3, 4, 4] j) { j = Identity(c) }> }"
    )
    rng = np.random.default_rng(0)
    for name in "wsbmv":
        values = rng.uniform(0.5, 1.5, (3, 3, 1, 1) if name == "w" else 3)
        model.graph.initializer.append(tensor(name, values.astype(np.float32)))
    folded, report = fold_checked(model)
    assert ops(folded) == ["Conv", "Sigmoid", "Conv", "Sigmoid"]
    assert report.inlined_calls == 1


def test_a_norm_in_a_branch_that_is_kept_by_its_name():
    model = layer_and_branch(True)
    folded, _ = fold_checked(model, kept=1, options=Options(keep=("n_t_",)))
    assert ops(folded) == ["Conv", "If", "Sigmoid"]


PART = (
    '<domain: "local", opset_import: ["": 17]> part (a, s, b, m, v, flag) => (r) { r = If (flag) <'
    "then_branch = t () => (float[N, 3, 4, 4] k) { k = BatchNormalization(a, s, b, m, v) },"
    "else_branch = e () => (float[N, 3, 4, 4] j) { j = Identity(a) }> }"
)
CONV = '<domain: "local", opset_import: ["": 17]> conv (a, w) => (r) { r = Conv(a, w) }'
FLAG = (
    '<domain: "local", opset_import: ["": 17]> flag () => (r) {'
    "one = Constant <value = bool {1}> ()\n r = Identity(one) }"
)


def calling(nodes, *functions, inputs=""):
    """A model of nodes on an image ``x`` and constants w, s, b, m, v, yes and no."""
    model = parsed(
        f'<ir_version: 9, opset_import: ["": 17, "local": 1]>\n'
        f"g (float[N, 3, 4, 4] x{inputs}) => (float[N, 3, 4, 4] y) {{ {nodes} }}"
        + "\n".join(functions)
    )
    rng = np.random.default_rng(0)
    for name in "wsbmv":
        values = rng.uniform(0.5, 1.5, (3, 3, 1, 1) if name == "w" else 3)
        model.graph.initializer.append(tensor(name, values.astype(np.float32)))
    for name, value in (("yes", True), ("no", False)):
        model.graph.initializer.append(tensor(name, np.array(value)))
    return model


CALLS = {
    "taken": ("a = Conv(x, w)\n r = local.part(a, s, b, m, v, yes)", [PART], 1),
    "never run": ("a = Conv(x, w)\n r = local.part(a, s, b, m, v, no)", [PART], 1),
    "one taken, one never run": (
        "a = Conv(x, w)\n c = local.part(a, s, b, m, v, yes)\n d = Conv(c, w)\n"
        "r = local.part(d, s, b, m, v, no)",
        [PART],
        2,
    ),
    "behind a layer of a function": (
        "a = local.conv(x, w)\n r = local.part(a, s, b, m, v, yes)",
        [PART, CONV],
        2,
    ),
    "a condition that a call computes": (
        "a = Conv(x, w)\n f = local.flag()\n r = local.part(a, s, b, m, v, f)",
        [PART, FLAG],
        2,
    ),
    "an If of the main graph": (
        "a = Conv(x, w)\n f = local.flag()\n r = If (f) <"
        "then_branch = t () => (float[N, 3, 4, 4] k) { k = BatchNormalization(a, s, b, m, v) },"
        "else_branch = e () => (float[N, 3, 4, 4] j) { j = Identity(a) }>",
        [FLAG],
        1,
    ),
    "a call in a function": (
        "a = Conv(x, w)\n r = local.outer(a, s, b, m, v, yes)",
        [
            '<domain: "local", opset_import: ["": 17, "local": 1]> outer (a, s, b, m, v, f) => (r)'
            "{ r = local.part(a, s, b, m, v, f) }",
            PART,
        ],
        2,
    ),
}


@pytest.mark.parametrize(("nodes", "functions", "calls"), CALLS.values(), ids=CALLS)
def test_a_call_is_inlined_for_its_if_alone(nodes, functions, calls):
    folded, report = fold_checked(calling(f"{nodes}\n y = Sigmoid(r)", *functions))
    assert {*ops(folded)} - {"Identity"} == {"Conv", "Sigmoid"}
    assert not folded.functions
    assert report.inlined_calls == calls


def test_a_call_whose_branch_holds_nothing_that_goes_is_left():
    """Where one call of two gives its If a condition at run time, that one stays a call."""
    nodes = (
        "a = Conv(x, w)\n c = local.part(a, s, b, m, v, yes)\n d = Conv(c, w)\n"
        "r = local.part(d, s, b, m, v, flag)\n y = Sigmoid(r)"
    )
    folded, report = fold_checked(calling(nodes, PART, inputs=", bool flag"), kept=1)
    assert ops(folded) == ["Conv", "Conv", "part", "Sigmoid"]
    assert report.inlined_calls == 1


def test_a_call_is_not_inlined_for_an_if_by_which_nothing_goes():
    nodes = "a = Sigmoid(x)\n r = local.part(a, s, b, m, v, yes)\n y = Sigmoid(r)"
    folded, report = fold_checked(calling(nodes, PART), kept=1)
    assert ops(folded) == ["Sigmoid", "part", "Sigmoid"]
    assert report.inlined_calls == 0


def test_a_norm_that_a_user_keeps_in_a_branch_of_a_function_stays():
    nodes = "a = Conv(x, w)\n r = local.part(a, s, b, m, v, yes)\n y = Sigmoid(r)"
    folded, _ = fold_checked(calling(nodes, PART), kept=1, options=Options(keep=("^k$",)))
    assert ops(folded) == ["Conv", "part", "Sigmoid"]
