"""The record of a check: plain frozen dataclasses, written as strict JSON."""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

from onnx_bnfold.check.options import Mode

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Difference:
    """How one tensor of the folded model differs from the original's.

    Attributes:
        name: the tensor's name.
        dtype: element type in the original.
        shape: shape in the original, input sets joined along the first axis.
        peak: largest magnitude in the original.
        max_abs: largest |folded - original|.
        relative_to_peak: max_abs / peak; None for a peak of zero.
        rms: root mean square of folded - original.
        snr_db: 20*log10(rms(original)/rms(difference)); None when nothing differs.
        noise_max: largest magnitude of the original's own rounding noise.
        noise_rms: root mean square of that noise.
        noise_snr_db: 20*log10(rms(original)/noise_rms); None without noise.
        times_noise: the difference in units of the noise, by the statistic that shows it most.
        statistic: name of that statistic.
        limit: the largest times_noise allowed; None when rtol/atol replace it.
        mismatched: number of elements that differ in kind (NaN, inf) or, if not floats, in value.
        noise_mismatched: the same between the original and its noisiest evaluation.
        allowed_mismatches: the largest ``mismatched`` allowed.
        outside_tolerance: elements outside rtol/atol; None when the noise decides.
        worst_index: index of the largest difference; None when nothing differs.
        worst_original: the original's value there.
        worst_folded: the folded model's value there.
        top1_agreement: fraction of rows with the same largest class; None if not class scores.
        holds: whether the tensor passes.
        reason: why it does not, or why it cannot be compared; empty when it passes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    peak: float = 0.0
    max_abs: float = 0.0
    relative_to_peak: float | None = None
    rms: float = 0.0
    snr_db: float | None = None
    noise_max: float = 0.0
    noise_rms: float = 0.0
    noise_snr_db: float | None = None
    times_noise: float = 0.0
    statistic: str = ""
    limit: float | None = None
    mismatched: int = 0
    noise_mismatched: int = 0
    allowed_mismatches: int = 0
    outside_tolerance: int | None = None
    worst_index: tuple[int, ...] | None = None
    worst_original: float | None = None
    worst_folded: float | None = None
    top1_agreement: float | None = None
    holds: bool = True
    reason: str = ""


@dataclass(frozen=True)
class FirstDifference:
    """The first tensor, in graph order, from which on the models differ up to a failed output.

    Attributes:
        tensor: its name.
        op_type: operator of the node that computes it.
        node: name of that node.
        difference: of the tensor.
    """

    tensor: str
    op_type: str
    node: str
    difference: Difference


@dataclass(frozen=True)
class InputUsed:
    """One input of a check.

    Attributes:
        name: of the input.
        dtype: its element type.
        shape: of one input set.
        source: "random", or the file that the values are from.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: str


@dataclass(frozen=True)
class Numerics:
    """Both models on the same inputs, with optimisations disabled.

    Attributes:
        inputs: of the models.
        sets: number of input sets.
        seed: of random inputs and of the noise.
        draws: number of evaluations of the original with other rounding.
        factor: the least limit, in units of the noise.
        rtol, atol: tolerances that replace the noise limit; None without.
        outputs: one comparison per output.
        first_difference: where the models begin to differ; None if they do not.
        notes: one sentence each.
        seconds: of the whole comparison.
        evaluator: "onnxruntime" or "onnx's reference evaluator".
        onnxruntime_seconds: the part of ``seconds`` that was spent in the evaluator.
    """

    inputs: tuple[InputUsed, ...]
    sets: int
    seed: int
    draws: int
    factor: float
    rtol: float | None
    atol: float | None
    outputs: tuple[Difference, ...]
    first_difference: FirstDifference | None
    notes: tuple[str, ...]
    seconds: float
    evaluator: str
    onnxruntime_seconds: float


@dataclass(frozen=True)
class Accuracy:
    """Both models on labelled data; accuracies are fractions of the examples.

    Attributes:
        data: path of the data.
        output: name of the output with the classes.
        examples: number of examples.
        batch: examples per run.
        top1_original, top1_folded: top-1 accuracy.
        top5_original, top5_folded: top-5 accuracy; None with up to five classes.
        changed: number of examples whose prediction differs.
        became_right, became_wrong: number of examples that only one model predicts correctly.
        agreement: fraction of examples with equal predictions.
        drop: top-1 accuracy of the original minus that of the folded model.
        seconds: of the measurement.
    """

    data: str
    output: str
    examples: int
    batch: int
    top1_original: float
    top1_folded: float
    top5_original: float | None
    top5_folded: float | None
    changed: int
    became_right: int
    became_wrong: int
    agreement: float
    drop: float
    seconds: float


