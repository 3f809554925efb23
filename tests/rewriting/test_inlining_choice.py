"""Calls of local functions are inlined where a BatchNormalization goes by it, and nowhere else."""

import random
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
from function_models import in_functions, modules_as_functions
from graphs import IMAGE, Net
from onnx import helper
from random_graphs import random_model
from support import all_nodes, assert_same_function, count, fold_checked, ops, parsed, tensor

import onnx_bnfold
from onnx_bnfold import Options, Reason, pipeline
from onnx_bnfold.attempts import planned_as_it_is
from onnx_bnfold.model.functions import nodes_within
from onnx_bnfold.rewriting.inlining_choice import inline_all

HEAD = '<ir_version: 10, opset_import: ["": 17, "local": 1]>'
IMPORTS = 'opset_import: ["": 17, "local": 1]'
# What functions of the tests are made of: a name of theirs → how they are written.
CONV = f'<domain: "local", {IMPORTS}> conv (a, w) => (r) {{ r = Conv(a, w) }}'
NORM = (
    f'<domain: "local", {IMPORTS}> norm (a, s, b, m, v) => (r) '
    "{ r = BatchNormalization(a, s, b, m, v) }"
)
RELU = f'<domain: "local", {IMPORTS}> act (a) => (r) {{ r = Relu(a) }}'
BLOCK = (
    f'<domain: "local", {IMPORTS}> block (a, w, s, b, m, v) => (r) '
    "{ c = local.conv(a, w)\n n = local.norm(c, s, b, m, v)\n r = local.act(n) }"
)


def model_of(nodes: str, *functions: str, outputs: str = "float[N, 3, 4, 4] y", more: str = ""):
    """A model of nodes on ``x``, an image of 3 channels, and on constants w, w2, s, b, m and v."""
    head = f"g (float[N, 3, 4, 4] x{more}) => ({outputs})"
    model = parsed("\n".join([HEAD, head, "{", nodes, "}", *functions]))
    read = {name for node in nodes_within(model.graph.node) for name in node.input}
    rng = np.random.default_rng(0)
    for name in ("w", "w2", *(f"{letter}{i}" for i in ("", 2) for letter in "sbmv")):
        values = rng.uniform(0.5, 1.5, (3, 3, 1, 1) if name[0] == "w" else 3)
        if name in read:
            model.graph.initializer.append(tensor(name, values.astype(np.float32)))
    return model


def named(model: onnx.ModelProto) -> list[str]:
    """The functions of a model."""
    return [function.name for function in model.functions]


# --- what goes ------------------------------------------------------------------------------------


def test_layer_and_norm_in_functions_of_a_function():
    model = model_of("y = local.block(x, w, s, b, m, v)", BLOCK, CONV, NORM, RELU)
    folded, report = fold_checked(model)
    assert ops(folded) == ["Conv", "act"]
    assert named(folded) == ["act"]
    assert report.inlined_calls == 3
    assert "3 calls of functions inlined" in report.summary()


def test_of_what_is_tried_one_is_in_memory(monkeypatch):
    """With all calls inlined there are several times as many nodes as in the model."""
    tried, alive = [], []

    def watched(*args, **options):
        alive.append(sum(attempts() is not None for attempts in tried))
        attempts = planned_as_it_is(*args, **options)
        tried.append(weakref.ref(attempts))
        return attempts

    monkeypatch.setattr(pipeline, "planned_as_it_is", watched)
    fold_checked(model_of("y = local.block(x, w, s, b, m, v)", BLOCK, CONV, NORM, RELU))
    assert alive == [0, 0]


def test_nothing_more_is_inlined_in_the_result_of_a_settled_plan(monkeypatch):
    """Where a BatchNormalization stays though all calls are inlined, it does so in the result."""
    tried = []

    def watched(model, *args, **options):
        tried.append(model)
        return planned_as_it_is(model, *args, **options)

    monkeypatch.setattr(pipeline, "planned_as_it_is", watched)
    nodes = "t = local.block(x, w, s, b, m, v)\n y = local.norm(t, s, b, m, v)"
    folded, _ = onnx_bnfold.fold(model_of(nodes, BLOCK, CONV, NORM, RELU))
    assert ops(folded) == ["Conv", "act", "norm"]
    assert len(tried) == 2  # all calls inlined, and some


