"""Writes a finding: the smallest model that shows it, what to feed it, and how to see it."""

from pathlib import Path

import numpy as np
import onnx
from onnx import printer

from .judge import Verdict, judge
from .models import Case
from .shrink import shrink


def label(verdict: Verdict) -> str:
    """Return a finding's kind as a file name, with what tells one of its kind from another."""
    return (verdict.kind or "none").replace(" ", "_")


def write(folder: Path, seed: int, case: Case, verdict: Verdict, seconds: float) -> Path:
    """Shrink a finding and write it as .onnx, .npz (the feeds) and .txt; return the last."""

    def persists(candidate: Case) -> bool:
        found = judge(candidate)
        return found.kind == verdict.kind and (found.skipped is None) == (verdict.skipped is None)

    small = shrink(case, persists, seconds)
    last = judge(small)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{label(verdict)}_{seed}.txt"
    onnx.save(small.model, path.with_suffix(".onnx"))
    for k, feed in enumerate(small.feeds):
        arrays = {f"{k}:{name}": _plain(array) for name, array in feed.items()}
        np.savez(path.with_name(f"{path.stem}_{k}.npz"), **arrays)
    path.write_text(
        f"{verdict.kind}, seed {seed}\n{small.options}\n\n{last.detail}\n\n"
        f"before shrinking: {verdict.detail}\n\n{printer.to_text(small.model)}\n"
        + ("\nfolded:\n" + printer.to_text(last.model) + "\n" if last.model is not None else "")
    )
    return path


def _plain(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.kind in "fiub" else array.astype(np.float32)
