"""Vectors of sizes: what Shape nodes return, and what is computed from it, open axes among it."""

import numpy as np
import onnx
import pytest
from graphs import Net
from onnx import TensorProto
from support import run

from onnx_bnfold.model.shape_vectors import Size, followed

OPEN = {"N": 3, "W": 5}
SHAPE = ("N", 4, 6, "W")


def of_x(net, *axes):
    return net.op("Gather", net.op("Shape", "x"), net.ints(*axes))


def one_of_x(net, axis):
    return net.op("Gather", net.op("Shape", "x"), net.const(np.int64(axis)))


VECTORS = {
    "shape": (lambda net: net.op("Shape", "x"), ["N", 4, 6, "W"]),
    "part of a shape": (lambda net: net.op("Shape", "x", start=-3, end=9), [4, 6, "W"]),
    "size": (lambda net: net.op("Size", "x"), [(24, "NW")]),
    "gather": (lambda net: of_x(net, 2, -4, 1), [6, "N", 4]),
    "gather one": (lambda net: one_of_x(net, -1), ["W"]),
    "squeeze": (lambda net: net.op("Squeeze", of_x(net, 1), net.ints(0)), [4]),
    "unsqueeze": (lambda net: net.op("Unsqueeze", one_of_x(net, 0), net.ints(0)), ["N"]),
    "reshape": (lambda net: net.op("Reshape", one_of_x(net, 2), net.ints(-1)), [6]),
    "cast": (
        lambda net: net.op("Cast", net.op("Cast", of_x(net, 0, 1), to=6), to=TensorProto.INT64),
        ["N", 4],
    ),
    "slice": (
        lambda net: net.op("Slice", net.op("Shape", "x"), net.ints(-3), net.ints(2**62)),
        [4, 6, "W"],
    ),
    "slice by steps": (
        lambda net: net.op(
            "Slice", net.op("Shape", "x"), net.ints(0), net.ints(4), net.ints(0), net.ints(2)
        ),
        ["N", 6],
    ),
    "concat": (
        lambda net: net.op("Concat", of_x(net, 0), net.ints(-1, 7), of_x(net, 2), axis=0),
        ["N", -1, 7, 6],
    ),
    "mul": (
        lambda net: net.op("Mul", of_x(net, 3, 0, 1), of_x(net, 0)),
        [(1, "NW"), (1, "NN"), (4, "N")],
    ),
    "div": (lambda net: net.op("Div", of_x(net, 1, 2), net.const(np.int64(4))), [1, 1]),
    "div by an open size": (
        lambda net: net.op("Div", net.op("Mul", of_x(net, 0, 2), of_x(net, 3)), one_of_x(net, 3)),
        ["N", 6],
    ),
    "add": (lambda net: net.op("Add", of_x(net, 1, 2), net.ints(10, 20)), [14, 26]),
    "add equals": (lambda net: net.op("Add", of_x(net, 0, 3), of_x(net, 0, 0)), [(2, "N"), None]),
    "add nothing": (lambda net: net.op("Add", net.ints(0), of_x(net, 0, 3)), ["N", "W"]),
    "sub nothing": (lambda net: net.op("Sub", of_x(net, 0, 3), net.ints(0)), ["N", "W"]),
    "sub equals": (lambda net: net.op("Sub", of_x(net, 0, 1), of_x(net, 0, 1)), [0, 0]),
    "sub": (lambda net: net.op("Sub", net.ints(10), of_x(net, 1, 2)), [6, 4]),
    "identity of a scalar": (lambda net: net.op("Identity", one_of_x(net, 1)), [4]),
    "times nothing": (lambda net: net.op("Mul", of_x(net, 0), net.ints(0)), [0]),
}  # fmt: skip

NOT_KNOWN = {
    "an open size that is halved": lambda net: net.op("Div", of_x(net, 0), net.ints(2)),
    "a number by an open size": lambda net: net.op("Div", net.ints(2), of_x(net, 0)),
    "by another open size": lambda net: net.op("Div", of_x(net, 0), of_x(net, 3)),
    "by zero": lambda net: net.op("Div", of_x(net, 1), net.ints(0)),
    "by less than zero": lambda net: net.op("Div", of_x(net, 1), net.ints(-3)),
    "less than zero": lambda net: net.op("Div", net.ints(-7), of_x(net, 1)),
    "an open size and one": lambda net: net.op("Add", of_x(net, 0), net.ints(1)),
    "the difference of others": lambda net: net.op("Sub", of_x(net, 0), of_x(net, 3)),
    "more than 64 bits": lambda net: net.op("Mul", of_x(net, 1), net.ints(2**61)),
    "more than 32 bits": lambda net: net.op(
        "Cast", net.op("Mul", of_x(net, 1), net.ints(2**30)), to=TensorProto.INT32
    ),
}
NO_VECTOR = {
    "backwards": lambda net: net.op(
        "Slice", net.op("Shape", "x"), net.ints(3), net.ints(0), net.ints(0), net.ints(-1)
    ),
    "too far": lambda net: net.op("Gather", net.op("Shape", "x"), net.ints(4)),
    "a matrix": lambda net: net.op("Reshape", net.op("Shape", "x"), net.ints(2, 2)),
    "by an input": lambda net: net.op(
        "Gather", net.op("Shape", "x"), net.input("i", [1], TensorProto.INT64)
    ),
    "floats": lambda net: net.op("Cast", net.op("Shape", "x"), to=TensorProto.FLOAT),
    "of no known rank": lambda net: net.op("Shape", net.input("u", None)),
    "sizes and floats": lambda net: net.op("Mul", net.op("Shape", "x"), net.random(4)),
}