def test_functions_are_planned_by_themselves_where_they_hold_all_parameters(monkeypatch):
    """Of one that gets them as inputs, or that nothing calls once it is inlined, nothing is."""
    seen = []

    def watched(model, *args, **options):
        seen.append(named(model))
        return planned_as_it_is(model, *args, **options)

    monkeypatch.setattr(pipeline, "planned_as_it_is", watched)
    held = (
        f'<domain: "local", {IMPORTS}> held (a, w) => (r) {{ '
        "s = Constant<value = float[3] {1, -2, 3}>()\n v = Mul(s, s)\n"
        "c = local.conv(a, w)\n r = BatchNormalization(c, s, s, s, v) }"
    )
    nodes = "t = local.block(x, w, s, b, m, v)\n y = local.held(t, w2)"
    folded, _ = fold_checked(model_of(nodes, BLOCK, held, CONV, NORM, RELU))
    assert [op for op in ops(folded) if op != "Constant"] == ["Conv", "act", "Conv"]
    assert seen[:2] == [[], ["held"]]


def test_calls_that_give_different_constants():
    nodes = "t = local.block(x, w, s, b, m, v)\n y = local.block(t, w2, s2, b2, m2, v2)"
    folded, _ = fold_checked(model_of(nodes, BLOCK, CONV, NORM, RELU))
    assert ops(folded) == ["Conv", "act", "Conv", "act"]


def test_calls_that_give_the_same_constants():
    nodes = "t = local.block(x, w, s, b, m, v)\n y = local.block(t, w, s, b, m, v)"
    folded, _ = fold_checked(model_of(nodes, BLOCK, CONV, NORM, RELU))
    assert ops(folded) == ["Conv", "act", "Conv", "act"]


def test_only_the_call_that_gives_constants_is_inlined():
    block = BLOCK.replace("local.act(n)", "Relu(n)")
    nodes = "t = local.block(x, w, s, b, m, v)\n y = local.block(t, k, s2, b2, m2, v2)"
    model = model_of(nodes, block, CONV, NORM, more=", float[3, 3, 1, 1] k")
    folded, report = fold_checked(model, kept=1)
    assert ops(folded) == ["Conv", "Relu", "block"]
    assert named(folded) == ["block", "conv", "norm"]
    (kept,) = report.kept
    assert kept.refusal.reason is Reason.WEIGHT_NOT_CONSTANT, report.lines()


def test_layer_in_a_function_and_norm_behind_the_call():
    held = CONV.replace("(a, w)", "(a)", 1).replace(
        "{ r", "{ w = Constant<value = float[3, 3, 1, 1] {1, 2, 3, 4, 5, 6, 7, 8, 9}>()\n r"
    )
    model = model_of("t = local.conv(x)\n y = BatchNormalization(t, s, b, m, v)", held)
    folded, _ = fold_checked(model)
    assert [op for op in ops(folded) if op != "Constant"] == ["Conv"]
    assert not folded.functions


def test_weight_that_a_function_computes():
    double = f'<domain: "local", {IMPORTS}> double (a) => (r) {{ r = Add(a, a) }}'
    nodes = "k = local.double(w)\n t = Conv(x, k)\n y = BatchNormalization(t, s, b, m, v)"
    folded, _ = fold_checked(model_of(nodes, double))
    assert ops(folded) == ["Conv"]


