"""Memory: settings of the allocator and the collector, and what a fold leaves behind."""

import atexit
import ctypes
import gc
import math
import random
import subprocess
import sys
import tracemalloc
from contextlib import contextmanager

import numpy as np
import onnx
import pytest
from random_graphs import random_model
from support import bn, conv, join, layer, model_of, node, tensor

import onnx_bnfold
from onnx_bnfold import Options, Reason, applying, process_memory
from onnx_bnfold.cli.main import main
from onnx_bnfold.model.graph import Graph
from onnx_bnfold.process_memory import (
    collect_rarely,
    give_back_freed_memory,
    keep_freed_memory,
)


class WithoutMallopt:
    def __init__(self, name: object) -> None:
        self.name = name


@pytest.mark.parametrize("error", [None, OSError, TypeError])
def test_a_system_without_mallopt(error, monkeypatch):
    def fail(name):
        raise error

    monkeypatch.setattr(ctypes, "CDLL", fail if error else WithoutMallopt)
    keep_freed_memory()


def test_both_thresholds_are_set(monkeypatch):
    calls = []

    class Library:
        def __init__(self, name: object) -> None:
            self.mallopt = lambda option, value: calls.append((option, value))
            self.malloc_trim = lambda left: calls.append(left)

    monkeypatch.setattr(process_memory, "_trim", None)
    monkeypatch.setattr(ctypes, "CDLL", Library)
    give_back_freed_memory()
    assert not calls, "the process is somebody else's"
    keep_freed_memory()
    assert calls == [(-3, 1 << 25), (-1, 1 << 28)]
    give_back_freed_memory()
    assert calls[2:] == [0]


def test_what_equalising_took_is_given_back(monkeypatch, rng):
    calls = []
    monkeypatch.setattr(process_memory, "_trim", calls.append)
    parts = join(conv("x", "c", (4, 3, 1, 1), rng), bn("c", "y", 4, rng))
    model = model_of(parts.nodes, {"x": (1, 3, 2, 2)}, ["y"], parts.initializers)
    onnx_bnfold.fold(model)
    assert not calls
    onnx_bnfold.fold(model, Options(equalize=True))
    assert calls


def test_garbage_in_cycles_is_collected_all_the_same():
    before = gc.get_threshold()
    try:
        gc.set_threshold(700, 10, 10)
        collect_rarely()
        assert gc.isenabled()
        assert gc.get_threshold()[0] > 700
    finally:
        gc.set_threshold(*before)
        atexit.unregister(gc.freeze)


def test_the_end_of_a_process_frees_nothing_object_by_object():
    """What hosts the process, and what asked to be called, is called all the same."""
    code = (
        "import atexit, gc; "
        "from onnx_bnfold.process_memory import collect_rarely, keep_to_the_end; "
        "thing = type('Thing', (), {'__del__': lambda self: print('freed')})(); "
        "atexit.register(lambda: print(gc.get_freeze_count() > 0)); "
        "collect_rarely(); keep_to_the_end(thing)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "True\n"


def test_only_a_process_that_ends_keeps_what_it_folded(tmp_path, rng):
    """Who calls the command line as a function gets the memory back."""
    parts = join(conv("x", "c", (4, 3, 1, 1), rng), bn("c", "y", 4, rng))
    onnx.save(model_of(parts.nodes, {"x": (1, 3, 2, 2)}, ["y"], parts.initializers), tmp_path / "m")
    words, kept = ["-q", "-o", str(tmp_path / "f"), str(tmp_path / "m")], []
    with nothing_left():
        assert main(words) == 0
    assert main(words, keep=kept.append) == 0
    (outcome,) = kept
    assert len(outcome.report.folded) == 1


OPTIONS = [
    Options(),
    Options(merge_branches=True),
    Options(equalize=True),
    Options(profile="int8", standalone="mul-add"),
]


@contextmanager
def nothing_left():
    """What refers to itself would stay with its whole model, hundreds of them in a store."""
    gc.collect()
    gc.disable()
    try:
        yield
        assert not [found for found in gc.get_objects() if isinstance(found, Graph)]
    finally:
        gc.enable()


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "merged", "equalized", "standalone"])
def test_a_fold_leaves_nothing_for_the_collector(options):
    with nothing_left():
        for seed in range(60):
            onnx_bnfold.fold(random_model(random.Random(seed), steps=20), options)


