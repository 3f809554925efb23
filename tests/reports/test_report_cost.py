"""Multiply-adds and depth, against numbers counted by hand."""

import numpy as np
import onnx
import pytest
from onnx import helper
from support import bn, conv, join, layer, model_of, node, tensor

from onnx_bnfold.reports.cost import cost_of, input_shapes
from onnx_bnfold.reports.depth import FREE, NON_POLYNOMIAL, ONE_LEVEL
from onnx_bnfold.storage import read_tensor


def cost(model: onnx.ModelProto, **sizes: tuple[int, ...]):
    return cost_of(model, lambda t: read_tensor(t, None), sizes)


def one(op: str, x: str, rng, **more):
    """A layer of one operator that writes y."""
    shapes = {
        "Conv": ((6, 2, 3, 3), (6,)),
        "ConvTranspose": ((4, 3, 2, 2), (3,)),
        "Gemm": ((5, 7), (7,)),
        "MatMul": ((5, 7), None),
    }
    weight, bias = shapes[op]
    return layer(op, x, "y", weight, rng, bias_shape=bias, **more)


COUNTS = {
    # output elements times C_in / group times kernel
    "Conv": ("Conv", (2, 4, 8, 9), {"group": 2}, 2 * 6 * 6 * 7 * (2 * 9)),
    "Conv-strides": ("Conv", (1, 4, 8, 9), {"group": 2, "strides": [2, 3]}, 6 * 3 * 3 * (2 * 9)),
    # input elements times C_out / group times kernel
    "ConvTranspose": ("ConvTranspose", (2, 4, 5, 6), {"strides": [2, 2]}, 2 * 4 * 30 * (3 * 4)),
    "Gemm": ("Gemm", (3, 5), {}, 3 * 7 * 5),
    "Gemm-transA": ("Gemm", (5, 3), {"transA": 1}, 3 * 7 * 5),
    "MatMul": ("MatMul", (2, 3, 5), {}, 2 * 3 * 7 * 5),
}


@pytest.mark.parametrize(("op", "shape", "more", "expected"), COUNTS.values(), ids=COUNTS)
def test_multiply_adds_of_layers(op, shape, more, expected, rng):
    parts = one(op, "x", rng, **more)
    found = cost(model_of(parts.nodes, {"x": shape}, ["y"], parts.initializers))
    assert (found.multiply_adds, found.multiplicative_depth) == (expected, 1)
    assert found.unknown is None


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("nchw,oc->nohw", ((2, 3, 4, 5), (6, 3)), 2 * 6 * 20 * 3),
        ("nc,co", ((2, 3), (3, 6)), 2 * 6 * 3),
        ("...c,co->...o", ((2, 4, 3), (3, 6)), 8 * 6 * 3),
        ("c...,co->o...", ((3, 2, 4), (3, 6)), 8 * 6 * 3),
        ("nchw,oc->no", ((2, 3, 4, 5), (6, 3)), 2 * 6 * 60),
    ],
)
def test_an_einsum_counts_a_product_for_each_term(equation, shapes, expected, rng):
    nodes = [onnx.helper.make_node("Einsum", ["x", "w"], ["y"], equation=equation)]
    weight = tensor("w", rng.standard_normal(shapes[1]).astype(np.float32))
    found = cost(model_of(nodes, {"x": shapes[0]}, ["y"], [weight], opset=13))
    assert (found.multiply_adds, found.multiplicative_depth) == (expected, 1)


def test_elements_of_norms_products_and_quotients_count_once(rng):
    parts = join(
        bn("x", "b", 3, rng),
        node("Mul", ["b", "two"], ["m"]),
        node("Div", ["m", "two"], ["d"]),
        node("Add", ["d", "two"], ["y"]),
    )
    two = [tensor("two", np.float32([2]))]
    model = model_of(parts.nodes, {"x": (1, 3, 4, 5)}, ["y"], [*parts.initializers, *two])
    assert cost(model).multiply_adds == 3 * 60
    assert cost(model).multiplicative_depth == 3


