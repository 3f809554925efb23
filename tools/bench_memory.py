"""Peak memory of whole folds, on top of what a process has that only imports onnx.

python -m tools.bench_memory model.onnx [more.onnx ...]
python -m tools.bench_memory --gemm 1000      # generated, MB: a Gemm behind a BatchNormalization
python -m tools.bench_memory --computed 164   # the same, by weights that nodes compute
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tools.bench_fold import Cost, measure

WAYS: dict[str, Sequence[str]] = {
    "plain": (),
    "`--bn-free`": ("--bn-free",),
    "`--merge-branches`": ("--merge-branches",),
    "int8, `--equalize`": ("--profile", "int8", "--equalize"),
}
_ROWS_AT_ONCE = 64
# What nodes compute the weight "w" by, of the stored "v" of a type and of vectors "g" and "s", an
# element per row: operator, inputs, attributes.
COMPUTED: dict[str, tuple[str, list[tuple[str, str, dict[str, Any]]]]] = {
    "cast": ("float16", [("Cast", "v", {"to": 1})]),
    "product": ("float32", [("Mul", "v g", {})]),
    "transposed_product": (
        "float32",
        [("Mul", "v g", {}), ("Transpose", "_0", {})],
    ),
    "weight_norm": (
        "float32",
        [("ReduceL2", "v", {"axes": [1]}), ("Div", "v _0", {}), ("Mul", "_1 g", {})],
    ),
    "standardised": (
        "float32",
        [
            *(("ReduceMean", "v", {"axes": [1]}), ("Sub", "v _0", {}), ("Mul", "_1 _1", {})),
            *(("ReduceMean", "_2", {"axes": [1]}), ("Sqrt", "_3", {}), ("Div", "_1 _4", {})),
        ],
    ),
    "dequantized": ("int8", [("DequantizeLinear", "v s", {"axis": 0})]),
}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--gemm", type=int, metavar="MB")
    parser.add_argument("--computed", type=int, metavar="MB")
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
        for kind in COMPUTED if args.computed else ():
            models.append(gemm(args.computed, folder / f"{kind}.onnx", transposed=1, kind=kind))
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


def gemm(megabytes: int, path: Path, *, transposed: int, kind: str = "") -> Path:
    """Write a BatchNormalization in front of a Gemm with a weight of a size, in a file of its own.

    A process of its own writes it: what this one has in memory is the least that its children have.

    Args:
        megabytes: of the weight in float32.
        path: of the model.
        transposed: whether a row of the weight belongs to an output.
        kind: what computes the weight, of ``COMPUTED``; it is stored as it is by default.
    """
    words = megabytes, path, transposed, kind
    writer = get_context("spawn").Process(target=_write_gemm, args=words)
    writer.start()
    writer.join()
    if writer.exitcode:
        raise SystemExit(f"{path} could not be written")
    return path


def _write_gemm(megabytes: int, path: Path, transposed: int, kind: str) -> None:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from onnx_bnfold.storage.external import set_external_range

    size, rng = math.isqrt(megabytes * 250_000), np.random.default_rng(0)
    stored, computing = COMPUTED.get(kind, ("float32", []))
    dtype = np.dtype(stored)
    spread = 40 if dtype.kind == "i" else size**-0.5
    rows = (rng.standard_normal((_ROWS_AT_ONCE, size), np.float32) * spread).astype(dtype)
    with path.with_suffix(".data").open("wb") as file:
        for start in range(0, size, _ROWS_AT_ONCE):
            file.write(rows[: size - start].tobytes())
    data_type = helper.np_dtype_to_tensor_dtype(dtype)
    weight = TensorProto(name="v" if kind else "w", dims=[size, size], data_type=data_type)
    set_external_range(weight, f"{path.stem}.data", 0, dtype.itemsize * size * size)
    vectors = [
        numpy_helper.from_array((rng.random(size) + 0.5).astype(np.float32), name)
        for name in ("scale", "B", "mean", "var", "c", *("s" if kind == "dequantized" else ""))
    ]
    if kind:
        g = (rng.random((size, 1)) + 0.5).astype(np.float32)
        vectors.append(numpy_helper.from_array(g, "g"))
    names = [*(f"_{number}" for number in range(len(computing) - 1)), "w"]
    nodes = [
        *(
            helper.make_node(op, inputs.split(), [name], **attributes)
            for (op, inputs, attributes), name in zip(computing, names, strict=False)
        ),
        helper.make_node("BatchNormalization", ["x", "scale", "B", "mean", "var"], ["y"]),
        helper.make_node("Gemm", ["y", "w", "c"], ["z"], transB=transposed),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", size]) for n in ("x", "z")]
    graph = helper.make_graph(nodes, "gemm", ends[:1], ends[1:], [*vectors, weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


if __name__ == "__main__":
    main()
