"""Judges clamps that are written with constants: any change has to pass them, and be right.

What a clamp becomes is a Max, a Min or both, which numpy computes; onnxruntime has judged what it
was. One that may not be written so, such as a Max of computed tensors, says nothing here.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.operators.entries import OUT
from onnx_bnfold.planning.clamps import Clamps, bounds_of, written
from onnx_bnfold.planning.graph_state import GraphState
from onnx_bnfold.reasons import Reason, Refused

from .changes import draw_change
from .engine import Trial, applied, rounding, site_of, wide
from .sound import differing_element, smallest, wrong
from .verdict import Finding, Verdict

EXTREMES = {"Max": np.maximum, "Min": np.minimum}


def judged(trial: Trial, count: int) -> Iterator[Verdict]:
    """Yield the verdicts on some changes of a clamp."""
    state = site_of(trial.case)
    state.clamps = Clamps(state, (), everywhere=True).near(0, frozenset((0,)))
    if not state.clamps:
        return
    slot = bounds_of(state, 0).data
    for _ in range(count):
        port = int(trial.rng.choice([slot, OUT]))
        itemsize = trial.narrowest.itemsize
        known = {port: draw_change(trial.rng, trial.shape(port), itemsize=itemsize)}
        if known[port].is_identity:
            continue
        try:
            [answer] = state.step(0, known).alternatives
        except Refused as refused:
            yield _of_refusal(trial, known, refused)
            continue
        said = _difference(trial, state, slot, answer)
        topic = f"{trial.case.op} as a clamp"
        yield Verdict(True, finding=Finding("unsound", topic, trial, known, said) if said else None)


def _of_refusal(trial: Trial, known: dict[int, Affine], refused: Refused) -> Verdict:
    if refused.refusal.reason is Reason.PRECISION:
        return Verdict(False, refused.refusal, judged=False)
    found = Finding("incomplete", f"{trial.case.op} as a clamp", trial, known, str(refused.refusal))
    return Verdict(False, refused.refusal, finding=found)


def _difference(trial: Trial, state: GraphState, slot: int, answer: dict[int, Affine]) -> str:
    """Say where the clamp with constants differs from what the answer says; "" if nowhere."""
    constants = written(state, 0, {state.key(0, port): c for port, c in answer.items()})
    if not constants:
        return wrong(trial, answer)
    dtype = trial.case.dtype
    for sample, [y] in zip(trial.samples, trial.outs, strict=True):
        x, size = sample[slot], np.abs(wide(sample[slot]))
        got = applied(answer[slot], x)
        size = np.abs(answer[slot].scale) * size + np.abs(answer[slot].shift)
        for operator, values in constants:
            got = EXTREMES[operator](got, wide(values.astype(dtype)))
        size = size + np.abs(answer[OUT].scale * wide(y)) + np.abs(answer[OUT].shift)
        expected, tiny = applied(answer[OUT], y), smallest((dtype,))
        said = differing_element(y, expected, got, size, rounding(dtype), tiny)
        if said or got.shape != y.shape:
            return f"as {', '.join(each.operator for each in constants)}: {said or got.shape}"
    return ""
