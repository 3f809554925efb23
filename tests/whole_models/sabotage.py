"""Measures the judge: of folds that were spoilt on purpose, how many does it find by their values?

Each model is folded, one thing in the result is spoilt, and what that does to the outputs is
measured in float64, beside the slice that an element lies in. What does nothing there cannot be
found.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from unittest.mock import patch

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from . import compare, judge
from .draw import Draw
from .engine import Emulation, attempt, every_node, graphs
from .floats import FLOATS
from .models import Case, draw_case
from .storage import fold

# Of the peak of the smallest slice that an element lies in; what does less is not counted.
EFFECTS = (1.0, 0.1, 1e-2, 1e-3)
# What becomes of a spoilt fold: it is found; or missed, since statistics lie and excuse it, since
# noise beside the channel, or all that a fold may add, explains it, or since a unit does as much.
FATES = ("found", "lies", "later", "units")
_BY_VALUES = ("wrong", "precision", "overflow", "not finite in other places", "type or shape")


def _constants(model: ModelProto) -> Iterator[TensorProto]:
    """Yield what is stored of float numbers, and is no setting."""
    for graph in graphs(model):
        yield from (t for t in graph.initializer if _is_float(t))
    for node in every_node(model):
        if node.op_type == "Constant":
            yield from (a.t for a in node.attribute if a.HasField("t") and _is_float(a.t))


def _is_float(tensor: TensorProto) -> bool:
    return numpy_helper.to_array(tensor).dtype in FLOATS


def _on_constant(change: Callable[[Draw, np.ndarray], np.ndarray]) -> Callable:
    def spoil(draw: Draw, model: ModelProto) -> None:
        tensor = draw.pick([*_constants(model)])
        array = numpy_helper.to_array(tensor).copy()
        name, kind = tensor.name, array.dtype
        tensor.CopyFrom(numpy_helper.from_array(change(draw, array).astype(kind), name))

    return spoil


def _one(factor: float) -> Callable[[Draw, np.ndarray], np.ndarray]:
    def change(draw: Draw, array: np.ndarray) -> np.ndarray:
        flat = array.reshape(-1)
        flat[draw.between(0, flat.size - 1)] *= factor
        return array

    return change


def _rolled(draw: Draw, array: np.ndarray) -> np.ndarray:
    return np.roll(array.reshape(-1), 1).reshape(array.shape)


def _moved(draw: Draw, array: np.ndarray) -> np.ndarray:
    """Add to one element a hundredth of the largest."""
    flat = array.reshape(-1)
    flat[draw.between(0, flat.size - 1)] += 0.01 * np.abs(flat).max()
    return array


def _bypassed(draw: Draw, model: ModelProto) -> None:
    """Leave out a node of the main graph whose output has the shape of an input."""
    nodes = [
        n for n in model.graph.node if n.op_type in ("Add", "Mul", "Neg", "Relu", "Sub", "Max")
    ]
    node = draw.pick(nodes)
    slot = next(i for i, name in enumerate(node.input) if not _is_constant(model, name))
    kept = node.input[slot]
    del node.input[:], node.attribute[:]
    node.op_type = "Identity"
    node.input.append(kept)


def _is_constant(model: ModelProto, name: str) -> bool:
    made = [o for n in model.graph.node if n.op_type == "Constant" for o in n.output]
    return name in made or any(t.name == name for t in model.graph.initializer)


def _attribute(draw: Draw, model: ModelProto) -> None:
    """Multiply a float attribute by 1.5."""
    draw.pick(
        [a for n in every_node(model) for a in n.attribute if a.HasField("f") and a.f]
    ).f *= 1.5


SPOILERS: dict[str, Callable[[Draw, ModelProto], None]] = {
    "an element 1 % larger": _on_constant(_one(1.01)),
    "an element twice as large": _on_constant(_one(2)),
    "an element of another sign": _on_constant(_one(-1)),
    "an element off by 1 % of the peak": _on_constant(_moved),
    "elements in another order": _on_constant(_rolled),
    "a node left out": _bypassed,
    "a float attribute": _attribute,
}


def effect(case: Case, one: ModelProto, other: ModelProto) -> float:
    """Return how far two models are apart in float64, in units of the smallest slice's peak."""
    worst = 0.0
    for feed in case.feeds:
        results = (compare.evaluated(model, feed, {})[0] for model in (one, other))
        for a, b in zip(*results, strict=True):
            if a.dtype.kind != "f" or not a.size or not np.isfinite(a).all():
                continue
            size = compare.yardstick(a)
            with np.errstate(all="ignore"):
                off = np.nan_to_num(np.abs(a - b) / size, nan=0, posinf=np.inf)
            worst = max(worst, float(off.max()))
    return worst


def measure(seeds: Iterable[int], told: Callable[[str], object]) -> dict[str, Counter[str]]:
    """Return what became of spoilt folds, by how they were spoilt and by their effect.

    Args:
        seeds: of the models.
        told: gets a line for each that was missed.
    """
    found: dict[str, Counter[str]] = {}
    for seed in seeds:
        case = replace(draw_case(seed), storage="memory", measured=False)
        honest = judge.judge(case)
        if honest.kind is not None or honest.skipped is not None:
            continue
        whole, report = fold(case, case.model)
        for name, spoilt, size in _spoilt(seed, case, whole):
            with patch.object(judge, "fold", lambda *_: (spoilt, report)):  # noqa: B023
                kind = judge.judge(case).kind
            fate = "found" if kind in _BY_VALUES else _missed_by(case, spoilt)
            reached = next(e for e in EFFECTS if size >= e)
            for row in (name, f"effect from {reached:g}"):
                found.setdefault(row, Counter())[fate] += 1
            if fate != "found":
                told(f"seed {seed}: {name}, {size:.2g} of the peak: {fate}")
    return found


def _spoilt(seed: int, case: Case, whole: ModelProto) -> Iterator[tuple[str, ModelProto, float]]:
    """Yield each way to spoil a fold that has an effect, the result, and how large that is."""
    for name, spoil in SPOILERS.items():
        spoilt = ModelProto()
        spoilt.CopyFrom(whole)
        try:
            spoil(Draw(seed), spoilt)
            size = effect(case, whole, spoilt)
        except Exception:  # there is nothing to spoil, or nothing to be computed any more
            continue
        if size >= EFFECTS[-1]:
            yield name, spoilt, size


def _missed_by(case: Case, spoilt: ModelProto) -> str:
    """Say why nothing is said of a spoilt fold."""
    original = judge.engine_of(case.model)
    engines = [(original, judge.engine_of(spoilt, like=original))]
    if not isinstance(original, Emulation):
        engines.append((Emulation(case.model), Emulation(spoilt)))
    fates = set[str]()
    for feed in case.feeds:
        for one, other in engines:
            results = attempt(one, feed), attempt(other, feed)
            if None in results:
                continue
            doubts = [
                compare.difference(case.model, spoilt, feed, *results, most_stages=most)
                for most in (1, None)
            ]
            if doubts[0] is not None:
                fates.add("later" if doubts[1] is None else "lies")
    return next((fate for fate in FATES if fate in fates), "units")


def table(found: dict[str, Counter[str]]) -> str:
    """Return the fates, a row for each way to spoil a model, and for each size of the effect."""
    rows = [("", *FATES)]
    for name in (*SPOILERS, *(f"effect from {e:g}" for e in EFFECTS)):
        rows.append((name, *(str(found.get(name, Counter())[fate]) for fate in FATES)))
    return "\n".join(f"{row[0]:35}" + "".join(f"{cell:>9}" for cell in row[1:]) for row in rows)
