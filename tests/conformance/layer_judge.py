"""Layers, recurrent ones and normalisations: what they take into their constants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from onnx_bnfold.operators.affine import VANISHED, Affine
from onnx_bnfold.operators.batchnorm import OPERATOR
from onnx_bnfold.operators.entries import OUT, Absorbing, BiasPlace
from onnx_bnfold.operators.table import NORMALIZATIONS, RECURRENT, every_entry
from onnx_bnfold.planning.plan import GraphPlan
from onnx_bnfold.planning.precision_limits import Limits
from onnx_bnfold.reasons import Refusal, Refused
from onnx_bnfold.rewriting.new_constants import NewConstant, Unrepresentable, new_constants

from .cases import Case, Operand, schema
from .changes import draw_change
from .complete import visible
from .engine import (
    CANCELS,
    Arrays,
    Kernel,
    NotRunnable,
    Ports,
    Trial,
    applied,
    rounding,
    tight,
    wide,
)
from .explained import explanation
from .sound import COMPARED, differing_element, smallest
from .verdict import Finding, Verdict, ports_text

ABSORBERS = [op for op, entry in every_entry().items() if isinstance(entry, Absorbing)]
MOST_UNKNOWNS = 120  # elements of constants that are solved for
SOLVED = 6  # samples


def judged(trial: Trial, count: int) -> Iterator[Verdict]:
    """Yield the verdicts on some changes of the two sides of a layer."""
    state = trial.state
    try:
        ports = state.ports(0)
        if trial.case.op == OPERATOR:
            state.bn(0)
    except Refused as refused:
        yield Verdict(False, refused.refusal, judged=False)
        return
    for _ in range(count):
        known = {p: _change(trial, p) for p in ports if trial.rng.random() < 0.7}
        if all(change.is_identity for change in known.values()):
            continue
        yield _ask(trial, known)


def _change(trial: Trial, port: int) -> Affine:
    """Mostly one value per channel, whichever axis that is."""
    shape = trial.shape(port)
    rng, itemsize = trial.rng, trial.narrowest.itemsize
    if not shape or rng.random() < 0.2:
        return draw_change(rng, shape, itemsize=itemsize)
    usual = -1 if trial.case.op in RECURRENT else 1
    axis = usual if len(shape) > 2 and rng.random() < 0.7 else int(rng.integers(len(shape)))
    axis %= len(shape)
    change = draw_change(rng, shape[axis : axis + 1], itemsize=itemsize)
    laid = (1,) * axis + (-1,) + (1,) * (len(shape) - axis - 1)
    return change.map(lambda a: a.reshape(laid))


def _ask(trial: Trial, known: Ports) -> Verdict:
    state = trial.state
    try:
        with np.errstate(all="ignore"):
            alternatives = state.step(0, known).alternatives
            answers = [_constants(trial, {**known, **more}) for more in alternatives]
    except Refused as refused:
        return _of_refusal(trial, known, refused.refusal)
    except Unrepresentable as failed:
        (refusal,) = failed.failures.values()
        return _of_refusal(trial, known, refusal)
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
        topic = f"{trial.case.op} {type(error).__name__}"
        return Verdict(True, finding=Finding("crash", topic, trial, known, detail))
    finally:
        state.total.clear()
    for more, constants in zip(alternatives, answers, strict=True):
        ports = {**known, **more}
        difference = _wrong(trial, ports, constants)
        if difference:
            listed = ", ".join(f"{n.revised.suffix}{list(n.dims)}" for n, _ in constants)
            detail = f"new constants {listed or 'none'}; {ports_text(more)}\n  {difference}"
            topic = f"{trial.case.op}-{trial.case.version} {_sides(known)}"
            return Verdict(True, finding=Finding("unsound", topic, trial, known, detail))
    return Verdict(True)


def _sides(known: Ports) -> str:
    return "output" if list(known) == [OUT] else ("both sides" if OUT in known else "input")


def _constants(trial: Trial, ports: Ports) -> list[tuple[NewConstant, np.ndarray]]:
    state = trial.state
    state.total = {state.key(0, port): change for port, change in ports.items()}
    found = new_constants(0, GraphPlan(state, Limits(), given={0: []}))
    return [(new, np.asarray(new()).reshape(new.dims)) for new in found]


class _Rewritten:
    """The layer with its new constants."""

    def __init__(self, trial: Trial, constants: Sequence[tuple[NewConstant, np.ndarray]]) -> None:
        self.trial = trial
        own = [(new, value) for new, value in constants if new.revised.place is BiasPlace.INPUT]
        self.by_slot = {new.slot: value for new, value in own}
        behind = (value for new, value in constants if new.revised.place is not BiasPlace.INPUT)
        self.summand = next(behind, None)
        self.kernel = _with_inputs(trial, [new for new, _ in own])

    def __call__(self, sample: Arrays) -> Arrays:
        """The outputs."""
        y, *others = self.kernel(self._values(sample))
        return [y if self.summand is None else y + self.summand, *others]

    def _values(self, sample: Arrays) -> Arrays:
        count = max([len(sample), *(slot + 1 for slot in self.by_slot)])
        return [self.by_slot[s] if s in self.by_slot else sample[s] for s in range(count)]

    def size(self, sample: Arrays) -> np.ndarray:
        """The size of the numbers that the first output adds up."""
        values = [np.abs(v) for v in self._values(sample)]
        y, *_ = self.kernel(values)
        if len(values) == 3:  # alpha and beta may be of different signs
            z, *_ = self.kernel([*values[:2], -values[2]])
            y = np.maximum(np.abs(wide(y)), np.abs(wide(z)))
        summand = 0 if self.summand is None else np.abs(self.summand)
        return np.abs(wide(y)) + summand


def _with_inputs(trial: Trial, constants: Sequence[NewConstant]) -> Kernel:
    """The layer with the inputs and attributes that new constants say."""
    case = trial.case
    replaced = {name: value for new in constants for name, value in new.revised.attributes}
    operands = list(case.operands)
    left_out = [n for n in constants if n.slot >= len(operands) or not operands[n.slot].name]
    if not left_out and not replaced:
        return trial.kernel
    for new in left_out:
        operands.extend([Operand("")] * (new.slot + 1 - len(operands)))
        operands[new.slot] = Operand(f"new_{new.revised.suffix}", np.zeros((), case.dtype))
    return Kernel(replace(case, operands=tuple(operands)), **replaced)


def _wrong(trial: Trial, ports: Ports, constants: Sequence[tuple[NewConstant, np.ndarray]]) -> str:
    """Say where the layer with new constants does not give the changed output; "" if nowhere."""
    dtype = trial.case.dtype
    loss = max(map(rounding, (dtype, *_stashed(trial.case))))
    try:
        rewritten = _Rewritten(trial, constants)
        for sample, outs in _pairs(trial, ports):
            moved = trial.changed(sample, {p: c for p, c in ports.items() if p >= 0})
            size = _size(trial, ports, rewritten, sample)
            for index, (y, got) in enumerate(zip(outs, rewritten(moved), strict=True)):
                expected = applied(ports[~index], y) if ~index in ports else wide(y)
                if got.shape != expected.shape or expected.shape != y.shape:
                    return f"output {index} has shape {[*got.shape]} instead of {[*y.shape]}"
                room = size if index == 0 or size.ndim == 0 else np.zeros(())
                found = differing_element(y, expected, wide(got), room, loss, smallest([dtype]))
                if found:
                    return f"output {index}{found}"
    except (NotRunnable, ValueError) as error:
        return f"the rewritten layer does not run: {str(error)[:400]}"
    return ""


def _pairs(trial: Trial, ports: Ports) -> Iterator[tuple[Arrays, Arrays]]:
    """Yield samples and what comes of them.

    A scale that stands for the inverse of zero is that of a channel that was constant.
    """
    vanished = {p: c for p, c in ports.items() if p >= 0 and (np.abs(c.scale) >= VANISHED).any()}
    for sample, outs in list(zip(trial.samples, trial.outs, strict=True))[:COMPARED]:
        if not vanished:
            yield sample, outs
            continue
        values = list(sample)
        for port, change in vanished.items():
            constant = -change.shift / change.scale
            x = np.where(np.abs(change.scale) >= VANISHED, constant, wide(sample[port]))
            values[port] = x.astype(sample[port].dtype)
        yield values, trial.kernel(values)


def _stashed(case: Case) -> list[np.dtype]:
    """The type in which statistics are computed, if the operator has one of its own."""
    given = "stash_type" in schema(case.op, case.opset).attributes
    return [np.dtype(np.float32)] if given else []


def _size(trial: Trial, ports: Ports, rewritten: _Rewritten, sample: Arrays) -> np.ndarray:
    """The size of the numbers that are summed, before and after."""
    into = {p: Affine(np.abs(c.scale), np.abs(c.shift)) for p, c in ports.items() if p >= 0}
    if trial.case.op == OPERATOR:
        return _norm_size(trial, into, rewritten, sample, ports.get(OUT))
    if trial.case.op in RECURRENT:
        return _gates_size(ports, rewritten, sample)
    if trial.case.op in NORMALIZATIONS:
        return _normalized_size(trial, ports, rewritten, sample)
    moved = trial.changed([np.abs(v) for v in sample], into)
    after = rewritten.size(moved)
    before = _Rewritten(trial, ()).size(sample)
    size = after + (np.abs(ports[OUT].scale) * before if OUT in ports else before)
    if trial.case.op in CANCELS:
        return np.full_like(size, size.max(initial=0))
    return size


def _norm_size(
    trial: Trial, into: Ports, rewritten: _Rewritten, sample: Arrays, out: Affine | None
) -> np.ndarray:
    """The same of a norm, whose mean is subtracted."""

    def run(values: Sequence[np.ndarray], x: np.ndarray) -> np.ndarray:
        gamma, beta, mean, variance = values
        (y,) = trial.kernel([np.abs(x), np.abs(gamma), np.abs(beta), -np.abs(mean), variance])
        return np.abs(wide(y))

    new = [rewritten.by_slot.get(s, sample[s]) for s in range(1, 5)]
    after = run(new, trial.changed([np.abs(sample[0])], into)[0])
    before = run(sample[1:], sample[0])
    return after + (np.abs(out.scale) * before if out else before)


def _gates_size(ports: Ports, rewritten: _Rewritten, sample: Arrays) -> np.ndarray:
    """The same of what the gates of a recurrent layer add up, one number for all."""

    def reach(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> float:
        total = np.abs(wide(x)).reshape(-1, x.shape[-1]) @ np.abs(wide(weight)).max((0, 1))
        return total.max() + (0 if bias is None else np.abs(wide(bias)).max())

    x, weight, _, *rest = sample
    into = ports.get(0)
    moved = x if into is None else np.abs(into.scale * wide(x)) + np.abs(into.shift)
    old, new = rest[0] if rest and rest[0].ndim else None, rewritten.by_slot
    after = reach(moved, new.get(1, weight), new.get(3, old))
    return np.asarray(reach(x, weight, old) + after)


def _normalized_size(
    trial: Trial, ports: Ports, rewritten: _Rewritten, sample: Arrays
) -> np.ndarray:
    """The same of what normalises by the data's own statistics: of a product and of its bias.

    A kernel may multiply the data and their mean before it subtracts them.
    """
    x, scale, *rest = sample
    case = trial.case
    summed = _summed(case) if _has_bias(case) else lambda values: values[2]

    def size(reach: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
        terms = (summed([x, np.zeros_like(scale), np.abs(each)]) for each in (scale, bias))
        factor, summand = map(wide, terms)
        return factor * reach + summand

    old = [scale, *(rest or [np.zeros_like(scale)])]
    new = [rewritten.by_slot.get(slot, old[slot - 1]) for slot in (1, 2)]
    before = size(_reach(case, wide(x)), *old)
    moved = wide(x) if 0 not in ports else applied(ports[0], x)
    after = size(_reach(rewritten.kernel.case, moved), *new)
    return after + (np.abs(ports[OUT].scale) * before if OUT in ports else before)


def _has_bias(case: Case) -> bool:
    """Whether a normalisation may add a bias; who does subtracts the mean."""
    return len(schema(case.op, case.opset).inputs) > 2


def _summed(case: Case) -> Callable[[Arrays], np.ndarray]:
    """The normalisation with a bias, which lays the bias out as the output is."""
    bias = Operand("bias", np.zeros((), case.dtype))
    kernel = Kernel(replace(case, operands=(*case.operands[:2], bias), outputs=1))
    return lambda values: kernel(values)[0]


def _reach(case: Case, x: np.ndarray) -> np.ndarray:
    """The largest number of those that are normalised together, in units of their deviation."""
    has_axis = "axis" in schema(case.op, case.opset).attributes
    axis = case.attributes.get("axis", -1) % x.ndim if has_axis else 2
    groups = case.attributes.get("num_groups")
    rows = x.reshape(*x.shape[:1], groups, -1) if groups else x.reshape(*x.shape[:axis], -1)
    spread = rows.var(-1) if _has_bias(case) else np.square(rows).mean(-1)
    deviation = np.sqrt(spread + case.attributes.get("epsilon", 1e-5))
    reach = np.abs(rows).max(-1, initial=0) / deviation
    if groups:  # onnx's function for it subtracts squares in float32, of which nothing may be left
        reach = np.repeat(np.where(reach > 2.0**10, np.inf, reach**2), x.shape[1] // groups, axis=1)
    return reach.reshape(*reach.shape, *(1,) * (x.ndim - reach.ndim))


def _of_refusal(trial: Trial, known: Ports, refusal: Refusal) -> Verdict:
    if not visible(trial, known):
        return Verdict(False, refusal, judged=False)
    if not _solvable(trial, known):
        return Verdict(False, refusal)
    why = explanation(trial, known, refusal)
    if why:
        return Verdict(False, refusal, explained=why)
    topic = f"{trial.case.op} {_sides(known)} {refusal.reason.value}: {refusal.sentence[:60]}"
    detail = f"refused ({refusal.reason.value}: {refusal.sentence})\n  constants exist that take it"
    return Verdict(False, refusal, Finding("incomplete", topic, trial, known, detail))


def _solvable(trial: Trial, known: Ports) -> bool:
    """Whether some weight and bias give the changed output of the changed input.

    A layer is linear in its constants: the columns are what each element of them contributes. A
    recurrent one is linear in them in front of its gates: one change per channel will do.
    """
    if trial.case.op in RECURRENT:
        return OUT not in known and known[0].vector(2, trial.shape(0)[2]) is not None
    operands = enumerate(trial.case.operands)
    constants = [s for s, o in operands if o.name and o.changes and not o.is_data][:2]
    zeros = [np.zeros_like(v) for v in trial.samples[0]]
    if trial.case.op == OPERATOR:
        zeros[4] = np.ones_like(zeros[4])
    unknowns = sum(zeros[s].size for s in constants)
    if unknowns > MOST_UNKNOWNS or not trial.outs[0][0].size:
        return False
    try:
        samples = [*trial.samples, *(trial.sample(0) for _ in range(SOLVED))]
        outs = [trial.kernel(sample)[0] for sample in samples]
        moved = [trial.changed(s, {p: c for p, c in known.items() if p >= 0}) for s in samples]
        target = np.stack([applied(known[OUT], y) if OUT in known else wide(y) for y in outs])
        columns = [*_columns(trial, moved, zeros, constants), *_own_bias(trial, target.shape[1:])]
    except (NotRunnable, ValueError):
        return False
    matrix = np.array([np.broadcast_to(c, target.shape).reshape(-1) for c in columns]).T
    return _solves(matrix, target.reshape(len(target), -1), trial.case.dtype)


def _columns(
    trial: Trial, moved: Sequence[Arrays], zeros: Arrays, constants: Sequence[int]
) -> Iterator[np.ndarray]:
    for slot in constants:
        for element in range(zeros[slot].size):
            unit = zeros[slot].copy()
            unit.reshape(-1)[element] = 1
            yield np.stack([
                wide(trial.kernel([unit if s == slot else z if s else x[s]
                                   for s, z in enumerate(zeros)])[0])
                if trial.case.operands[0].is_data else
                wide(trial.kernel([unit if s == slot else x[s] for s in range(len(zeros))])[0])
                for x in moved
            ])  # fmt: skip


def _own_bias(trial: Trial, shape: Sequence[int]) -> Iterator[np.ndarray]:
    """What a new bias would add: one value per output channel, where the layer has none."""
    layer = trial.state.layer_or_none(0)
    if layer is None or layer.bias is not None or not shape:
        return
    axis = layer.out_axis
    for channel in range(shape[axis] if 0 <= axis < len(shape) else 0):
        picture = np.zeros(shape)
        picture[(slice(None),) * axis + (channel,)] = 1
        yield picture[None]


def _solves(matrix: np.ndarray, target: np.ndarray, dtype: np.dtype) -> bool:
    """Whether columns add up to a target, ``(samples, elements)``, within its variation."""
    if not (np.isfinite(matrix).all() and np.isfinite(target).all()):
        return False
    spread = np.ptp(target, axis=0).min()
    if spread <= 2.0**10 * tight(dtype) * np.abs(target).max():
        return False  # what rounding does could hide anything
    norms = np.linalg.norm(matrix, axis=0)
    used = norms > 0
    if not used.any() or np.ptp(np.log10(norms[used])) > 6:
        return False
    matrix = matrix[:, used] / norms[used]
    solution = np.linalg.lstsq(matrix, target.reshape(-1), rcond=1e-9)[0]
    error = np.abs(matrix @ solution - target.reshape(-1))
    return bool((error <= 2.0**6 * tight(dtype) * spread).all())
