"""What new ranges cost in int8: foretold from statistics, and true of models that are quantised."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from graphs import Net
from int8_models import int8_db
from onnx import ModelProto, TensorProto, numpy_helper

import onnx_bnfold
from onnx_bnfold import Options
from onnx_bnfold.cli.main import main
from onnx_bnfold.operators.affine import VANISHED, Affine
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.planning.int8_noise import _after, _noise, _readers, cost, expected_loss
from onnx_bnfold.planning.ranges import Range
from onnx_bnfold.planning.totals import Totals
from onnx_bnfold.planning.ways import Way

INT8 = Options(profile="int8")


SHIFT = (0.5, -0.5, 0.5, 0.1)


def residual(gamma: Sequence[float], beta: Sequence[float] = SHIFT) -> ModelProto:
    """A sum of a Conv, and of a branch behind a BN of it, which knows its statistics.

    Its shift does not pass the branch's Relu, so the sum takes that, and the scale or its sign.
    """
    net = Net(("N", 4, 6, 6))
    c = net.conv("x", 4)
    w, b = map(numpy_helper.to_array, net.initializers)
    variance = np.square(w).sum(axis=(1, 2, 3))  # inputs are normal
    values = np.array(gamma) * np.sqrt(variance), np.array(beta), b, variance
    branch = net.op("BatchNormalization", c, *map(net.const, values), epsilon=0.0)
    return net.model(net.conv(net.op("Add", c, net.conv(net.relu(branch), 4)), 2))


def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((8, 4, 6, 6), np.float32)} for _ in range(8)]


@pytest.mark.parametrize(("small", "shift"), [(0.01, 0.4), (0.012, 0.5), (-0.012, 0.4)])
def test_a_small_channel_is_lost_and_that_is_said(small, shift, tmp_path):
    """It has a large shift: either its size goes into the sum, or that many times its shift."""
    model = residual([1, 1, -1, small], (0.5, -0.5, 0.5, shift))
    folded, report = onnx_bnfold.fold(model)
    kept, other = onnx_bnfold.fold(model, INT8)
    assert report.int8_loss is not None
    said = f"would cost an int8 model about {report.int8_loss:.0f} dB (--profile int8 avoids that)"
    assert said in report.summary()
    assert len(other.left) == 1
    assert other.int8_loss is None
    before, after, by_profile = int8_db(feeds(), [model, folded, kept], tmp_path)
    assert before - after > 6
    assert abs(before - by_profile) < 1


@pytest.mark.parametrize(
    ("small", "shift"), [(0.003, 0.001), (0.01, 0.05), (0.03, 0.1), (-0.03, 0.1), (0.06, 0.2)]
)
def test_what_keeps_channels_even_is_chosen(small, shift, tmp_path):
    """A weak channel goes on as it is, and its size goes into the branch."""
    model = residual([1, 1, -1, small], (0.5, -0.5, 0.5, shift))
    folded, report = onnx_bnfold.fold(model)
    (way,) = (record.way for record in report.folded)
    assert way == Way.SHIFT_AND_SIGN_UPSTREAM
    assert report.int8_loss is None
    before, after = int8_db(feeds(), [model, folded], tmp_path)
    assert before - after < 2


@pytest.mark.parametrize(
    ("small", "shift", "words", "ruined"),
    [
        (0.01, 0.4, [], True),
        (-0.012, 0.4, [], True),
        (0.01, 0.4, ["--profile", "int8"], False),
        (0.01, 0.05, [], False),
        (0.9, 0.1, [], False),
    ],
)
def test_who_is_warned_fails_the_gate_and_nobody_else(
    small, shift, words, ruined, tmp_path, capsys
):
    """On the command line, with the limit that a check has by default."""
    source, folded = (str(tmp_path / name) for name in ("model.onnx", "folded.onnx"))
    onnx.save(residual([1, 1, -1, small], (0.5, -0.5, 0.5, shift)), source)
    assert main([source, "-o", folded, *words]) == 0
    said = "".join(capsys.readouterr())
    assert ("would cost an int8 model about" in said) == ruined
    code = main(["check", source, folded, "--quantize", "--runs", "3", "--warm-up", "0"])
    said = "".join(capsys.readouterr())
    assert code == (1 if ruined else 0)
    assert ("max_snr_drop is by default 4" in said) == ruined


def test_where_channels_stay_even_the_first_of_the_cheapest_ways_is_taken():
    (record,) = onnx_bnfold.fold(residual([1, 1, 1, 0.5]))[1].folded
    assert record.way == Way.UPSTREAM


@pytest.mark.parametrize("gamma", [(1, 1, 1, 1), (1, 1.1, -0.9, 1), (1, 1, -1, 0.3)])
def test_even_channels_cost_little_and_nothing_is_said(gamma, tmp_path):
    model = residual(gamma)
    folded, report = onnx_bnfold.fold(model)
    assert report.folded
    assert report.rescaled
    assert report.int8_loss is None
    assert "int8" not in report.summary()
    before, after = int8_db(feeds(), [model, folded], tmp_path)
    assert before - after < 4


def test_who_asks_for_another_profile_is_told_nothing():
    model = residual([1, 1, 1, 0.1])
    report = onnx_bnfold.fold(model, Options(profile="fp16"))[1]
    assert report.rescaled
    assert report.int8_loss is None


def test_the_noise_of_a_tensor():
    """Of the input, as the BN reads it; the Relu's is rounded behind it; none of a dead channel."""
    net = Net(("N", 3, 3, 3))
    values = [[3.0, 1, 1], [0.0, 0, 0], [1.0, -2, 0], [1.0, 0.25, 0]]  # the last: a is 10,000
    b = net.op("BatchNormalization", "x", *(net.const(np.array(v)) for v in values), epsilon=1e-8)
    state = net.state(net.op("Sigmoid", net.relu(b)))
    a, deviation = np.array([3, 2]), np.array([1, 0.5])
    step = (5 - -4) / 255
    read = step**2 / 12 * (a**2).sum() / (a**2 * deviation**2).sum()
    step, deviation = 12 / 255, np.array([12, 4]) / 8
    rectified = step**2 / 12 * 2 / (deviation**2).sum()
    before, after = _noise(state)
    assert math.isclose(before, read + rectified, rel_tol=1e-6)
    assert math.isclose(after, before)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1e-200, 1e150])
