"""Writes a finding, made small, and reads it again: the model, what to feed it, the options."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, printer

from onnx_bnfold import Options

from .judge import Verdict, judge
from .models import Case
from .shrink import shrink


def write(folder: Path, seed: int, case: Case, verdict: Verdict, seconds: float) -> Path:
    """Shrink a finding and write it as .onnx, .npz (the feeds), .json and .txt; return the last."""

    def persists(candidate: Case) -> bool:
        found = judge(candidate)
        return found.kind == verdict.kind and (found.skipped is None) == (verdict.skipped is None)

    small = shrink(case, persists, seconds)
    last = judge(small)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{str(verdict.kind).replace(' ', '_')}_{seed}.txt"
    onnx.save(small.model, path.with_suffix(".onnx"))
    path.with_suffix(".json").write_text(
        json.dumps({**asdict(small.options), "storage": small.storage, "measured": small.measured})
    )
    arrays = {f"{k}:{n}": _plain(a) for k, feed in enumerate(small.feeds) for n, a in feed.items()}
    np.savez(path.with_suffix(".npz"), **arrays)
    path.write_text(
        f"{verdict.kind}, seed {seed}\n{small.options}, {small.storage}\n\n{last.detail}\n\n"
        f"before shrinking: {verdict.detail}\n\n{printer.to_text(small.model)}\n"
        + ("\nfolded:\n" + printer.to_text(last.model) + "\n" if last.model is not None else "")
    )
    return path


def read(folder: Path) -> Iterator[tuple[str, Case]]:
    """Yield the findings in a folder, each with its name."""
    for path in sorted(folder.glob("*.onnx")):
        model = onnx.load(path)
        kinds = {
            i.name: helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type)
            for i in model.graph.input
        }
        feeds: dict[int, dict[str, np.ndarray]] = {0: {}}
        for key, array in np.load(path.with_suffix(".npz")).items():
            number, name = key.split(":", 1)
            feeds.setdefault(int(number), {})[name] = array.astype(kinds[name])
        told = json.loads(path.with_suffix(".json").read_text())
        where = {key: told.pop(key) for key in ("storage", "measured") if key in told}
        yield path.stem, Case(model, Options(**told), tuple(feeds.values()), **where)


def _plain(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.kind in "fiub" else array.astype(np.float32)
