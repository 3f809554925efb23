"""Whole-process time and peak memory of a fold, beside peers from PyPI and a plain copy.

All commands run in turn, round after round, so that a drift of the machine hits them alike; what is
printed are medians and their ratios to ours. In each round a command runs twice and the second run
counts: it finds the caches and the free memory as it leaves them, not as another command did.

    python -m tools.bench_fold model.onnx [more.onnx ...] --rounds 5 --peer-python peers/bin/python
    python -m tools.bench_fold --pairs 500 2000 5000      # generated Conv+BN chains
    python -m tools.bench_fold --external 2400            # generated, MB of external data: all
                                                          # weights behind BNs, and one in ten
    python -m tools.bench_fold --no-norm 4000             # generated, nothing to fold: Convs and
                                                          # transformers of so many nodes

A peer that is not installed, fails, or takes longer than ``--timeout`` is reported as such.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from multiprocessing import get_context
from pathlib import Path

MODEL, OUTPUT = "<model>", "<output>"
ORT = """
import sys, onnxruntime as o
s = o.SessionOptions(); s.graph_optimization_level = o.GraphOptimizationLevel.ORT_ENABLE_BASIC
s.optimized_model_filepath = sys.argv[2]; s.log_severity_level = 3
o.InferenceSession(sys.argv[1], s, providers=["CPUExecutionProvider"])
"""
OPTIMIZER = """
import sys, onnx, onnxoptimizer
onnx.save(onnxoptimizer.optimize(onnx.load(sys.argv[1]), ["fuse_bn_into_conv"]), sys.argv[2])
"""
SCRIPT = """
import sys, onnx
from onnxscript import rewriter
onnx.save(rewriter.rewrite(onnx.load(sys.argv[1])), sys.argv[2])
"""
COPY = 'cp "$1" "$2" && data="${1%.onnx}.data" && if [ -e "$data" ]; then cp "$data" "$2.data"; fi'
_WIDTHS = (64, 256)  # of transformers: few weights, and 100 MB in 4,000 nodes
_FOLD = "-m", "onnx_bnfold", "-q", "-o", OUTPUT
START = "start (import onnx)"
LOAD_SAVE = "import sys, onnx; onnx.save(onnx.load(sys.argv[1]), sys.argv[2])"


@dataclass(frozen=True)
class Cost:
    """What one process took.

    Attributes:
        seconds: on the clock.
        processor: seconds of the processors.
        megabytes: of its largest resident set.
    """

    seconds: float
    processor: float
    megabytes: float


def commands(peer_python: str) -> dict[str, list[str]]:
    """Return the commands, with placeholders for the model and the output."""
    return {
        "onnx_bnfold": [sys.executable, *_FOLD, MODEL],
        "onnx_bnfold --sync": [sys.executable, *_FOLD, "--sync", MODEL],
        "cp": ["sh", "-c", COPY, "sh", MODEL, OUTPUT],
        START: [sys.executable, "-c", "import onnx"],
        "onnx load+save": [peer_python, "-c", LOAD_SAVE, MODEL, OUTPUT],
        "onnxruntime basic": [peer_python, "-c", ORT, MODEL, OUTPUT],
        "onnxoptimizer": [peer_python, "-c", OPTIMIZER, MODEL, OUTPUT],
        "onnxslim": [peer_python, "-m", "onnxslim", MODEL, OUTPUT],
        "onnxsim": [peer_python, "-m", "onnxsim", MODEL, OUTPUT],
        "onnxscript rewriter": [peer_python, "-c", SCRIPT, MODEL, OUTPUT],
    }


def measure(command: list[str], timeout: float) -> Cost | str:
    """Run a command to its end; return its cost, or what went wrong."""
    # Packages are compiled when they are installed; so is what runs from a folder, the first time.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    with tempfile.TemporaryFile() as talk:
        process = subprocess.Popen(command, stdout=talk, stderr=talk, env=environment)
        deadline = start + timeout
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if time.perf_counter() > deadline:
                process.kill()
                os.wait4(process.pid, 0)
                process.returncode = -9
                return f"over {timeout:.0f} s"
            time.sleep(0.002)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        return f"exit {process.returncode}"
    busy = usage.ru_utime + usage.ru_stime
    return Cost(time.perf_counter() - start, busy, usage.ru_maxrss / 1024)


def compare(model: Path, names: dict[str, list[str]], rounds: int, timeout: float) -> None:
    """Print a table for one model."""
    found, failed = costs(model, names, rounds, timeout)
    size = sum(p.stat().st_size for p in [model, *model.parent.glob(f"{model.stem}.data")]) / 1e6
    print(f"\n{model.name}, {size:.0f} MB, {rounds} rounds\n")
    print("| command | seconds | of ours | peak MB | of ours |\n| --- | --- | --- | --- | --- |")
    ours = median(found["onnx_bnfold"])
    for name, each in found.items():
        if name in failed:
            print(f"| {name} | {failed[name]} | | | |")
            continue
        cost = median(each)
        print(
            f"| {name} | {cost.seconds:.2f} | {cost.seconds / ours.seconds:.2f} "
            f"| {cost.megabytes:.0f} | {cost.megabytes / ours.megabytes:.2f} |"
        )
    print(f"\nprocessor time over import onnx and cp: {over_copy(found):.2f}")


def over_copy(found: dict[str, list[Cost]]) -> float:
    """Return the median ratio of our processor time to that of ``import onnx`` and ``cp``."""
    rounds = zip(*(found[name] for name in ("onnx_bnfold", START, "cp")), strict=True)
    return statistics.median(
        ours.processor / (start.processor + copy.processor) for ours, start, copy in rounds
    )


def costs(
    model: Path, names: dict[str, list[str]], rounds: int, timeout: float
) -> tuple[dict[str, list[Cost]], dict[str, str]]:
    """Return what each command took in each round, and what went wrong with those that failed."""
    found: dict[str, list[Cost]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(dir=model.parent) as folder:
        for _ in range(rounds):
            for name, command in names.items():
                if name in failed:
                    continue
                cost = _run(command, model, Path(folder), timeout)
                if not isinstance(cost, str):
                    cost = _run(command, model, Path(folder), timeout)
                if isinstance(cost, str):
                    failed[name] = cost
                else:
                    found[name].append(cost)
    return found, failed


def _run(command: list[str], model: Path, folder: Path, timeout: float) -> Cost | str:
    """Run a command on a model and remove what it has written."""
    places = {MODEL: str(model), OUTPUT: str(folder / "output.onnx")}
    cost = measure([places.get(word, word) for word in command], timeout)
    for left in folder.iterdir():
        left.unlink()
    return cost


def median(found: list[Cost]) -> Cost:
    """Return the medians of what several runs took."""
    return Cost(*(statistics.median(each) for each in zip(*map(astuple, found), strict=True)))


def chain(count: int, channels: int, path: Path, external: bool, every: int = 1) -> Path:
    """Write a chain of Convs with BNs behind them.

    Args:
        count: number of Convs.
        channels: of every Conv (1x1).
        path: of the model.
        external: whether its weights go into a file beside it.
        every: how many Convs have one BN; 0 if none has.
    """
    return _written(path, _write_chain, count, channels, external, every)


def _written(path: Path, write: Callable[..., None], *args: object) -> Path:
    """Let a process of its own write a model.

    What this process has in memory counts as the least that its children ever had.
    """
    writer = get_context("spawn").Process(target=write, args=(path, *args))
    writer.start()
    writer.join()
    if writer.exitcode:
        raise SystemExit(f"{path} could not be written")
    return path


def _write_chain(path: Path, count: int, channels: int, external: bool, every: int) -> None:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, tensors, x = [], [], "x"
    for i in range(count):
        weight = rng.standard_normal((channels, channels, 1, 1), np.float32)
        norm = [
            numpy_helper.from_array((rng.random(channels) + 0.5).astype(np.float32), f"n{i}_{role}")
            for role in ("scale", "B", "mean", "var")
        ]
        tensors.append(numpy_helper.from_array(weight / channels**0.5, f"w{i}"))
        nodes.append(helper.make_node("Conv", [x, f"w{i}"], [f"c{i}"], name=f"conv{i}"))
        if not every or i % every:
            x = f"c{i}"
            continue
        tensors += norm
        names = [t.name for t in norm]
        made = helper.make_node("BatchNormalization", [f"c{i}", *names], [f"y{i}"], name=f"bn{i}")
        nodes.append(made)
        x = f"y{i}"
    shape = ["N", channels, 4, 4]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x", x)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, save_as_external_data=external, location=f"{path.stem}.data")


def _write_transformer(path: Path, nodes: int, width: int) -> None:
    import onnx

    from tools.transformer_graph import transformer

    onnx.save(transformer(nodes, width), path)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--pairs", nargs="*", type=int, default=[], metavar="N")
    parser.add_argument("--external", type=int, metavar="MB")
    parser.add_argument("--no-norm", nargs="*", type=int, default=[], metavar="NODES")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--timeout", type=float, default=120.0)
    parser.add_argument("--peer-python", default=sys.executable)
    args = parser.parse_args()
    names = commands(args.peer_python)
    with tempfile.TemporaryDirectory() as folder:
        models = list(args.models)
        models += [chain(n, 4, Path(folder) / f"pairs_{n}.onnx", False) for n in args.pairs]
        for nodes in args.no_norm:
            models.append(chain(nodes, 4, Path(folder) / f"convs_{nodes}.onnx", False, 0))
            for width in _WIDTHS:
                path = Path(folder) / f"transformer_{nodes}_{width}.onnx"
                models.append(_written(path, _write_transformer, nodes, width))
        if args.external:
            count = max(1, args.external // 16)
            for name, every in (("all", 1), ("tenth", 10)):
                models.append(chain(count, 2000, Path(folder) / f"{name}.onnx", True, every))
        for model in models:
            compare(model, names, args.rounds, args.timeout)


if __name__ == "__main__":
    main()
