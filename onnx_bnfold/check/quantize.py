"""Quantise both models to int8 in the same way, and compare what each of them loses."""

import logging
import math
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_bnfold.arrays import dtype_of
from onnx_bnfold.check.accuracy import fixed_batch
from onnx_bnfold.check.compare import has_values
from onnx_bnfold.check.data import Dataset
from onnx_bnfold.check.inputs import make_feeds
from onnx_bnfold.check.int8_names import free_names
from onnx_bnfold.check.latency import measure
from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.options import CheckOptions
from onnx_bnfold.check.results import Int8Output, Int8Range, Quantized
from onnx_bnfold.check.sessions import Array, Feed, Session, join
from onnx_bnfold.errors import ModelError, UsageError
from onnx_bnfold.model.graph import STANDARD_DOMAINS
from onnx_bnfold.progress import progress
from onnx_bnfold.storage import ModelFile

_SETS = 8  # random input sets to calibrate with, and as many others to compare on
_BATCH = 64
_EXAMPLES = 256  # of labelled data: the first to calibrate with, the next to compare on
_OPSET = 13  # the first with a scale per channel
# In dB. Right folds of networks trained on MNIST lost up to 5.7 in one calibration, by chance, and
# none lost that much in each of three; those that give a tensor uneven channels lost 6 to 37.
MAX_SNR_DROP = 4.0
_ZERO = onnx.TensorProto(data_type=onnx.TensorProto.UINT8, raw_data=b"\0")  # the default


def check_quantized(
    original: CheckedModel, folded: CheckedModel, options: CheckOptions
) -> tuple[Quantized, tuple[str, ...]]:
    """Quantise both models by onnxruntime's ``quantize_static``, and compare the results.

    The format is QDQ, with uint8 activations of one scale per tensor and int8 weights of one scale
    per channel. Both models are calibrated on the same inputs, and compared with the original in
    float on other inputs.

    Args:
        original, folded: float models with the same inputs and outputs; see ``require_opset``.
        options: ``data``, ``inputs`` or those of random inputs; ``max_snr_drop``, and those of the
            latency.

    Returns:
        The record and the failures.

    Raises:
        ModelError: onnxruntime cannot quantise or run a model.
        UsageError: the inputs cannot be made, or there is nothing to quantise or compare.
    """
    float_session = Session(original)
    calibration, feeds = _feeds(float_session, options)
    reference = join(float_session.run(feed) for feed in feeds)
    with tempfile.TemporaryDirectory(prefix="onnx_bnfold-") as folder:
        pair = _Pair((original, folded), Path(folder), feeds, reference)
        models = pair.quantised(calibration)
        outputs = pair.outputs(models)
        ranges = [_ranges(model) for model in models]
        _require_work(original, outputs, ranges)
        if options.max_snr_drop is None and any(o.drop_db > MAX_SNR_DROP for o in outputs):
            outputs = pair.with_halves(outputs, calibration)
        latency = measure("enabled", (models[0], models[1]), feeds[0], options)
    quantized = Quantized(
        source="random" if options.data is options.inputs is None else "data",
        calibration_sets=len(calibration),
        sets=len(feeds),
        outputs=outputs,
        ranges=tuple(_paired(*ranges)),
        latency=latency,
    )
    return quantized, tuple(_failures(outputs, options))


class _Pair:
    """Both models, quantised once or more.

    Args:
        models: the original and the folded one.
        folder: for the quantised ones.
        feeds: to compare on.
        reference: what the original makes of them in float.
    """

    def __init__(
        self,
        models: Sequence[CheckedModel],
        folder: Path,
        feeds: Sequence[Feed],
        reference: Mapping[str, Array],
    ) -> None:
        self._models, self._folder = models, folder
        self._feeds, self._reference = feeds, reference

    def quantised(self, calibration: Sequence[Feed]) -> list[CheckedModel]:
        """Return both in int8, calibrated on feeds."""
        models = progress(self._models, total=2, label="quantising")
        return [quantised(model, self._new_folder(), calibration) for model in models]

    def _new_folder(self) -> Path:
        return self._folder / str(len([*self._folder.iterdir()]))

    def outputs(self, models: Sequence[CheckedModel]) -> tuple[Int8Output, ...]:
        """Return the comparison of each float output that can be compared."""
        results = [join(Session(model).run(feed) for feed in self._feeds) for model in models]
        return tuple(
            _output(name, array, *(result[name] for result in results))
            for name, array in self._reference.items()
            if array.dtype.kind == "f"
            and has_values(array)
            and all(_is_alike(array, result.get(name)) for result in results)
        )

    def with_halves(
        self, outputs: Sequence[Int8Output], calibration: Sequence[Feed]
    ) -> tuple[Int8Output, ...]:
        """Return the outputs with what is lost where either half of the feeds calibrates."""
        middle = len(calibration) // 2
        drops: dict[str, list[float]] = {output.name: [] for output in outputs}
        for half in (calibration[:middle], calibration[middle:]) if middle else ():
            for output in self.outputs(self.quantised(half)):
                drops.setdefault(output.name, []).append(output.drop_db)
        return tuple(replace(o, half_drops_db=tuple(drops[o.name])) for o in outputs)


def _require_work(
    original: CheckedModel, outputs: Sequence[Int8Output], ranges: Sequence[Mapping[str, object]]
) -> None:
    """Raise UsageError if nothing was quantised or nothing can be compared."""
    if not any(ranges):
        raise UsageError(
            f"{original.label}: onnxruntime quantises no tensor of it, so there is nothing to "
            "compare; check it without --quantize"
        )
    if not outputs:
        raise UsageError(
            f"{original.label} has no float output that has finite values, and the same shape in "
            "int8; give other inputs, or check it without --quantize"
        )


