"""Complete: where a rule refuses, look for a change of that structure that would have been right.

Nothing is known here of the operators: answers are guessed and tried, and what an output's change
would have to be is fitted element by element from samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from onnx_bnfold.operators.affine import Affine

from .changes import fitted
from .engine import NotRunnable, Ports, Trial, is_float, tight, wide
from .sound import wrong
from .verdict import port_name

# Operators that give one value for many: where a sample shows no other, it shows nothing.
SATURATING = frozenset(
    ("ArgMax", "ArgMin", "AveragePool", "Clip", "GridSample", "HardSigmoid", "Hardmax",
     "LeakyRelu", "LogSoftmax", "LpPool", "Max", "MaxPool", "MaxRoiPool", "Min", "PRelu",
     "Relu", "RoiAlign", "Softmax")
)  # fmt: skip
MORE = 80  # samples that a guess has to hold for
MOST_PROBED = 160  # elements of the operands whose influence is tried one by one


def completion(trial: Trial, known: Ports) -> str:
    """Describe a completion that is right; "" if none was found."""
    data = [x for x, o in zip(trial.samples[0], trial.case.operands, strict=True) if o.changes]
    if any(array.size == 0 for array in (*trial.outs[0], *data)):
        return ""  # of no elements anything holds
    if not all(np.isfinite(wide(y)).all() for outs in trial.outs for y in outs):
        return ""
    known_outs = {p: c for p, c in known.items() if p < 0}
    for inputs in _guesses(trial, known):
        if _fits(trial, inputs, known_outs):
            given = [port_name(p) for p in inputs if p not in known]
            free = ", ".join(given) or "no other input"
            return f"a change exists (changing {free}): {_shape_text(inputs, known)}"
    return ""


def visible(trial: Trial, known: Ports) -> bool:
    """Whether numbers of the case's type show scale and shift beside each other."""
    far = {8: 1e6, 4: 3e1}.get(trial.narrowest.itemsize, 0.0)
    if not far:
        return False
    for port, change in known.items():
        scale, shift = np.broadcast_arrays(np.abs(change.scale), np.abs(change.shift))
        both = (scale > 0) & (shift > 0)
        ratio = shift[both] / (scale[both] * _size(trial, port))
        if (ratio > far).any() or (ratio < 1 / far).any():
            return False
    return True


def _size(trial: Trial, port: int) -> float:
    """The size of the numbers that a port carries."""
    if port >= 0:
        return trial.case.magnitude
    values = np.abs(wide(trial.outs[0][~port]))
    size = float(values.mean()) if values.size else 0.0
    return size if 0 < size < np.inf else trial.case.magnitude


def _shape_text(inputs: Ports, known: Ports) -> str:
    return "; ".join(
        f"{port_name(p)} scale {np.unique(c.scale)[:4]}, shift {np.unique(c.shift)[:4]}"
        for p, c in inputs.items()
        if p not in known
    )


def _guesses(trial: Trial, known: Ports) -> Iterator[dict[int, Affine]]:
    """Yield changes of all data inputs that keep the known ones."""
    given = {p: c for p, c in known.items() if p >= 0}
    operands, key = trial.case.operands, trial.case.key
    taken = {key(p) for p in given}
    slots = {key(s): s for s, o in enumerate(operands) if o.name and o.changes}
    free = [slot for name, slot in slots.items() if name not in taken]
    outs = [p for p in known if p < 0]
    if outs:
        proposals = [*_traced(trial, known, outs, free)]
    else:
        first = next(iter(given.values()))
        proposals = [{s: fitted(first, trial.shape(s)) for s in free}]
    for full in proposals:
        for pattern in _patterns(full, free):
            if all(c is not None for c in pattern.values()):
                yield _for_twins(trial, {**given, **pattern})


def _patterns(
    full: dict[int, Affine | None], free: Sequence[int]
) -> Iterator[dict[int, Affine | None]]:
    """Yield ways to share a change among the free operands."""
    yield dict(full)
    if len(free) < 2 and full:
        return
    scales = {s: c and c.with_shift(np.zeros((1,) * c.rank)) for s, c in full.items()}
    yield scales
    yield {}
    for slot in free:
        yield {slot: full[slot]}
        yield {**scales, slot: full[slot]}


def _for_twins(trial: Trial, inputs: dict[int, Affine]) -> dict[int, Affine]:
    """Give a tensor that is read twice its change at both inputs."""
    key = trial.case.key
    by_key = {key(slot): change for slot, change in inputs.items()}
    return {s: by_key[key(s)] for s in range(len(trial.case.operands)) if key(s) in by_key}


def _traced(
    trial: Trial, known: Ports, outs: Sequence[int], free: Sequence[int]
) -> Iterator[dict[int, Affine | None]]:
    """Yield for each operand the changes of the output elements that its elements reach."""
    full = {
        p: np.broadcast_arrays(known[p].scale, known[p].shift, trial.outs[0][~p])[:2] for p in outs
    }
    reach = {slot: influence(trial, slot, outs) for slot in free}
    for sign in (1.0, -1.0):
        found: dict[int, Affine | None] = {}
        for slot in free:
            if reach[slot] is None:
                return
            scale, shift = np.ones(reach[slot].shape[:1]), np.zeros(reach[slot].shape[:1])
            flat_scale = np.concatenate([full[p][0].reshape(-1) for p in outs])
            flat_shift = np.concatenate([full[p][1].reshape(-1) for p in outs])
            for element, reached in enumerate(reach[slot]):
                where = np.flatnonzero(reached)
                if len(where):
                    scale[element] = flat_scale[where[0]]
                    shift[element] = sign * flat_shift[where[0]]
            shape = trial.shape(slot)
            change = Affine.of(scale.reshape(shape), shift.reshape(shape))
            bad = any(change.shape[axis] > 1 for axis in trial.open_axes(slot))
            found[slot] = None if bad else change
        yield found
        if not any(known[p].has_shift for p in outs):
            return


