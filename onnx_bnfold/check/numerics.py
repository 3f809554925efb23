"""Run both models on the same inputs, without onnxruntime's optimisations, and compare them."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from onnx_bnfold.check.compare import Comparison, has_values
from onnx_bnfold.check.data import Dataset
from onnx_bnfold.check.evaluators import Evaluator, evaluator_of
from onnx_bnfold.check.inputs import describe, make_feeds, written
from onnx_bnfold.check.locate import Changes, first_difference
from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.noise import RoundedWeights
from onnx_bnfold.check.options import CheckOptions
from onnx_bnfold.check.results import Difference, FirstDifference, Numerics
from onnx_bnfold.check.sessions import Array, Feed, Session, join
from onnx_bnfold.errors import ModelError, UsageError
from onnx_bnfold.progress import progress
from onnx_bnfold.storage import ModelFile

_STAGES = (16, 64)  # draws, if the first few do not decide
# A statistic beyond this multiple of its limit, divided by the number of draws, will not hold after
# more draws: with four draws one in 10 million right ones exceeds it (Student's t), with 16 none.
_HOPELESS = 700
_NOISE_VALUES = 16  # noise values per output, see ``compare``
_ABSENT = np.empty(0, "V1")  # for elements of a sequence that is shorter than the original's
_UNSTABLE_DB = 40.0  # noise at 1 % of the signal


@dataclass
class _Evaluated:
    """The outputs of two models.

    Attributes:
        evaluator: what ran them.
        feeds: the inputs.
        original, folded: name of an output → its values for all inputs.
        lost: initializers that an input can no longer override.
    """

    evaluator: Evaluator
    feeds: Sequence[Feed]
    original: dict[str, Array]
    folded: dict[str, Array]
    lost: set[str]


def check_numerics(
    original: CheckedModel, folded: CheckedModel, options: CheckOptions, changes: Changes
) -> tuple[Numerics | None, tuple[str, ...]]:
    """Compare every output of two models.

    Args:
        original, folded: the models.
        options: the inputs and the limits.
        changes: of tensors in the folded model; see ``first_difference``.

    Returns:
        The record, None if the models cannot be compared, and the failures.

    Raises:
        ModelError: the original cannot be loaded or run.
        UsageError: the inputs cannot be made, or give no output that can be compared.
    """
    start = time.perf_counter()
    found = _evaluated(original, folded, options)
    if not isinstance(found, _Evaluated):
        return None, found
    evaluator, feeds = found.evaluator, found.feeds
    comparisons = [
        Comparison(name, array, found.folded.get(name, _ABSENT))
        for name, array in found.original.items()
    ]
    with ModelFile.open(original.path) as file:
        weights = RoundedWeights(file, options.seed)
        noisy = weights.session(evaluator, original)
        outputs, draws = _judged(comparisons, weights, noisy, feeds, options)
        del noisy
        _require_verdict(original, comparisons, outputs)
        seconds = time.perf_counter() - start  # without the search below, which only failures need
        first = None
        if failed := {output.name for output in outputs if not output.holds}:
            first = first_difference(
                original, folded, evaluator, feeds, weights, failed, changes, options
            )
    numerics = Numerics(
        inputs=describe(feeds[0], options),
        sets=len(feeds),
        seed=options.seed,
        draws=draws,
        factor=options.factor,
        rtol=options.rtol,
        atol=options.atol,
        outputs=outputs,
        first_difference=first,
        notes=tuple(_notes(evaluator, outputs, weights, found.lost, options.factor)),
        seconds=seconds,
        evaluator=evaluator.name,
        onnxruntime_seconds=evaluator.watch.seconds,
    )
    return numerics, tuple(_failures(outputs, first))


def _evaluated(
    original: CheckedModel, folded: CheckedModel, options: CheckOptions
) -> _Evaluated | tuple[str, ...]:
    """Run two models on the same inputs; return why, if they cannot be compared."""
    evaluator, session = evaluator_of(original)
    feeds = make_feeds(session.inputs, options)
    if options.data is not None:  # read later; what does not fit is said before the work
        Dataset(options.data, session.inputs).close()
    reference = join(session.run(feed) for feed in feeds)
    _require_values(original, reference, feeds)
    try:
        other = evaluator.session(folded)
        if failures := _signature_failures(session, other):
            return failures
        result = join(other.run(feed) for feed in feeds)
    except ModelError as error:
        return (f"load: {error}",)
    lost = set(session.overridable) - set(other.overridable)
    return _Evaluated(evaluator, feeds, reference, result, lost)


def _require_values(
    original: CheckedModel, outputs: Mapping[str, Array], feeds: Sequence[Feed]
) -> None:
    """Raise UsageError if no output has a value that can be compared."""
    fed = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds[0].items())
    advice = (
        f"for the inputs {fed or '(none)'}, so there is nothing to compare; give other inputs "
        "(--shape, --inputs)"
    )
    if not any(array.size for array in outputs.values()):
        raise UsageError(f"{original.label}: all outputs are empty {advice}")
    if not any(has_values(array) for array in outputs.values()):
        raise UsageError(f"{original.label}: all outputs are NaN or infinite {advice}")


def _require_verdict(
    original: CheckedModel, comparisons: Sequence[Comparison], outputs: Sequence[Difference]
) -> None:
    """Raise UsageError if every output changes its shape by rounding alone."""
    left = [o for o, c in zip(outputs, comparisons, strict=True) if has_values(c.original)]
    if all(output.holds and output.reason for output in left):
        names = ", ".join(output.name for output in left)
        raise UsageError(
            f"{original.label}: rounding alone changes the shape of {names}, so there is nothing "
            "to compare; give other inputs (--inputs), or make an earlier tensor an output of both "
            "models"
        )


def _judged(
    comparisons: Sequence[Comparison],
    weights: RoundedWeights,
    session: Session,
    feeds: Sequence[Feed],
    options: CheckOptions,
) -> tuple[tuple[Difference, ...], int]:
    """Return the verdict on every output, and the number of draws that were made."""
    statistics = sum(comparison.statistics for comparison in comparisons)
    by_tolerance = options.rtol is not None or options.atol is not None
    done, few = 0, max([options.draws, *(_fewest(c) for c in comparisons)])
    outputs: tuple[Difference, ...] = ()
    for wanted in (few, *(stage for stage in _STAGES if stage > few)):
        numbers = range(done, wanted)
        for draw in progress(numbers, total=len(numbers), label="rounding noise"):
            weights.draw(draw)
            values = join(session.run(feed) for feed in feeds)
            for comparison in comparisons:
                comparison.add(values.get(comparison.name, _ABSENT))
        done = wanted
        outputs = tuple(comparison.judge(options, statistics) for comparison in comparisons)
        if by_tolerance or not any(map(_is_open, comparisons, outputs, repeat(done))):
            break
    return outputs, done


def _fewest(comparison: Comparison) -> int:
    """Return the number of draws that give enough values of an output's noise."""
    size = comparison.size
    return -(-_NOISE_VALUES // size) if size else 0


def _is_open(comparison: Comparison, output: Difference, draws: int) -> bool:
    """Return whether more draws might change the verdict that an output fails."""
    if output.holds or not comparison.alike:
        return False
    return output.limit is None or output.times_noise < output.limit * _HOPELESS / draws


def _signature_failures(original: Session, folded: Session) -> tuple[str, ...]:
    """Return how the folded model's inputs and outputs differ, apart from their order."""
    failures = []
    specs = {spec.name: spec for spec in original.inputs}
    for spec in folded.inputs:
        was = specs.get(spec.name)
        if was is None:
            failures.append(f"signature: the folded model has a new input {spec.name!r}")
        elif spec.type != was.type:
            failures.append(f"signature: input {spec.name!r} is {spec.type} instead of {was.type}")
        elif _contradict(spec.shape, was.shape):
            failures.append(
                f"signature: input {spec.name!r} is {written(spec)} instead of {written(was)}"
            )
    pairs = [("input", dict.fromkeys(specs, ""), {spec.name for spec in folded.inputs})]
    pairs.append(("output", dict.fromkeys(original.outputs, ""), set(folded.outputs)))
    for kind, wanted, present in pairs:
        failures += [
            f"signature: the folded model has no {kind} {name!r}"
            for name in wanted
            if name not in present
        ]
    return tuple(failures)


def _contradict(shape: Sequence[object], other: Sequence[object]) -> bool:
    """Return whether no tensor has both shapes. What is no number is open; none is any shape."""
    if not shape or not other:
        return False
    return len(shape) != len(other) or any(
        a != b and isinstance(a, int) and isinstance(b, int)
        for a, b in zip(shape, other, strict=True)
    )


def _notes(
    evaluator: Evaluator,
    outputs: Sequence[Difference],
    weights: RoundedWeights,
    lost: Collection[str],
    factor: float,
) -> Iterator[str]:
    if evaluator.reason:
        yield f"judged by {evaluator.name}, since {evaluator.reason}"
    for name in sorted(lost):
        yield f"initializer {name!r} can no longer be overridden by an input"
    if not weights.arrays:
        yield "no layer or BN has constant weights; the noise is half a unit in the last place"
    for output in outputs:
        if 0 in output.shape:
            yield f"output {output.name!r} is empty: {list(output.shape)}; give other inputs"
        if output.holds and output.reason:
            yield f"output {output.name!r}: {output.reason}"
        if output.holds and output.limit is not None and output.limit > factor:
            yield (
                f"output {output.name!r}: its limit is {output.limit:.3g}, since rounding moves "
                "the original itself by so much once in a thousand checks"
            )
        if output.noise_snr_db is not None and output.noise_snr_db < _UNSTABLE_DB:
            yield (
                f"output {output.name!r}: rounding alone moves it by "
                f"{10 ** (-output.noise_snr_db / 20):.2g} of its rms; smaller faults are not seen"
            )
        if output.top1_agreement is not None and output.top1_agreement < 1:
            changed = 1 - output.top1_agreement
            yield f"output {output.name!r}: the top class differs in {changed:.3%} of the rows"


def _failures(outputs: Sequence[Difference], first: FirstDifference | None) -> Iterator[str]:
    for output in outputs:
        if output.holds:
            continue
        where = ""
        if first is not None and first.tensor != output.name:
            node = f" {first.node!r}" if first.node else ""
            where = f"; the first tensor to differ is {first.tensor!r}, from {first.op_type}{node}"
        yield f"numerics: output {output.name!r}: {output.reason}{where}"