def _feeds(session: Session, options: CheckOptions) -> tuple[list[Feed], list[Feed]]:
    """Return feeds to calibrate with, and feeds to compare on; a single set serves for both."""
    if options.data is not None:
        with Dataset(options.data, session.inputs) as data:
            free = options.batch or min(_BATCH, max(1, data.examples // 2))
            size = fixed_batch(session.inputs) or free
            whole = list(islice(_whole(data.batches(size), size), -(-2 * _EXAMPLES // size)))
        if len(whole) < 2:
            raise UsageError(
                f"{options.data} has fewer than two batches of {size} examples, one to calibrate "
                "with and one to compare on; give more, or a smaller --batch"
            )
        middle = len(whole) // 2
        return whole[:middle], whole[middle:]
    feeds = make_feeds(session.inputs, replace(options, sets=2 * _SETS))
    return feeds[:_SETS], feeds[_SETS:] or feeds


def _whole(batches: Iterable[tuple[Feed, Array]], size: int) -> Iterator[Feed]:
    return (feed for feed, labels in batches if len(labels) == size)


def require_opset(model: CheckedModel) -> None:
    """Raise ModelError if a model cannot have a scale per channel."""
    imports = model.skeleton.opset_import
    opset = max((i.version for i in imports if i.domain in STANDARD_DOMAINS), default=1)
    if opset < _OPSET:
        raise ModelError(
            f"{model.label} is of opset {opset}, and int8 with one scale per channel needs "
            f"{_OPSET}; convert it with onnx.version_converter"
        )


def quantised(model: CheckedModel, folder: Path, feeds: Sequence[Feed]) -> CheckedModel:
    """Return a model in int8, by onnxruntime's ``quantize_static`` (QDQ format).

    Args:
        model: in float; it is copied first, since onnxruntime writes files beside its input.
        folder: a folder to create, for the copy and the result.
        feeds: for the calibration.

    Raises:
        ModelError: onnxruntime cannot quantise it.
    """
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

    folder.mkdir()
    copy, target = folder / "float.onnx", folder / "int8.onnx"
    with ModelFile.open(model.path) as file:
        free_names(file.model)
        file.write(file.model, {}, copy)
    try:
        with _quiet():
            quantize_static(
                copy,
                target,
                Reader(),
                per_channel=True,
                # On x86 onnxruntime computes in uint8 anyway. If it has to convert int8 itself, it
                # leaves a Conv whose output has two readers (SiLU) in float.
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
    except Exception as error:  # its errors share no base class
        said = " ".join(str(error).split())
        raise ModelError(f"onnxruntime cannot quantise {model.label}: {said}") from error
    return CheckedModel(target, f"{model.label} in int8")


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress onnxruntime's advice to run its preprocessing first, which fuses BNs as well."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _is_alike(reference: Array, array: Array | None) -> bool:
    """Return whether an output can be compared; its size may depend on computed values."""
    return array is not None and array.shape == reference.shape


def _output(name: str, reference: Array, before: Array, after: Array) -> Int8Output:
    scores = reference.ndim == 2 and reference.size > 0 and reference.shape[1] > 1
    first, second = [
        float(np.mean(reference.argmax(axis=1) == array.argmax(axis=1))) if scores else None
        for array in (before, after)
    ]
    return Int8Output(name, snr(reference, before), snr(reference, after), first, second)


def snr(reference: Array, array: Array) -> float:
    """Return the signal-to-noise ratio in dB where the reference is finite.

    It is inf if all values are equal, and -inf if the reference is zero or a value is not finite.
    """
    finite = np.isfinite(reference)
    signal = reference[finite].astype(np.float64)
    noise = float(np.square(array[finite] - signal).sum())
    power = float(np.square(signal).sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(power / noise) if power > 0 and math.isfinite(noise) else -math.inf


def _ranges(model: CheckedModel) -> dict[str, tuple[float, float]]:
    """Return name → (lowest, highest) value that an activation's scale and zero point represent."""
    graph = model.skeleton.graph
    constants = {t.name: t for t in graph.initializer}
    ranges = {}
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] in constants:
            continue
        zero = constants.get(node.input[2]) if len(node.input) > 2 else _ZERO
        scale, offset = _scalar(constants.get(node.input[1])), _scalar(zero)
        if zero is None or scale is None or offset is None or not math.isfinite(scale):
            continue
        codes = np.iinfo(dtype_of(zero.data_type))
        ranges[node.input[0]] = ((codes.min - offset) * scale, (codes.max - offset) * scale)
    return ranges


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
    for output in outputs:
        limit = options.max_snr_drop
        said = "max_snr_drop is"
        if limit is None:
            # One calibration alone may be a lucky one for the original.
            limit = MAX_SNR_DROP if output.half_drops_db else 2 * MAX_SNR_DROP
            said = "--profile int8 folds what makes no new ranges; max_snr_drop is by default"
        if not min(output.drop_db, *output.half_drops_db, math.inf) <= limit:
            halves = " or ".join(f"{drop:.2f}" for drop in output.half_drops_db)
            also = f" ({halves} calibrated on either half of the inputs)" if halves else ""
            yield (
                f"quantize: output {output.name!r} has {output.snr_folded_db:.2f} dB in int8, "
                f"{output.drop_db:.2f} dB less than the original{also}; {said} {limit:g}"
            )
