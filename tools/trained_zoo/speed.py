"""What a fold costs and gains: latency, time to load, time and memory of the fold, as ratios.

Everything is measured in turn with what it is compared with: the folded model with the original,
and the process of a fold with one that reads the model by onnx and writes it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from onnx_bnfold import fold_file
from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.options import MODES
from onnx_bnfold.check.sessions import Session
from tools.bench_fold import Cost
from tools.bench_forms import ratio, samples
from tools.trained_zoo.models import Model

HEADS = (
    "run, disabled", "run, enabled", "load, enabled", "fold s", "of read+write", "fold MB",
    "of read+write",
)  # fmt: skip
_SHORTEST = 1e-2  # seconds
_MEASURE = """
import json, sys
from dataclasses import astuple
from pathlib import Path
from tools.bench_fold import commands, costs, median
every = commands(sys.executable)
names = {name: every[name] for name in ("onnx_bnfold", "onnx load+save")}
found, _ = costs(Path(sys.argv[1]), names, 7, 120.0)
print(json.dumps([astuple(median(found[name])) for name in names]))
"""


def cells(model: Model, runs: int) -> list[str]:
    """Return what the table says of a network, original over folded for runs and loads."""
    with tempfile.TemporaryDirectory() as scratch:
        folded = Path(scratch) / "folded.onnx"
        fold_file(model.path, folded)
        pair = [model.path, folded]
        (name, values), *_ = model.feeds()[0].items()
        feed = {name: values[:1]}
        found = [samples(pair, mode, runs, feed) for mode in MODES]
        found.append(_loads(pair, runs))
    return [*(ratio(times[:, 0], times[:, 1]) for times in found), *_fold(model.path)]


def _loads(pair: list[Path], runs: int) -> np.ndarray:
    """Return the processor seconds of making sessions in turn, ``(runs, 2)``."""
    loops = 1 + int(_SHORTEST / _seconds(pair[0], 1))
    turns = [[0, 1], [1, 0]]
    found = np.zeros((runs, 2))
    for turn in range(runs):
        for which in turns[turn % 2]:
            found[turn, which] = _seconds(pair[which], loops)
    return found


def _seconds(path: Path, loops: int) -> float:
    start = time.process_time()
    for _ in range(loops):
        Session(CheckedModel(path, "model"), optimised=True, threads=1)
    return time.process_time() - start


def _fold(path: Path) -> list[str]:
    """Return what the process of a fold took, and in units of the other's."""
    # In a process of its own: what this one has in memory counts as the least of its children's.
    command = [sys.executable, "-c", _MEASURE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ours, copy = (Cost(*each) for each in json.loads(done.stdout))
    return [
        f"{ours.processor:.2f}",
        f"{ours.processor / copy.processor:.2f}",
        f"{ours.megabytes:.0f}",
        f"{ours.megabytes / copy.megabytes:.2f}",
    ]
