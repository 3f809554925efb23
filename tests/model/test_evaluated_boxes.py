"""Large constants that nodes compute: part by part they are what they are as a whole."""

from itertools import pairwise

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnx_bnfold.model import constants, evaluated_boxes, moved_elements
from onnx_bnfold.model import evaluate as evaluate_module
from onnx_bnfold.model.blocks import Held, InMemory
from onnx_bnfold.model.box_rules import RULES, Node
from onnx_bnfold.model.constants import Constants
from onnx_bnfold.model.graph import graphs_of
from onnx_bnfold.reasons import Refused

RNG = np.random.default_rng(0)
SHAPE = (203, 5, 9)
STORED = {
    "w": RNG.standard_normal(SHAPE).astype(np.float32),
    "h": RNG.standard_normal(SHAPE).astype(np.float16),
    "q": RNG.integers(-100, 100, SHAPE).astype(np.int8),
    "odd": RNG.standard_normal((33, 7, 9)).astype(np.float32),
    "row": RNG.standard_normal((203, 1, 1)).astype(np.float32),
    "column": (RNG.standard_normal((5, 1)) + 3).astype(np.float32),
    "scale": (RNG.random(203) + 0.1).astype(np.float32),
    "inner_scale": (RNG.random(5) + 0.1).astype(np.float32),
    "block_scale": (RNG.random((203, 5, 3)) + 0.1).astype(np.float32),
    "zero": RNG.integers(-9, 9, 203).astype(np.int8),
    "two": np.array(2, np.float32),
    "flat": np.array([203, -1], np.int64),
    "wide": np.array([1, 203, 45], np.int64),
    "regrouped": np.array([5, 203, 9], np.int64),
    "large": np.array([203, 5, 9], np.int64),
    "first": np.array([0], np.int64),
    "inner": np.array([1, 2], np.int64),
    "last": np.array([-1], np.int64),
}


def nodes_of(lines):
    """Make nodes of lines as "out = Op a b; axis=1"."""
    for line in lines:
        words, _, given = line.partition(";")
        output, _, op, *inputs = words.split()
        attributes = eval(f"dict({given})")
        yield helper.make_node(op, inputs, [output], **attributes)


