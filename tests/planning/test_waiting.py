"""Nodes that wait: in the order of a plain queue that holds each once, and looked at when taken."""

from __future__ import annotations

import random

import pytest

from onnx_bnfold.planning.waiting import Waiting


@pytest.mark.parametrize("seed", range(20))
def test_in_the_order_of_a_queue_that_holds_each_once(seed):
    choose = random.Random(seed)
    waiting, plain = Waiting(), dict[int, None]()
    for _ in range(300):
        if choose.random() < 0.4:
            row = [choose.randrange(12) for _ in range(choose.randrange(6))]
            but = choose.choice([None, choose.randrange(12)])
            waiting.put(row, but, 3)
            plain.update(dict.fromkeys(index for index in row if index not in (but, 3)))
        else:
            first = next(iter(plain), None)
            assert waiting.take() == first
            plain.pop(first, None)


def test_those_that_nobody_takes_are_not_looked_at():
    waiting = Waiting()
    waiting.put(row := range(10**12))
    assert [waiting.take() for _ in range(3)] == [*row[:3]]
