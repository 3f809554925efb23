"""What onnxruntime runs as one operator is known, and a fold leaves it whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice, permutations, product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import IMAGE, Net
from onnx import ModelProto
from support import KERNELS_AS_READ, fold_checked, needs_kernels_as_read, ops

from onnx_bnfold.operators.fused_patterns import (
    COMMUTATIVE,
    DATA,
    PATTERNS,
    Constant,
    Pattern,
)
from onnx_bnfold.planning.fused_nodes import FusedNodes

SEQUENCE = ("N", 3, 8)
ALL = [
    pytest.param(operator, pattern, id=f"{operator}-{number}")
    for operator, patterns in PATTERNS.items()
    for number, pattern in enumerate(patterns)
]
# How the constants of a pattern are held, and the axis along which means are taken.
PLAIN = {"constant": (), "weight": (8,), "axis": -1, "times": 1.0}


def spelled(net: Net, pattern: Pattern, x: str, **how) -> str:
    """Write a pattern; equal parts of it are the same nodes."""
    how = PLAIN | how
    known: dict[Pattern, str] = {DATA: x}

    def written(part: Pattern) -> str:
        if isinstance(part, Constant) and part.is_weight:
            return net.random(*how["weight"])
        if part not in known:
            if isinstance(part, Constant):
                value = 1e-3 if part.value is None else part.value * how["times"]
                known[part] = net.const(np.full(how["constant"], value))
            else:
                operator, *operands = part
                axes = {"axes": [how["axis"]]} if operator == "ReduceMean" else {}
                known[part] = net.op(operator, *map(written, operands), **axes)
        return known[part]

    return written(pattern)


def orders(pattern: Pattern) -> Iterator[Pattern]:
    """The pattern with the operands of its Adds and Muls in every order."""
    if not isinstance(pattern, tuple):
        yield pattern
        return
    operator, *operands = pattern
    for parts in product(*(list(orders(operand)) for operand in operands)):
        for order in permutations(parts) if operator in COMMUTATIVE else (parts,):
            yield (operator, *order)


def optimised(model: ModelProto, folder: Path) -> list[str]:
    """The operators that onnxruntime runs, its optimisations on."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return ops(onnx.load(folder / "optimised.onnx"))


def known(net: Net, *outputs: str) -> set[str]:
    """The operators that the planner knows to be spelled out in a net."""
    return set(FusedNodes(net.state(*outputs)).members.values())


def known_of(model: ModelProto) -> set[str]:
    net = Net()
    net.nodes, net.initializers = [*model.graph.node], [*model.graph.initializer]
    net.inputs = [*model.graph.input]
    return known(net, *(o.name for o in model.graph.output))


def between(pattern: Pattern, shape=SEQUENCE, **how) -> tuple[Net, str]:
    """A pattern between two nodes that nothing is folded into."""
    net = Net(shape)
    return net, net.op("Abs", spelled(net, pattern, net.op("Abs", "x"), **how))


@needs_kernels_as_read
@pytest.mark.parametrize(("operator", "pattern"), ALL)
def test_onnxruntime_fuses_what_the_table_says(operator, pattern, tmp_path):
    for order in islice(orders(pattern), 64):
        net, y = between(order)
        assert optimised(net.model(y), tmp_path) == ["Abs", operator, "Abs"], order
        assert known(net, y) == {operator}


@needs_kernels_as_read
@pytest.mark.parametrize("opset", [9, 13, 18])
@pytest.mark.parametrize(("operator", "pattern"), ALL)
def test_in_every_opset(operator, pattern, opset, tmp_path):
    net = Net(SEQUENCE, opset=min(opset, 17))
    model = net.model(net.op("Abs", spelled(net, pattern, net.op("Abs", "x"))))
    if opset > 17:
        model = onnx.version_converter.convert_version(model, opset)
    assert operator in optimised(model, tmp_path)