def test_numbers_whose_squares_are_none_say_nothing(size):
    net = Net()
    net.input("x", ("N", 2, 3, 3), TensorProto.DOUBLE)
    values = [size, size], [0.0, 0], [size, 0], [1.0, 1]
    constants = (net.const(np.array(v), np.float64) for v in values)
    b = net.op("BatchNormalization", "x", *constants, epsilon=0.0)
    assert expected_loss([net.state(net.op("Sigmoid", b))]) is None


def two_readers() -> GraphState:
    """A BN, at 1, and a Mul, at 2, read a tensor of two channels, and Sigmoids what they write."""
    net = Net(("N", 2, 3, 3))
    c = net.conv("x", 2)
    values = [[3.0, 0.1], [0.0, 0.0], [0.0, 0.0], [1.0, 0.01]]
    b = net.op("BatchNormalization", c, *(net.const(np.array(v)) for v in values), epsilon=0.0)
    d = net.op("Mul", c, net.const(np.array(2.0)))
    return net.state(net.op("Sigmoid", b), net.op("Sigmoid", d))


def rescaled(state: GraphState, scale: Sequence[float], shift: Sequence[float]) -> GraphState:
    change = (np.array(v, float).reshape(1, -1, 1, 1) for v in (scale, shift))
    state.total[state.graph.writes[0][0]] = Affine.of(*change)
    return state


def test_the_reader_that_sees_most_noise_counts_while_it_stays():
    state = rescaled(two_readers(), [1, 20], [0, 0])
    a, deviation, factor = np.array([3, 1]), np.array([1, 0.1]), np.array([1, 20])
    noise, later = ((8 * end / 255) ** 2 / 12 for end in (1, 2))
    by_bn, by_mul = (gain / (gain * deviation**2).sum() for gain in (a**2, np.ones(2)))
    bn, mul, bn_later, mul_later = (
        noise * by_bn.sum(), noise * by_mul.sum(),
        later * (by_bn / factor**2).sum(), later * (by_mul / factor**2).sum(),
    )  # fmt: skip
    assert bn < mul
    assert bn_later > mul_later
    written = (24 / 255) ** 2 / 12 * 2 / (3**2 + 0.1**2)  # what the BN writes, as it is
    assert _noise(state) == pytest.approx((mul + written, bn_later + written), rel=1e-6)
    state.remove(1)
    assert _noise(state) == pytest.approx((mul + written, mul_later + written), rel=1e-6)
    state.remove(2)
    assert _noise(state) == pytest.approx((bn + written, written), rel=1e-6)


@pytest.mark.parametrize(("small", "costs"), [(1 / 7, False), (1 / 9, True), (0, False)])
def test_the_cost_of_an_outcome_is_what_all_tensors_lose(small, costs):
    """In steps of 3 dB, from a factor of 8 on; a channel that is taken away is not counted."""
    state = two_readers()
    name = state.graph.writes[0][0]
    change = Affine(np.array([1.0, small]).reshape(1, 2, 1, 1), np.zeros((1, 2, 1, 1)))
    found = cost(state, 1, Totals(state, {name: change}))
    before, _ = _noise(state)
    state.total[name] = change
    state.remove(1)
    _, after = _noise(state)
    assert (found > 0) == costs
    assert found == (int(10 * math.log10(after / before) / 3) if costs else 0)


def test_a_channel_without_a_value_takes_no_range():
    """What 1 / 0 stands for makes of a constant is no number that a tensor gets."""
    plain, vanished = two_readers(), rescaled(two_readers(), [1, 2 * VANISHED], [0, 1])
    assert _noise(vanished)[1] <= _noise(plain)[1]


@pytest.mark.parametrize(
    ("scale", "shift", "rounded"),
    [([1, 0.1], [0, 0], False), ([1, 1], [0, 2], True), ([1, -1], [0, 0], True)],
)
def test_what_a_clamp_with_constants_reads_is_rounded(scale, shift, rounded):
    """A Relu is one with its layer; a Max or Min is not."""
    net = Net(("N", 2, 3, 3))
    c = net.conv("x", 2)
    values = [[3.0, 0.1], [0.0, 0.0], [0.0, 0.0], [1.0, 0.01]]
    b = net.op("BatchNormalization", c, *(net.const(np.array(v)) for v in values), epsilon=0.0)
    state = rescaled(net.state(net.op("Sigmoid", b), net.op("Sigmoid", net.relu(c))), scale, shift)
    state.remove(1)
    of_relu = Range.of(np.zeros(2), np.array([1, 0.1]), 4)
    name = state.graph.writes[0][0]
    readers = _readers(state, name, of_relu)
    after = _after(readers, of_relu, state.change(name, 4), state.removed)
    assert after is not None
    assert (after > 0) == rounded


def test_the_losses_of_rounds_add_up():
    one, both = (
        expected_loss([rescaled(two_readers(), [1, 0.02], [0, 0]) for _ in range(count)])
        for count in (1, 2)
    )
    assert one is not None
    assert both == pytest.approx(2 * one, abs=0.15)
