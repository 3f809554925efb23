"""Large constants that nodes make by moving the elements of an initializer."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnx_bnfold.model import constants, moved_elements
from onnx_bnfold.model.blocks import InMemory, blocks_of
from onnx_bnfold.model.constants import Constants
from onnx_bnfold.model.graph import graphs_of
from onnx_bnfold.model.moved_elements import Moved

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("held", [1, 4, 60, 1000])
@pytest.mark.parametrize("most", [1, 7, 12, 1000])
@pytest.mark.parametrize("perm", [(0, 1, 2, 3), (1, 0, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)], ids=str)
def test_every_element_is_read_once_wherever_it_lies(held, most, perm, monkeypatch):
    monkeypatch.setattr(moved_elements, "_HELD", held)
    array = RNG.standard_normal((5, 4, 1, 3)).astype(np.float32)
    view = array.transpose(perm)
    read = []

    class Source(InMemory):
        def read_into(self, start, out):
            read.append(len(out))
            super().read_into(start, out)

    made = Moved(Source(array), view.shape, tuple(step // 4 for step in view.strides))
    found = np.full(view.shape, np.nan, np.float32)
    for where, values in blocks_of(made, view.shape, most):
        found[where] = values
    np.testing.assert_array_equal(found, view)
    assert sum(read) == array.size
    assert max(read) == made.longest <= held
    again = np.empty(array.size, np.float32)
    made.read_into(0, again)
    np.testing.assert_array_equal(again, view.reshape(-1))


def read(nodes, *, shape=(40, 60), more=()):
    """Read the constant "y" that nodes make of "w"; return whether "w" was not read as a whole."""
    array = RNG.standard_normal(shape).astype(np.float32)
    weight = TensorProto(name="w", dims=shape, data_type=TensorProto.FLOAT)
    graph = helper.make_graph(nodes, "g", [], [], [weight, *more])
    index, *_ = graphs_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    whole = []

    def read_all(tensor):
        whole.append(tensor.name)
        return array if tensor.name == "w" else np.array(tensor.int64_data, np.int64)

    def opened(tensor):
        return InMemory(array) if tensor.name == "w" else None

    found = Constants(index, read_all, {}, None, opened)
    info = found.get("y")
    assert info is not None
    stored = found.stored("y")
    flat = np.empty(info.size, stored.dtype)
    stored.read_into(0, flat)
    was_whole = "w" in whole
    expected = found.value("y")
    assert info.dims == expected.shape
    np.testing.assert_array_equal(flat, expected.reshape(-1))
    return not was_whole


@pytest.fixture
def _small(monkeypatch):
    monkeypatch.setattr(constants, "LARGEST_MOVED", 2000)
    monkeypatch.setattr(moved_elements, "_SHORTEST", 2)


def sizes(name, *values):
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


TRANSPOSE = helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0])


@pytest.mark.usefixtures("_small")
def test_a_moved_weight_is_not_read_as_a_whole():
    assert read([helper.make_node("Identity", ["w"], ["y"])])
    assert read([helper.make_node("Transpose", ["w"], ["y"])])
    assert read([TRANSPOSE, helper.make_node("Identity", ["t"], ["y"])])
    axes = [sizes("a", 0, 3)]
    assert read([TRANSPOSE, helper.make_node("Unsqueeze", ["t", "a"], ["y"])], more=axes)
    shape = [sizes("s", 4, 10, -1)]
    reshaped = helper.make_node("Reshape", ["w", "s"], ["r"])
    assert read([reshaped, helper.make_node("Transpose", ["r"], ["y"], perm=[1, 0, 2])], more=shape)


@pytest.mark.usefixtures("_small")
def test_what_is_computed_otherwise_is_read_as_a_whole():
    assert not read([TRANSPOSE, helper.make_node("Neg", ["t"], ["y"])])
    assert not read(
        [helper.make_node("Neg", ["w"], ["t"]), helper.make_node("Identity", ["t"], ["y"])]
    )
    shape = [sizes("s", 24, 100)]
    assert not read([TRANSPOSE, helper.make_node("Reshape", ["t", "s"], ["y"])], more=shape)


@pytest.mark.usefixtures("_small")
def test_elements_that_lie_too_far_apart(monkeypatch):
    monkeypatch.setattr(moved_elements, "_HELD", 40 * 20)
    for shortest in (20, 21):
        monkeypatch.setattr(moved_elements, "_SHORTEST", shortest)
        assert read([helper.make_node("Transpose", ["w"], ["y"])]) == (shortest == 20)


def test_what_is_small_is_read_as_a_whole():
    assert not read([helper.make_node("Transpose", ["w"], ["y"])], shape=(80, 60))