def test_function_that_has_what_it_needs_stays_a_function():
    stage = (
        f'<domain: "local", {IMPORTS}> stage (a) => (r) {{ '
        "w = Constant<value = float[3, 3, 1, 1] {1, 2, 3, 4, 5, 6, 7, 8, 9}>()\n"
        "s = Constant<value = float[3] {1, -2, 3}>()\n v = Mul(s, s)\n"
        "c = local.conv(a, w)\n n = local.norm(c, s, s, s, v)\n r = Relu(n) }"
    )
    model = model_of("t = local.stage(x)\n y = local.stage(t)", stage, CONV, NORM)
    folded, report = fold_checked(model)
    assert ops(folded)[:2] == ["stage", "stage"]
    assert named(folded) == ["stage"]
    assert report.inlined_calls == 2


@pytest.mark.parametrize("given", [True, False], ids=["given", "default"])
def test_attribute_that_is_a_parameter(given):
    declared = "<eps>" if given else "<eps: float = 0.3>"
    norm = NORM.replace("norm (", f"norm {declared} (").replace(
        "BatchNormalization(", "BatchNormalization<epsilon: float = @eps>("
    )
    given = ["<eps = 0.1>", "<eps = 0.9>"] if given else ["", "<eps = 0.9>"]
    nodes = (
        f"c = Conv(x, w)\n t = local.norm{given[0]}(c, s, b, m, v)\n"
        f"d = Conv(t, w2)\n y = local.norm{given[1]}(d, s, b, m, v)"
    )
    folded, _ = fold_checked(model_of(nodes, norm))
    assert ops(folded) == ["Conv", "Conv"]


def test_attribute_that_is_handed_on():
    norm = NORM.replace("norm (", "norm <eps> (").replace(
        "BatchNormalization(", "BatchNormalization<epsilon: float = @eps>("
    )
    block = BLOCK.replace("block (", "block <e> (").replace(
        "local.norm(", "local.norm<eps: float = @e>("
    )
    model = model_of("y = local.block<e = 0.4>(x, w, s, b, m, v)", block, CONV, norm, RELU)
    fold_checked(model)


def test_calls_in_branches_and_what_they_capture():
    nodes = (
        "y = If(k) <then_branch = g1 () => (float[N, 3, 4, 4] p) "
        "{ p = local.block(x, w, s, b, m, v) }, else_branch = g2 () => (float[N, 3, 4, 4] p) "
        "{ q = local.block(x, w2, s, b, m, v) p = Neg(q) }>"
    )
    model = model_of(nodes, BLOCK, CONV, NORM, RELU, more=", bool k")
    folded, _ = fold_checked(model)
    assert not count(folded)


def test_function_with_branches_of_its_own():
    """Both branches name a tensor alike, and read what is around them."""
    gate = (
        f'<domain: "local", {IMPORTS}> gate (a, w, s, b, m, v, k) => (r) {{\n'
        "c = Conv(a, w)\n n = BatchNormalization(c, s, b, m, v)\n"
        "r = If(k) <then_branch = g1 () => (p) { h = Neg(n) p = Neg(h) }, "
        "else_branch = g2 () => (p) { h = Abs(c) p = Add(h, n) }>\n}"
    )
    nodes = (
        "t = local.gate(x, w, s, b, m, v, k)\n h = local.gate(t, w2, s, b, m, v, k)\n y = Neg(h)"
    )
    model = model_of(nodes, gate, more=", bool k")
    _, report = fold_checked(model, kept=1)
    assert not report.inlined_calls, "c is read by a branch and stays as it is"
    gate = gate.replace("Abs(c)", "Abs(n)")
    folded, report = fold_checked(model_of(nodes, gate, more=", bool k"))
    assert report.inlined_calls == 2
    assert ops(folded).count("If") == 2


def test_input_that_is_left_out():
    conv = CONV.replace("(a, w)", "(a, w, bias)", 1).replace("Conv(a, w)", "Conv(a, w, bias)")
    nodes = (
        "c = local.conv(x, w)\n t = local.norm(c, s, b, m, v)\n"
        "d = local.conv(t, w2, b)\n y = local.norm(d, s, b, m, v)"
    )
    folded, _ = fold_checked(model_of(nodes, conv, NORM))
    assert ops(folded) == ["Conv", "Conv"]


