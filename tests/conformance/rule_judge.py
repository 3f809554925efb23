"""Draws questions to a rule, asks them, and judges what it answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.reasons import Reason, Refused

from .changes import disturbed, draw_change, fitted
from .complete import completion, visible
from .engine import Ports, Trial, is_float
from .explained import explanation
from .sound import wrong
from .verdict import Finding, Verdict, ports_text


def judged(trial: Trial, count: int) -> Iterator[Verdict]:
    """Yield the verdicts on some questions to the rule of a case."""
    try:
        ports = data_ports(trial)
    except Refused as refused:
        yield Verdict(False, refused.refusal, judged=False)
        return
    answer: Ports | None = None
    for _ in range(count):
        known, right = _question(trial, ports, answer)
        if all(change.is_identity for change in known.values()):
            continue  # which nobody asks
        verdict, answer = _ask(trial, known, right)
        yield verdict


def data_ports(trial: Trial) -> list[int]:
    """The ports whose tensors are computed."""
    operands = trial.case.operands
    outs = trial.outs[0]
    return [
        p for p in trial.state.ports(0)
        if (is_float(outs[~p].dtype) if p < 0 else operands[p].is_data)
    ]  # fmt: skip


def _question(trial: Trial, ports: list[int], answer: Ports | None) -> tuple[Ports, Ports | None]:
    """Draw known changes, and their completion where one is known to be right."""
    rng = trial.rng
    if answer is not None and rng.random() < 0.5:
        order = rng.permutation(sorted(answer)).tolist()
        known = {p: answer[p] for p in order[: int(rng.integers(1, len(order) + 1))]}
        if rng.random() < 0.6:
            return _twins(trial, known), answer
        victims = [p for p in order if p in ports]
        if victims:
            victim = victims[0]
            return _twins(
                trial, {**known, victim: disturbed(rng, answer[victim], trial.narrowest)}
            ), None
    itemsize = trial.narrowest.itemsize
    first = int(rng.choice(ports))
    change = draw_change(rng, trial.shape(first), itemsize=itemsize)
    known = {first: change}
    if len(ports) > 1 and rng.random() < 0.25:
        for port in rng.permutation(ports)[: int(rng.integers(1, len(ports) + 1))].tolist():
            alike = fitted(change, trial.shape(port))
            if port == first or (alike is None and rng.random() < 0.5):
                continue
            kind = rng.random()
            if alike is None or kind < 0.3:
                known[port] = draw_change(rng, trial.shape(port), itemsize=itemsize)
            else:
                known[port] = alike if kind < 0.7 else disturbed(rng, alike, trial.narrowest)
    return _twins(trial, known), None


def _twins(trial: Trial, known: Mapping[int, Affine]) -> dict[int, Affine]:
    """A tensor that is read at two inputs has its change at both."""
    case = trial.case
    by_key = {case.key(p): c for p, c in known.items() if p >= 0}
    both = {s: by_key[case.key(s)] for s in range(len(case.operands)) if case.key(s) in by_key}
    return {**known, **both}


def _ask(trial: Trial, known: Ports, right: Ports | None) -> tuple[Verdict, Ports | None]:
    """Ask and judge; return an answer that is right, too, if there is one."""
    deciding = bool(trial.rng.random() < 0.95)
    try:
        with np.errstate(all="ignore"):
            step = trial.state.step(0, known, deciding=deciding)
    except Refused as refused:
        return _of_refusal(trial, known, right, refused), None
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
        topic = f"{trial.case.op} {type(error).__name__}"
        return Verdict(True, finding=Finding("crash", topic, trial, known, detail)), None
    if not (step.alternatives or deciding or step.certain):
        return Verdict(True, judged=False), None  # it waits for what is known later
    if not step.alternatives:
        found = Finding("crash", f"{trial.case.op} no answer", trial, known, "no way, no refusal")
        return Verdict(True, finding=found), None
    answers = [found for a in step.alternatives if (found := _taken(trial, known, a)) is not None]
    if not answers:
        conflict = Refused(Reason.CONFLICT, "", "its answers are not what is known already")
        return _of_refusal(trial, known, right, conflict), None
    if trial.state.entries[0].swallows and not visible(trial, known):
        return Verdict(True, judged=False), None  # elements become equal that were not
    for ports in answers:
        difference = wrong(trial, ports)
        if difference:
            detail = f"answer {ports_text(ports)}\n  {difference}"
            topic = f"{trial.case.op}-{trial.case.version} {_direction(known)}"
            return Verdict(True, finding=Finding("unsound", topic, trial, known, detail)), None
    return Verdict(True), answers[int(trial.rng.integers(len(answers)))]


def _taken(trial: Trial, known: Ports, answer: Ports) -> Ports | None:
    """An answer as the flood takes it: what is known stays; None if they do not agree."""
    keys = {trial.state.key(0, port): change for port, change in known.items()}
    for port, change in answer.items():
        if not keys.setdefault(trial.state.key(0, port), change).agrees_with(change):
            return None
        if not change.is_finite:
            return None
    return {port: keys[trial.state.key(0, port)] for port in {**answer, **known}}


def _direction(known: Ports) -> str:
    if len(known) > 1:
        return "several"
    return "forward" if next(iter(known)) >= 0 else "backward"


def _of_refusal(trial: Trial, known: Ports, right: Ports | None, refused: Refused) -> Verdict:
    refusal = refused.refusal
    if not visible(trial, known):
        return Verdict(False, refusal, judged=False)
    empty = any(trial.shape(p) and 0 in trial.shape(p) for p in trial.state.ports(0))
    if right is not None and not empty and not wrong(trial, right):
        found = f"it has answered {ports_text(right)}, which keeps these"
    else:
        found = completion(trial, known)
    if not found:
        return Verdict(False, refusal)
    why = explanation(trial, known, refusal)
    if why:
        return Verdict(False, refusal, explained=why)
    topic = f"{trial.case.op} {_direction(known)} {refusal.reason.value}: {refusal.sentence[:60]}"
    detail = f"refused ({refusal.reason.value}: {refusal.sentence})\n  {found}"
    return Verdict(False, refusal, Finding("incomplete", topic, trial, known, detail))
