"""Peak memory of whole folds, on top of what a process has that only imports onnx.

python -m tools.bench_memory model.onnx [more.onnx ...]
python -m tools.bench_memory --gemm 1000      # generated, MB: a Gemm behind a BatchNormalization
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

from tools.bench_fold import Cost, measure

WAYS: dict[str, Sequence[str]] = {
    "plain": (),
    "`--bn-free`": ("--bn-free",),
    "`--merge-branches`": ("--merge-branches",),
    "int8, `--equalize`": ("--profile", "int8", "--equalize"),
}
_ROWS_AT_ONCE = 64


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--gemm", type=int, metavar="MB")
    parser.add_argument("--timeout", type=float, default=600.0)
    args = parser.parse_args()
    least = measure([sys.executable, "-c", "import onnx"], args.timeout)
    assert isinstance(least, Cost)
    print(f"MB over `import onnx`, which has {least.megabytes:.0f}\n")
    print(f"| model | MB | {' | '.join(WAYS)} |\n|{' --- |' * (2 + len(WAYS))}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = args.models
        if args.gemm:
            models += [gemm(args.gemm, folder / f"gemm_{t}.onnx", transposed=t) for t in (0, 1)]
        ways = WAYS.values()
        for model in models:
            over = [_over(model, folder / "out", words, least, args.timeout) for words in ways]
            size = sum(path.stat().st_size for path in model.parent.glob(f"{model.stem}.*")) / 1e6
            print(f"| {model.stem} | {size:.0f} | {' | '.join(over)} |", flush=True)


def _over(model: Path, out: Path, words: Sequence[str], least: Cost, timeout: float) -> str:
    out.mkdir()
    command = [sys.executable, "-m", "onnx_bnfold", "-q", "-o", f"{out}/folded.onnx", str(model)]
    cost = measure([*command, *words], timeout)
    for path in out.iterdir():
        path.unlink()
    out.rmdir()
    return cost if isinstance(cost, str) else f"{cost.megabytes - least.megabytes:.0f}"


def gemm(megabytes: int, path: Path, *, transposed: int) -> Path:
    """Write a BatchNormalization in front of a Gemm with a weight of a size, in a file of its own.

    A process of its own writes it: what this one has in memory is the least that its children have.

    Args:
        megabytes: of the weight.
        path: of the model.
        transposed: whether a row of the weight belongs to an output.
    """
    writer = get_context("spawn").Process(target=_write_gemm, args=(megabytes, path, transposed))
    writer.start()
    writer.join()
    if writer.exitcode:
        raise SystemExit(f"{path} could not be written")
    return path


def _write_gemm(megabytes: int, path: Path, transposed: int) -> None:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from onnx_bnfold.storage.external import set_external_range

    size, rng = math.isqrt(megabytes * 250_000), np.random.default_rng(0)
    rows = rng.standard_normal((_ROWS_AT_ONCE, size), np.float32) / size**0.5
    with path.with_suffix(".data").open("wb") as file:
        for start in range(0, size, _ROWS_AT_ONCE):
            file.write(rows[: size - start].tobytes())
    weight = TensorProto(name="w", dims=[size, size], data_type=TensorProto.FLOAT)
    set_external_range(weight, f"{path.stem}.data", 0, 4 * size * size)
    vectors = [
        numpy_helper.from_array((rng.random(size) + 0.5).astype(np.float32), name)
        for name in ("scale", "B", "mean", "var", "c")
    ]
    nodes = [
        helper.make_node("BatchNormalization", ["x", "scale", "B", "mean", "var"], ["y"]),
        helper.make_node("Gemm", ["y", "w", "c"], ["z"], transB=transposed),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", size]) for n in ("x", "z")]
    graph = helper.make_graph(nodes, "gemm", ends[:1], ends[1:], [*vectors, weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


if __name__ == "__main__":
    main()
