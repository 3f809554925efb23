"""Parallel branches that meet in an Add become one Conv, or stay where they cannot."""

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import IMAGE, Net
from support import Parts, bn, conv, counting_calls, fold_checked, join, model_of, node, ops, tensor

import onnx_bnfold
from onnx_bnfold import Options, applying
from onnx_bnfold.rewriting import branch_merging

MERGE = Options(merge_branches=True)
X = {"x": ["N", 4, 7, 7]}


def three(rng, group=1, **attributes):
    return conv("x", "a", (4, 4 // group, 3, 3), rng, pads=[1] * 4, group=group, **attributes)


def one(rng, group=1, **attributes):
    return conv("x", "b", (4, 4 // group, 1, 1), rng, group=group, **attributes)


def add(*names):
    return node("Sum" if len(names) > 2 else "Add", list(names), ["y"])


BRANCHES = {
    "two-convs": lambda rng: join(three(rng), one(rng), add("a", "b")),
    "without-bias": lambda rng: join(three(rng, bias=False), one(rng, bias=False), add("a", "b")),
    "identity": lambda rng: join(three(rng), add("a", "x")),
    "norm-of-the-source": lambda rng: join(three(rng), bn("x", "i", 4, rng), add("a", "i")),
    "repvgg": lambda rng: join(
        join(three(rng), bn("a", "an", 4, rng)),
        join(one(rng), bn("b", "bn", 4, rng)),
        join(bn("x", "i", 4, rng), add("an", "bn", "i")),
    ),
    "norms-in-a-row": lambda rng: join(
        three(rng), bn("a", "a1", 4, rng), bn("a1", "a2", 4, rng), one(rng), add("a2", "b")
    ),
    "grouped": lambda rng: join(three(rng, 2), one(rng, 2), add("a", "b")),
    "depthwise-and-identity": lambda rng: join(three(rng, 4), add("x", "a")),
    "nested-adds": lambda rng: join(
        three(rng), one(rng), node("Add", ["a", "b"], ["s"]), bn("x", "i", 4, rng), add("s", "i")
    ),
    "strides": lambda rng: join(
        three(rng, strides=[2, 2]), one(rng, strides=[2, 2]), add("a", "b")
    ),
    "rectangular": lambda rng: join(
        conv("x", "a", (4, 4, 1, 3), rng, pads=[0, 1, 0, 1]),
        conv("x", "b", (4, 4, 3, 1), rng, pads=[1, 0, 1, 0]),
        add("a", "b"),
    ),
    "identity-off-centre": lambda rng: join(
        conv("x", "a", (4, 4, 3, 3), rng, pads=[2, 2, 0, 0]), add("a", "x")
    ),
    "dilated-and-uneven": lambda rng: join(
        conv("x", "a", (4, 4, 3, 3), rng, pads=[4, 3, 3, 4], dilations=[3, 3]),
        one(rng, pads=[1, 0, 0, 1]),
        add("a", "b"),
    ),
    "no-padding-by-name": lambda rng: join(
        conv("x", "a", (4, 4, 3, 3), rng, auto_pad="VALID"),
        conv("x", "b", (4, 4, 3, 3), rng),
        add("a", "b"),
    ),
    "dilated-and-pointwise": lambda rng: join(
        conv("x", "a", (4, 4, 3, 3), rng, pads=[2] * 4, dilations=[2, 2]), one(rng), add("a", "b")
    ),
}


@pytest.mark.parametrize("build", BRANCHES.values(), ids=BRANCHES)
def test_branches_become_one_conv(build, rng):
    parts = build(rng)
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    folded, report = fold_checked(model, options=MERGE)
    assert ops(folded) == ["Conv"]
    assert not report.kept
    assert len(folded.graph.initializer) == 2


@pytest.mark.parametrize(("ir_version", "opset"), [(3, 8), (4, 9), (10, 17)], ids=str)
def test_merged_constants_are_inputs_where_the_format_wants_it(ir_version, opset, rng):
    """From IR version 4 on, an input could be overridden."""
    parts = BRANCHES["repvgg"](rng)
    model = model_of(
        parts.nodes, X, {"y": X["x"]}, parts.initializers, ir_version=ir_version, opset=opset
    )
    folded, _ = fold_checked(model, options=MERGE)
    constants = [t.name for t in folded.graph.initializer] if ir_version < 4 else []
    assert sorted(i.name for i in folded.graph.input) == sorted(["x", *constants])


@pytest.mark.parametrize("options", [{"merge_branches": True}, {"standalone": "mul-add"}])
def test_frozen_initializers_are_inputs_until_all_is_planned(options, rng):
    """Branches are merged, and BatchNormalizations written otherwise, in copies that keep them."""
    parts = join(BRANCHES["repvgg"](rng), node("Tanh", ["y"], ["t"]), bn("t", "z", 4, rng))
    listed = {t.name: list(t.dims) for t in parts.initializers}
    model = model_of(parts.nodes, X | listed, ["z"], parts.initializers)
    options = Options(freeze_initializers=True, **options)
    folded, _ = onnx_bnfold.fold(model, options)
    assert [i.name for i in folded.graph.input] == ["x"]


def test_what_is_said_of_vanished_tensors_goes(rng):
    parts = BRANCHES["repvgg"](rng)
    steps = [tensor(f"{name}_step", np.ones(1, np.float32)) for name in ("an", "y")]
    shapes = dict.fromkeys(["a", "an", "bn", "y"], X["x"])
    model = model_of(
        parts.nodes, X, {"y": X["x"]}, [*parts.initializers, *steps], value_info=shapes
    )
    for name in ("an", "y"):
        annotation = model.graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=f"{name}_step")
    folded, _ = fold_checked(model, options=MERGE)
    assert [v.name for v in folded.graph.value_info] == ["y"]
    assert [a.tensor_name for a in folded.graph.quantization_annotation] == ["y"]
    assert {t.name for t in folded.graph.initializer if "_step" in t.name} == {"y_step"}


def test_the_merged_conv_keeps_a_name_and_nothing_dead_is_left(rng):
    parts = BRANCHES["repvgg"](rng)
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    folded, report = fold_checked(model, options=MERGE)
    assert folded.graph.node[0].name == "n_a"
    assert len(folded.graph.initializer) == 2
    assert {r.way for r in report.records} == {"merged"}


def test_a_constant_node_may_hold_a_tensor_of_the_name_of_a_merged_one(rng):
    parts = join(BRANCHES["repvgg"](rng), conv("y", "c", (4, 4, 1, 1), rng), bn("c", "z", 4, rng))
    held = next(t for t in parts.initializers if t.name == "z_scale")
    made = node("Constant", [], ["z_scale"], value=held)
    made.nodes[0].attribute[0].t.name = "n_a_merged_bias"
    others = [t for t in parts.initializers if t is not held]
    model = model_of([*made.nodes, *parts.nodes], X, ["z"], others)
    folded, _ = fold_checked(model, options=MERGE)
    assert ops(folded) == ["Conv", "Conv"]
    assert "n_a_merged_bias" in {t.name for t in folded.graph.initializer}


SEPARATE = {
    "not-asked-for": (BRANCHES["two-convs"], Options()),
    "other-strides": (
        lambda rng: join(
            conv("x", "a", (4, 4, 3, 3), rng, pads=[1] * 4, strides=[2, 2]),
            conv("x", "b", (4, 4, 1, 1), rng, strides=[2, 2], pads=[0, 0, 1, 1]),
            add("a", "b"),
        ),
        MERGE,
    ),
    "no-whole-number-of-steps": (
        lambda rng: join(
            conv("x", "a", (4, 4, 3, 3), rng, pads=[4, 4, 3, 3], dilations=[3, 3]),
            one(rng, pads=[0, 0, 1, 1]),
            add("a", "b"),
        ),
        MERGE,
    ),
    "other-groups": (lambda rng: join(three(rng, 2), one(rng), add("a", "b")), MERGE),
    "padding-by-name": (
        lambda rng: join(
            conv("x", "a", (4, 4, 3, 3), rng, auto_pad="SAME_UPPER"),
            conv("x", "b", (4, 4, 3, 3), rng, auto_pad="SAME_UPPER"),
            add("a", "b"),
        ),
        MERGE,
    ),
    "quantised": (
        lambda rng: join(
            Parts(
                node("DequantizeLinear", ["q", "q_scale"], ["w"]).nodes,
                [
                    tensor("q", rng.integers(-9, 9, (4, 4, 1, 1)).astype(np.int8)),
                    tensor("q_scale", np.array(0.1, np.float32)),
                ],
            ),
            three(rng), node("Conv", ["x", "w"], ["b"]), add("a", "b"),
        ),
        MERGE,
    ),
    "other-sources": (
        lambda rng: join(
            node("Relu", ["x"], ["r"]), three(rng),
            conv("r", "b", (4, 4, 1, 1), rng), add("a", "b"),
        ),
        MERGE,
    ),
    "another-reader": (
        lambda rng: join(three(rng), one(rng), node("Relu", ["b"], ["z"]), add("a", "b")),
        MERGE,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("build", "options"), SEPARATE.values(), ids=SEPARATE)
def test_branches_stay_apart(build, options, rng):
    parts = build(rng)
    outputs = ["y", "z"] if any("z" in n.output for n in parts.nodes) else ["y"]
    model = model_of(parts.nodes, X, outputs, parts.initializers)
    folded, _ = fold_checked(model, options=options)
    assert ops(folded) == ops(model)


def test_a_branch_that_the_sum_broadcasts_stays_apart(rng):
    """On one pixel, the dilated Conv gives two by two of them, and the other one."""
    parts = join(
        conv("x", "a", (4, 4, 3, 3), rng, pads=[3, 3, 4, 4], dilations=[3, 3]),
        one(rng),
        add("a", "b"),
    )
    model = model_of(parts.nodes, {"x": (2, 4, 1, 1)}, ["y"], parts.initializers)
    folded, _ = fold_checked(model, options=MERGE)
    assert ops(folded) == ops(model)


def test_an_overflow_keeps_the_branches(rng):
    parts = join(three(rng, dtype=np.float16), one(rng, dtype=np.float16), add("a", "b"))
    for t in parts.initializers:
        if t.name.endswith("_W"):
            full = np.full(tuple(t.dims), 40000, np.float16)
            t.raw_data = full.tobytes()
    model = model_of(parts.nodes, X, ["y"], parts.initializers, dtype=np.float16)
    folded, _ = fold_checked(model, options=MERGE, compare=False)
    assert ops(folded) == ["Conv", "Conv", "Add"]


def test_a_branch_whose_weight_is_computed_at_run_time_stays(rng):
    parts = join(three(rng), one(rng), add("a", "b"))
    computed = parts.nodes[1]
    factor = node("Mul", [computed.input[1], "given"], ["computed"])
    computed.input[1] = "computed"
    inputs = {**X, "given": [1]}
    model = model_of([*factor.nodes, *parts.nodes], inputs, ["y"], parts.initializers)
    folded, _ = fold_checked(model, options=MERGE)
    assert ops(folded) == ["Mul", "Conv", "Conv", "Add"]


def test_branches_with_a_constant_that_cannot_be_evaluated_stay():
    """A DequantizeLinear makes a bias, and onnxruntime refuses to run it."""
    found = Path(__file__).parents[1] / "corpus" / "found" / "merge_unevaluated_bias.onnx"
    model = onnx.load(found)
    folded, _ = onnx_bnfold.fold(model, MERGE)
    assert len(folded.graph.node) == len(model.graph.node)


@pytest.mark.parametrize("build", BRANCHES.values(), ids=BRANCHES)
def test_kernels_are_added_up_in_blocks_of_output_channels(build, rng, tmp_path, monkeypatch):
    """A file is written from them; no bit differs from what is added up at once."""
    parts = build(rng)
    onnx.save(model_of(parts.nodes, X, ["y"], parts.initializers), tmp_path / "model.onnx")
    folds = []
    for block in (1 << 18, 1):
        monkeypatch.setattr(branch_merging, "_BLOCK", block)
        monkeypatch.setattr(applying, "MOST_AT_ONCE", 0)
        onnx_bnfold.fold_file(tmp_path / "model.onnx", tmp_path / "folded.onnx", MERGE)
        folds.append((tmp_path / "folded.onnx").read_bytes())
    assert folds[0] == folds[1]
    assert ops(onnx.load(tmp_path / "folded.onnx")) == ["Conv"]


def added_up(count):
    """A sum in a row of Convs, one more each time."""
    net = Net(IMAGE)
    t = net.conv("x", 4)
    for _ in range(count):
        t = net.op("Add", t, net.conv("x", 4))
    return net.model(t)


def test_a_long_sum_is_not_gone_through_anew_with_each_summand():
    counts = []
    for count in (10, 50, 400):  # the first makes what is made once
        model = added_up(count)
        (folded, _), calls = counting_calls(partial(onnx_bnfold.fold, model, MERGE))
        assert ops(folded) == ["Conv"]
        counts.append(calls)
    assert counts[2] < 8.5 * counts[1]
