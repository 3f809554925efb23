"""What a node has of nodes that are gone is in its metadata_props."""

import sys
from types import SimpleNamespace

import onnx
import pytest
from onnx import helper
from support import (
    bn,
    chained,
    constant_operand,
    conv,
    fold_checked,
    join,
    layer,
    model_of,
    node,
    tensor,
)

import onnx_bnfold
from onnx_bnfold import Options
from onnx_bnfold.planning.plan import Taken
from onnx_bnfold.rewriting import node_origins
from onnx_bnfold.rewriting.node_origins import KEY

IMAGE = {"x": ("N", 3, 5, 6)}


def made(parts, inputs=IMAGE, ir_version=10):
    return chained(parts, inputs=inputs, ir_version=ir_version)


def said(model) -> dict[str, list[str]]:
    """What each node says, by its name."""
    found = {}
    for n in model.graph.node:
        entries = [entry.value for entry in n.metadata_props if entry.key == KEY]
        assert len(entries) <= 1
        if entries:
            found[n.name] = entries[0].split("; ")
    return found


def conv_bn(rng):
    return join(conv("x", "c", (8, 3, 3, 3), rng), bn("c", "b", 8, rng))


def test_scale_and_shift(rng):
    folded, _ = fold_checked(made(conv_bn(rng)))
    assert said(folded) == {"n_c": ["scale and shift of BatchNormalization 'n_b'"]}


def test_several_nodes_take_one(rng):
    """A BN before a padded Conv: its shift goes upstream, its scale downstream."""
    parts = join(
        conv_bn(rng),
        node("Relu", ["b"], ["r"]),
        constant_operand("Add", "r", "a", (8, 1, 1), rng),
        bn("a", "b2", 8, rng, positive=True),
        conv("b2", "y", (4, 8, 3, 3), rng, pads=[1, 1, 1, 1]),
    )
    folded, report = fold_checked(made(parts))
    assert (
        said(folded)
        == {
            "n_c": ["scale and shift of BatchNormalization 'n_b'"],
            "n_a": ["scale and shift of BatchNormalization 'n_b2'"],
        }
        or len(report.folded[1].scale_to) == 1
    )
    for record in report.folded:
        for name in {*record.scale_to, *record.shift_to}:
            taker = name.split("'")[1]
            assert any(record.name in each for each in said(folded)[taker])


def test_a_chain_of_bns(rng):
    parts = join(conv_bn(rng), bn("b", "b2", 8, rng), constant_operand("Mul", "b2", "m", (1,), rng))
    folded, _ = fold_checked(made(parts))
    assert said(folded)["n_c"][:2] == [
        "scale and shift of BatchNormalization 'n_b'",
        "scale and shift of BatchNormalization 'n_b2'",
    ]


def test_what_a_node_took_before_it_went_itself(rng):
    """The Mul goes into the first BN, which then goes into the Conv behind."""
    parts = join(
        node("Sigmoid", ["x"], ["s"]),
        bn("s", "b", 3, rng),
        bn("b", "b2", 3, rng),
        conv("b2", "y", (4, 3, 3, 3), rng),
    )
    folded, _ = fold_checked(made(parts))
    assert {word for each in said(folded)["n_y"] for word in each.split("'")} >= {"n_b", "n_b2"}


def test_many_that_took_one_another_before_they_went():
    """More than Python lets functions call one another."""
    count = 2 * sys.getrecursionlimit()
    nodes = [helper.make_node("BatchNormalization", [], [], name=f"n{i}") for i in range(count + 1)]
    took = {i: {i - 1: Taken(scale=False, shift=True)} for i in range(1, count + 1)}
    records = {i: SimpleNamespace(name=f"n{i}", clamps=()) for i in range(count + 1)}
    state = SimpleNamespace(removed=set(range(count)), clamps=frozenset())
    plan = SimpleNamespace(records=records, restated={}, touched=took, state=state)
    node_origins.record(nodes, plan)
    (entry,) = nodes[count].metadata_props
    assert entry.value == "; ".join(f"shift of n{i}" for i in reversed(range(count)))
    assert not nodes[0].metadata_props


def test_a_product_and_its_new_add(rng):
    parts = join(
        node("Sigmoid", ["x"], ["s"]), layer("MatMul", "s", "m", (4, 5), rng),
        node("Transpose", ["m"], ["t"], perm=[0, 2, 1]), bn("t", "y", 5, rng),
    )  # fmt: skip
    folded, report = fold_checked(made(parts, {"x": ("N", 3, 4)}))
    assert report.folded[0].added == 1
    expected = ["scale and shift of BatchNormalization 'n_y'"]
    assert said(folded) == {"n_m": expected, "n_m_bias_1": expected}


@pytest.mark.parametrize("form", ["mul-add", "conv"])
def test_other_forms(form, rng):
    parts = join(node("Sigmoid", ["x"], ["s"]), bn("s", "y", 3, rng))
    folded, _ = onnx_bnfold.fold(made(parts), Options(standalone=form))
    names = ["n_y", "n_y_bias"] if form == "mul-add" else ["n_y"]
    assert said(folded) == {
        name: [f"BatchNormalization 'n_y', written as {form}"] for name in names
    }


