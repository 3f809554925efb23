"""The shape of a latency record, its interval and its gate; no test asserts a time."""

import dataclasses
import sys

import numpy as np
import pytest
from onnx import helper
from pairs import BNS, CLASSES, finish, pair, weights

from onnx_bnfold.check import CheckOptions, check, render_text
from onnx_bnfold.check.latency import bootstrap_ratio, count_bns, speedup_failures

QUICK = CheckOptions(latency=True, runs=5, warm_up=1)


@pytest.fixture(scope="module")
def result():
    return check(*pair(), QUICK)


def test_record(result):
    assert result.holds
    latency = result.latency
    assert [mode.mode for mode in latency.modes] == ["disabled", "enabled"]
    assert (latency.batch, latency.runs, latency.threads) == (1, 5, 1)
    for mode in latency.modes:
        assert mode.speedup_low <= mode.speedup <= mode.speedup_high
        assert mode.inner_loops >= 1
        for timing in (mode.original, mode.folded):
            assert len(timing.samples_ms) == 5
            assert 0 < timing.low_ms <= timing.median_ms <= timing.high_ms
            assert timing.session_ms > 0


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not tell")
def test_memory(result):
    for mode in result.latency.modes:
        for timing in (mode.original, mode.folded):
            # A process that has loaded numpy and onnxruntime, but not what this one has.
            assert 20e6 < timing.peak_memory < 400e6
            assert 0 <= timing.model_memory < timing.peak_memory


def test_says_that_onnxruntime_fuses_too(result):
    latency = result.latency
    assert (latency.bn_original, latency.bn_folded, latency.bn_fused_by_onnxruntime) == (2, 0, 2)
    assert "already removes all 2 BNs" in render_text(result)


def test_bn_that_onnxruntime_keeps():
    values = weights()
    values |= {f"{n}0": values[f"{n}0"][:CLASSES] for n in BNS}
    nodes = [
        helper.make_node("Gemm", ["x", "fc", "bias"], ["h"]),
        helper.make_node("BatchNormalization", ["h", *(f"{n}0" for n in BNS)], ["y"]),
    ]
    proto = finish(nodes, values, ("N", CLASSES))
    options = dataclasses.replace(QUICK, modes=("enabled",), batch=3)
    latency = check(proto, proto, options).latency
    assert (latency.bn_original, latency.bn_fused_by_onnxruntime, latency.batch) == (1, 0, 3)
    assert latency.remark.endswith("removes 0 of the original's 1 BNs; the folded model has 1")


@pytest.mark.parametrize(("least", "holds"), [(1e-6, True), (1e6, False)])
def test_min_speedup(least, holds):
    options = dataclasses.replace(QUICK, modes=("disabled",), min_speedup=least)
    result = check(*pair(), options)
    assert result.holds is holds
    if not holds:
        assert result.failures[0].startswith("speedup: ")
        assert "excludes min_speedup" in result.failures[0]


@pytest.mark.parametrize(("high", "holds"), [(1.3, True), (1.15, False)])
def test_gate_fails_only_if_the_interval_excludes_it(result, high, holds):
    mode = result.latency.modes[0]
    mode = dataclasses.replace(mode, speedup=1.1, speedup_low=0.9, speedup_high=high)
    options = dataclasses.replace(QUICK, min_speedup=1.2)
    assert (not list(speedup_failures([mode], options))) is holds


def test_interval_of_a_known_ratio(rng):
    jitter = rng.lognormal(0, 0.05, (2, 200))
    low, high = bootstrap_ratio(3 * jitter[0], 2 * jitter[1], seed=0)
    assert low < 1.5 < high
    assert high - low < 0.1
    assert bootstrap_ratio(3 * jitter[0], 2 * jitter[1], seed=0) == (low, high)


def test_common_drift_cancels(rng):
    # Both models slow down together: the pairs keep the ratio.
    drift = np.linspace(1, 3, 101)
    low, high = bootstrap_ratio(2 * drift, drift, seed=0)
    assert low == pytest.approx(2)
    assert high == pytest.approx(2)


def test_bns_in_bodies_and_functions_count():
    original, _ = pair()
    body = helper.make_graph(original.graph.node[:2], "body", [], [])
    proto = finish([helper.make_node("Relu", ["x"], ["y"])], {}, ("N", 4))
    proto.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=body))
    bn = original.graph.node[1]
    function = helper.make_function("my", "f", [], [], [bn], [helper.make_opsetid("", 17)])
    proto.functions.append(function)
    foreign = helper.make_node("BatchNormalization", ["x"], ["q"], domain="my.domain")
    proto.graph.node.append(foreign)
    assert count_bns(proto) == 2
