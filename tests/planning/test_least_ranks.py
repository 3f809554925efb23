"""The least ranks of tensors: never more than what shape inference says."""

from __future__ import annotations

import random

import pytest
from graphs import Net
from onnx import TensorProto
from random_graphs import random_model

from onnx_bnfold.attempts import Attempts
from onnx_bnfold.model.source import Source
from onnx_bnfold.options import Options
from onnx_bnfold.planning import least_ranks as module
from onnx_bnfold.planning.least_ranks import least_ranks
from onnx_bnfold.storage.tensors import decode_inline


@pytest.mark.parametrize("seed", range(60))
def test_they_are_no_more_than_the_ranks(seed):
    model = random_model(random.Random(seed), steps=20)
    attempts = Attempts(model, Source(decode_inline, None), Options())
    for state in attempts._states():
        for name, least in least_ranks(state).items():
            dims = state.shapes.dims(name)
            if name in state.graph.producer and dims is not None:
                assert least <= len(dims)


RANKS = {
    "a word": (
        3,
        lambda n: n.op("Gather", n.random(9, 8), n.input("i", [2, 3], TensorProto.INT64)),
    ),
    "a product": (3, lambda n: n.matmul("x", 5)),
    "a product of vectors": (0, lambda n: n.op("MatMul", "x", n.random(4))),
    "behind a function": (3, lambda n: n.op("Mul", "x", n.op("Erf", "x"))),
    "a function": (0, lambda n: n.op("Erf", "x")),
    "listed": (2, lambda n: n.op("Reshape", "x", n.ints(-1, 4))),
    "one more": (4, lambda n: n.op("Unsqueeze", "x", n.ints(0))),
}


@pytest.mark.parametrize("name", RANKS)
def test_they_are_what_operators_say(name):
    least, build = RANKS[name]
    net = Net((2, 3, 4))
    y = build(net)
    assert least_ranks(net.state(y)).get(y, 0) == least


def test_a_list_that_is_put_together_says_how_long_it_is():
    net = Net((2, 3, 4))
    first = net.op("Gather", net.op("Shape", "x"), net.const(0, "int64"))
    sizes = net.op("Concat", net.op("Unsqueeze", first, net.ints(0)), net.ints(-1, 4), axis=0)
    y = net.op("Reshape", "x", sizes)
    assert least_ranks(net.state(y))[y] == 3


def test_lists_of_lists_are_counted_once_each(monkeypatch):
    net = Net((2, 3, 4))
    sizes = net.op("Shape", "x")
    for _ in range(3):
        sizes = net.op("Concat", net.ints(4), *[sizes] * 8, axis=0)
    state = net.state(net.op("Reshape", "x", sizes))
    count, asked = module._elements, []
    monkeypatch.setattr(module, "_elements", lambda *each: asked.append(each) or count(*each))
    least_ranks(state)
    assert len(asked) == 3 * 9 + 1
