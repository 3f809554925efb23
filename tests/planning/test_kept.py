"""BatchNormalizations that are left as they are on request."""

from __future__ import annotations

import random
import re

import numpy as np
import onnx
import pytest
from graphs import IMAGE, Net
from onnx import ModelProto, NodeProto, helper, numpy_helper
from random_graphs import random_model
from support import assert_same_function, bn, conv, fold_checked, join, model_of, node, ops

import onnx_bnfold
from onnx_bnfold import Options, Reason, UsageError
from onnx_bnfold.cli.main import main


def keep(*names: str, **options) -> Options:
    return Options(keep=tuple(f"^{re.escape(name)}$" for name in names), **options)


def writer(model: ModelProto, output: str) -> NodeProto:
    (found,) = (n for n in model.graph.node if output in n.output)
    return found


def parameters(model: ModelProto, bn: NodeProto) -> list[np.ndarray]:
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return [values[name] for name in bn.input[1:]]


def exposed(model: ModelProto, outputs: tuple[str, ...]) -> ModelProto:
    """The model with the input and the output of each BN among its outputs."""
    copy = ModelProto()
    copy.CopyFrom(model)
    inside = [name for y in outputs for name in (writer(model, y).input[0], y)]
    for number, name in enumerate(inside):
        copy.graph.node.append(helper.make_node("Identity", [name], [f"seen_{number}"]))
        kind = onnx.TensorProto.FLOAT
        copy.graph.output.append(helper.make_tensor_value_info(f"seen_{number}", kind, None))
    return copy


def assert_untouched(model: ModelProto, folded: ModelProto, *outputs: str) -> None:
    """The BNs that write these are as they were, and what they read and write has its values."""
    for name in outputs:
        before, after = writer(model, name), writer(folded, name)
        assert (after.op_type, after.name, after.attribute, after.doc_string) == (
            before.op_type,
            before.name,
            before.attribute,
            before.doc_string,
        )
        np.testing.assert_equal(parameters(folded, after), parameters(model, before))
    assert_same_function(exposed(model, outputs), exposed(folded, outputs), tolerance=1e-4)


def chain() -> tuple[Net, list[str]]:
    net = Net(IMAGE)
    norms = [net.bn(net.conv("x", 4))]
    norms.append(net.bn(net.conv(net.relu(norms[0]), 4)))
    return net, norms


def test_a_kept_bn_stays_and_another_goes():
    net, (one, two) = chain()
    model = net.model(two)
    folded, report = fold_checked(model, kept=1, options=keep(one))
    assert_untouched(model, folded, one)
    (record,) = report.kept
    assert record.refusal.reason is Reason.EXCLUDED
    assert record.refusal.culprit == f"BatchNormalization 'n_{one}'"
    assert record.refusal.sentence == f"it matches --keep '^{one}$'"
    fold_checked(model)  # without the option both go


def test_names_of_nodes_and_of_outputs_are_searched():
    net, (one, two) = chain()
    model = net.model(two)
    for patterns, kept in (((f"n_{one}",), 1), (("batchnorm",), 2), ((one, f"^{two}"), 2)):
        fold_checked(model, kept=kept, options=Options(keep=patterns))


def test_a_node_without_a_name_is_known_by_its_output():
    net, (one, two) = chain()
    for n in net.nodes:
        n.name = ""
    fold_checked(net.model(two), kept=1, options=Options(keep=(one,)))


def test_other_operators_are_not_searched():
    net, (_, two) = chain()
    with pytest.raises(UsageError, match=r"--keep 'conv'"):
        onnx_bnfold.fold(net.model(two), Options(keep=("conv",)))


@pytest.mark.parametrize("side", ["in front", "behind"])
def test_a_kept_bn_absorbs_nothing(side):
    """It would take the other one if it were left for another reason."""
    net = Net(IMAGE)
    first = net.bn(net.op("Sigmoid", "x"))
    second = net.bn(first)
    model = net.model(net.op("Sigmoid", second))
    kept, other = (second, first) if side == "in front" else (first, second)
    folded, report = fold_checked(model, kept=2, options=keep(kept))
    assert folded.SerializeToString() == model.SerializeToString()
    assert {r.refusal.reason for r in report.kept} >= {Reason.EXCLUDED}
    blamed = next(r for r in report.kept if r.name.endswith(f"{other}'"))
    culprits = {r.culprit for _, r in blamed.tried} | {blamed.refusal.culprit}
    assert f"BatchNormalization 'n_{kept}'" in culprits
    fold_checked(model, kept=1)


def test_its_output_keeps_its_name_where_an_identity_behind_it_goes():
    net = Net(IMAGE)
    kept = net.bn(net.conv("x", 4))
    same = net.op("Mul", kept, net.const(np.ones((4, 1, 1))))
    model = net.model(net.relu(same))
    folded, _ = fold_checked(model, kept=1, options=keep(kept))
    assert_untouched(model, folded, kept)
    assert ops(folded) == ["Conv", "BatchNormalization", "Relu"]


