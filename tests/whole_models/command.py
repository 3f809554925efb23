"""``python -m tests.whole_models``: draws, folds and judges many models."""

import argparse
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from . import sabotage
from .findings import read, write
from .judge import Verdict, judge
from .models import draw_case


class Tally:
    """What was seen in a run."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.kinds: dict[str, list[int]] = {}
        self.reasons: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.slowest = (0.0, 0)

    def add(self, seed: int, verdict: Verdict) -> None:
        self.counts["drawn"] += 1
        self.counts["judged"] += verdict.skipped is None
        self.counts["skipped"] += verdict.skipped is not None
        self.counts["norms"] += verdict.norms
        self.counts["norms folded"] += verdict.folded
        self.counts["affine nodes folded"] += verdict.affine
        self.counts["models where a norm goes"] += verdict.folded > 0
        self.counts["models where anything goes"] += verdict.folded + verdict.affine > 0
        self.counts["decided by float64"] += verdict.suspects > 0
        self.reasons.update(verdict.reasons)
        self.slowest = max(self.slowest, (verdict.seconds, seed))
        if verdict.skipped is not None:
            self.skipped[verdict.skipped[:100].replace("\n", " ")] += 1
        if verdict.kind is not None:
            self.kinds.setdefault(verdict.kind, []).append(seed)

    def table(self) -> str:
        rows = [(name, str(n)) for name, n in self.counts.items()]
        rows.append(("slowest fold", f"{self.slowest[0]:.2f} s (seed {self.slowest[1]})"))
        rows += [(f"kept: {name}", str(n)) for name, n in self.reasons.most_common()]
        rows += [(f"skipped: {name}", str(n)) for name, n in self.skipped.most_common(8)]
        for kind, seeds in sorted(self.kinds.items()):
            some = ", ".join(map(str, seeds[:8]))
            rows.append((f"FINDING: {kind}", f"{len(seeds)} (seeds {some})"))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}}  {value}" for name, value in rows)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.whole_models", description=__doc__)
    parser.add_argument("--graphs", type=int, default=1000, metavar="N", help="how many models")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the first one's seed")
    parser.add_argument("--seconds", type=float, default=None, metavar="T", help="stop after")
    parser.add_argument("--bn-free", action="store_true", help="fold each with --bn-free")
    parser.add_argument("--findings", type=Path, metavar="DIR", help="write shrunk findings here")
    parser.add_argument("--per-kind", type=int, default=3, help="how many of a kind to shrink")
    parser.add_argument("--shrink", type=float, default=10, help="seconds to shrink each")
    parser.add_argument("--replay", type=Path, metavar="DIR", help="judge these findings again")
    parser.add_argument("--sabotage", action="store_true", help="measure the judge instead")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        return _replayed(options.replay)
    if options.sabotage:
        seeds = range(options.seed, options.seed + options.graphs)
        print(sabotage.table(sabotage.measure(seeds, lambda line: print(line, file=sys.stderr))))
        return 0
    tally, started, spent = Tally(), time.monotonic(), 0.0
    for seed in range(options.seed, options.seed + options.graphs):
        if options.seconds is not None and time.monotonic() - started - spent > options.seconds:
            break
        try:
            spent += _one(seed, tally, options)
        except KeyboardInterrupt:
            break
        done = seed - options.seed + 1
        if done % 200 == 0 or (done % 20 == 0 and sys.stderr.isatty()):
            _progress(done, options.graphs, tally, time.monotonic() - started - spent)
    print(tally.table())
    return 1 if tally.kinds else 0


def _replayed(folder: Path) -> int:
    """Judge findings again; return the exit code."""
    still = 0
    for name, case in read(folder):
        verdict = judge(case)
        still += verdict.kind is not None
        told = "nothing" if verdict.kind is None else f"{verdict.kind}: {verdict.detail[:160]!r}"
        print(f"{name:45} {told}")
    return 1 if still else 0


def _one(seed: int, tally: Tally, options: argparse.Namespace) -> float:
    """Draw and judge one model; return the seconds that went into making a finding small."""
    try:
        case = draw_case(seed)
        if options.bn_free:
            case = replace(case, options=replace(case.options, bn_free=True))
    except Exception as error:  # the generator's own fault, which must not end a long run
        tally.add(seed, Verdict(kind="not drawn", detail=repr(error), skipped=repr(error)))
        return 0.0
    verdict = judge(case)
    tally.add(seed, verdict)
    if verdict.kind is None:
        return 0.0
    started = time.monotonic()
    if options.findings is not None and len(tally.kinds[verdict.kind]) <= options.per_kind:
        path = write(options.findings, seed, case, verdict, options.shrink)
        print(f"\n{verdict.kind}: {path}", file=sys.stderr)
    return time.monotonic() - started


def _progress(done: int, total: int, tally: Tally, seconds: float) -> None:
    found = sum(len(seeds) for seeds in tally.kinds.values())
    each = seconds / done * 1e3
    end = "\r" if sys.stderr.isatty() else "\n"
    text = f"{done} of {total}, {each:.1f} ms each, {found} findings"
    print(text, end=end, file=sys.stderr, flush=True)
