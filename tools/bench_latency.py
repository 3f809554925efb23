"""Latency of models before and after the fold, in onnxruntime, both run in turn.

    python -m tools.bench_latency model.onnx [more.onnx ...] --threads 1 2 --runs 30

Prints original/folded, with the 95 % interval of the ratio of medians: above 1 the folded model is
faster. "left" counts the BNs that onnxruntime's own optimiser does not remove.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import onnx_bnfold
from onnx_bnfold.check import CheckOptions, Latency, check
from onnx_bnfold.errors import CheckFailed


def latency(model: Path, threads: int, runs: int, options: onnx_bnfold.Options) -> Latency:
    """Fold a model and time it beside the original.

    Raises:
        CheckFailed: the two do not compute the same.
    """
    with tempfile.TemporaryDirectory() as folder:
        folded = Path(folder) / "folded.onnx"
        onnx_bnfold.fold_file(model, folded, options)
        result = check(model, folded, CheckOptions(latency=True, threads=threads, runs=runs))
    if not result.holds or result.latency is None:
        raise CheckFailed(f"{model}: {'; '.join(result.failures)}")
    return result.latency


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--merge-branches", action="store_true")
    args = parser.parse_args()
    options = onnx_bnfold.Options(merge_branches=args.merge_branches)
    print(
        "| model | BN | left | threads | disabled: ms | original/folded "
        "| enabled: ms | original/folded |"
    )
    print("| --- " * 8 + "|")
    for model in args.models:
        for threads in args.threads:
            found = latency(model, threads, args.runs, options)
            left = found.bn_original - found.bn_fused_by_onnxruntime
            cells = [model.stem, found.bn_original, left, threads]
            for mode in found.modes:
                cells += [
                    f"{mode.original.median_ms:.1f} → {mode.folded.median_ms:.1f}",
                    f"{mode.speedup:.3f} [{mode.speedup_low:.3f}, {mode.speedup_high:.3f}]",
                ]
            print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    main()