@dataclass(frozen=True)
class Timing:
    """One model in one mode.

    Attributes:
        median_ms: median time of a run, in milliseconds.
        low_ms, high_ms: 10th and 90th percentile.
        samples_ms: every timed run, in order.
        session_ms: median time to create a session.
        peak_memory: peak resident bytes of a process that loads the model and runs it once.
        model_memory: ``peak_memory`` without the interpreter, the imports and the inputs.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    samples_ms: tuple[float, ...]
    session_ms: float
    peak_memory: int | None
    model_memory: int | None


@dataclass(frozen=True)
class LatencyMode:
    """Interleaved runs of both models in one mode.

    Attributes:
        mode: of onnxruntime's optimisations.
        inner_loops: number of runs in a sample.
        original, folded: the timings.
        speedup: median of the original over that of the folded model.
        speedup_low, speedup_high: 95 % interval of the speedup.
    """

    mode: Mode
    inner_loops: int
    original: Timing
    folded: Timing
    speedup: float
    speedup_low: float
    speedup_high: float


@dataclass(frozen=True)
class Latency:
    """Latency of both models, and how many BNs onnxruntime's own optimiser removes.

    Attributes:
        batch: examples per run.
        runs: timed pairs of runs per mode.
        warm_up: untimed pairs before them.
        threads: within an operator; 0 is onnxruntime's choice.
        modes: the measurements.
        bn_original, bn_folded: number of BNs.
        bn_fused_by_onnxruntime: number of BNs of the original that onnxruntime removes.
        remark: a sentence about these numbers.
    """

    batch: int
    runs: int
    warm_up: int
    threads: int
    modes: tuple[LatencyMode, ...]
    bn_original: int
    bn_folded: int
    bn_fused_by_onnxruntime: int
    remark: str


@dataclass(frozen=True)
class Int8Output:
    """An output of both models in int8, compared with the original in float.

    Attributes:
        name: of the output.
        snr_original_db, snr_folded_db: 20*log10(rms(float)/rms(difference)); infinite if they are
            equal, minus infinity without a signal or with int8 values that are not finite.
        top1_original, top1_folded: fraction of rows whose largest class is that of the original in
            float; None if they are not class scores.
        half_drops_db: ``drop_db`` if either half of the inputs calibrates; measured where it
            decides.
    """

    name: str
    snr_original_db: float
    snr_folded_db: float
    top1_original: float | None
    top1_folded: float | None
    half_drops_db: tuple[float, ...] = ()

    @property
    def drop_db(self) -> float:
        """By how much the folded model's signal-to-noise is lower, 0 if it is not."""
        lower = self.snr_folded_db < self.snr_original_db
        return self.snr_original_db - self.snr_folded_db if lower else 0.0


@dataclass(frozen=True)
class Int8Range:
    """Lowest and highest value that an activation's int8 codes represent.

    Attributes:
        tensor: name of the activation.
        original, folded: the values; None if the model does not quantise it.
    """

    tensor: str
    original: tuple[float, float] | None
    folded: tuple[float, float] | None


@dataclass(frozen=True)
class Quantized:
    """Both models quantised to int8 in the same way, on the same inputs.

    Attributes:
        source: of the inputs: "random", or "data" of the user.
        calibration_sets: number of input sets for the calibration.
        sets: number of input sets for the comparison.
        outputs: the float outputs whose sizes do not depend on computed values.
        ranges: the quantised activations, in graph order.
        latency: of the quantised models.
    """

    source: str
    calibration_sets: int
    sets: int
    outputs: tuple[Int8Output, ...]
    ranges: tuple[Int8Range, ...]
    latency: LatencyMode


@dataclass(frozen=True)
class CheckResult:
    """The outcome of a check.

    Attributes:
        original, folded: paths of the models, or their labels.
        holds: whether every gate holds.
        failures: one sentence per gate that does not hold, starting with the gate's name.
        numerics, accuracy, latency, quantized: the sections; None if not requested, or not
            possible after a failure.
        onnxruntime_version: of the installed onnxruntime.
        schema_version: of the JSON.
    """

    original: str
    folded: str
    holds: bool
    failures: tuple[str, ...]
    numerics: Numerics | None
    accuracy: Accuracy | None
    latency: Latency | None
    quantized: Quantized | None
    onnxruntime_version: str
    schema_version: int = SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain JSON types; a value that is not finite becomes None."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain

    def to_json(self) -> str:
        """Return the record as strict JSON text (RFC 8259), ending in a newline."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