def test_output_that_is_left_out():
    both = (
        f'<domain: "local", {IMPORTS}> both (a, w, s, b, m, v) => (unread, r) '
        "{ unread = Neg(a)\n c = Conv(a, w)\n r = BatchNormalization(c, s, b, m, v) }"
    )
    model = model_of("no, y = local.both(x, w, s, b, m, v)", both)
    model.graph.node[0].output[0] = ""
    folded, _ = fold_checked(model)
    assert sorted(ops(folded)) == ["Conv", "Neg"]


def test_output_that_is_an_input():
    both = (
        f'<domain: "local", {IMPORTS}> both (a, w, s, b, m, v) => (a, r) '
        "{ c = Conv(a, w)\n r = BatchNormalization(c, s, b, m, v) }"
    )
    model = model_of("same, t = local.both(x, w, s, b, m, v)\n y = Add(same, t)", both)
    folded, _ = fold_checked(model, compare=False)  # onnxruntime does not load it
    assert ops(folded) == ["Conv", "Identity", "Add"]
    alone = "r = local.both(x, w, s, b, m, v)\n y = Add(x, r)"
    both = both.replace("=> (a, r)", "=> (r)")
    assert_same_function(model_of(alone, both), folded)


def test_overloads_are_told_apart():
    model = model_of("t = local.norm(x, s, b, m, v)\n y = Conv(t, w)", NORM)
    other = onnx.FunctionProto()
    other.CopyFrom(model.functions[0])
    other.overload = "negative"
    other.node[0].op_type = "Neg"
    del other.node[0].input[1:]
    model.functions.insert(0, other)
    for wanted, left in (("", 0), ("negative", 0)):
        model.graph.node[0].overload = wanted
        folded, _ = onnx_bnfold.fold(model)
        used = ["Conv"] if not wanted else ["norm", "Conv"]
        assert [n.op_type for n in folded.graph.node] == used, left


def test_what_is_said_of_a_call_and_of_nodes_is_kept():
    model = model_of("y = local.block(x, w, s, b, m, v)", BLOCK, CONV, NORM, RELU)
    model.graph.node[0].doc_string = "the call"
    model.graph.node[0].metadata_props.add(key="scope", value="call")
    model.functions[1].node[0].doc_string = "the layer"
    model.functions[1].node[0].metadata_props.add(key="scope", value="layer")
    folded, _ = fold_checked(model)
    conv, act = folded.graph.node
    assert (conv.doc_string, conv.metadata_props[0].value) == ("the layer", "layer")
    assert (act.doc_string, act.metadata_props[0].value) == ("the call", "call")


def test_name_of_a_size_means_something_in_its_function_alone():
    model = model_of("t = local.block(x, w, s, b, m, v)\n y = Relu(t)", BLOCK, CONV, NORM, RELU)
    shape = ["other", 3, "N", "N"]
    model.functions[0].value_info.append(helper.make_tensor_value_info("n", 1, shape))
    folded, _ = fold_checked(model)
    (told,) = folded.graph.value_info
    dims = [d.dim_param or d.dim_value for d in told.type.tensor_type.shape.dim]
    assert dims == [0, 3, 0, 0]


def test_names_that_are_taken():
    model = model_of("t = local.norm(c, s, b, m, v)\n y = Relu(t)", CONV, NORM)
    conv = helper.make_node("conv", ["x", "w"], ["c"], "call", domain="local")
    model.graph.node.insert(0, conv)
    model.graph.initializer.append(tensor("w", np.ones((3, 3, 1, 1), np.float32)))
    model.graph.node[2].output[0] = "call/r"
    model.graph.node.append(helper.make_node("Neg", ["call/r"], ["y"]))
    model.functions[0].node[0].name = "c"
    folded, _ = fold_checked(model)
    assert folded.graph.node[0].name == "call/c"


# --- what stays -----------------------------------------------------------------------------------


