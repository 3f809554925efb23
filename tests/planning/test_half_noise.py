"""What rounding to float16 costs: foretold from statistics, and true of models that are rounded."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import numpy as np
import onnxruntime as ort
import pytest
from graphs import Net
from onnx import ModelProto, numpy_helper

import onnx_bnfold
from onnx_bnfold import Options
from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.pipeline import Pipeline
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.planning.half_noise import is_coarser, require_gain
from onnx_bnfold.planning.totals import Totals
from onnx_bnfold.reasons import Reason, Refused

DEFAULT, HALF = Options(), Options(profile="fp16")


def dense(shift: float, gamma: float, *, bounded: bool = False) -> ModelProto:
    """Two blocks that append to what they read; the last BN has a shift where others look.

    The first BN cannot go if it is between bounds, as no scale passes a Sigmoid.
    """
    net = Net(("N", 4, 6, 6))
    first = net.conv("x", 4)
    if bounded:
        first = net.op("Add", net.op("Sigmoid", first), net.random(1, 4, 1, 1))
    own = norm(net, first, [1.0, 1.1, 1.2, 1.1], [0.1, -0.1, 0.2, 0.1])
    own = net.op("Sigmoid" if bounded else "Relu", own)
    both = net.op("Concat", first, net.conv(own, 4, bias=False), axis=1)
    last = norm(net, both, [gamma] * 4 + [2, 2, 2, 2], [shift] * 4 + [0.1] * 4)
    return net.model(net.conv(net.relu(last), 2))


def norm(net: Net, x: str, gamma: list[float], beta: list[float]) -> str:
    values = np.array(gamma, float), np.array(beta), np.full(len(gamma), 0.01), np.ones(len(gamma))
    return net.op("BatchNormalization", x, *map(net.const, values), epsilon=0.0)


def drawn(model: ModelProto, seed: int) -> ModelProto:
    """Return a model whose constants are moved by less than float16 rounds them."""
    rng, moved = np.random.default_rng(seed), ModelProto.FromString(model.SerializeToString())
    for tensor in moved.graph.initializer:
        values = numpy_helper.to_array(tensor)
        near = values * (1 + 2.0**-11 * rng.uniform(-1, 1, values.shape))
        tensor.CopyFrom(numpy_helper.from_array(near.astype(np.float32), tensor.name))
    return moved


def rounding_error(reference: ModelProto, model: ModelProto) -> float:
    """Of a model whose constants are those of float16: the mean square of what another has not."""
    rounded = ModelProto.FromString(model.SerializeToString())
    for tensor in rounded.graph.initializer:
        values = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    x = np.random.default_rng(0).standard_normal((8, 4, 6, 6), np.float32)
    exact, found = (
        ort.InferenceSession(each.SerializeToString()).run(None, {"x": x})[0]
        for each in (reference, rounded)
    )
    return float(np.square(found - exact).mean())


def test_no_more_is_rounded_than_is_spared():
    """Of two BNs one can go: the last would shift what the other reads, and that far."""
    model = dense(0.1, 0.03)
    reports = onnx_bnfold.plan(model), onnx_bnfold.plan(model, HALF)
    assert [[r.folded for r in report.norms] for report in reports] == [
        [False, True],
        [True, False],
    ]
    errors = np.zeros(3)
    for each in (drawn(model, seed) for seed in range(16)):
        ways = each, *(onnx_bnfold.fold(each, options)[0] for options in (Options(), HALF))
        errors += [rounding_error(each, way) for way in ways]
    before, after, by_profile = errors
    assert after > 1.5 * before
    assert by_profile < 1.2 * before


@pytest.mark.parametrize(("shift", "gamma", "goes"), [(0.1, 0.03, False), (0.01, 0.1, True)])
def test_what_costs_more_than_it_spares_stays(shift, gamma, goes):
    model = dense(shift, gamma, bounded=True)
    first, last = onnx_bnfold.plan(model, HALF).norms
    assert not first.folded
    assert last.folded == goes
    assert onnx_bnfold.plan(model).norms[1].folded


@pytest.mark.parametrize(("shift", "costs"), [(1.76, False), (1.77, True), (-1.77, True)])
def test_the_limit(shift, costs):
    """Of two BNs of a tensor one goes, 1.25, and 2 · shift² / (1 + 4) is added to the other."""
    net = Net(("N", 2, 3, 3))
    c = net.conv("x", 2)
    values = np.array([1.0, 2]), np.zeros(2), np.zeros(2), np.ones(2)
    outputs = [
        net.op("BatchNormalization", c, *map(net.const, values), epsilon=0.0) for _ in range(2)
    ]
    state = net.state(*outputs)
    change = Affine(np.ones((1, 2, 1, 1)), np.array([shift, 0.0]).reshape(1, 2, 1, 1))
    with pytest.raises(Refused) if costs else nullcontext() as refused:
        require_gain(state, 1, Totals(state, {state.graph.writes[0][0]: change}))
    if costs:
        assert refused.value.refusal.reason is Reason.PRECISION
        assert refused.value.refusal.culprit == state.view(2).label


def saturated(level: float, seed: int) -> ModelProto:
    """A BN that only the layer behind can take, as a Tanh is in front: its mean grows with a level.

    How a constant is rounded is chance, so every seed has other ones.
    """
    net, rng = Net(("N", 4, 6, 6), seed=seed), np.random.default_rng(seed)
    levels = level * rng.uniform(0.97, 1.03, 4) * rng.choice([-1, 1], 4)
    bent = net.op("Tanh", net.op("Add", "x", net.const(levels.reshape(1, 4, 1, 1))))
    values = np.tanh(rng.standard_normal((10_000, 4)) + levels)
    gamma, beta = rng.uniform(0.5, 1.5, 4) * rng.choice([-1, 1], 4), rng.normal(0, 0.1, 4)
    statistics = gamma, beta, values.mean(0), values.var(0)
    y = net.op("BatchNormalization", bent, *map(net.const, statistics), epsilon=0.0)
    return net.model(net.conv(y, 6))


Draws = Callable[[int], ModelProto]


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda seed: drawn(dense(0.1, 0.03), seed), True),
        (lambda seed: drawn(dense(0.01, 0.1), seed), False),
        (partial(saturated, 2.5), True),
        (partial(saturated, 0.2), False),
    ],
)
def test_what_costs_a_float16_model_is_said(draw: Draws, said):
    """And what is said is true, of models whose constants are rounded."""
    text = "make a float16 model less exact than the original (--profile fp16 weighs that)"
    grown = []
    for model in map(draw, range(16)):
        folded, report = onnx_bnfold.fold(model)
        assert report.folded
        assert report.coarser_in_float16 == (text in report.summary()) == said
        assert not is_coarser([[planned(model, HALF)]])
        assert not onnx_bnfold.plan(folded).coarser_in_float16
        before, after = (rounding_error(model, each) for each in (model, folded))
        grown.append(np.log(after / before))
    assert (np.mean(grown) > np.log(1.4)) == said


def test_a_plain_fold_does_not_weigh_roundings(monkeypatch):
    """It is not even imported: no BN gets a shift, in a row of two neither."""
    net = Net(("N", 4, 6, 6))
    first = norm(net, net.conv("x", 4), [1.0, 2, 3, 4], [9.0] * 4)
    model = net.model(net.relu(norm(net, first, [1.0] * 4, [9.0] * 4)))
    monkeypatch.setitem(sys.modules, "onnx_bnfold.planning.half_noise", None)
    report = onnx_bnfold.plan(model)
    assert len(report.folded) == 2
    assert not report.coarser_in_float16


def test_what_one_graph_spares_another_may_spend():
    """The same of rounds: one after another, each is relative to the one before."""
    spends, spares = (planned(saturated(level, 0)) for level in (2.5, 0.2))
    assert is_coarser([[spends]])
    assert not is_coarser([[spares]])
    assert not is_coarser([[spends, *[spares] * 8]])
    assert not is_coarser([[spares], [spends]])


def planned(model: ModelProto, options: Options = DEFAULT) -> GraphState:
    (plan,) = Pipeline(model, numpy_helper.to_array, options).plan()
    return plan.state


def test_a_fold_of_a_fold_finds_nothing():
    half, _ = onnx_bnfold.fold(dense(0.1, 0.03), HALF)
    assert not onnx_bnfold.plan(half, HALF).folded