def vector_of(build, shape=SHAPE):
    net = Net(shape)
    name = build(net)
    state = net.state(name)
    vectors = state.constants.vectors({})
    known = {name for name, vector in vectors.computed.items() if vector.integers is not None}
    assert known <= followed(state.graph, ())
    return net, name, vectors.get(name)


def number(size):
    assert size.symbols == tuple(sorted(size.symbols))
    return size.factor * int(np.prod([OPEN[symbol] for symbol in size.symbols], dtype=int))


def expected(element):
    if isinstance(element, str):
        return Size(1, (element,))
    factor, symbols = element if isinstance(element, tuple) else (element, "")
    return Size(factor, tuple(symbols))


@pytest.mark.parametrize(("build", "elements"), VECTORS.values(), ids=VECTORS)
def test_what_is_computed_from_a_shape(build, elements):
    net, name, vector = vector_of(build)
    assert [*vector.elements] == [None if each is None else expected(each) for each in elements]
    (value,) = run(net.model(name), {"x": np.zeros((3, 4, 6, 5), np.float32)})
    for size, each in zip(vector.elements, value.reshape(-1).tolist(), strict=True):
        assert size is None or number(size) == each
    assert vector.is_scalar == (value.ndim == 0)


@pytest.mark.parametrize(("build", "elements"), VECTORS.values(), ids=VECTORS)
def test_what_has_numbers_alone_is_a_constant(build, elements):
    net, name, _ = vector_of(build)
    constants = net.state(name).constants
    if not all(isinstance(each, int) for each in elements):
        assert constants.get(name) is None
        return
    info, value = constants.get(name), constants.value(name)
    assert (info.dims, info.data_type) == (value.shape, TensorProto.INT64)
    (ran,) = run(net.model(name), {"x": np.zeros((3, 4, 6, 5), np.float32)})
    assert (value.dtype, value.tolist()) == (ran.dtype, ran.tolist())


@pytest.mark.parametrize("build", NOT_KNOWN.values(), ids=NOT_KNOWN)
def test_sizes_that_are_not_known(build):
    assert [*vector_of(build)[2].elements] == [None]


@pytest.mark.parametrize("build", NO_VECTOR.values(), ids=NO_VECTOR)
def test_what_is_no_vector_of_sizes(build):
    assert vector_of(build)[2] is None


def test_a_size_of_32_bits_is_a_constant_of_32_bits():
    net, name, _ = vector_of(lambda net: net.op("Cast", of_x(net, 1), to=TensorProto.INT32))
    constants = net.state(name).constants
    assert (constants.get(name).data_type, constants.value(name).dtype) == (6, np.int32)


@pytest.mark.parametrize("kind", [TensorProto.INT32, TensorProto.INT64])
def test_a_number_that_wraps_around_is_what_onnxruntime_makes_of_it(kind):
    net = Net([2, 4, 6])
    sizes = net.op("Cast", net.op("Shape", "x"), to=kind)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    name = net.op("Mul", sizes, net.const(np.array(np.iinfo(dtype).max, dtype)))
    (ran,) = run(net.model(name), {"x": np.zeros((2, 4, 6), np.float32)})
    assert net.state(name).constants.value(name).tolist() == ran.tolist()


def test_what_is_computed_from_known_sizes_is_a_constant():
    net, name, _ = vector_of(
        lambda net: net.op(
            "Range", net.const(np.int64(0)), one_of_x(net, 1), net.const(np.int64(1))
        )
    )
    assert net.state(name).constants.value(name).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("value", [{"value_int": 1}, {"value_ints": [1]}], ids=str)
def test_indices_of_a_constant_node(value):
    def build(net):
        return net.op("Gather", net.op("Shape", "x"), net.op("Constant", **value))

    _, _, vector = vector_of(build)
    assert vector.elements == (Size(4),)
    assert vector.is_scalar == ("value_int" in value)


def test_an_index_that_can_be_overridden_is_not_known():
    net = Net(SHAPE)
    index = net.ints(1)
    net.inputs.append(onnx.helper.make_tensor_value_info(index, TensorProto.INT64, [1]))
    name = net.op("Gather", net.op("Shape", "x"), index)
    assert net.state(name).constants.vectors({}).get(name) is None


def test_an_attribute_of_a_function_is_not_known():
    net = Net(SHAPE)
    name = net.op("Shape", "x")
    reference = net.nodes[-1].attribute.add(name="start", ref_attr_name="start")
    reference.type = onnx.AttributeProto.INT
    assert net.state(name).constants.vectors({}).get(name) is None


@pytest.mark.parametrize(("op", "is_followed"), [("Identity", False), ("Div", True), ("Sub", True)])
def test_sizes_that_are_all_open_are_followed_where_they_may_cancel(op, is_followed):
    net = Net(("N", "W"))
    sizes = net.op("Gather", net.op("Shape", "x"), net.ints(0))
    name = net.op(op, *[sizes] * (1 + is_followed))
    found = followed(net.state(name).graph, ())
    assert found == ({name} if is_followed else set())
