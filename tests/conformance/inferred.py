"""Inferred: the sizes that the package takes a node's outputs to have are those that come out."""

from __future__ import annotations

from .engine import Arrays, Trial
from .verdict import Finding


def misread(trial: Trial) -> Finding | None:
    """Compare what is inferred with what the kernel gives, at the open sizes drawn and at others.

    Ranks, static sizes and symbols have to be right; a node that is misread is to be
    left open (`misread.py`).
    """
    resized = trial.resized()
    if any(value.size == 0 for value in trial.samples[0]):
        resized = None  # an operand without elements may not fit at another size
    for sample, outs in ((trial.samples[0], trial.outs[0]), *([resized] if resized else [])):
        found = _difference(trial, sample, outs)
        if found:
            topic = f"{trial.case.op}-{trial.case.version}"
            return Finding("misread", topic, trial, {}, found)
    return None


def _difference(trial: Trial, sample: Arrays, outs: Arrays) -> str:
    symbols = {
        d: n
        for o, value in zip(trial.case.operands, sample, strict=True)
        for d, n in zip(o.declared, value.shape, strict=False)
    }
    for index, y in enumerate(outs):
        dims = trial.state.shapes.dims(f"y{index}")
        if dims is None:
            continue
        sizes = [d if isinstance(d, int) else symbols.get(d) if d else None for d in dims]
        if len(sizes) != y.ndim or any(
            n not in (None, m) for n, m in zip(sizes, y.shape, strict=True)
        ):
            return f"output {index} is inferred to be {list(dims)} and is {list(y.shape)}"
    return ""