def constants_of(lines, opset=21, *, in_file):
    """Return the constants of a graph, and the names of the initializers that are read whole."""
    read_by = {name for line in lines for name in line.partition(";")[0].split()}
    stored = {name: value for name, value in STORED.items() if name in read_by}
    kind = helper.np_dtype_to_tensor_dtype
    tensors = [
        TensorProto(name=name, dims=value.shape, data_type=kind(value.dtype))
        for name, value in stored.items()
    ]
    graph = helper.make_graph([*nodes_of(lines)], "g", [], [], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    index, *_ = graphs_of(model)
    whole = []

    def read(tensor):
        whole.append(tensor.name)
        return stored[tensor.name]

    def opened(tensor):
        return InMemory(stored[tensor.name]) if stored[tensor.name].size > 1000 else None

    return Constants(index, read, {}, None, opened if in_file else None), whole


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(constants, "LARGEST_MOVED", 1000)
    monkeypatch.setattr(evaluated_boxes, "_SMALL", 400)
    monkeypatch.setattr(evaluated_boxes, "_HELD", 10_000)
    monkeypatch.setattr(evaluated_boxes, "_MOST", 30_000)
    monkeypatch.setattr(moved_elements, "_SHORTEST", 4)


def evaluate(lines, opset=21):
    """Compare "y" in parts with the whole; return the large initializers that are read whole."""
    expected = constants_of(lines, opset, in_file=False)[0].value("y")
    found, whole = constants_of(lines, opset, in_file=True)
    dims = found.get("y").dims
    stored = found.stored("y")
    flat = np.empty(expected.size, expected.dtype)
    for start in range(0, flat.size, 1001):
        stored.read_into(start, flat[start : start + 1001])
    assert flat.tobytes() == expected.tobytes()
    value = constants_of(lines, opset, in_file=True)[0].value("y")
    assert value.shape == expected.shape == dims
    assert value.tobytes() == expected.tobytes()
    return {*whole} & {"w", "h", "q"}


WEIGHT_NORM = "n = ReduceL2 w inner", "d = Div w n", "y = Mul d row"
IN_PARTS = {
    "product": ["y = Mul w row"],
    "square": ["s = Mul w w", "y = Add s two"],
    "inner": ["s = Sub w column", "y = Div s column"],
    "cast": ["y = Cast h; to=1"],
    "cast-like": ["s = CastLike h two", "y = Mul s row"],
    "weight-norm": WEIGHT_NORM,
    "power": ["a = Abs w", "p = Pow a two", "s = ReduceSum p inner", "r = Sqrt s", "y = Div w r"],
    "standardised": [
        *("m = ReduceMean w inner", "c = Sub w m", "s = Mul c c", "v = ReduceMean s inner"),
        *("r = Sqrt v", "y = Div c r"),
    ],
    "norm-of-rows": ["r = Reshape w flat", "y = ReduceL2 r last; keepdims=0"],
    "norm-of-columns": ["n = ReduceL2 w first", "y = Div w n"],
    "largest": ["m = ReduceMax w inner", "y = Div w m"],
    "transposed": ["f = Reshape w flat", "m = Mul f two", "y = Transpose m"],
    "reshaped": ["m = Mul w row", "y = Reshape m wide"],
    "flattened": ["m = Mul w row", "f = Flatten m; axis=1", "y = Neg f"],
    "squeezed": ["m = Mul w row", "u = Unsqueeze m first", "y = Neg u"],
    "expanded": ["e = Expand row large", "y = Mul e w"],
    "dequantized": ["y = DequantizeLinear q scale zero; axis=0"],
    "dequantized-inner": ["y = DequantizeLinear q inner_scale; axis=-2"],
    "dequantized-all": ["y = DequantizeLinear q two"],
    "dequantized-blocks": ["y = DequantizeLinear q block_scale; axis=2, block_size=3"],
    "rounded": ["s = Div w column", "r = Round s", "c = Clip r", "y = Mul c column"],
    "chosen": ["g = Greater w column", "n = Neg w", "y = Where g w n"],
}


@pytest.mark.parametrize("lines", IN_PARTS.values(), ids=IN_PARTS)
def test_what_is_computed_in_parts(lines):
    assert not evaluate(lines)


@pytest.mark.parametrize("axes", ["", " first"])
def test_a_part_of_one_row_keeps_its_axis_where_others_are_squeezed_out(axes):
    evaluate(["m = Mul odd two", "u = Unsqueeze m first", f"y = Squeeze u{axes}"])


WHOLE = {
    "sum-of-all": ["m = ReduceMean w; axes=[0, 1, 2]", "y = Identity m"],
    "sum-across": ["m = ReduceMean w; axes=[0, 2]", "y = Sub w m"],
    "another-operator": ["y = Softmax w; axis=0"],
    "an-operand-of-another-operator": ["s = Softmax w; axis=0", "y = Mul s row"],
    "regrouped": ["m = Mul w row", "y = Reshape m regrouped"],
}


@pytest.mark.parametrize("lines", WHOLE.values(), ids=WHOLE)
def test_what_needs_all_is_computed_as_a_whole(lines):
    assert evaluate(lines, 17) == {"w"}


def test_a_sum_that_needs_all_is_computed_once_and_the_rest_in_parts():
    assert evaluate(["m = ReduceL2 w; axes=[0, 1, 2]", "y = Div w m"], 17) == {"w"}
    found, _ = constants_of(["m = ReduceL2 w; axes=[0, 1, 2]", "y = Div w m"], 17, in_file=True)
    assert isinstance(found.stored("y"), Held)


def test_long_chains_are_not_computed_anew_for_each_part(monkeypatch):
    monkeypatch.setattr(evaluated_boxes, "_MOST", 10**6)
    names = ["w", *(f"n{i}" for i in range(evaluated_boxes._LONGEST)), "y"]
    chain = [f"{made} = Neg {read}" for read, made in pairwise(names)]
    assert evaluate(chain) == {"w"}
    assert not evaluate([*chain[:50], "y = Neg n49"])


def test_broadcasting_by_attributes_is_left_to_others():
    node = Node((4, 3), [(4, 3), (4,)], {"broadcast": 1, "axis": 0}, 6, lambda _: np.zeros(0))
    assert RULES["Mul"](node, ((0, 2), (0, 3))) is None


def test_elements_that_lie_too_far_apart(monkeypatch):
    monkeypatch.setattr(moved_elements, "_SHORTEST", 200)
    assert evaluate(["m = Mul w row", "y = Transpose m; perm=[2, 1, 0]"]) == {"w"}


def test_a_result_of_another_shape_is_a_reason(monkeypatch):
    found, _ = constants_of(["y = Mul w row"], in_file=True)
    stored = found.stored("y")
    monkeypatch.setattr(evaluate_module, "by_numpy", lambda *_: np.zeros((2, 2), np.float32))
    with pytest.raises(Refused, match="its result has shape"):
        stored.read_into(0, np.empty(10, np.float32))