@needs_kernels_as_read
@pytest.mark.parametrize(
    "how",
    [
        {"constant": (1,)},
        {"constant": (1, 1, 1)},
        {"times": 1 + 5e-6},
        {"times": 1.001},
        {"weight": ()},
        {"weight": (1,)},
        {"weight": (1, 8)},
        {"weight": (3, 8)},
        {"axis": 2},
        {"axis": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize(("operator", "pattern"), ALL)
def test_the_conditions_are_those_of_onnxruntime(operator, pattern, how, tmp_path):
    if operator.endswith("LayerNormalization") and "times" in how:
        pytest.skip("onnxruntime takes any power for a square, or 2 alone")
    net, y = between(pattern, **how)
    assert (operator in known(net, y)) == (operator in optimised(net.model(y), tmp_path))


@needs_kernels_as_read
@pytest.mark.parametrize("reader", ["node", "output"])
@pytest.mark.parametrize(("operator", "pattern"), ALL)
def test_what_others_read_is_not_fused(operator, pattern, reader, tmp_path):
    net, y = between(pattern)
    inside = net.nodes[-3].output[0]
    other = net.op("Neg", inside) if reader == "node" else inside
    assert operator not in known(net, y, other)
    assert operator not in optimised(net.model(y, other), tmp_path)


ONE, TWO, HALF, SIX = Constant(1.0), Constant(2.0), Constant(0.5), Constant(6.0)
GATE = ("Clip", ("Add", DATA, Constant(3.0)), Constant(0.0), SIX)
ERF = ("Add", ("Erf", ("Div", DATA, Constant(2**0.5))), ONE)
NOT_FUSED = {
    "hard-swish": ("Div", ("Mul", DATA, GATE), SIX),
    "hard-swish, gate first": ("Mul", DATA, ("Div", GATE, SIX)),
    "hard-swish, by a Mul": ("Mul", DATA, ("Mul", GATE, Constant(1 / 6))),
    "hard-swish, HardSigmoid": ("Mul", ("Mul", DATA, ("HardSigmoid", DATA)), SIX),
    "mish": ("Mul", ("Mul", DATA, ("Tanh", ("Softplus", DATA))), TWO),
    "softsign": ("Mul", ("Div", DATA, ("Add", ("Abs", DATA), ONE)), TWO),
    "gelu, half of the Erf": ("Mul", DATA, ("Mul", ERF, HALF)),
    "gelu over two": ("Div", ("Mul", DATA, ERF), TWO),
    "norm without weights": (
        "Div",
        ("Sub", DATA, ("ReduceMean", DATA)),
        ("Sqrt", ("Add", ("ReduceMean", ("Pow", DATA, TWO)), Constant())),
    ),
}


@needs_kernels_as_read
@pytest.mark.parametrize("name", NOT_FUSED)
def test_onnxruntime_fuses_nothing_of_these(name, tmp_path):
    """If a later one does, the table gets a line."""
    net, y = between(NOT_FUSED[name])
    model = net.model(y)
    assert sorted(optimised(model, tmp_path)) == sorted(ops(model))
    assert known(net, y) == set()


# --- folds --------------------------------------------------------------------------------------

BEHIND: dict[str, Callable[[Net, str], str]] = {
    "a layer": lambda n, t: n.linear(t, 3),
    "a decomposed BN": lambda n, t: n.op("Abs", n.affine(t, 8)),
    "a decomposed BN and a layer": lambda n, t: n.linear(n.affine(t, 8), 3),
    "a BN and a layer": lambda n, t: n.linear(
        n.op("Transpose", n.bn(n.op("Transpose", t, perm=[0, 2, 1])), perm=[0, 2, 1]), 3
    ),
}


@pytest.mark.parametrize("in_front", ["a layer", "a decomposed BN"])
@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize(("operator", "pattern"), ALL)
def test_no_fold_takes_them_apart(operator, pattern, behind, in_front, tmp_path):
    net = Net(SEQUENCE)
    x = net.linear("x", 8) if in_front == "a layer" else net.affine(net.op("Abs", "x"), 8)
    folded, _ = fold_checked(net.model(BEHIND[behind](net, spelled(net, pattern, x))))
    assert known_of(folded) == {operator}
    if KERNELS_AS_READ:
        assert {operator, f"Bias{operator}"} & {*optimised(folded, tmp_path)}


def test_a_bn_goes_the_way_that_leaves_them_whole():
    """Nothing new would be in the graph if the 0.5 of the Gelu took its scale."""
    net = Net(IMAGE)
    y = net.bn(spelled(net, PATTERNS["Gelu"][1], net.conv("x", 4)), shift=False)
    folded, _ = fold_checked(net.model(net.conv(y, 3)))
    assert known_of(folded) == {"Gelu"}


def test_a_bn_goes_all_the_same_where_there_is_no_other_way():
    """It can go only if the 0.5 of the Gelu takes its scale."""
    net = Net(IMAGE)
    pattern = PATTERNS["Gelu"][1]
    y = spelled(net, pattern, net.conv("x", 4))
    fold_checked(net.model(net.op("Sigmoid", net.bn(y, shift=False))))


def test_a_decomposed_bn_stays_where_there_is_no_other_way():
    net = Net(IMAGE)
    y = spelled(net, PATTERNS["Gelu"][1], net.conv("x", 4))
    model = net.model(net.op("Sigmoid", net.op("Mul", y, net.random(4, 1, 1))))
    folded, _ = fold_checked(model)
    assert ops(folded) == ops(model)


@pytest.mark.parametrize("name", ["hard-swish", "hard-swish, HardSigmoid", "mish", "softsign"])
def test_what_is_not_fused_is_folded(name):
    """The constant factor and the decomposed BN go into the layer behind."""
    net = Net(IMAGE)
    t = spelled(net, NOT_FUSED[name], net.conv("x", 4))
    model = net.model(net.conv(net.affine(t, 4, 1, 1), 3))
    folded, _ = fold_checked(model)
    assert len(ops(model)) - len(ops(folded)) == 3
    assert ops(folded)[-2:] == [ops(model)[-5], "Conv"]


def test_a_layer_norm_over_channels_is_none_of_onnxruntime():
    """Its scale and shift go into the Conv behind."""
    net = Net(IMAGE)
    (pattern,) = PATTERNS["LayerNormalization"]
    t = spelled(net, pattern, net.conv("x", 4), axis=1, weight=(4, 1, 1))
    model = net.model(net.conv(t, 3))
    folded, _ = fold_checked(model)
    assert len(ops(model)) - len(ops(folded)) == 2
