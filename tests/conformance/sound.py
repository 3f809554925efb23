"""Sound: where a rule answers, the operator itself agrees, element by element."""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np

from onnx_bnfold.operators.affine import Affine

from .engine import (
    Arrays,
    Kernel,
    NotRunnable,
    Ports,
    Trial,
    applied,
    is_float,
    rounding,
    tight,
    wide,
)

COMPARED = 4  # samples
Pair = tuple[Arrays, Arrays]


def wrong(
    trial: Trial,
    ports: Ports,
    *,
    outputs: Container[int] | None = None,
    pairs: Sequence[Pair] | None = None,
) -> str:
    """Say where ``op(s x + h)`` is not ``s' op(x) + h'``; "" if nowhere.

    Args:
        outputs: the ports that are compared, all if left out.
        pairs: operands and outputs to be tried on, to little more than the rounding of one
            operation; some of the trial's if left out.
    """
    strict = pairs is not None
    if pairs is None:
        pairs = list(zip(trial.samples, trial.outs, strict=True))[:COMPARED]
    open_changes = any(
        axis < c.rank and c.shape[axis] != 1
        for p, c in ports.items()
        for axis in trial.open_axes(p)
    )
    resized = None if open_changes else trial.resized()
    for sample, outs in [*pairs, *([resized] if resized else [])]:
        found = _wrong_sample(trial, ports, sample, outs, outputs, strict)
        if found:
            return found
    return ""


def _wrong_sample(
    trial: Trial,
    ports: Ports,
    sample: Sequence[np.ndarray],
    outs: Sequence[np.ndarray],
    outputs: Container[int] | None,
    strict: bool,
) -> str:
    try:
        moved = trial.changed(sample, ports)
        for slot, (a, b) in enumerate(zip(sample, moved, strict=True)):
            if trial.case.operands[slot].is_data and a.shape != b.shape:
                return f"the change of input {slot} does not fit its shape {list(a.shape)}"
        got = (trial.kernel if strict else _kernel(trial, ports))(moved)
    except (NotRunnable, ValueError) as error:
        return f"the changed operands do not run: {str(error)[:120]}"
    sizes = trial.sizes(sample, ports)
    for index, (y, z) in enumerate(zip(outs, got, strict=True)):
        if outputs is not None and ~index not in outputs:
            continue
        size = np.zeros(()) if sizes is None else sizes[index]
        found = _difference(y, z, ports.get(~index), size, trial.case.dtype, strict)
        if found:
            return f"output {index}{found}"
    return ""


def _kernel(trial: Trial, ports: Ports) -> Kernel:
    """The kernel of the node with the attributes that it gets by the changes."""
    state, change = trial.state, ports.get(0)
    tells = getattr(state.entries[0], "attributes", None)
    replaced = dict(tells(state.view(0), change)) if tells and change is not None else {}
    return Kernel(trial.case, **replaced) if replaced else trial.kernel


def _difference(
    y: np.ndarray,
    got: np.ndarray,
    change: Affine | None,
    size: np.ndarray,
    dtype: np.dtype,
    strict: bool,
) -> str:
    if y.shape != got.shape:
        return f" has shape {list(got.shape)} instead of {list(y.shape)}"
    if not is_float(y.dtype):
        if change is not None and not change.is_identity:
            return " holds no floats and gets a change"
        equal = np.array_equal(y, got)
        return "" if equal else " holds no floats and does not stay as it was"
    try:
        expected = wide(y) if change is None else applied(change, y)
        if expected.shape != y.shape:
            raise ValueError
    except ValueError:
        shape = [] if change is None else list(change.shape)
        return f" has shape {list(y.shape)} and gets a change of shape {shape}"
    loss = max((tight if strict else rounding)(d) for d in (dtype, y.dtype))
    return differing_element(y, expected, wide(got), size, loss, smallest((dtype, y.dtype)))


def differing_element(
    y: np.ndarray, expected: np.ndarray, got: np.ndarray, size: np.ndarray, loss: float, tiny: float
) -> str:
    """Say where what came differs from what was expected; "" if nowhere.

    Args:
        y: before the change.
        size: of the numbers that an element is made of.
        loss: what may be lost, relative to that size.
        tiny: what may be lost in any case.
    """
    with np.errstate(all="ignore"):
        good = np.abs(got - expected) <= loss * (size + np.abs(expected)) + tiny
        good |= (got == expected) | (np.isnan(got) & np.isnan(expected))
        good |= ~np.isfinite(size) & np.isfinite(wide(y))  # the numbers overflow on the way
    if good.all():
        return ""
    where = tuple(int(i) for i in np.argwhere(~good)[0])
    return (
        f"[{', '.join(map(str, where))}] is {got[where]:.8g} where the answer says "
        f"{expected[where]:.8g} (it was {wide(y)[where]:.8g})"
    )


def smallest(dtypes: Sequence[np.dtype]) -> float:
    """The smallest size that types hold to all digits, and some room."""
    return max(1e-3 if d.itemsize == 2 else float(np.finfo(d).tiny) for d in dtypes)
