"""Time of a whole store: one process against several, first run against restart, and `cp`.

    python tools/bench_store.py

Generates models (seeded), then measures whole processes of the command line, interleaved, each into
an empty output; prints medians and their ratios. Files are in the system's cache for all of them.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper

_LAYERS = 12
_BATCH_NORM = {"scale": (0.5, 1.5), "B": (-1, 1), "mean": (-1, 1), "var": (0.5, 1.5)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2, help="compared with one job")
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args(argv)
    with TemporaryDirectory() as folder:
        store, output = Path(folder, "models"), Path(folder, "folded")
        print(f"{args.models} models, {generate(store, args.models) / 1e6:.0f} MB")
        command = [sys.executable, "-m", "onnx_bnfold", store, "-o", output, "--quiet"]
        times = defaultdict(list)
        for _ in range(args.repetitions):
            for name, jobs in (("one job", 1), ("jobs", args.jobs)):
                clear(output)
                times[name].append(timed(lambda n=jobs: run([*command, "--jobs", str(n)])))
            times["restart"].append(timed(lambda: run([*command, "--jobs", str(args.jobs)])))
            clear(output)
            again = [*command, "--jobs", str(args.jobs), "--sync"]
            times["sync"].append(timed(lambda words=again: run(words)))
            clear(output)
            times["cp -r"].append(timed(lambda: run(["cp", "-r", store, output])))
    report({name: statistics.median(seconds) for name, seconds in times.items()}, args)
    return 0


def report(median: dict[str, float], args: argparse.Namespace) -> None:
    """Print a table of medians."""
    rows = {
        "one job": "--jobs 1",
        "jobs": f"--jobs {args.jobs}",
        "sync": f"--jobs {args.jobs} --sync",
        "restart": f"--jobs {args.jobs}, all done before",
        "cp -r": "cp -r",
    }
    print("| run | median s | models/s | speed against one job |\n|---|---|---|---|")
    for name, label in rows.items():
        speed = args.models / median[name]
        ratio = median["one job"] / median[name]
        print(f"| {label} | {median[name]:.2f} | {speed:.0f} | {ratio:.2f} |")


def timed(action: Callable[[], None]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def run(command: Sequence[str | Path]) -> None:
    """Run a command that must succeed."""
    subprocess.run(command, check=True)


def clear(output: Path) -> None:
    """Remove an output with its state."""
    for path in (output, output.with_name(f"{output.name}.onnx_bnfold")):
        shutil.rmtree(path, ignore_errors=True)


def generate(folder: Path, number: int) -> int:
    """Write models into a folder; return their size in bytes."""
    folder.mkdir()
    size = 0
    for index in range(number):
        path = folder / f"model{index:04}.onnx"
        onnx.save(model(channels=48 + index % 17, seed=index), path)
        size += path.stat().st_size
    return size


def model(channels: int, seed: int) -> ModelProto:
    """Return a chain of Conv, BatchNormalization and Relu, of 1.0 to 1.8 MB."""
    rng = np.random.default_rng(seed)
    nodes, weights, x = [], [], "x"
    for layer in range(_LAYERS):
        inputs = 3 if layer == 0 else channels
        w = rng.standard_normal((channels, inputs, 3, 3)).astype(np.float32)
        parameters = {
            f"{name}{layer}": rng.uniform(*span, channels).astype(np.float32)
            for name, span in _BATCH_NORM.items()
        }
        weights += [
            numpy_helper.from_array(v, n) for n, v in (parameters | {f"w{layer}": w}).items()
        ]
        nodes += [
            helper.make_node("Conv", [x, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", [f"c{layer}", *parameters], [f"n{layer}"]),
            helper.make_node("Relu", [f"n{layer}"], [f"x{layer}"]),
        ]
        x = f"x{layer}"
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", size, 32, 32])
        for name, size in (("x", 3), (x, channels))
    ]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


if __name__ == "__main__":
    sys.exit(main())
