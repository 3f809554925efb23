"""Says whether a tool's result is right: folded, kept, wrong, or a crash."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, helper, numpy_helper

from tools.peers.batch import Outcome

# Largest error of an output relative to its peak.
TOLERANCE = {np.dtype(np.float16): 1e-2, np.dtype(np.float32): 1e-4}


@dataclass(frozen=True)
class Verdict:
    """What a tool did to a model.

    Attributes:
        kind: "folded", "part", "kept", "wrong" or "crash"; "part" is right, but leaves some of what
            is foldable.
        text: the cell of the table.
        left: number of counted nodes that are left, if the result is right.
    """

    kind: str
    text: str
    left: int | None = None


def nodes_of(model: ModelProto) -> Iterator[NodeProto]:
    """Yield the nodes of all graphs and functions."""
    bodies = [model.graph, *model.functions]
    while bodies:
        for node in bodies.pop().node:
            yield node
            bodies += [a.g for a in node.attribute if a.type == AttributeProto.GRAPH]


def count(model: ModelProto, operators: Sequence[str]) -> int:
    """Count the nodes of some standard operators."""
    return sum(n.op_type in operators and n.domain in ("", "ai.onnx") for n in nodes_of(model))


def feeds_for(model: ModelProto) -> dict[str, np.ndarray]:
    """Make seeded inputs, also for initializers that a caller may override."""
    constants = {t.name for t in model.graph.initializer} if model.ir_version < 4 else set()
    rng = np.random.default_rng(0)
    feeds = {}
    for value in model.graph.input:
        if value.name not in constants:
            kind = value.type.tensor_type
            numbers = rng.standard_normal([d.dim_value or 2 for d in kind.shape.dim])
            feeds[value.name] = numbers.astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return feeds


def judge(
    folder: Path, counted: Sequence[str], foldable: int, conversion: Outcome, execution: Outcome
) -> Verdict:
    """Judge what a tool made of a model.

    Args:
        folder: has the model ``model.onnx`` and its outputs ``expected.npz``, the tool's
            ``folded.onnx`` and its outputs ``actual.npz``.
        counted: operators whose removal counts.
        foldable: how many of them can be removed exactly.
        conversion: what became of the tool.
        execution: what became of running the tool's model.
    """
    if conversion.error is not None:
        return Verdict("crash", f"**crash**: {conversion.error.split(':')[0]}")
    if not (folder / "folded.onnx").exists():
        return Verdict("wrong", "**wrong**: no file, no error")
    original, model = onnx.load(folder / "model.onnx"), onnx.load(folder / "folded.onnx")
    fault = _fault(original, model)
    if fault is None and execution.error is not None:
        fault = "does not run"
    if fault is not None:
        return Verdict("wrong", f"**wrong**: {fault}")
    expected = folder / "expected.npz"
    error = relative_error(expected, folder / "actual.npz")
    if error > limit(expected):
        return Verdict("wrong", f"**wrong**: error {error:.1g}")
    return _right(original, model, counted, foldable)


def _right(
    original: ModelProto, model: ModelProto, counted: Sequence[str], foldable: int
) -> Verdict:
    left = count(model, counted)
    removed = count(original, counted) - left
    if removed <= 0:
        return Verdict("kept", "kept", left)
    if removed < foldable:
        return Verdict("part", f"{removed} of {foldable}", left)
    extra = sum(1 for _ in nodes_of(model)) - sum(1 for _ in nodes_of(original)) + removed
    return Verdict("folded", f"folded, +{extra} nodes" if extra > 0 else "folded", left)


def _fault(original: ModelProto, model: ModelProto) -> str | None:
    """Find what makes a result unusable before it is run."""
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError:
        return "invalid model"
    for what in ("input", "output"):
        missing = _names(original, what) - _names(model, what)
        if missing:
            return f"{what} {min(missing)} is lost"
    if _not_finite(model) > _not_finite(original):
        return "NaN or infinity in a weight"
    return None


def _names(model: ModelProto, what: str) -> set[str]:
    constants = {t.name for t in model.graph.initializer} if model.ir_version < 4 else set()
    return {value.name for value in getattr(model.graph, what)} - constants


def _not_finite(model: ModelProto) -> int:
    """Count the float constants with an element that is not finite."""
    arrays = [numpy_helper.to_array(t) for t in model.graph.initializer]
    for node in nodes_of(model):
        arrays += [numpy_helper.to_array(a.t) for a in node.attribute if a.HasField("t")]
    floats = [array for array in arrays if array.dtype.kind == "f"]
    return sum(not np.isfinite(array).all() for array in floats)


def limit(expected: Path) -> float:
    """Return the largest error that rounding explains."""
    return max(TOLERANCE[array.dtype] for array in np.load(expected).values())


def relative_error(expected: Path, actual: Path) -> float:
    """Return the largest deviation of an output, relative to that output's largest element."""
    worst = 0.0
    with np.load(expected) as a, np.load(actual) as b:
        for name in a:
            x, y = a[name].astype(np.float64), b[name].astype(np.float64)
            if x.shape != y.shape or (np.isnan(x) != np.isnan(y)).any():
                return float("inf")
            peak = np.nanmax(np.abs(x), initial=0) or 1.0
            worst = max(worst, float(np.nanmax(np.abs(x - y), initial=0) / peak))
    return worst
