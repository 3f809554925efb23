"""Compares the package with its peers: which BatchNormalizations go, and is the result right?

    python -m tools.bench_peers [--peer-python PATH] [--zoo [NAME ...]] [--output FILE]

Small graphs first, one per construct; then, with `--zoo`, whole networks. Every tool runs in a
process of its own, so that a crash counts and harms nobody. A result is wrong if it is no valid
model, lost an input or output, holds a NaN or infinity that was not there, or differs by more than
1e-4 of an output's peak (float16: 1e-2) from the unfolded model in onnxruntime without
optimisations.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx

from tests import zoo
from tools.peers import constructs
from tools.peers.batch import Unusable
from tools.peers.bench import OURS, PEERS, Bench, Task
from tools.peers.build import BATCH_NORM
from tools.peers.judge import Verdict
from tools.peers.tables import head, row, write


def main() -> None:
    """Run the comparison and write it as markdown."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.peer_python, options.timeout)
        lines = list(_small_graphs(bench))
        if options.zoo is not None:
            lines += _networks(bench, options.zoo or list(zoo.ENTRIES), options.cache)
    write(lines, options.output)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--peer-python", default=sys.executable, help="interpreter that has the peers"
    )
    parser.add_argument(
        "--zoo", nargs="*", metavar="NAME", help="compare on networks, too; on all if none is named"
    )
    parser.add_argument("--cache", type=Path, help="folder that keeps the exported networks")
    parser.add_argument("--output", type=Path, help="file for the tables; default: stdout")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds per model")
    return parser.parse_args()


def _all_verdicts(bench: Bench, tasks: Sequence[Task]) -> dict[str, list[Verdict]]:
    """Run every tool that is there on every task."""
    for task, outcome in zip(
        tasks, bench.execute(tasks, "model.onnx", "expected.npz"), strict=True
    ):
        if outcome.error is not None:
            raise RuntimeError(f"{task.name}: {outcome.error}")
    verdicts = {}
    for tool in (OURS, *PEERS):
        try:
            verdicts[tool] = bench.verdicts(tool, tasks)
        except Unusable as why:
            print(f"left out: {why}", file=sys.stderr)
            continue
        print(f"{tool} {bench.versions[tool]}: {len(tasks)} done", file=sys.stderr)
    return verdicts


def _small_graphs(bench: Bench) -> Iterator[str]:
    groups = constructs()
    tasks = [
        bench.task(c.name, c.model, c.counted, c.foldable) for _, group in groups for c in group
    ]
    verdicts = _all_verdicts(bench, tasks)
    yield from _summary(bench, tasks, verdicts)
    rows = zip(tasks, zip(*verdicts.values(), strict=True), strict=True)
    for heading, group in groups:
        yield from ["", f"### {heading}", "", *head(["construct", "foldable", *verdicts])]
        for _, (task, found) in zip(group, rows, strict=False):
            foldable = str(task.foldable) if task.foldable else "no"
            yield row([task.name, foldable, *(verdict.text for verdict in found)])


def _summary(
    bench: Bench, tasks: Sequence[Task], verdicts: dict[str, list[Verdict]]
) -> Iterator[str]:
    """Yield one line per tool: how many graphs it folded right, wrong, or died on."""
    foldable = sum(task.foldable > 0 for task in tasks)
    yield f"{len(tasks)} graphs, {foldable} of them with something to fold."
    yield ""
    yield from head(["tool", "version", "all folded", "some folded", "wrong", "crash"])
    for tool, found in verdicts.items():
        kinds = Counter(
            (verdict.kind, task.foldable > 0) for task, verdict in zip(tasks, found, strict=True)
        )
        counts = [str(kinds[kind, True]) for kind in ("folded", "part")]
        counts += [str(kinds[kind, True] + kinds[kind, False]) for kind in ("wrong", "crash")]
        yield row([tool, bench.versions[tool], *counts])


def _networks(bench: Bench, names: Sequence[str], cache: Path | None) -> Iterator[str]:
    """Yield a table of the BatchNormalizations that go, one line per network and exporter."""
    yield from ["", "### networks: BatchNormalizations removed", ""]
    for number, (name, exporter) in enumerate((n, e) for n in names for e in zoo.EXPORTERS):
        norms = zoo.ENTRIES[name].norms
        model = onnx.load(zoo.exported(name, exporter, folder=cache))
        task = bench.task(f"{name}, {exporter}", model, BATCH_NORM, norms)
        verdicts = _all_verdicts(bench, [task])
        if number == 0:
            yield from head(["network", "BN", *verdicts])
        cells = [_removed(norms, found[0]) for found in verdicts.values()]
        yield row([task.name, str(norms), *cells])
        task.discard()


def _removed(norms: int, verdict: Verdict) -> str:
    if verdict.kind in ("wrong", "crash") or verdict.left is None:
        return verdict.text
    return str(norms - verdict.left)


if __name__ == "__main__":
    main()
