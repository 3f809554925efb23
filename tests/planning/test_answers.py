"""Answers: found once, refusals too."""

from __future__ import annotations

import pytest

from onnx_bnfold import Reason
from onnx_bnfold.planning.answers import Answers
from onnx_bnfold.reasons import Refused


def test_each_is_found_once():
    asked = []

    def find(number):
        asked.append(number)
        if number < 0:
            raise Refused(Reason.OPAQUE, str(number), "it is negative")
        return number + 1

    answers = Answers[int, int]()
    for _ in range(2):
        assert answers.of(1, find) == 2
        with pytest.raises(Refused, match="-1: it is negative"):
            answers.of(-1, find)
    other = answers.copy()
    other.forget(1)
    other.forget(7)
    assert [each.of(1, find) for each in (answers, other)] == [2, 2]
    assert asked == [1, -1, 1]
