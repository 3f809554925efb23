"""Many draws: seeds, counts per operator, and the smallest example of each finding."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_bnfold.operators.table import entry_of

from . import (  # noqa: F401  (they register generators)
    answers,
    clamp_judge,
    elementwise,
    layer_judge,
    layers,
    movement,
    pooling,
    recurrent,
    rule_judge,
)
from .cases import Case, spans
from .engine import NotRunnable, make_trial
from .inferred import misread
from .layer_judge import ABSORBERS
from .verdict import Finding, Verdict

QUESTIONS = 8  # about one case


@dataclass
class Tally:
    """Counts of one operator's draws.

    Attributes:
        counts: "cases", "skipped" (cases that onnxruntime does not run), "draws", "judged",
            "answered", "refused", "explained", "unsound", "incomplete", "crash", "misread" (cases).
        versions: judged draws per version of the operator.
        settings: attributes and inputs that judged cases gave, per version.
    """

    counts: Counter[str] = field(default_factory=Counter)
    versions: Counter[int] = field(default_factory=Counter)
    settings: set[tuple[int, str]] = field(default_factory=set)


@dataclass
class Campaign:
    """What was drawn so far.

    Attributes:
        tallies: by operator.
        found: (kind, topic) → how often, and the smallest.
        explained: (operator, explanation) → how often.
        skips: (operator, message) → how often.
    """

    tallies: dict[str, Tally] = field(default_factory=dict)
    found: dict[tuple[str, str], tuple[int, Finding]] = field(default_factory=dict)
    explained: Counter[tuple[str, str]] = field(default_factory=Counter)
    skips: Counter[tuple[str, str]] = field(default_factory=Counter)

    def run(
        self,
        operators: Sequence[str],
        draws: int,
        seed: int,
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Draw questions evenly over operators and their versions."""
        done = 0
        for op, opset, case_seed in schedule(operators, seed):
            done += self.draw(op, opset, case_seed)
            progress(done)
            if done >= draws:
                return

    def draw(self, op: str, opset: int, seed: int) -> int:
        """Judge one case; return how many draws that were."""
        tally = self.tallies.setdefault(op, Tally())
        tally.counts["cases"] += 1
        try:
            with np.errstate(all="ignore"):
                trial = make_trial(op, opset, seed)
        except NotRunnable as error:
            tally.counts["skipped"] += 1
            self.skips[op, str(error)[:160]] += 1
            return 1
        judge = layer_judge.judged if op in ABSORBERS else rule_judge.judged
        with np.errstate(all="ignore"):
            verdicts = list(judge(trial, QUESTIONS))
            if entry_of(op).bounds is not None:
                verdicts += clamp_judge.judged(trial, QUESTIONS // 2)
        finding = misread(trial)
        if finding:
            self._keep(finding)
            tally.counts[finding.kind] += 1
        for verdict in verdicts:
            self._note(tally, trial.case, verdict)
        return len(verdicts)

    def _note(self, tally: Tally, case: Case, verdict: Verdict) -> None:
        tally.counts["draws"] += 1
        tally.counts["answered" if verdict.answered else "refused"] += 1
        if verdict.judged:
            tally.counts["judged"] += 1
            tally.versions[case.version] += 1
            names = [*case.attributes, *(o.name for o in case.operands if not o.changes)]
            tally.settings.update((case.version, name) for name in names)
        if verdict.explained:
            tally.counts["explained"] += 1
            self.explained[case.op, verdict.explained] += 1
        if verdict.finding:
            self._keep(verdict.finding)
            tally.counts[verdict.finding.kind] += 1

    def _keep(self, finding: Finding) -> None:
        key = finding.kind, finding.topic
        count, smallest = self.found.get(key, (0, finding))
        self.found[key] = count + 1, min(smallest, finding, key=lambda f: f.size)


def schedule(operators: Sequence[str], seed: int) -> Iterator[tuple[str, int, int]]:
    """Yield (operator, opset, seed) without end: each version in turn, at any of its opsets.

    An operator that the installed onnx or onnxruntime does not know yet is left out.
    """
    rng = np.random.default_rng(seed)
    known = {op: versions for op in operators if (versions := spans(op))}
    turn = 0
    while known:
        for op, versions in known.items():
            first, last = versions[turn % len(versions)]
            opset = first if rng.random() < 0.6 else int(rng.integers(first, last + 1))
            yield op, opset, int(rng.integers(2**31))
        turn += 1


class Progress:
    """A line on a terminal or in a log, every few seconds."""

    def __init__(self, draws: int, write: Callable[[str], object]) -> None:
        self._draws, self._write = draws, write
        self._began = self._last = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self._last >= 5:
            self._last = now
            each = (now - self._began) / done * 1e3
            self._write(f"{done:,} of {self._draws:,} draws, {each:.2f} ms each\n")
