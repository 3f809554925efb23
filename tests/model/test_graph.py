"""The index over a graph: what a name stands for."""

import numpy as np
from onnx import helper
from support import tensor, value_of

from onnx_bnfold.model.graph import Graph


def test_readers_are_those_of_what_may_differ_from_run_to_run():
    nodes = [
        helper.make_node("Add", ["x", "fixed"], ["a"]),
        helper.make_node("Clip", ["a", "", "given"], ["b"]),
    ]
    tensors = [tensor(name, np.zeros((), np.float32)) for name in ("fixed", "given")]
    inputs = [value_of("x", [3]), value_of("given", [])]
    graph = Graph(helper.make_graph(nodes, "g", inputs, [], tensors), 17, None, "")
    assert graph.readers == {"x": [(0, 0)], "a": [(1, 0)], "given": [(1, 2)]}


def test_an_initializer_of_an_outer_scope_is_hidden_by_an_input_or_an_output_of_that_name():
    weights = [tensor(name, np.zeros(3, np.float32)) for name in "abc"]
    outer = Graph(helper.make_graph([], "outer", [], [], weights), 17, None, "")
    middle = Graph(helper.make_graph([], "middle", [], []), 17, outer, "middle")
    nodes = [helper.make_node("Neg", ["c"], ["b"])]
    inner = Graph(helper.make_graph(nodes, "inner", [value_of("a", [3])], []), 17, middle, "inner")
    assert outer.find_initializer("a") == (outer, weights[0])
    assert inner.find_initializer("a") is None
    assert inner.find_initializer("b") is None
    assert inner.find_initializer("c") == (outer, weights[2])
    assert inner.find_initializer("d") is None