def test_half_of_another_form(rng):
    """The Mul stays, the Add goes on into a layer behind: it says which BatchNormalization's."""
    parts = join(
        node("Sigmoid", ["x"], ["s"]),
        bn("s", "b", 3, rng),
        node("Relu", ["b"], ["r"]),
        conv("r", "y", (4, 3, 3, 3), rng, pads=[1, 1, 1, 1]),
    )
    folded, _ = onnx_bnfold.fold(made(parts), Options(bn_free=True))
    found = {phrase for each in said(folded).values() for phrase in each}
    assert all("BatchNormalization 'n_b'" in phrase for phrase in found), found
    assert found


def test_clamps(rng):
    parts = join(
        conv("x", "c", (8, 3, 3, 3), rng), node("Relu", ["c"], ["r"]), bn("r", "y", 8, rng)
    )
    folded, report = fold_checked(made(parts), options=Options(bn_free=True))
    assert report.folded[0].clamps == ("Relu 'n_r'",)
    assert said(folded)["n_r"] == ["bounds of BatchNormalization 'n_y'"]
    assert said(folded)["n_c"] == ["scale and shift of BatchNormalization 'n_y'"]


def test_merged_branches(rng):
    parts = join(
        conv("x", "a", (3, 3, 3, 3), rng, pads=[1, 1, 1, 1]), bn("a", "an", 3, rng),
        conv("x", "b", (3, 3, 1, 1), rng), bn("b", "bn", 3, rng),
        node("Add", ["an", "bn"], ["y"]),
    )  # fmt: skip
    options = Options(merge_branches=True)
    folded, _ = fold_checked(made(parts), options=options)
    both = [f"scale and shift of BatchNormalization 'n_{each}'" for each in ("an", "bn")]
    assert said(folded) == {"n_a": both}
    for version, metadata in ((9, True), (10, False)):
        model, options = (
            made(parts, ir_version=version),
            Options(merge_branches=True, metadata=metadata),
        )
        assert said(onnx_bnfold.fold(model, options)[0]) == {}


def test_a_bn_in_a_body_has_the_path_of_it(rng):
    """Labels are those of the report."""
    parts = conv_bn(rng)
    function = onnx.helper.make_function(
        "local", "F", ["x"], ["b"],
        [
            *(
                onnx.helper.make_node("Constant", [], [t.name], value=t)
                for t in parts.initializers
            ),
            *parts.nodes,
        ],
        [onnx.helper.make_opsetid("", 17)],
    )  # fmt: skip
    call = onnx.helper.make_node("F", ["x"], ["y"], domain="local")
    model = model_of(
        [call], IMAGE, {"y": ("N", 8, 3, 4)}, imports={"local": 1}, functions=[function],
        ir_version=10,
    )  # fmt: skip
    folded, report = onnx_bnfold.fold(model)
    (taker,) = [n for n in folded.functions[0].node if n.op_type == "Conv"]
    assert taker.metadata_props[0].value == f"scale and shift of {report.folded[0].name}"


@pytest.mark.parametrize(("version", "metadata"), [(9, True), (10, False)])
def test_older_models_and_those_asked_to_say_nothing(version, metadata, rng):
    folded, _ = fold_checked(
        made(conv_bn(rng), ir_version=version), options=Options(metadata=metadata)
    )
    assert said(folded) == {}


def test_a_second_fold_changes_no_byte_and_one_that_goes_on_adds(rng):
    parts = join(conv_bn(rng), node("Relu", ["b"], ["r"]), bn("r", "y", 8, rng))
    first, _ = onnx_bnfold.fold(made(parts))
    again, _ = onnx_bnfold.fold(first)
    assert again.SerializeToString() == first.SerializeToString()
    further, _ = onnx_bnfold.fold(first, Options(bn_free=True))
    assert said(further)["n_c"] == [
        f"scale and shift of BatchNormalization 'n_{each}'" for each in "by"
    ]


def test_what_a_node_says_goes_on_with_it(rng):
    """An earlier fold has put something into a node that now goes itself."""
    model = made(conv_bn(rng))
    model.graph.node[1].metadata_props.add(key=KEY, value="scale of Mul 'm'")
    folded, _ = fold_checked(model)
    assert said(folded) == {
        "n_c": ["scale and shift of BatchNormalization 'n_b'", "scale of Mul 'm'"]
    }


def test_what_merged_branches_say_goes_on(rng):
    parts = join(
        conv("x", "a", (3, 3, 3, 3), rng, pads=[1, 1, 1, 1]),
        conv("x", "b", (3, 3, 1, 1), rng),
        node("Add", ["a", "b"], ["y"]),
    )
    model = made(parts)
    model.graph.node[1].metadata_props.add(key=KEY, value="scale of Mul 'm'")
    folded, _ = fold_checked(model, options=Options(merge_branches=True))
    assert said(folded) == {"n_a": ["scale of Mul 'm'"]}


def test_what_others_have_recorded_stays(rng):
    model = made(conv_bn(rng))
    model.graph.node[0].metadata_props.add(key="other", value="text")
    folded, _ = onnx_bnfold.fold(model)
    (taker,) = folded.graph.node
    assert [entry.key for entry in taker.metadata_props] == ["other", KEY]


def test_a_constant(rng):
    """A BN of constants, which the Constant in its place names."""
    parts = join(
        bn("w", "n", 3, rng),
        node("Conv", ["x", "n"], ["y"]),
    )
    weight = tensor("w", rng.standard_normal((4, 3, 3, 3)).astype("float32"))
    model = made(join(type(parts)(parts.nodes, [*parts.initializers, weight])))
    folded, _ = fold_checked(model)
    assert said(folded) == {"n_n": ["BatchNormalization 'n_n', written as constant"]}
