"""What folding does to a trained network: nodes, rounding, classes, int8 and time."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnx_bnfold import Options, Report, fold_file
from onnx_bnfold.check import CheckOptions, check
from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.quantize import check_quantized
from onnx_bnfold.check.sessions import Array, Session, join
from onnx_bnfold.errors import BnFoldError

DEFAULT, FREE, INT8 = Options(), Options(bn_free=True), Options(profile="int8")
_CHECKED = 16  # inputs of a check, which is run a dozen times
_Images = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Int8:
    """Signal-to-noise in int8 in dB, means over calibrations.

    Attributes:
        original, default, profile: as the network is, folded, and folded with ``--profile int8``.
        gates: how many of the calibrations' checks fail, of the default and of the profile.
    """

    original: float
    default: float
    profile: float
    gates: tuple[int, int]


@dataclass(frozen=True)
class Row:
    """The figures of one network.

    Attributes:
        bns: how many it has.
        left: how many stay, by default, with ``--bn-free``, and with ``--profile int8``.
        reasons: why they stay by default, and how many for each reason.
        error: of the fold, relative to the outputs; that of onnxruntime's own optimisations.
        holds: whether ``check`` finds the fold right, with these inputs.
        agreement: fraction of the inputs, or of their parts, with the same class.
        warned: what the default fold is expected to cost in int8, in dB; None if not much.
        int8: None if onnxruntime cannot quantise it.
        seconds: of processor time for the default fold from file to file.
    """

    bns: int
    left: tuple[int, int, int]
    reasons: Mapping[str, int]
    error: tuple[float, float]
    holds: bool
    agreement: float
    warned: float | None
    int8: Int8 | None
    seconds: float


def measured(path: Path, inputs: _Images, batch: int) -> Row:
    """Return the figures of a network.

    Args:
        path: of the model, with one input.
        inputs: half of them calibrate, and the others are compared; then the other way round.
        batch: how many are run at once.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = [folder / f"{number}.onnx" for number in range(3)]
        reports = [
            fold_file(path, file, options)
            for file, options in zip(files, (DEFAULT, FREE, INT8), strict=True)
        ]
        start = time.process_time()
        fold_file(path, folder / "again.onnx")
        seconds = time.process_time() - start
        name = Session(CheckedModel(path, str(path))).inputs[0].name
        error, agreement = _compared(path, files[0], {name: inputs}, batch)
        few = folder / "few.npz"
        np.savez(few, **{name: inputs[:_CHECKED]})
        return Row(
            bns=len(reports[0].norms),
            left=(len(reports[0].left), len(reports[1].left), len(reports[2].left)),
            reasons=_reasons(reports[0]),
            error=error,
            holds=check(path, files[0], CheckOptions(inputs=few)).holds,
            agreement=agreement,
            warned=reports[0].int8_loss,
            int8=_int8(path, (files[0], files[2]), {name: inputs}, batch),
            seconds=seconds,
        )


def _reasons(report: Report) -> Mapping[str, int]:
    return Counter(r.refusal.reason.value for r in report.kept if r.refusal is not None)


def _compared(
    path: Path, folded: Path, inputs: Mapping[str, _Images], batch: int
) -> tuple[tuple[float, float], float]:
    """Return the errors of the fold and of onnxruntime's own, and how often classes agree."""
    sessions = [
        Session(CheckedModel(path, "original")),
        Session(CheckedModel(folded, "folded")),
        Session(CheckedModel(path, "original"), optimised=True),
    ]
    (name, values), *_ = inputs.items()
    parts = [{name: values[i : i + batch]} for i in range(0, len(values), batch)]
    original, ours, theirs = (join(s.run(part) for part in parts) for s in sessions)
    floats = [key for key, array in original.items() if array.dtype.kind == "f"]
    errors = (max(_error(original[key], other[key]) for key in floats) for other in (ours, theirs))
    same = [np.mean(_classes(original[key]) == _classes(ours[key])) for key in floats]
    return (next(errors), next(errors)), float(min(same))


def _error(reference: Array, array: Array) -> float:
    reference, array = reference.astype(np.float64), array.astype(np.float64)
    return float(np.sqrt(np.mean((array - reference) ** 2) / np.mean(reference**2)))


def _classes(array: Array) -> npt.NDArray[np.int64]:
    """Return the class of each row, and whether each pixel of a picture is one."""
    return (array > 0.5).astype(np.int64) if array.ndim > 3 else array.argmax(axis=-1)


def _int8(
    path: Path, folded: tuple[Path, Path], inputs: Mapping[str, _Images], batch: int
) -> Int8 | None:
    found: list[tuple[float, float, bool]] = []
    original = CheckedModel(path, "original")
    (name, values), *_ = inputs.items()
    same = folded[0].read_bytes() == folded[1].read_bytes()
    with tempfile.TemporaryDirectory() as scratch:
        for number, order in enumerate((values, values[::-1])):
            data = Path(scratch) / f"{number}.npz"
            np.savez(data, labels=np.zeros(len(order), np.int64), **{name: order})
            options = CheckOptions(quantize=True, data=data, batch=batch, runs=1, warm_up=0)
            for file in folded[: 1 if same else 2]:
                try:
                    result, failures = check_quantized(
                        original, CheckedModel(file, "folded"), options
                    )
                except BnFoldError:
                    return None
                worst = max(result.outputs, key=lambda output: output.drop_db)
                found.append((worst.snr_original_db, worst.snr_folded_db, bool(failures)))
    each = 1 if same else 2
    default, profile = found[::each], found[each - 1 :: each]
    return Int8(
        statistics.mean(before for before, _, _ in default),
        statistics.mean(after for _, after, _ in default),
        statistics.mean(after for _, after, _ in profile),
        (sum(fails for _, _, fails in default), sum(fails for _, _, fails in profile)),
    )