@pytest.mark.parametrize("form", ["mul-add", "conv"])
def test_it_is_not_written_in_another_form(form):
    net = Net(IMAGE)
    one, two = net.bn(net.op("Sigmoid", "x")), net.bn(net.op("Tanh", "x"))
    model = net.model(net.op("Sigmoid", one), net.op("Sigmoid", two))
    folded, report = onnx_bnfold.fold(model, keep(one, standalone=form))
    assert_untouched(model, folded, one)
    assert ops(folded).count("BatchNormalization") == 1
    assert report.kept[0].refusal.reason is Reason.EXCLUDED


@pytest.mark.parametrize("kept", ["an", "bn", "i"])
def test_it_is_not_merged_with_its_branch(kept, rng):
    parts = join(
        join(conv("x", "a", (4, 4, 3, 3), rng, pads=[1] * 4), bn("a", "an", 4, rng)),
        join(conv("x", "b", (4, 4, 1, 1), rng), bn("b", "bn", 4, rng), bn("x", "i", 4, rng)),
        node("Sum", ["an", "bn", "i"], ["y"]),
    )
    shape = ("N", 4, 7, 7)
    model = model_of(parts.nodes, {"x": shape}, {"y": shape}, parts.initializers)
    fold_checked(model, options=Options(merge_branches=True))
    folded, _ = onnx_bnfold.fold(model, keep(kept, merge_branches=True))
    assert_untouched(model, folded, kept)


def test_branches_beside_it_are_merged(rng):
    parts = join(
        join(conv("x", "a", (4, 4, 3, 3), rng, pads=[1] * 4), conv("x", "b", (4, 4, 1, 1), rng)),
        join(node("Add", ["a", "b"], ["s"]), bn("x", "i", 4, rng), node("Add", ["s", "i"], ["y"])),
    )
    shape = ("N", 4, 7, 7)
    model = model_of(parts.nodes, {"x": shape}, {"y": shape}, parts.initializers)
    folded, _ = fold_checked(model, kept=1, options=keep("i", merge_branches=True))
    assert sorted(ops(folded)) == ["Add", "BatchNormalization", "Conv"]
    assert_untouched(model, folded, "i")


def test_it_is_not_equalized():
    net = Net(IMAGE)
    front = net.conv("x", 4)
    weight = net.initializers[-2]
    uneven = numpy_helper.to_array(weight) * np.array([100, 10, 1, 0.1]).reshape(4, 1, 1, 1)
    weight.CopyFrom(numpy_helper.from_array(uneven.astype(np.float32), weight.name))
    kept = net.bn(front)
    model = net.model(net.conv(net.op("Sigmoid", kept), 4))
    folded, _ = fold_checked(model, kept=1, options=keep(kept, equalize=True, profile="int8"))
    assert folded.SerializeToString() == model.SerializeToString()


WAYS = {
    "plain": {},
    "all": {"merge_branches": True, "equalize": True, "standalone": "mul-add"},
    "conv": {"merge_branches": True, "standalone": "conv"},
    "equalize": {"profile": "int8", "equalize": True},
}


def drawn(seed: int) -> tuple[ModelProto, list[str], list[str]]:
    """A random model, the outputs of its BNs, and some of them."""
    choose = random.Random(seed)
    model = random_model(choose, steps=20)
    norms = [n.output[0] for n in model.graph.node if n.op_type == "BatchNormalization"]
    if not norms:
        pytest.skip("it has no BN")
    return model, norms, choose.sample(norms, choose.randint(1, len(norms)))


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("way", WAYS)
def test_random_graphs(way, seed):
    model, _, kept = drawn(seed)
    found = keep(*kept, **WAYS[way])
    folded, report = onnx_bnfold.fold(model, found)
    assert_untouched(model, folded, *kept)
    excluded = [r for r in report.kept if r.refusal.sentence.startswith("it matches --keep")]
    assert len(excluded) >= len(kept)
    again, _ = onnx_bnfold.fold(folded, found)
    assert again.SerializeToString() == folded.SerializeToString()


# --- only ---------------------------------------------------------------------------------------


def only(*names: str, **options) -> Options:
    return Options(only=tuple(f"^{re.escape(name)}$" for name in names), **options)


def test_only_what_is_named_goes():
    net, (one, two) = chain()
    model = net.model(two)
    for name, left in ((one, two), (f"n_{two}", one)):
        folded, report = onnx_bnfold.fold(model, only(name))
        assert_untouched(model, folded, left)
        assert_same_function(model, folded)
        assert ops(folded).count("BatchNormalization") == 1
        (kept,) = report.kept
        assert kept.refusal.reason is Reason.EXCLUDED
        assert kept.refusal.sentence == "no --only names it"
    folded, report = onnx_bnfold.fold(model, only(one, two))
    assert not report.kept


