"""Quantises both models to int8 the same way, and compares what that costs each of them."""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_bnfold.check.accuracy import fixed_batch
from onnx_bnfold.check.data import Dataset
from onnx_bnfold.check.inputs import make_feeds
from onnx_bnfold.check.latency import measure
from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.options import CheckOptions
from onnx_bnfold.check.results import Int8Output, Int8Range, Quantized
from onnx_bnfold.check.sessions import Array, Feed, Session, join
from onnx_bnfold.errors import ModelError, UsageError
from onnx_bnfold.progress import progress

_SETS = 8  # random input sets to calibrate with, and as many others to compare on
_BATCH = 64
_EXAMPLES = 256  # of labelled data: the first to calibrate with, the next to compare on
_CODES = (-128, 127)  # of int8


def check_quantized(
    original: CheckedModel, folded: CheckedModel, options: CheckOptions
) -> tuple[Quantized, tuple[str, ...]]:
    """Quantises both models by onnxruntime's `quantize_static` and compares the results.

    QDQ format, int8 activations with one scale per tensor, int8 weights with one per channel. Both
    are calibrated on the same inputs, and compared on others with the original in float.

    Args:
        original, folded: float models with the same inputs and outputs.
        options: `data` or `inputs` or what random inputs are made of; `max_snr_drop`, and the
            options of a latency measurement.

    Returns:
        The record and the failures.

    Raises:
        ModelError: onnxruntime cannot quantise or run a model.
        UsageError: the inputs cannot be made.
    """
    float_session = Session(original)
    calibration, feeds = _feeds(float_session, options)
    reference = join(float_session.run(feed) for feed in feeds)
    with tempfile.TemporaryDirectory(prefix="onnx_bnfold-") as folder:
        models = [
            _quantised(model, Path(folder) / f"{i}.onnx", calibration)
            for i, model in enumerate(progress((original, folded), total=2, label="quantising"))
        ]
        results = [join(Session(model).run(feed) for feed in feeds) for model in models]
        ranges = [_ranges(model) for model in models]
        latency = measure("enabled", (models[0], models[1]), feeds[0], options)
    outputs = tuple(
        _output(name, array, *(result[name] for result in results))
        for name, array in reference.items()
        if array.dtype.kind == "f"
    )
    quantized = Quantized(
        source="random" if options.data is options.inputs is None else "data",
        calibration_sets=len(calibration),
        sets=len(feeds),
        outputs=outputs,
        ranges=tuple(_paired(*ranges)),
        latency=latency,
    )
    return quantized, tuple(_failures(outputs, options))


def _feeds(session: Session, options: CheckOptions) -> tuple[list[Feed], list[Feed]]:
    """Feeds to calibrate with and feeds to compare on; the same ones if the user gave one file."""
    if options.data is not None:
        with Dataset(options.data, session.inputs) as data:
            free = options.batch or min(_BATCH, max(1, data.examples // 2))
            size = fixed_batch(session.inputs) or free
            found = list(islice(_whole(data.batches(size), size), -(-2 * _EXAMPLES // size)))
        if not found:
            raise UsageError(f"{options.data} has fewer than the {size} examples of a batch")
        middle = -(-len(found) // 2)
        return found[:middle], found[middle:] or found
    feeds = make_feeds(session.inputs, replace(options, sets=2 * _SETS))
    return feeds[:_SETS], feeds[_SETS:] or feeds


def _whole(batches: Iterable[tuple[Feed, Array]], size: int) -> Iterator[Feed]:
    return (feed for feed, labels in batches if len(labels) == size)


def _quantised(model: CheckedModel, target: Path, feeds: Sequence[Feed]) -> CheckedModel:
    from onnxruntime.quantization import (  # type: ignore[import-untyped, unused-ignore]
        CalibrationDataReader,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self._feeds, None)

    label = f"{model.label} in int8"
    try:
        with _quiet():
            quantize_static(
                model.path,
                target,
                Reader(),
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
    except Exception as error:  # its errors share no base class
        said = " ".join(str(error).split())
        raise ModelError(f"onnxruntime cannot quantise {model.label}: {said}") from error
    return CheckedModel(target, label)


@contextmanager
def _quiet() -> Iterator[None]:
    """Onnxruntime advises, by a warning, to run a preparation of its own that fuses BNs too."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _output(name: str, reference: Array, before: Array, after: Array) -> Int8Output:
    scores = reference.ndim == 2 and reference.shape[1] > 1
    top1 = [
        float(np.mean(reference.argmax(axis=1) == array.argmax(axis=1))) if scores else None
        for array in (before, after)
    ]
    return Int8Output(name, _snr(reference, before), _snr(reference, after), *top1)


def _snr(reference: Array, array: Array) -> float | None:
    signal = reference.astype(np.float64)
    noise = float(np.square(array - signal).mean())
    power = float(np.square(signal).mean())
    return 10 * float(np.log10(power / noise)) if power > 0 and noise > 0 else None


def _ranges(model: CheckedModel) -> dict[str, tuple[float, float]]:
    """What each activation's scale and zero point can hold: lowest and highest value."""
    graph = model.skeleton.graph
    constants = {t.name: t for t in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] in constants:
            continue
        scale, zero = (_scalar(constants.get(name)) for name in node.input[1:3])
        if scale is not None and zero is not None:
            found[node.input[0]] = ((_CODES[0] - zero) * scale, (_CODES[1] - zero) * scale)
    return found


def _scalar(tensor: onnx.TensorProto | None) -> float | None:
    if tensor is None:
        return None
    values = numpy_helper.to_array(tensor)
    return float(values.reshape(-1)[0]) if values.size == 1 else None


def _paired(
    before: Mapping[str, tuple[float, float]], after: Mapping[str, tuple[float, float]]
) -> Iterator[Int8Range]:
    for name in dict.fromkeys((*before, *after)):
        yield Int8Range(name, before.get(name), after.get(name))


def _failures(outputs: Sequence[Int8Output], options: CheckOptions) -> Iterator[str]:
    least = options.max_snr_drop
    for output in outputs:
        if least is None or output.snr_original_db is None or output.snr_folded_db is None:
            continue
        drop = output.snr_original_db - output.snr_folded_db
        if drop > least:
            yield (
                f"quantize: output {output.name!r} has {output.snr_folded_db:.2f} dB in int8, "
                f"{drop:.2f} dB less than the original; max_snr_drop is {least:g}"
            )
