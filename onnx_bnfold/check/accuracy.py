"""Accuracy of both models on labelled data, streamed in batches."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnx_bnfold.check.data import Batch, Dataset
from onnx_bnfold.check.evaluators import evaluator_of
from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.options import CheckOptions
from onnx_bnfold.check.results import Accuracy
from onnx_bnfold.check.sessions import Array, InputSpec
from onnx_bnfold.errors import ModelError, UsageError
from onnx_bnfold.progress import progress

_BATCH = 64
_TOP = 5


def check_accuracy(
    original: CheckedModel, folded: CheckedModel, options: CheckOptions
) -> tuple[Accuracy, tuple[str, ...]]:
    """Compare the predicted classes of two models, with optimisations disabled.

    The class scores are the first output that is a float matrix ``(examples, classes)``; if there
    is none, the first integer output with one class per example is taken.

    Args:
        original, folded: models with the same inputs and outputs.
        options: ``data``, ``batch``, ``max_accuracy_drop``, ``min_agreement``.

    Returns:
        The record and the failures.

    Raises:
        UsageError: the data do not fit the model.
        ModelError: no output has classes, or a model cannot be run on the data.
    """
    if options.data is None:
        raise UsageError("accuracy needs labelled data; give them with --data")
    start = time.perf_counter()
    evaluator, session = evaluator_of(original, prepack=True)
    sessions = [session, evaluator.session(folded, prepack=True)]
    inputs = sessions[0].inputs
    fixed = fixed_batch(inputs)
    size = fixed or options.batch or _BATCH
    tally = _Tally(original.label)
    with Dataset(options.data, inputs) as data:
        batches = _padded(data.batches(size), size) if fixed else data.batches(size)
        total = -(-data.examples // size)
        for feed, labels in progress(batches, total=total, label="accuracy"):
            tally.add(labels, *(session.run(feed) for session in sessions))
    accuracy = tally.record(str(data.path), size, time.perf_counter() - start)
    return accuracy, tuple(_failures(accuracy, options))


@dataclass
class _Tally:
    """Counts over the examples seen so far; lists have the original's and the folded model's."""

    label: str
    output: str = ""
    classes: int = 0
    examples: int = 0
    changed: int = 0
    became_right: int = 0
    became_wrong: int = 0
    right: list[int] = field(default_factory=lambda: [0, 0])
    top5: list[int] = field(default_factory=lambda: [0, 0])

    def add(self, labels: Array, *results: Mapping[str, Array]) -> None:
        """Count one batch.

        Args:
            labels: classes, ``(n,)``.
            results: the outputs of both models by name, of at least ``n`` rows.
        """
        self.output = self.output or _classes_output(results[0], len(labels), self.label)
        scores = [result[self.output][: len(labels)] for result in results]
        self.classes = scores[0].shape[1] if scores[0].dtype.kind == "f" else 0
        _check_labels(labels, self.classes)
        first, second = (_predictions(score) for score in scores)
        self.examples += len(labels)
        self.changed += int(np.count_nonzero(first != second))
        self.became_right += int(np.count_nonzero((first != labels) & (second == labels)))
        self.became_wrong += int(np.count_nonzero((first == labels) & (second != labels)))
        for i, (score, predicted) in enumerate(zip(scores, (first, second), strict=True)):
            self.right[i] += int(np.count_nonzero(predicted == labels))
            if self.classes > _TOP:
                self.top5[i] += _in_top(score, labels)

    def record(self, data: str, batch: int, seconds: float) -> Accuracy:
        """Return the record of the examples so far."""
        n = self.examples
        top5 = [count / n if self.classes > _TOP else None for count in self.top5]
        return Accuracy(
            data=data,
            output=self.output,
            examples=n,
            batch=batch,
            top1_original=self.right[0] / n,
            top1_folded=self.right[1] / n,
            top5_original=top5[0],
            top5_folded=top5[1],
            changed=self.changed,
            became_right=self.became_right,
            became_wrong=self.became_wrong,
            agreement=1 - self.changed / n,
            drop=(self.right[0] - self.right[1]) / n,
            seconds=seconds,
        )


def fixed_batch(inputs: Sequence[InputSpec]) -> int:
    """Return the batch size that the model requires, 0 if it takes any."""
    sizes = [spec.shape[0] for spec in inputs if spec.shape]
    return next((size for size in sizes if isinstance(size, int)), 0)


def _padded(batches: Iterator[Batch], size: int) -> Iterator[Batch]:
    """Repeat the last row of a short batch, for a model with a fixed batch size."""
    for feed, labels in batches:
        missing = size - len(labels)
        yield (
            {
                name: np.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1), mode="edge")
                for name, a in feed.items()
            },
            labels,
        )


def _classes_output(outputs: Mapping[str, Array], rows: int, label: str) -> str:
    for name, array in outputs.items():
        if (
            array.dtype.kind == "f"
            and array.ndim == 2
            and len(array) >= rows
            and array.shape[1] > 1
        ):
            return name
    for name, array in outputs.items():
        if array.dtype.kind in "iu" and array.ndim and array.size == len(array) >= rows:
            return name
    raise ModelError(f"{label}: no output has one row of class scores, or one class, per example")


def _check_labels(labels: Array, classes: int) -> None:
    if classes and not 0 <= labels.min() <= labels.max() < classes:
        raise UsageError(
            f"labels run from {labels.min()} to {labels.max()}, the model's classes "
            f"from 0 to {classes - 1}"
        )


def _predictions(scores: Array) -> NDArray[np.int64]:
    classes = scores.argmax(axis=1) if scores.dtype.kind == "f" else scores.reshape(-1)
    return classes.astype(np.int64)


def _in_top(scores: Array, labels: Array) -> int:
    """Return the number of labels that are among the five largest scores."""
    top = np.argpartition(scores, -_TOP, axis=1)[:, -_TOP:]
    return int(np.count_nonzero((top == labels[:, None]).any(axis=1)))


def _failures(accuracy: Accuracy, options: CheckOptions) -> Iterator[str]:
    limit = options.max_accuracy_drop
    if limit is not None and accuracy.drop > limit:
        yield (
            f"accuracy: top-1 drops by {accuracy.drop:.4%} of {accuracy.examples} examples "
            f"(max_accuracy_drop is {limit:.4%})"
        )
    least = options.min_agreement
    if least is not None and accuracy.agreement < least:
        yield (
            f"agreement: {accuracy.changed} of {accuracy.examples} predictions changed, agreement "
            f"{accuracy.agreement:.6f} (min_agreement is {least:g})"
        )