def test_a_fold_that_is_planned_anew_leaves_nothing(rng, tmp_path):
    parts = join(
        conv("x", "c", (40, 40, 1, 1), rng, dtype=np.float16),
        bn("c", "y", 40, rng, dtype=np.float16),
    )
    weight = next(t for t in parts.initializers if t.name == "c_W")
    assert math.prod(weight.dims) > applying.MOST_AT_ONCE
    weight.raw_data = np.full(weight.dims, 60000, np.float16).tobytes()
    model = model_of(parts.nodes, {"x": (1, 40, 2, 2)}, ["y"], parts.initializers, dtype=np.float16)
    onnx.save(model, tmp_path / "model.onnx")
    with nothing_left():
        report = onnx_bnfold.fold_file(tmp_path / "model.onnx", tmp_path / "folded.onnx")
        assert [r.refusal.reason for r in report.kept] == [Reason.OVERFLOW]


STREAMED = {
    "plain": (Options(), "Gemm"),
    "no-bias": (Options(bn_free=True), "MatMul"),
    "equalized": (Options(profile="int8", equalize=True), "Gemm"),
}


@pytest.mark.parametrize(("options", "op"), STREAMED.values(), ids=STREAMED)
def test_a_fold_takes_no_memory_in_proportion_to_a_layer(options, op, rng, tmp_path):
    size = 4000  # 64 MB, of which a few blocks are in memory
    weight = np.resize(rng.standard_normal(1009).astype(np.float32), (size, size))
    parts = join(bn("x", "n", size, rng), layer(op, "n", "y", (1, 1), rng))
    # Int8 weights take no scales that differ much.
    parts.initializers[0] = tensor("n_scale", np.full(size, 0.5, np.float32))
    parts.initializers[3] = tensor("n_var", np.ones(size, np.float32))
    parts.initializers[-1] = onnx.numpy_helper.from_array(weight, "y_W")
    model = model_of(parts.nodes, {"x": (1, size)}, ["y"], parts.initializers)
    onnx.save(model, tmp_path / "model.onnx")
    del model, parts, weight
    tracemalloc.start()
    report = onnx_bnfold.fold_file(tmp_path / "model.onnx", tmp_path / "folded.onnx", options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not report.kept
    assert peak < 7.5e6


def test_merging_branches_takes_no_memory_in_proportion_to_a_layer(rng, tmp_path):
    size = 1000  # 36 MB, and 4
    parts = join(
        conv("x", "a", (1, 1, 1, 1), rng, pads=[1] * 4), bn("a", "an", size, rng),
        conv("x", "b", (1, 1, 1, 1), rng), bn("b", "bn", size, rng),
        node("Add", ["an", "bn"], ["y"]),
    )  # fmt: skip
    values = rng.standard_normal(1009).astype(np.float32)
    made = {
        "a_W": (size, size, 3, 3),
        "b_W": (size, size, 1, 1),
        "a_bias": (size,),
        "b_bias": (size,),
    }
    for index, old in enumerate(parts.initializers):
        if old.name in made:
            resized = np.resize(values, made[old.name])
            parts.initializers[index] = onnx.numpy_helper.from_array(resized, old.name)
    model = model_of(parts.nodes, {"x": (1, size, 4, 4)}, ["y"], parts.initializers)
    onnx.save(model, tmp_path / "model.onnx")
    del model, parts, resized
    tracemalloc.start()
    options = Options(merge_branches=True)
    report = onnx_bnfold.fold_file(tmp_path / "model.onnx", tmp_path / "folded.onnx", options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {record.way for record in report.records} == {"merged"}
    assert peak < 32e6


def peak_of_fold(parts, size, weights, tmp_path, options, dtype=np.float32):
    """Fold a net the named weights of which are replaced by large ones; return report and peak."""
    for index, old in enumerate(parts.initializers):
        if old.name in weights:
            made = onnx.numpy_helper.from_array(weights[old.name], old.name)
            parts.initializers[index] = made
    model = model_of(parts.nodes, {"x": (1, size)}, ["y"], parts.initializers, dtype=dtype)
    onnx.save(model, tmp_path / "model.onnx")
    del model, parts
    weights.clear()
    tracemalloc.start()
    report = onnx_bnfold.fold_file(tmp_path / "model.onnx", tmp_path / "folded.onnx", options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return report, peak


def test_a_weight_behind_a_transpose_is_not_in_memory(rng, tmp_path):
    size = 3000  # 36 MB
    parts = join(
        bn("x", "n", size, rng),
        node("Transpose", ["w"], ["t"], perm=[1, 0]),
        node("MatMul", ["n", "t"], ["m"]),
        bn("m", "y", size, rng),
    )
    parts.initializers.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "w"))
    weights = {"w": np.resize(rng.standard_normal(1009).astype(np.float32), (size, size))}
    report, peak = peak_of_fold(parts, size, weights, tmp_path, Options())
    assert not report.kept
    assert peak < 24e6


COMPUTED = {
    "cast": [node("Cast", ["v"], ["w"], to=onnx.TensorProto.FLOAT)],
    "product": [node("Mul", ["v", "g"], ["w"])],
    "weight-norm": [
        node("ReduceL2", ["v"], ["n"], axes=[1]), node("Div", ["v", "n"], ["d"]),
        node("Mul", ["d", "g"], ["w"]),
    ],
    "norm-of-columns": [
        node("ReduceL2", ["v"], ["n"], axes=[0]), node("Div", ["v", "n"], ["w"])
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", COMPUTED)
def test_a_weight_that_nodes_compute_is_not_in_memory(kind, rng, tmp_path):
    size, dtype = 3000, np.float16 if kind == "cast" else np.float32  # 36 MB
    parts = join(
        bn("x", "n0", size, rng),
        *COMPUTED[kind],
        node("MatMul", ["n0", "w"], ["m"]),
        bn("m", "y", size, rng),
    )
    parts.initializers.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "v"))
    if kind in ("product", "weight-norm"):
        g = np.linspace(1, 2, size, dtype=np.float32).reshape(-1, 1)
        parts.initializers.append(onnx.numpy_helper.from_array(g, "g"))
    weights = {"v": np.resize(rng.standard_normal(1009).astype(dtype), (size, size))}
    report, peak = peak_of_fold(parts, size, weights, tmp_path, Options())
    assert not report.kept
    assert peak < 24e6


def test_a_layer_between_two_norms_has_no_factor_per_element(rng, tmp_path):
    size = 2000  # 16 MB; a factor of each element has 32
    parts = join(
        bn("x", "n", size, rng), layer("Gemm", "n", "g", (1, 1), rng), bn("g", "y", size, rng)
    )
    weights = {
        "g_W": np.resize(rng.standard_normal(1009).astype(np.float32), (size, size)),
        "g_bias": np.zeros(size, np.float32),
    }
    report, peak = peak_of_fold(parts, size, weights, tmp_path, Options())
    assert not report.kept
    assert peak < 10e6


def test_equalising_holds_nothing_per_pair_of_channels(rng, tmp_path):
    size = 2000
    parts = join(
        layer("Gemm", "x", "a", (1, 1), rng), bn("a", "n", size, rng), node("Relu", ["n"], ["r"]),
        layer("Gemm", "r", "y", (1, 1), rng),
    )  # fmt: skip
    spread = np.geomspace(0.01, 1, size).astype(np.float32)
    weights = {
        "a_W": np.resize(rng.standard_normal(1009).astype(np.float32), (size, size)),
        "y_W": np.resize(rng.standard_normal(1009).astype(np.float32), (size, size)),
        "a_bias": np.zeros(size, np.float32),
        "y_bias": np.zeros(size, np.float32),
        "n_scale": spread,
        "n_B": np.zeros(size, np.float32),
    }
    options = Options(profile="int8", equalize=True)
    report, peak = peak_of_fold(parts, size, weights, tmp_path, options)
    assert report.equalized
    assert peak < 24e6


def test_what_does_not_fit_its_type_is_looked_at_in_blocks(rng, tmp_path):
    size = 3000  # 18 MB; 72 in float64
    parts = join(
        layer("Gemm", "x", "g", (1, 1), rng, dtype=np.float16),
        bn("g", "y", size, rng, dtype=np.float16),
    )
    weight = np.resize(rng.standard_normal(1009).astype(np.float16), (size, size))
    weight[-1, -1] = 60000
    weights = {"g_W": weight, "g_bias": np.zeros(size, np.float16)}
    weights["y_scale"] = np.full(size, 8, np.float16)
    del weight
    report, peak = peak_of_fold(parts, size, weights, tmp_path, Options(), np.float16)
    assert [r.refusal.reason for r in report.kept] == [Reason.OVERFLOW]
    assert peak < 20e6
