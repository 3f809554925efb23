"""Whole-process time and peak memory of a check, beside what onnxruntime alone needs for the runs.

    python -m tools.bench_check model.onnx [more.onnx ...] --rounds 9

"onnxruntime alone" is a process that makes the check's sessions and runs, and nothing else: the
original and the folded model on two inputs, the original again four times on both. All commands run
in turn, round after round; what is printed are medians and their ratios to it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import onnx_bnfold
from tools.bench_fold import Cost, measure

ALONE = """
import sys, numpy as np, onnxruntime as o
def session(path):
    s = o.SessionOptions(); s.log_severity_level = 4
    s.graph_optimization_level = o.GraphOptimizationLevel.ORT_DISABLE_ALL
    return o.InferenceSession(path, s, providers=["CPUExecutionProvider"])
rng = np.random.default_rng(0)
for path, runs in (sys.argv[1], 2), (sys.argv[2], 2), (sys.argv[1], 8):
    one = session(path)
    feed = {i.name: rng.standard_normal([d if type(d) is int else 2 for d in i.shape], np.float32)
            for i in one.get_inputs()}
    for _ in range(runs):
        one.run(None, feed)
"""


def compare(model: Path, rounds: int, timeout: float) -> None:
    """Print a table for one model.

    Raises:
        SystemExit: a command fails.
    """
    with tempfile.TemporaryDirectory(dir=model.parent) as folder:
        folded, again = f"{folder}/folded.onnx", f"{folder}/again.onnx"
        onnx_bnfold.fold_file(model, folded)
        ours = [sys.executable, "-m", "onnx_bnfold"]
        names = {
            "onnxruntime alone": [sys.executable, "-c", ALONE, str(model), folded],
            "check": [*ours, "check", str(model), folded],
            "fold": [*ours, "-q", str(model), "-o", again],
            "fold --check": [*ours, "-q", "--check", str(model), "-o", again],
        }
        found: dict[str, list[Cost]] = {name: [] for name in names}
        for _ in range(rounds):
            for name, command in names.items():
                cost = measure(command, timeout)
                if isinstance(cost, str):
                    raise SystemExit(f"{name}: {cost}")
                found[name].append(cost)
    alone = statistics.median(cost.seconds for cost in found["onnxruntime alone"])
    print(f"\n{model.name}, {model.stat().st_size / 1e6:.0f} MB, {rounds} rounds\n")
    print("| command | seconds | of onnxruntime alone | peak MB |\n| --- | --- | --- | --- |")
    medians = {name: statistics.median(c.seconds for c in costs) for name, costs in found.items()}
    for name, seconds in medians.items():
        peak = statistics.median(cost.megabytes for cost in found[name])
        print(f"| {name} | {seconds:.2f} | {seconds / alone:.2f} | {peak:.0f} |")
    added = medians["fold --check"] - medians["fold"]
    print(f"| what --check adds to the fold | {added:.2f} | {added / alone:.2f} | |", flush=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, help="one float32 input each, or several")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--timeout", type=float, default=600.0)
    args = parser.parse_args()
    for model in args.models:
        compare(model, args.rounds, args.timeout)


if __name__ == "__main__":
    main()
