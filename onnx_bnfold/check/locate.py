"""Find the first tensor that differs, after an output was found to differ."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import onnx

from onnx_bnfold.check.compare import Comparison
from onnx_bnfold.check.evaluators import Evaluator
from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.noise import RoundedWeights
from onnx_bnfold.check.options import CheckOptions
from onnx_bnfold.check.results import Difference, FirstDifference
from onnx_bnfold.check.sessions import Array, Feed, Session, join
from onnx_bnfold.errors import ModelError
from onnx_bnfold.model.graph import subgraphs
from onnx_bnfold.progress import progress

Changes: TypeAlias = Mapping[str, tuple[Array, Array]]
# A tensor's name; its value in the original, in the folded model, and in draws of the original.
Values: TypeAlias = tuple[str, tuple[Array, Array, list[Array]]]

_BUDGET = 512 * 2**20  # bytes of tensors held at a time
_FIRST_BATCH = 8  # tensors
_GROWTH = 4  # of the number of tensors from one batch to the next, at most
_DRAWS = 8  # enough to find a tensor; the verdict is given already


def first_difference(
    original: CheckedModel,
    folded: CheckedModel,
    evaluator: Evaluator,
    feeds: Sequence[Feed],
    weights: RoundedWeights,
    failed: Collection[str],
    changes: Changes,
    options: CheckOptions,
) -> FirstDifference | None:
    """Return the first tensor in graph order from which the difference lasts up to a failed output.

    Tensors of the same name in both graphs are compared by the same rule as outputs. A tensor that
    differs while everything computed from it agrees was changed by the fold on purpose; ``changes``
    tells exactly, if it is given. Without it, a changed tensor is named instead of the fault if
    there are only changed tensors between the two.

    Args:
        original, folded: the models.
        evaluator: runs them.
        feeds: the input sets.
        weights: for the draws of the original.
        failed: names of the outputs that differ.
        changes: tensor name → (scale, shift); the tensor t of the original is scale * t + shift in
            the folded model.
        options: the settings of the check.

    Returns:
        The tensor with its producer; None if every shared tensor agrees.
    """
    shared = _shared_tensors(original.skeleton.graph, folded.skeleton.graph)
    options = replace(options, draws=_DRAWS)
    values = _values(original, folded, evaluator, feeds, weights, shared, options)
    differences: dict[str, Difference] = {}
    for name, (reference, other, draws) in progress(values, total=len(shared), label="locating"):
        undone = _undo(other, changes.get(name), reference)
        if undone is not None:
            differences[name] = _judged(Comparison(name, reference, undone), draws, options)
    return _first_lasting(original.skeleton.graph, differences, failed)


def _values(
    original: CheckedModel,
    folded: CheckedModel,
    evaluator: Evaluator,
    feeds: Sequence[Feed],
    weights: RoundedWeights,
    names: Sequence[str],
    options: CheckOptions,
) -> Iterator[Values]:
    """Yield the tensors, evaluated in batches that fit the budget."""
    size, done = _FIRST_BATCH, 0
    while done < len(names):
        batch, held = names[done : done + size], 1
        for name, arrays in _evaluate(original, folded, evaluator, feeds, weights, batch, options):
            held += arrays[0].nbytes * (options.draws + 2)
            yield name, arrays
        done += len(batch)
        size = max(1, min(_BUDGET * len(batch) // held, _GROWTH * len(batch)))


def _shared_tensors(original: onnx.GraphProto, folded: onnx.GraphProto) -> list[str]:
    theirs = {name for node in folded.node for name in node.output}
    return [name for node in original.node for name in node.output if name and name in theirs]


def _evaluate(
    original: CheckedModel,
    folded: CheckedModel,
    evaluator: Evaluator,
    feeds: Sequence[Feed],
    weights: RoundedWeights,
    names: Sequence[str],
    options: CheckOptions,
) -> Iterator[Values]:
    try:
        reference = _tensors(_opened(evaluator, original, names), names, feeds)
        other = _tensors(_opened(evaluator, folded, names), names, feeds)
    except ModelError:  # one of them cannot be an output, an optional tensor for example
        middle = len(names) // 2
        for half in (names[:middle], names[middle:]) if middle else ():
            yield from _evaluate(original, folded, evaluator, feeds, weights, half, options)
        return
    noisy, draws = weights.session(evaluator, original, extra_outputs=_extra(original, names)), []
    for draw in range(options.draws):
        weights.draw(draw)
        draws.append(_tensors(noisy, names, feeds))
    for name in names:
        if name in reference and name in other:
            yield name, (reference[name], other[name], [draw[name] for draw in draws])


def _opened(evaluator: Evaluator, model: CheckedModel, names: Sequence[str]) -> Session:
    return evaluator.session(model, extra_outputs=_extra(model, names))


def _extra(model: CheckedModel, names: Sequence[str]) -> list[str]:
    present = {output.name for output in model.skeleton.graph.output}
    return [name for name in names if name not in present]


def _judged(comparison: Comparison, draws: Sequence[Array], options: CheckOptions) -> Difference:
    for draw in draws:
        comparison.add(draw)
    return comparison.judge(options)


def _tensors(session: Session, names: Sequence[str], feeds: Sequence[Feed]) -> dict[str, Array]:
    return join(session.run(feed, names) for feed in feeds)


def _undo(folded: Array, change: tuple[Array, Array] | None, original: Array) -> Array | None:
    """Return the original tensor from scale * t + shift; None if a scale of zero has erased it."""
    if change is None:
        return folded
    scale, shift = change
    if np.any(scale == 0):
        return None
    undone = (folded.astype(np.float64) - shift) / scale
    return np.asarray(undone).astype(original.dtype)


def _first_lasting(
    graph: onnx.GraphProto, differences: Mapping[str, Difference], failed: Collection[str]
) -> FirstDifference | None:
    lasting = set(failed)
    first = None
    for node in reversed(graph.node):
        for name in node.output:
            difference = differences.get(name)
            agrees = difference is not None and difference.holds
            if name in lasting and not agrees:
                lasting |= _read(node)
                if difference is not None:
                    first = FirstDifference(name, node.op_type, node.name, difference)
    return first


def _read(node: onnx.NodeProto) -> set[str]:
    """Return the names that a node and its subgraphs read."""
    names = set(node.input)
    for body in subgraphs(node):
        for inner in body.node:
            names |= _read(inner)
    return names
