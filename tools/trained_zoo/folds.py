"""What folding does to a trained network: nodes, rounding and classes."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnx_bnfold import Options, Report, fold_file
from onnx_bnfold.check import CheckOptions, check
from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.sessions import Array, Session, join
from tools.trained_zoo.models import Model

DEFAULT, FREE, INT8 = Options(), Options(bn_free=True), Options(profile="int8")
_CHECKED = 16  # inputs of a check, which is run a dozen times
HEADS = (
    "BNs", "left", "`--bn-free`", "int8 profile", "why", "error", "onnxruntime's", "check",
    "same class",
)  # fmt: skip


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
    """

    bns: int
    left: tuple[int, int, int]
    reasons: Mapping[str, int]
    error: tuple[float, float]
    holds: bool
    agreement: float


def cells(model: Model) -> list[str]:
    """Return what the table says of a network."""
    row = measured(model)
    why = ", ".join(f"{count} {reason}" for reason, count in row.reasons.items())
    return [
        str(row.bns),
        *map(str, row.left),
        why,
        *(f"{error:.1e}" for error in row.error),
        "holds" if row.holds else "FAILS",
        f"{row.agreement:.2%}",
    ]


def measured(model: Model) -> Row:
    """Return the figures of a network."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = [folder / f"{number}.onnx" for number in range(3)]
        reports = [
            fold_file(model.path, file, options)
            for file, options in zip(files, (DEFAULT, FREE, INT8), strict=True)
        ]
        error, agreement = _compared(model, files[0])
        few = folder / "few.npz"
        (name, _), *_ = model.feeds()[0].items()
        np.savez(few, **{name: model.inputs[:_CHECKED]})
        return Row(
            bns=len(reports[0].norms),
            left=(len(reports[0].left), len(reports[1].left), len(reports[2].left)),
            reasons=_reasons(reports[0]),
            error=error,
            holds=check(model.path, files[0], CheckOptions(inputs=few)).holds,
            agreement=agreement,
        )


def _reasons(report: Report) -> Mapping[str, int]:
    return Counter(r.refusal.reason.value for r in report.kept if r.refusal is not None)


def _compared(model: Model, folded: Path) -> tuple[tuple[float, float], float]:
    """Return the errors of the fold and of onnxruntime's own, and how often classes agree."""
    sessions = [
        model.session(),
        Session(CheckedModel(folded, "folded")),
        Session(CheckedModel(model.path, "original"), optimised=True),
    ]
    feeds = model.feeds()
    original, ours, theirs = (join(s.run(feed) for feed in feeds) for s in sessions)
    same = [
        np.mean(_classes(values) == _classes(ours[key]))
        for key, values in original.items()
        if values.dtype.kind == "f"
    ]
    return (error_of(original, ours), error_of(original, theirs)), float(min(same))


def error_of(reference: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """Return the root mean square of the difference relative to the output, of the worst one."""
    floats = [key for key, values in reference.items() if values.dtype.kind == "f"]
    return max(_error(reference[key], found[key]) for key in floats)


def _error(reference: Array, array: Array) -> float:
    reference, array = reference.astype(np.float64), array.astype(np.float64)
    return float(np.sqrt(np.mean((array - reference) ** 2) / np.mean(reference**2)))


def _classes(array: Array) -> npt.NDArray[np.int64]:
    """Return the class of each row, and whether each pixel of a picture is one."""
    return (array > 0.5).astype(np.int64) if array.ndim > 3 else array.argmax(axis=-1)
