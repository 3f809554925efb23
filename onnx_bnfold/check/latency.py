"""Latency of both models in interleaved runs, and how many BNs onnxruntime itself removes."""

import gc
import math
import time
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from onnx_bnfold.check.inputs import make_feeds
from onnx_bnfold.check.memory_probe import peak_memory
from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.noise import all_nodes
from onnx_bnfold.check.options import CheckOptions, Mode
from onnx_bnfold.check.results import Latency, LatencyMode, Timing
from onnx_bnfold.check.sessions import Feed, Session, optimised_graph
from onnx_bnfold.model.graph import operator
from onnx_bnfold.operators import batchnorm
from onnx_bnfold.progress import progress

_CREATIONS = 3  # sessions created per model and mode
_SHORTEST = 2e-3  # seconds; shorter runs are repeated within a sample
_RESAMPLES = 2000
_CONFIDENCE = (2.5, 97.5)  # percentiles
_SPREAD = (10, 90)


def check_latency(
    original: CheckedModel, folded: CheckedModel, options: CheckOptions
) -> tuple[Latency, tuple[str, ...]]:
    """Measure both models in every mode of the options.

    Args:
        original, folded: models with the same inputs.
        options: ``batch``, ``threads``, ``runs``, ``warm_up``, ``modes``, ``min_speedup`` and those
            of the inputs.

    Returns:
        The record and the failures.

    Raises:
        ModelError: a model cannot be loaded or run.
    """
    specs = Session(original).inputs
    batch = options.batch or 1
    feed = make_feeds(specs, options, batch=batch)[0]
    modes = tuple(measure(mode, (original, folded), feed, options) for mode in options.modes)
    before, after = count_bns(original.skeleton), count_bns(folded.skeleton)
    fused = before - count_bns(optimised_graph(original)) if before else 0
    first = feed[specs[0].name] if specs else None
    latency = Latency(
        batch=first.shape[0] if first is not None and first.ndim else 1,
        runs=options.runs,
        warm_up=options.warm_up,
        threads=options.threads,
        modes=modes,
        bn_original=before,
        bn_folded=after,
        bn_fused_by_onnxruntime=fused,
        remark=_remark(before, after, fused),
    )
    return latency, tuple(speedup_failures(modes, options))


def measure(
    mode: Mode, models: tuple[CheckedModel, CheckedModel], feed: Feed, options: CheckOptions
) -> LatencyMode:
    """Time two models in one mode.

    Args:
        mode: of onnxruntime's optimisations.
        models: the original and the folded one.
        feed: the inputs.
        options: ``threads``, ``runs``, ``warm_up`` and ``seed``.

    Raises:
        ModelError: a model cannot be loaded or run.
    """
    memory = [peak_memory(model, feed, mode, options.threads) for model in models]
    sessions, creation = _create(mode, models, options.threads)
    single = max(_seconds(session, feed, 1) for session in sessions)
    loops = max(1, math.ceil(_SHORTEST / single))
    samples = np.array(list(_interleaved(mode, sessions, feed, loops, options)))
    timings = [
        Timing(
            median_ms=float(np.median(samples[:, i])),
            low_ms=float(np.percentile(samples[:, i], _SPREAD[0])),
            high_ms=float(np.percentile(samples[:, i], _SPREAD[1])),
            samples_ms=tuple(float(sample) for sample in samples[:, i]),
            session_ms=creation[i],
            peak_memory=memory[i][0],
            model_memory=memory[i][1],
        )
        for i in range(2)
    ]
    low, high = bootstrap_ratio(samples[:, 0], samples[:, 1], options.seed)
    return LatencyMode(
        mode=mode,
        inner_loops=loops,
        original=timings[0],
        folded=timings[1],
        speedup=timings[0].median_ms / timings[1].median_ms,
        speedup_low=low,
        speedup_high=high,
    )


def bootstrap_ratio(
    numerator: NDArray[np.float64], denominator: NDArray[np.float64], seed: int
) -> tuple[float, float]:
    """Return a 95 % percentile bootstrap interval of median(numerator) / median(denominator).

    Args:
        numerator, denominator: ``(n,)``; both are resampled with the same indices.
        seed: of the resampling.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    n = len(numerator)
    picked = np.random.default_rng(seed).integers(n, size=(_RESAMPLES, n))
    ratios = np.median(numerator[picked], axis=1) / np.median(denominator[picked], axis=1)
    low, high = np.percentile(ratios, _CONFIDENCE)
    return float(low), float(high)


def count_bns(model: onnx.ModelProto) -> int:
    """Return the number of BNs of a model, subgraphs and local functions included."""
    nodes = [*all_nodes(model.graph), *(n for f in model.functions for n in f.node)]
    return sum(operator(n) == batchnorm.OPERATOR for n in nodes)


def speedup_failures(modes: Sequence[LatencyMode], options: CheckOptions) -> Iterator[str]:
    """Yield a sentence for each mode whose whole interval is below ``min_speedup``."""
    least = options.min_speedup
    for mode in modes:
        if least is not None and mode.speedup_high < least:
            yield (
                f"speedup: {mode.speedup:.3f} [{mode.speedup_low:.3f}, {mode.speedup_high:.3f}] "
                f"with optimisations {mode.mode} excludes min_speedup {least:g}"
            )


def _create(
    mode: Mode, models: tuple[CheckedModel, CheckedModel], threads: int
) -> tuple[list[Session], list[float]]:
    """Return sessions of both models, and the median milliseconds to create each."""
    times: list[list[float]] = [[], []]
    for _ in range(_CREATIONS):
        sessions = []
        for model, taken in zip(models, times, strict=True):
            start = time.perf_counter()
            sessions.append(Session(model, optimised=mode == "enabled", threads=threads))
            taken.append((time.perf_counter() - start) * 1e3)
    return sessions, [float(np.median(taken)) for taken in times]


def _interleaved(
    mode: Mode, sessions: Sequence[Session], feed: Feed, loops: int, options: CheckOptions
) -> Iterator[tuple[float, float]]:
    """Yield milliseconds per run of (original, folded); the order within pairs alternates."""
    total = options.warm_up + options.runs
    collecting = gc.isenabled()
    gc.disable()
    try:
        for i in progress(range(total), total=total, label=f"latency, {mode}"):
            order = (0, 1) if i % 2 == 0 else (1, 0)
            taken = {which: _seconds(sessions[which], feed, loops) for which in order}
            if i >= options.warm_up:
                yield taken[0] * 1e3, taken[1] * 1e3
    finally:
        if collecting:
            gc.enable()


def _seconds(session: Session, feed: Feed, loops: int) -> float:
    start = time.perf_counter()
    for _ in range(loops):
        session.run(feed)
    return (time.perf_counter() - start) / loops


def _remark(before: int, after: int, fused: int) -> str:
    if before == 0:
        return "the original has no BatchNormalization"
    if fused == before:
        return (
            f"onnxruntime's own optimiser already removes all {before} BNs of the original: with "
            "its optimisations enabled, expect no gain from folding"
        )
    return (
        f"onnxruntime's own optimiser removes {fused} of the original's {before} BNs; "
        f"the folded model has {after}"
    )