def influence(trial: Trial, slot: int, outs: Sequence[int]) -> np.ndarray | None:
    """Which elements of outputs an operand's elements reach, ``(elements, output elements)``."""
    cache = trial.__dict__.setdefault("_influence", {})
    key = slot, tuple(outs)
    if key not in cache:
        cache[key] = _influence(trial, slot, outs)
    return cache[key]


def _influence(trial: Trial, slot: int, outs: Sequence[int]) -> np.ndarray | None:
    size = trial.samples[0][slot].size
    if size > MOST_PROBED:
        return None
    total = sum(trial.outs[0][~p].size for p in outs)
    found = np.zeros((size, total), bool)
    for sample, before in zip(trial.samples[:2], trial.outs[:2], strict=True):
        base = np.concatenate([wide(before[~p]).reshape(-1) for p in outs])
        for element in range(size):
            for step in (-30.0, 30.0):
                moved = [v.copy() if s == slot else v for s, v in enumerate(sample)]
                moved[slot].reshape(-1)[element] += step
                try:
                    after = trial.kernel(_twins(trial, slot, moved))
                except NotRunnable:
                    return None
                now = np.concatenate([wide(after[~p]).reshape(-1) for p in outs])
                found[element] |= now != base
    return found


def _twins(trial: Trial, slot: int, values: list[np.ndarray]) -> list[np.ndarray]:
    key = trial.case.key
    return [values[slot] if key(s) == key(slot) else v for s, v in enumerate(values)]


def _fits(trial: Trial, inputs: Ports, known_outs: Ports) -> bool:
    """Whether all outputs change as is known, or else by some affine map per element."""
    pairs = list(zip(trial.samples, trial.outs, strict=True))
    if not _hold(trial, inputs, known_outs, pairs):
        return False
    try:
        more = [trial.sample(i) for i in range(MORE)]
        return _hold(trial, inputs, known_outs, [*pairs, *((s, trial.kernel(s)) for s in more)])
    except NotRunnable:
        return False


def _hold(trial: Trial, inputs: Ports, known_outs: Ports, pairs: Sequence) -> bool:
    try:
        moved = [trial.changed(sample, inputs) for sample, _ in pairs]
        after = [trial.kernel(values) for values in moved]
        for values, (sample, _) in zip(moved, pairs, strict=True):
            if any(a.size != b.size for a, b in zip(values, sample, strict=True)):
                return False
    except (NotRunnable, ValueError):
        return False
    if known_outs and wrong(trial, {**inputs, **known_outs}, outputs=known_outs, pairs=pairs):
        return False
    return all(
        _follows(
            trial,
            ~index,
            np.array([outs[index] for _, outs in pairs]),
            np.array([outs[index] for outs in after]),
            fitted=~index not in known_outs,
        )
        for index in range(trial.case.outputs)
    )


def _follows(trial: Trial, port: int, y: np.ndarray, z: np.ndarray, *, fitted: bool) -> bool:
    """Whether an output changes as it may; ``(samples, *shape)`` before and after."""
    if trial.case.op in SATURATING and (_stuck(y) or _stuck(z)):
        return False
    if not is_float(y.dtype):
        return np.array_equal(y, z)
    alike, dtypes = trial.open_axes(port), (trial.case.dtype, y.dtype)
    return not fitted or affine_map(wide(y), wide(z), alike, *dtypes)


def _stuck(y: np.ndarray) -> bool:
    """Whether some element is the same in all samples."""
    return bool((y == y[0]).all(axis=0).any())


def affine_map(y: np.ndarray, z: np.ndarray, alike: Sequence[int], *dtypes: np.dtype) -> bool:
    """Whether each element of ``z`` is one affine map of that of ``y`` in all samples.

    Args:
        y, z: `(samples, *shape)`.
        alike: axes of the shape along which the map has to be the same.
        dtypes: what they were computed in.
    """
    if y.shape != z.shape or not (np.isfinite(y).all() and np.isfinite(z).all()):
        return False
    axes = [axis + 1 for axis in alike]
    rest = [axis for axis in range(1, y.ndim) if axis not in axes]
    y, z = (a.transpose(0, *axes, *rest).reshape(-1, int(np.prod([y.shape[r] for r in rest])))
            for a in (y, z))  # fmt: skip
    columns = np.arange(y.shape[1])
    high, low = y.argmax(axis=0), y.argmin(axis=0)
    dy, dz = (a[high, columns] - a[low, columns] for a in (y, z))
    slope = np.divide(dz, dy, out=np.ones_like(dy), where=dy != 0)
    error = np.abs(z - (z[high, columns] + slope * (y - y[high, columns])))
    spread = np.ptp(z, axis=0)
    loss = max(map(tight, dtypes))
    noise = 2.0**-4 * loss * (np.abs(z).max(axis=0) + np.abs(slope) * np.abs(y).max(axis=0))
    hidden = (spread > 0) & (spread < 2.0**12 * noise)  # rounding errors could hide anything
    return bool(not hidden.any() and (error <= 2.0**6 * loss * spread).all())