def test_model_without_bn_is_as_it_was():
    nodes = "c = local.conv(x, w)\n y = local.act(c)"
    model = model_of(nodes, CONV, RELU)
    folded, _ = fold_checked(model)
    assert folded.SerializeToString(deterministic=True) == model.SerializeToString(
        deterministic=True
    )


def test_nothing_is_inlined_where_nothing_goes_by_it():
    model = model_of("t = local.norm(x, s, b, m, v)\n y = local.act(t)", NORM, RELU)
    folded, report = fold_checked(model, kept=1)
    assert folded.SerializeToString(deterministic=True) == model.SerializeToString(
        deterministic=True
    )
    (kept,) = report.kept
    assert kept.name.startswith("local::norm/")
    assert kept.refusal.reason in (Reason.NO_SHIFT, Reason.GRAPH_INPUT)


def test_nothing_is_inlined_for_a_second_fold_where_fewer_go_by_it():
    """By itself the first goes, and the second then, once it is inlined; together both stay."""
    nodes = "c = Conv(x, w)\n t = BatchNormalization(c, s, b, m, v)\n r = Relu(t)"
    model = model_of(f"{nodes}\n y = local.norm(r, s2, m2, m2, v2)", NORM)
    values = {"b": 100, "m2": 0, "v2": 1e-12}
    norms = [model.graph.node[1], model.functions[0].node[0]]
    for norm in norms:
        norm.attribute.append(helper.make_attribute("epsilon", 0.0))
    for held in model.graph.initializer:
        if held.name in values:
            held.CopyFrom(tensor(held.name, np.full(3, values[held.name], np.float32)))
    folded, report = onnx_bnfold.fold(model)
    assert_same_function(model, folded)
    assert (len(report.folded), len(report.kept), report.inlined_calls) == (1, 1, 0)
    again, _ = onnx_bnfold.fold(folded)
    assert again.SerializeToString() == folded.SerializeToString()


def test_what_gets_a_form_by_a_second_fold_alone_is_left():
    """As many stay with all calls inlined; in the result the one in the way is no norm any more."""
    model = onnx.load(Path(__file__).parents[1] / "corpus" / "found" / "form_after_a_call.onnx")
    options = Options(bn_free=True)
    folded, report = onnx_bnfold.fold(model, options)
    assert [record.written_as for record in report.left + report.kept] == [
        "keep",
        "mul-add",
        "keep",
    ]
    again, _ = onnx_bnfold.fold(folded, options)
    assert again.SerializeToString() == folded.SerializeToString()


def test_call_of_a_function_that_has_no_part_in_it_stays():
    nodes = "c = local.conv(x, w)\n t = local.norm(c, s, b, m, v)\n y = local.act(t)"
    folded, report = fold_checked(model_of(nodes, CONV, NORM, RELU))
    assert ops(folded) == ["Conv", "act"]
    assert report.inlined_calls == 2


def test_function_of_another_version_says_so():
    norm = NORM.replace('"": 17', '"": 13')
    model = model_of("c = Conv(x, w)\n y = local.norm(c, s, b, m, v)", norm)
    folded, report = fold_checked(model, kept=1)
    assert named(folded) == ["norm"]
    assert "local::norm is not inlined: it uses version 13" in report.lines()[0]
    conv = CONV.replace('"": 17', '"": 13')  # of which 17 has the same Conv
    model = model_of("c = local.conv(x, w)\n y = BatchNormalization(c, s, b, m, v)", conv)
    fold_checked(model)


def test_domain_that_the_caller_does_not_import():
    model = model_of("c = Conv(x, w)\n y = local.norm(c, s, b, m, v)", NORM)
    odd = helper.make_node("Odd", ["r"], ["z"], domain="odd")
    function = model.functions[0]
    function.node.append(odd)
    function.output.append("z")
    function.opset_import.append(helper.make_opsetid("odd", 3))
    folded, _ = onnx_bnfold.fold(model)
    assert [(i.domain, i.version) for i in folded.opset_import][2:] == [("odd", 3)]
    model.opset_import.append(helper.make_opsetid("odd", 2))
    _, report = onnx_bnfold.fold(model)
    assert "it uses version 3 of the operator set 'odd' and its caller 2" in report.lines()[0]


