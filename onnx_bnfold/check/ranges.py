"""Measure the ranges of a model's tensors on inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from onnx_bnfold.check.inputs import read_feed
from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.sessions import Array, Feed, Session
from onnx_bnfold.errors import UsageError
from onnx_bnfold.planning.ranges import Range
from onnx_bnfold.progress import progress

_AT_A_TIME = 8  # examples per run, if the model takes any number


def measured(path: Path, inputs: Path) -> dict[str, Range]:
    """Run a model, and return the range of every float tensor that has channels on axis 1.

    Args:
        path: the model; it is run without optimisations.
        inputs: an .npz with an array per input.

    Returns:
        Tensor name → range.

    Raises:
        ModelError: onnxruntime cannot run the model.
        UsageError: the inputs cannot be read or do not fit.
    """
    model = CheckedModel(path, str(path))
    names = [name for node in model.skeleton.graph.node for name in node.output if name]
    known = {output.name for output in model.skeleton.graph.output}
    session = Session(model, extra_outputs=[name for name in names if name not in known])
    feed = read_feed(inputs, session.inputs)
    _require_examples(feed, inputs)
    ranges: dict[str, tuple[Range, int]] = {}
    parts = list(_parts(feed, [spec.shape for spec in session.inputs]))
    for part in progress(parts, total=len(parts), label="measuring ranges"):
        for name, array in session.run(part).items():
            if array.dtype.kind == "f" and array.ndim >= 2 and array.size:
                new = _range(array), array.shape[0]
                ranges[name] = _joined(ranges[name], new) if name in ranges else new
    return {name: span for name, (span, _) in ranges.items()}


def _require_examples(feed: Feed, path: Path) -> None:
    for name, array in feed.items():
        if not array.size:
            raise UsageError(f"{path}: {name!r} has no examples; give some to measure ranges on")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UsageError(f"{path}: {name!r} has values that are not finite; give others")


def _parts(feed: Feed, shapes: Sequence[tuple[int | str | None, ...]]) -> Iterator[Feed]:
    """Yield the examples in parts, if every input takes any number of them."""
    counts = {array.shape[0] if array.ndim else 0 for array in feed.values()}
    free = all(shape and not isinstance(shape[0], int) for shape in shapes)
    if not free or len(counts) != 1:
        yield feed
        return
    for start in range(0, counts.pop(), _AT_A_TIME):
        yield {name: array[start : start + _AT_A_TIME] for name, array in feed.items()}


def _range(array: Array) -> Range:
    axes = (0, *range(2, array.ndim))
    values = array.astype(np.float64)
    power = np.square(values).mean(axis=axes)
    return Range(values.min(axis=axes), values.max(axis=axes), power, array.ndim)


def _joined(first: tuple[Range, int], second: tuple[Range, int]) -> tuple[Range, int]:
    """Return the range over the examples of two, and their number; the first if shapes differ."""
    (a, m), (b, n) = first, second
    if (a.rank, a.channels) != (b.rank, b.channels):
        return first
    low, high = np.minimum(a.low, b.low), np.maximum(a.high, b.high)
    return Range(low, high, (m * a.power + n * b.power) / (m + n), a.rank), m + n
