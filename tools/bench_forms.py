"""What each form without a BatchNormalization costs, as a markdown table.

    python -m tools.bench_forms model.onnx [more.onnx ...] [--runs 60]

Bytes are relative to the original's. The last two columns are the processor time of the original
over that of the folded model, in onnxruntime with its optimisations disabled and enabled, on one
thread, the models of a section in turn: the ratio of medians and its 95 % interval, above 1
the folded model is faster. Every folded model is checked.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

import onnx_bnfold
from onnx_bnfold import Options
from onnx_bnfold.check import CheckOptions, check
from onnx_bnfold.check.inputs import make_feeds
from onnx_bnfold.check.latency import bootstrap_ratio
from onnx_bnfold.check.models import open_model
from onnx_bnfold.check.options import MODES, Mode
from onnx_bnfold.check.sessions import Feed, Session
from onnx_bnfold.errors import CheckFailed
from onnx_bnfold.reports.figures import figures_of
from tools.peers.tables import head, row

FORMS = {
    "a plain fold": Options(),
    "`--bn-free`": Options(bn_free=True),
    "`--bn-free --target onnxruntime`": Options(bn_free=True, target="onnxruntime"),
    "`--standalone conv`": Options(standalone="conv"),
    "`--standalone mul-add`": Options(standalone="mul-add"),
}
HEAD = ("model", "BN", "nodes", "bytes", "depth", "disabled", "enabled")
_SHORTEST = 1e-2  # seconds; shorter runs are repeated within a sample
_WARM_UP = 5


def folded(model: Path, folder: Path) -> list[Path]:
    """Fold a model in every form.

    Raises:
        CheckFailed: a folded model does not compute what the original does.
    """
    paths = []
    for number, (name, options) in enumerate(FORMS.items()):
        paths.append(folder / f"{number}.onnx")
        onnx_bnfold.fold_file(model, paths[-1], options)
        result = check(model, paths[-1])
        if not result.holds:
            raise CheckFailed(f"{model}, {name}: {'; '.join(result.failures)}")
    return paths


def samples(models: Sequence[Path], mode: Mode, runs: int, feed: Feed | None = None) -> np.ndarray:
    """Return the processor seconds of models that are run in turn, ``(runs, models)``.

    Args:
        models: with the same inputs.
        mode: of onnxruntime's optimisations.
        runs: of each, that count.
        feed: the inputs; random ones by default.
    """
    with ExitStack() as opened:
        checked = [opened.enter_context(open_model(path, "model")) for path in models]
        sessions = [Session(each, optimised=mode == "enabled", threads=1) for each in checked]
        feed = feed or make_feeds(sessions[0].inputs, CheckOptions(), batch=1)[0]
        longest = max(_seconds(session, feed, 1) for session in sessions)
        loops = max(1, math.ceil(_SHORTEST / longest))
        found = np.zeros((_WARM_UP + runs, len(models)))
        for turn in range(len(found)):
            for which in np.roll(range(len(models)), turn):
                found[turn, which] = _seconds(sessions[which], feed, loops)
    return found[_WARM_UP:]


def _seconds(session: Session, feed: Feed, loops: int) -> float:
    start = time.thread_time()  # onnxruntime computes in the thread that asks, if that is the only
    for _ in range(loops):
        session.run(feed)
    return time.thread_time() - start


def figures(path: Path, original: Path) -> list[str]:
    """Return what a row says of a model's file."""
    found = figures_of(onnx.load(path), numpy_helper.to_array, {})
    depth = "?" if found.multiplicative_depth is None else str(found.multiplicative_depth)
    share = path.stat().st_size / original.stat().st_size
    return [str(found.batch_normalizations), str(found.nodes), f"{share:.3f}", depth]


def table(model: Path, runs: int) -> list[str]:
    """Return the rows of a model."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [model, *folded(model, Path(folder))]
        measured = [samples(paths, mode, runs) for mode in MODES]
        rows = [row([f"**{model.stem}**", *figures(model, model), "", ""])]
        for number, name in enumerate(FORMS, 1):
            ratios = [ratio(times[:, 0], times[:, number]) for times in measured]
            rows.append(row([name, *figures(paths[number], model), *ratios]))
    return rows


def ratio(before: np.ndarray, after: np.ndarray) -> str:
    """Return the ratio of the medians of two columns of samples, and its 95 % interval."""
    low, high = bootstrap_ratio(before, after, 0)
    return f"{np.median(before) / np.median(after):.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--runs", type=int, default=60)
    args = parser.parse_args()
    print("\n".join(head(HEAD)))
    for model in args.models:
        print("\n".join(table(model, args.runs)), flush=True)


if __name__ == "__main__":
    main()