def test_a_bn_that_is_not_named_absorbs_nothing():
    net = Net(IMAGE)
    first = net.bn(net.op("Sigmoid", "x"))
    second = net.bn(first)
    model = net.model(net.op("Sigmoid", second))
    folded, report = onnx_bnfold.fold(model, only(second))
    assert folded.SerializeToString() == model.SerializeToString()
    assert len(report.kept) == 2


def test_no_affine_node_goes_then():
    net = Net(IMAGE)
    first = net.bn(net.conv("x", 4))
    affine = net.affine(net.conv(net.relu(first), 4), 4, 1, 1)
    model = net.model(net.conv(affine, 4))
    fold_checked(model, kept=0)
    folded, report = onnx_bnfold.fold(model, only(first))
    assert_same_function(model, folded)
    assert [op for op in ops(folded) if op != "Conv"] == ["Relu", "Mul", "Add"]
    assert {r.refusal.reason for r in report.kept_affine} == {Reason.EXCLUDED}


def test_keep_prevails():
    net, (one, two) = chain()
    model = net.model(two)
    options = Options(keep=(f"^{one}$",), only=("batchnorm",))
    folded, report = onnx_bnfold.fold(model, options)
    assert_untouched(model, folded, one)
    (kept,) = report.kept
    assert "--keep" in kept.refusal.sentence


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("way", ["plain", "all", "conv"])
def test_only_in_random_graphs(way, seed):
    model, norms, named = drawn(seed)
    folded, report = onnx_bnfold.fold(model, only(*named, **WAYS[way]))
    assert_untouched(model, folded, *(name for name in norms if name not in named))
    assert not [r for r in report.records if r.folded and not r.is_norm and way == "plain"]


def test_bodies_are_searched():
    inner = Net(prefix="i_")
    branch = inner.bn("x", channels=4)
    other = Net(prefix="o_")
    net = Net(IMAGE)
    net.input("condition", (), onnx.TensorProto.BOOL)
    y = net.op(
        "If",
        "condition",
        then_branch=inner.graph(branch),
        else_branch=other.graph(other.op("Identity", "x")),
    )
    made = net.model(y)
    report = onnx_bnfold.plan(made, Options(keep=(f"n_{branch}",)))
    assert [r.refusal.reason for r in report.kept] == [Reason.EXCLUDED]


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["keep", "only"])
@pytest.mark.parametrize("wrong", ["(", "[a", "*", "a{99999999999999999999}"])
def test_no_regular_expression(wrong, option):
    with pytest.raises(UsageError) as failed:
        Options(**{option: (wrong,)})
    assert str(failed.value).startswith(f"{option} has {wrong!r}, which is no regular expression: ")


@pytest.mark.parametrize("option", ["keep", "only"])
def test_a_list_is_held_as_a_tuple(option):
    assert Options(**{option: ["a", "b"]}) == Options(**{option: ("a", "b")})
    what = f"{option} is 'a'; give a sequence whose items are text"
    with pytest.raises(UsageError, match=what):
        Options(**{option: "a"})


@pytest.mark.parametrize("call", [onnx_bnfold.fold, onnx_bnfold.plan])
@pytest.mark.parametrize(
    ("options", "named"),
    [
        (Options(keep=("batch", "norm7x")), "--keep 'norm7x'"),
        (Options(only=("batch", "norm7x", "conv")), "--only 'norm7x', 'conv'"),
        (Options(keep=("a1x",), only=("b1x",)), "--keep 'a1x' and --only 'b1x'"),
    ],
    ids=["keep", "only", "both"],
)
def test_a_pattern_that_matches_nothing(call, options, named):
    net, (_, two) = chain()
    with pytest.raises(UsageError) as failed:
        call(net.model(two), options)
    assert str(failed.value) == (
        f"{named}: no BatchNormalization of the model has such a name or first output; correct the "
        "pattern or leave it out"
    )


def test_the_option_is_one_of_the_command_line(tmp_path, capsys):
    net, (one, two) = chain()
    source, target = tmp_path / "m.onnx", tmp_path / "f.onnx"
    onnx.save(net.model(two), source)
    words = [str(source), "-o", str(target), "-q"]
    assert main([*words, "--keep", f"^{one}$", "--keep", "typo"]) == 2
    assert "--keep 'typo'" in capsys.readouterr().err
    assert main([*words, "--keep", "("]) == 2
    assert "'('" in capsys.readouterr().err
    assert main([*words, "--dry-run", "--keep", "typo"]) == 2
    assert main([*words, "--only", "typo"]) == 2
    assert "--only 'typo'" in capsys.readouterr().err
    assert not target.exists()
    assert main([*words, "--keep", f"^{one}$", "--keep", two]) == 0
    assert len(onnx_bnfold.plan(onnx.load(target)).norms) == 2
    assert main([*words, "--only", f"^{one}$", "--only", "x{7}|y{7}"]) == 2
    assert main([*words, "--only", f"^{one}$"]) == 0
    assert len(onnx_bnfold.plan(onnx.load(target)).norms) == 1
