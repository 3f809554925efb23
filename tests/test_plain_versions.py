"""What is quick does what its plain version does.

Each trick is taken away, and random models fold to the same bytes, with the same reports.
"""

from __future__ import annotations

import random

import pytest
from onnx import GraphProto, NodeProto
from random_graphs import random_model

import onnx_bnfold
from onnx_bnfold.model.repeated_fields import GONE, arrange
from onnx_bnfold.operators.affine import Affine, along
from onnx_bnfold.planning import graph_nodes
from onnx_bnfold.planning.direct import DirectFolds
from onnx_bnfold.planning.propagation import Search
from onnx_bnfold.storage.small_tensors import SmallTensors

MODELS = [random_model(random.Random(seed), steps=24) for seed in range(40)]


def folds() -> list[tuple[bytes, onnx_bnfold.Report]]:
    folded = map(onnx_bnfold.fold, MODELS)
    return [(model.SerializeToString(deterministic=True), report) for model, report in folded]


def by_ways(self: DirectFolds, index: int) -> dict[int, Affine]:
    """No layer takes a BatchNormalization without a propagation."""
    return {}


def one_by_one(self: SmallTensors, names):
    """Small tensors are not read together."""
    return iter(())


def asked_anew(self: Search, index, known, *, deciding):
    """No answer of a rule is kept for another branch."""
    return self._state.step(index, known, deciding=deciding)


def each_alone(maps, axis, ranks):
    """No change is made together with others."""
    return [
        Affine.of(*(along(side, axis, rank) for side in both))
        for both, rank in zip(maps, ranks, strict=True)
    ]


@pytest.mark.parametrize(
    ("owner", "name", "plain"),
    [
        (DirectFolds, "taken", by_ways),
        (SmallTensors, "rows", one_by_one),
        (Search, "_ask", asked_anew),
        (graph_nodes, "all_along", each_alone),
    ],
)
def test_without_a_trick_the_result_is_the_same(owner, name, plain, monkeypatch):
    expected, used = folds(), []
    quick = getattr(owner, name)

    def counted(*args, **more):
        used.append(name)
        return quick(*args, **more)

    monkeypatch.setattr(owner, name, counted)
    assert folds() == expected
    assert used, "the models do not need it"
    monkeypatch.setattr(owner, name, plain)
    assert folds() == expected


@pytest.mark.parametrize("seed", range(20))
def test_sorting_a_field_in_place(seed):
    choose = random.Random(seed)
    places = [choose.choice([GONE, *range(-1, 9)]) for _ in range(choose.randrange(30))]
    nodes = [NodeProto(name=str(number)) for number in range(len(places))]
    graph = GraphProto(node=nodes)
    arrange(graph.node, places)
    kept = [(place, number) for number, place in enumerate(places) if place != GONE]
    assert [node.name for node in graph.node] == [str(number) for _, number in sorted(kept)]
