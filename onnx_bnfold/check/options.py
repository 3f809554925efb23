"""The settings of a check."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from onnx_bnfold.errors import UsageError
from onnx_bnfold.validation import require_types

Mode = Literal["disabled", "enabled"]
"""onnxruntime's graph optimisations: all disabled or all enabled."""

MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class CheckOptions:
    """What to check and how strictly; the defaults compare the outputs on random inputs.

    Args:
        shapes: name of an input → shape, or name of a symbolic dimension → one size.
        value_range: lowest and highest random value; by default standard normal floats and integers
            from 0 to 9.
        seed: of the random inputs, the noise and the bootstrap.
        inputs: .npz with arrays named like the inputs, or .npy, instead of random inputs.
        sets: number of random input sets.
        draws: number of noisy evaluations of the original; more for outputs of a few elements,
            and up to 64 if the first ones do not decide.
        factor: largest difference in units of the rounding noise; more where the original itself
            scatters more, see ``compare``.
        rtol: with atol, replaces the noise limit: |difference| <= atol + rtol * |original|.
        atol: see rtol.
        data: .npz with arrays named like the inputs and ``labels``, or a folder of IDX files.
        batch: examples per run in accuracy (default 64) and latency (default 1).
        max_accuracy_drop: largest drop of top-1 accuracy, as a fraction of the examples.
        min_agreement: smallest fraction of examples with an unchanged prediction.
        latency: measure latency, session creation and memory.
        modes: onnxruntime's optimisation modes to measure, and to gate.
        runs: timed pairs of runs per mode.
        warm_up: untimed pairs before them.
        threads: threads within an operator; 0 is onnxruntime's own choice.
        min_speedup: smallest ratio of latencies, original over folded.
        quantize: quantise both models to int8 and compare their losses.
        max_snr_drop: largest loss of int8 signal-to-noise against the original's, in dB; by default
            4, which calibrations on both halves of the inputs must exceed, too.
        custom_ops: libraries with operators of other domains, for onnxruntime.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    value_range: tuple[float, float] | None = None
    seed: int = 0
    inputs: str | os.PathLike[str] | None = None
    sets: int = 2
    draws: int = 4
    factor: float = 2.25
    rtol: float | None = None
    atol: float | None = None
    data: str | os.PathLike[str] | None = None
    batch: int | None = None
    max_accuracy_drop: float | None = None
    min_agreement: float | None = None
    latency: bool = False
    modes: tuple[Mode, ...] = MODES
    runs: int = 50
    warm_up: int = 5
    threads: int = 1
    min_speedup: float | None = None
    quantize: bool = False
    max_snr_drop: float | None = None
    custom_ops: Sequence[str | os.PathLike[str]] = ()

    def __post_init__(self) -> None:
        require_types(self)
        for name in ("sets", "draws", "runs"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("seed", "warm_up", "threads"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"batch is {self.batch}; it must be at least 1")
        if self.value_range is not None and not self.value_range[0] <= self.value_range[1]:
            low, high = self.value_range
            raise UsageError(f"the range {low},{high} is empty; give the lower value first")
        for library in self.custom_ops:
            if not os.path.isfile(library):
                raise UsageError(f"there is no file {os.fspath(library)} with custom operators")
        self._check_limits()
        self._check_gates_have_data()

    def _check_limits(self) -> None:
        for name in (
            *("factor", "rtol", "atol", "max_accuracy_drop", "min_agreement", "min_speedup"),
            "max_snr_drop",
        ):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UsageError(f"{name} is {value}; it must be zero or more")

    def _check_gates_have_data(self) -> None:
        for name in ("max_accuracy_drop", "min_agreement"):
            if getattr(self, name) is not None and self.data is None:
                raise UsageError(f"{name} needs labelled data; give them with --data")
        if self.min_speedup is not None and not self.latency:
            raise UsageError("min_speedup needs a latency measurement; give latency=True")
        if self.max_snr_drop is not None and not self.quantize:
            raise UsageError("max_snr_drop needs quantised models; give quantize=True")
        if not self.modes:
            raise UsageError(f"no latency mode is given; choose from {', '.join(MODES)}")


def require_files(options: CheckOptions) -> None:
    """Check that inputs and data exist, before any work.

    Raises:
        UsageError: they do not.
    """
    for name in ("inputs", "data"):
        path = getattr(options, name)
        if path is not None and not os.path.exists(path):
            raise UsageError(f"cannot read {name} from {os.fspath(path)}: there is no such file")