def test_the_longest_path_counts(rng):
    """x -> Conv -> Relu -> Conv -> Add <- x: two levels, one Relu; BNs add a level each."""
    parts = join(
        conv("x", "c", (3, 3, 1, 1), rng),
        bn("c", "b", 3, rng),
        node("Relu", ["b"], ["r"]),
        conv("r", "d", (3, 3, 1, 1), rng),
        bn("x", "s", 3, rng),
        node("Add", ["d", "s"], ["y"]),
    )
    found = cost(model_of(parts.nodes, {"x": (1, 3, 4, 5)}, ["y"], parts.initializers))
    assert (found.multiplicative_depth, found.non_polynomial) == (3, 1)


STEPS = {
    "Pow 2": ("Pow", 2.0, (1, 0)),
    "Pow 3": ("Pow", 3.0, (2, 0)),
    "Pow 8": ("Pow", 8.0, (3, 0)),
    "Pow 0.5": ("Pow", 0.5, (0, 1)),
    "Div": ("Div", 3.0, (1, 0)),
    "Max": ("Max", 3.0, (0, 1)),
    "Sub": ("Sub", 3.0, (0, 0)),
}


@pytest.mark.parametrize(("op", "constant", "expected"), STEPS.values(), ids=STEPS)
def test_depth_of_an_operator_with_a_constant(op, constant, expected):
    parts = node(op, ["x", "k"], ["y"])
    model = model_of(parts.nodes, {"x": (2, 3)}, ["y"], [tensor("k", np.float32(constant))])
    found = cost(model)
    assert (found.multiplicative_depth, found.non_polynomial) == expected


@pytest.mark.parametrize(("op", "expected"), [("Div", (1, 1)), ("Mul", (1, 0)), ("Pow", (0, 1))])
def test_depth_of_an_operator_with_two_computed_operands(op, expected):
    found = cost(model_of(node(op, ["x", "x"], ["y"]).nodes, {"x": (2, 3)}, ["y"]))
    assert (found.multiplicative_depth, found.non_polynomial) == expected


def test_what_a_shape_is_computed_from_is_not_encrypted(rng):
    """Reshape to (N, C, H * W) by Shape, Gather and Mul: no product of the data."""
    constants = {"i2": 2, "i3": 3, "axis": [0], "minus": [-1]}
    parts = join(
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "i2"], ["h"]),
        node("Gather", ["shape", "i3"], ["w"]),
        node("Mul", ["h", "w"], ["hw"]),
        node("Unsqueeze", ["hw", "axis"], ["hw1"]),
        node("Concat", ["minus", "hw1"], ["to"], axis=0),
        node("Reshape", ["x", "to"], ["r"]),
        layer("MatMul", "r", "y", (20, 7), rng),
    )
    given = [tensor(name, np.int64(value)) for name, value in constants.items()]
    model = model_of(parts.nodes, {"x": ("N", 3, 4, 5)}, ["y"], [*parts.initializers, *given])
    found = cost(model)
    assert (found.multiply_adds, found.multiplicative_depth) == (3 * 20 * 7, 1)


def test_depth_where_a_shape_is_not_known():
    """Shape hides its input, whether it is known or not: Mul multiplies sizes here, no data."""
    parts = join(
        node("Shape", ["x"], ["shape"]),
        node("Mul", ["shape", "two"], ["to"]),
        node("Expand", ["x", "to"], ["y"]),
    )
    two = tensor("two", np.int64(2))
    found = cost(model_of(parts.nodes, {"x": ("N", "H")}, {"y": ("N", "W")}, [two]))
    assert found.multiplicative_depth == 0


def test_what_shape_inference_does_not_follow(rng):
    """Half the channels, by a Div of a Shape, as in a channel shuffle of PyTorch's exporter."""
    constants = {"i1": [1], "two": [2], "ends": [0, 2], "rest": [-1]}
    parts = join(
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "i1"], ["c"]),
        node("Div", ["c", "two"], ["half"]),
        node("Concat", ["ends", "half", "rest"], ["to"], axis=0),
        node("Reshape", ["x", "to"], ["r"]),
        layer("MatMul", "r", "y", (20, 7), rng),
    )
    given = [tensor(name, np.int64(value)) for name, value in constants.items()]
    inputs = {"x": ("N", 6, 4, 5)}
    model = model_of(parts.nodes, inputs, {"y": None}, [*parts.initializers, *given])
    assert cost(model).multiply_adds == 2 * 3 * 20 * 7