def test_function_that_calls_itself_stays():
    norm = NORM.replace("r = Batch", "t = local.norm(a, s, b, m, v)\n r = Batch")
    model = model_of("c = Conv(x, w)\n y = local.norm(c, s, b, m, v)", norm)
    _, report = onnx_bnfold.fold(model)
    assert "calls itself" in report.lines()[0]


@pytest.mark.parametrize("domain", ["com.microsoft", "ai.onnx.ml"])
def test_function_that_a_runtime_may_know_better_stays(domain):
    model = model_of("c = Conv(x, w)\n y = local.norm(c, s, b, m, v)", NORM)
    model.functions[0].domain = model.graph.node[1].domain = domain
    _, report = onnx_bnfold.fold(model)
    assert "a runtime may have an operator of its own" in report.lines()[0]


def test_kept_bn_stays_in_its_function():
    model = model_of("y = local.block(x, w, s, b, m, v)", BLOCK, CONV, NORM, RELU)
    model.functions[2].node[0].name = "that"
    folded, report = fold_checked(model, kept=1, options=Options(keep=("^that$",)))
    assert "norm" in named(folded)
    assert report.kept[0].refusal.reason is Reason.EXCLUDED


@pytest.mark.parametrize("used", [True, False], ids=["called", "never-called"])
def test_function_that_was_never_called_stays(used):
    nodes = "y = local.block(x, w, s, b, m, v)" if used else "y = Relu(x)"
    functions = [BLOCK, CONV, NORM, RELU]
    functions.append(CONV.replace("conv (", "idle (").replace("Conv(", "local.conv("))
    folded, _ = onnx_bnfold.fold(model_of(nodes, *functions))
    assert named(folded) == (
        ["conv", "act", "idle"] if used else named(model_of(nodes, *functions))
    )


def test_calls_of_calls_do_not_explode():
    """Each function calls the one before twice; inlined, there would be 2^40 nodes."""
    functions = [NORM.replace("norm (", "f0 (")]
    for i in range(1, 41):
        given = "s, b, m, v"
        functions.append(
            f'<domain: "local", {IMPORTS}> f{i} (a, {given}) => (r) '
            f"{{ t = local.f{i - 1}(a, {given})\n r = local.f{i - 1}(t, {given}) }}"
        )
    model = model_of("c = Conv(x, w)\n y = local.f40(c, s, b, m, v)", *functions)
    folded, report = onnx_bnfold.fold(model)
    assert len(all_nodes(folded)) == len(all_nodes(model))
    assert "f40 is not inlined: it has 1099511627776 nodes" in report.lines()[0]


# --- what is written in another form --------------------------------------------------------------

FORMS = {
    "mul-add": (Options(standalone="mul-add"), ["Mul", "Add"]),
    "conv": (Options(standalone="conv"), ["Conv"]),
    "bn-free": (Options(bn_free=True), ["Mul", "Add"]),
}
every_form = pytest.mark.parametrize(("options", "written"), FORMS.values(), ids=FORMS)


def in_form(model: onnx.ModelProto, options: Options) -> tuple[onnx.ModelProto, onnx_bnfold.Report]:
    folded, report = onnx_bnfold.fold(model, options)
    onnx.checker.check_model(folded, full_check=True)
    assert_same_function(model, folded)
    again, _ = onnx_bnfold.fold(folded, options)
    assert again.SerializeToString() == folded.SerializeToString()
    return folded, report


