"""Measures how the time to fold grows with the model: chains of Conv and BatchNormalization.

    python -m tools.bench_scaling [--pairs 500 2000 5000] [--peer-python PATH] [--output FILE]

All sizes are measured in turn, several times in one run, and the least processor time counts:
ratios between sizes are what this shows, not seconds. With `--peer-python`, the peers convert the
same files; the time is from file to file, and a tool that needs more than a minute is not asked for
larger ones.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper

from onnx_bnfold import Options
from onnx_bnfold.pipeline import Pipeline
from tools.peers.batch import Unusable, run_jobs
from tools.peers.bench import OURS, PEERS
from tools.peers.tables import head, row, write

CHANNELS = 8
REPEATS = 5
PATIENCE = 60.0  # seconds for a peer


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[500, 2000, 5000])
    parser.add_argument("--peer-python", help="interpreter that has the peers")
    parser.add_argument("--output", type=Path, help="file for the tables; default: stdout")
    options = parser.parse_args()
    models = {pairs: chain(pairs) for pairs in sorted(options.pairs)}
    lines = list(_phases(models))
    if options.peer_python:
        lines += _peers(models, options.peer_python)
    write(lines, options.output)


def chain(pairs: int) -> ModelProto:
    """Make a model of `pairs` times Conv, BatchNormalization, Relu, with weights of their own."""
    rng = np.random.default_rng(0)
    norm = "BatchNormalization"
    nodes, tensors, x = [], [], "x"
    for i in range(pairs):
        values = {
            f"w{i}": rng.standard_normal((CHANNELS, CHANNELS, 1, 1)),
            **{f"{p}{i}": rng.uniform(0.5, 1.5, CHANNELS) for p in "sbmv"},
        }
        tensors += [numpy_helper.from_array(v.astype(np.float32), k) for k, v in values.items()]
        weight, *parameters = values
        nodes += [
            helper.make_node("Conv", [x, weight], [f"c{i}"], name=f"conv{i}"),
            helper.make_node(norm, [f"c{i}", *parameters], [f"n{i}"], name=f"bn{i}"),
            helper.make_node("Relu", [f"n{i}"], [f"x{i}"], name=f"relu{i}"),
        ]
        x = f"x{i}"
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, CHANNELS, 4, 4])
        for name in ("x", x)
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def measure(model: ModelProto) -> tuple[float, float]:
    """Return the processor seconds of planning, and of rewriting with every constant computed."""
    start = time.process_time()
    pipeline = Pipeline(model, numpy_helper.to_array, Options())
    pipeline.plan()
    planned = time.process_time()
    copy = ModelProto()
    copy.CopyFrom(model)
    for new in pipeline.apply(copy).values():
        new.compute()
    return planned - start, time.process_time() - planned


def _phases(models: dict[int, ModelProto]) -> Iterator[str]:
    """Yield the table of plan and rewrite, and how they grow."""
    times = np.array([[measure(m) for m in models.values()] for _ in range(REPEATS)]).min(axis=0)
    nodes = np.array([len(m.graph.node) for m in models.values()])
    ratio, growth = nodes / nodes[0], times / times[0]
    yield from head(["pairs", "nodes", "ratio", "plan, s", "ratio", "rewrite, s", "ratio"])
    for i, pairs in enumerate(models):
        seconds = [f"{times[i, 0]:.3f}", f"{growth[i, 0]:.1f}", f"{times[i, 1]:.3f}"]
        yield row(
            [f"{pairs:,}", f"{nodes[i]:,}", f"{ratio[i]:.1f}", *seconds, f"{growth[i, 1]:.1f}"]
        )
    yield ""
    for phase, name in enumerate(("plan", "rewrite")):
        slope, offset = np.polyfit(nodes, times[:, phase], 1)
        power = np.polyfit(np.log(nodes), np.log(times[:, phase]), 1)[0]
        yield (
            f"{name}: {offset * 1e3:.0f} ms + {slope * 1e6:.0f} µs per node by least squares; "
            f"it grows as the number of nodes to the power of {power:.2f}"
        )
        yield ""


def _peers(models: dict[int, ModelProto], python: str) -> Iterator[str]:
    """Yield the table of all tools, from file to file."""
    yield from head(["tool", *(f"{pairs:,} pairs, s" for pairs in models)])
    with tempfile.TemporaryDirectory() as folder:
        for pairs, model in models.items():
            onnx.save(model, f"{folder}/{pairs}.onnx")
        for tool in (OURS, *PEERS):
            interpreter = sys.executable if tool == OURS else python
            try:
                yield row([tool, *_seconds(interpreter, tool, folder, list(models))])
            except Unusable as why:
                print(f"left out: {why}", file=sys.stderr)


def _seconds(python: str, tool: str, folder: str, sizes: Sequence[int]) -> Iterator[str]:
    failed = ""
    for pairs in sizes:
        if not failed:
            job = {"source": f"{folder}/{pairs}.onnx", "target": f"{folder}/{pairs}.{tool}.onnx"}
            (outcome,) = run_jobs(python, tool, [job], PATIENCE)
            failed = outcome.error or ""
        yield failed or f"{outcome.seconds:.2f}"


if __name__ == "__main__":
    main()
