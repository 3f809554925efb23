"""Measure the ranges of a model's tensors on inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from onnx_bnfold.check.inputs import read_feed
from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.sessions import Array, Feed, InputSpec, Session
from onnx_bnfold.errors import UsageError
from onnx_bnfold.planning.ranges import Range
from onnx_bnfold.progress import progress

_AT_A_TIME = 8  # examples per run, if the model takes any number


def measured(path: Path, inputs: Path) -> dict[str, Range]:
    """Run a model, and return the range of every float tensor that has channels on axis 1.

    Args:
        path: the model; it is run without optimisations.
        inputs: an .npz with an array per input. A model that takes a fixed number of examples may
            be given several times as many.

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
    size = _at_a_time(session.inputs)
    specs = session.inputs if size is None else [*map(_of_any_number, session.inputs)]
    feed = read_feed(inputs, specs)
    _require_examples(feed, inputs, size)
    ranges: dict[str, tuple[Range, int]] = {}
    parts = list(_parts(feed, size))
    for part in progress(parts, total=len(parts), label="measuring ranges"):
        for name, array in session.run(part).items():
            if array.dtype.kind == "f" and array.ndim >= 2 and array.size:
                new = _range(array), array.shape[0]
                ranges[name] = _joined(ranges[name], new) if name in ranges else new
    return {name: span for name, (span, _) in ranges.items()}


def _at_a_time(specs: Sequence[InputSpec]) -> int | None:
    """Return the number of examples that every input takes, 0 if any; None if they differ."""
    firsts = [spec.shape[0] if spec.shape else None for spec in specs]
    sizes = {size if isinstance(size, int) else 0 for size in firsts}
    return sizes.pop() if len(sizes) == 1 and all(spec.shape for spec in specs) else None


def _of_any_number(spec: InputSpec) -> InputSpec:
    return replace(spec, shape=(None, *spec.shape[1:]))


def _require_examples(feed: Feed, path: Path, size: int | None) -> None:
    for name, array in feed.items():
        if not array.size:
            raise UsageError(f"{path}: {name!r} has no examples; give some to measure ranges on")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UsageError(f"{path}: {name!r} has values that are not finite; give others")
        if size and len(array) % size:
            raise UsageError(
                f"{path}: {name!r} has {len(array)} examples, and the model takes {size} at a "
                "time; give a multiple"
            )
    if size and len({len(array) for array in feed.values()}) > 1:
        raise UsageError(
            f"{path}: the arrays have different numbers of examples; give as many each"
        )


def _parts(feed: Feed, size: int | None) -> Iterator[Feed]:
    """Yield the examples in parts, if every input has the same number of them."""
    counts = {array.shape[0] if array.ndim else 0 for array in feed.values()}
    if size is None or len(counts) != 1:
        yield feed
        return
    step = size or _AT_A_TIME
    for start in range(0, counts.pop(), step):
        yield {name: array[start : start + step] for name, array in feed.items()}


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