UNKNOWN = {
    "a custom operator": ("Mystery", "my.domain", True),
    "an LSTM": ("LSTM", "", True),
    "a standard operator without a rule": ("Det", "", False),
}


@pytest.mark.parametrize(("op", "domain", "counts"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_not_known_is_not_guessed(op, domain, counts):
    made = helper.make_node(op, ["x"], ["y"], name="odd", domain=domain)
    found = cost(model_of([made], {"x": (1, 3, 3)}, {"y": None}, imports={"my.domain": 1}))
    assert found.multiplicative_depth is None
    assert found.non_polynomial is None
    assert found.multiply_adds is None
    assert "'odd'" in found.unknown


def test_a_branch_is_not_guessed(rng):
    body = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["t"])],
        "b",
        [],
        [helper.make_empty_tensor_value_info("t")],
    )
    parts = node("If", ["condition"], ["y"], then_branch=body, else_branch=body)
    condition = tensor("condition", np.bool_(True))
    found = cost(model_of(parts.nodes, {"x": (1, 3)}, {"y": None}, [condition]))
    assert found.multiplicative_depth is None


def test_functions_are_expanded(rng):
    function = helper.make_function(
        "my.domain", "Twice", ["a"], ["b"],
        [helper.make_node("Add", ["a", "a"], ["s"]), helper.make_node("Mul", ["s", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    parts = node("Twice", ["x"], ["y"], domain="my.domain")
    model = model_of(
        parts.nodes, {"x": (2, 3)}, {"y": None}, imports={"my.domain": 1}, functions=[function]
    )
    assert (cost(model).multiply_adds, cost(model).multiplicative_depth) == (6, 1)


SHAPES = {
    "the batch counts as one": ({"x": ("N", 3, 4, 5)}, {}, (1, 3, 4, 5)),
    "so does one without a name": ({"x": (None, 3, 4, 5)}, {}, (1, 3, 4, 5)),
    "a fixed batch stays": ({"x": (8, 3, 4, 5)}, {}, (8, 3, 4, 5)),
    "other axes are not guessed": ({"x": ("N", 3, "H", "W")}, {}, (1, 3, None, None)),
    "a symbol can be set": ({"x": ("N", 3, "H", "H")}, {"H": (4,)}, (1, 3, 4, 4)),
    "a shape can be set": ({"x": ("N", 3, "H", "W")}, {"x": (2, 3, 4, 5)}, (2, 3, 4, 5)),
    "a symbol is one size everywhere": ({"x": ("N", 3, "N", 5)}, {}, (1, 3, 1, 5)),
}


@pytest.mark.parametrize(("inputs", "sizes", "expected"), SHAPES.values(), ids=SHAPES)
def test_shapes_the_cost_is_counted_for(inputs, sizes, expected, rng):
    parts = conv("x", "y", (2, 3, 1, 1), rng)
    model = model_of(parts.nodes, inputs, ["y"], parts.initializers)
    assert input_shapes(model, sizes) == {"x": expected}
    found = cost(model, **sizes)
    if None in expected:
        assert found.multiply_adds is None
        assert "shape" in found.unknown
    else:
        assert found.multiply_adds == np.prod(expected) * 2
    assert found.multiplicative_depth == 1


def test_the_model_is_not_changed(rng):
    parts = conv("x", "y", (2, 3, 1, 1), rng)
    model = model_of(parts.nodes, {"x": ("N", 3, 4, 5)}, ["y"], parts.initializers)
    before = model.SerializeToString()
    cost(model)
    assert model.SerializeToString() == before


def test_the_tables_name_operators_that_exist_and_do_not_overlap():
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    tables = FREE, ONE_LEVEL, NON_POLYNOMIAL
    assert set().union(*tables) <= known
    assert sum(map(len, tables)) == len(set().union(*tables))