@every_form
def test_norm_whose_call_gives_its_constants_is_written_otherwise(options, written):
    """What is in its way is said as if all calls were inlined."""
    squash = f'<domain: "local", {IMPORTS}> squash (a) => (r) {{ r = Sigmoid(a) }}'
    nodes = "t = Sigmoid(x)\n n = local.norm(t, s, b, m, v)\n y = local.squash(n)"
    folded, report = in_form(model_of(nodes, NORM, squash), options)
    assert ops(folded) == ["Sigmoid", *written, "squash"]
    assert named(folded) == ["squash"]
    [kept] = report.kept
    assert report.left == ()
    assert report.inlined_calls == 1
    assert "Sigmoid" in kept.refusal.culprit
    assert all("squash'" not in refusal.culprit.split(" ")[0] for _, refusal in kept.tried)


def own(first: str) -> str:
    """A function with a BN of its own constants behind its first node and a Sigmoid."""
    body = (
        "w = Constant <value = float[3, 3, 1, 1] {1, 2, 3, 4, 5, 6, 7, 8, 9}> ()\n"
        "s = Constant <value_floats = [2.0, 3.0, 4.0]> ()\n"
        f"{first}\n u = Sigmoid(t)\n n = BatchNormalization(u, s, s, s, s)\n r = Sigmoid(n)"
    )
    return f'<domain: "local", {IMPORTS}> own (a) => (r) {{ {body} }}'


@every_form
def test_norm_whose_rank_its_function_tells_is_written_otherwise_there(options, written):
    model = model_of("t = local.own(x)\n y = local.own(t)", own("t = Conv(a, w)"))
    folded, report = in_form(model, options)
    assert ops(folded) == ["own", "own"]
    found = [n.op_type for n in folded.functions[0].node if n.op_type != "Constant"]
    assert found == ["Conv", "Sigmoid", *written, "Sigmoid"]
    assert report.inlined_calls == 0


@every_form
def test_norm_whose_rank_the_call_tells_is_inlined(options, written):
    model = model_of("t = local.own(x)\n y = local.own(t)", own("t = Relu(a)"))
    folded, report = in_form(model, options)
    found = [op for op in ops(folded) if op != "Constant"]
    assert found == ["Relu", "Sigmoid", *written, "Sigmoid"] * 2
    assert report.inlined_calls == 2


@every_form
def test_nothing_is_inlined_where_no_form_can_be_written(options, written):
    """Its parameters are computed at run time."""
    nodes = "t = Sigmoid(x)\n k = ReduceMax <axes = [0, 2, 3], keepdims = 0> (x)\n"
    nodes += "n = local.norm(t, k, b, m, v)\n y = Sigmoid(n)"
    folded, report = in_form(model_of(nodes, NORM), options)
    assert named(folded) == ["norm"]
    assert report.inlined_calls == 0
    assert len(report.left) == 1


def test_kept_bn_of_a_function_is_not_written_otherwise():
    nodes = "t = Sigmoid(x)\n n = local.norm(t, s, b, m, v)\n y = Sigmoid(n)"
    folded, report = in_form(model_of(nodes, NORM), Options(bn_free=True, keep=("^r$",)))
    assert named(folded) == ["norm"]
    assert len(report.left) == 1


# --- whole models ---------------------------------------------------------------------------------


def test_modules_as_functions():
    net = Net(IMAGE, opset=18)
    t = net.relu(net.bn(net.conv("x", 8, 3, pads=[1, 1, 1, 1])))
    t = net.op("Add", t, net.bn(net.conv(t, 8)))
    flat = net.model(net.gemm(net.op("Flatten", net.op("GlobalAveragePool", t)), 2, channels=8))
    folded, report = fold_checked(modules_as_functions(flat))
    assert len(report.folded) == 2
    assert not count(folded)


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("options", [Options(), Options(bn_free=True)], ids=["plain", "bn-free"])
def test_random_graphs_in_functions(options, seed):
    choose = random.Random(seed)
    model = in_functions(random_model(choose), choose)
    folded, _ = onnx_bnfold.fold(model, options)
    onnx.checker.check_model(folded, full_check=True)
    assert_same_function(model, folded, tolerance=1e-4)
    assert_same_function(model, inline_all(model), tolerance=1e-4)
    again, _ = onnx_bnfold.fold(folded, options)
    assert again.SerializeToString() == folded.SerializeToString()
