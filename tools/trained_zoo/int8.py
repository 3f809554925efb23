"""Signal-to-noise in int8 of a network as it is, and folded in several ways.

Each draw has other inputs to calibrate with, and but for the first other weights (`draws.py`). It
is folded in all ways, quantised, and compared with itself in float.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from onnx_bnfold import Options, fold_file
from onnx_bnfold.check import CheckOptions
from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.quantize import check_quantized, quantised, snr
from onnx_bnfold.check.sessions import Session, join, session_options
from onnx_bnfold.errors import ModelError
from tools.bench_forms import FORMS
from tools.trained_zoo.draws import drawn, int8_step
from tools.trained_zoo.models import Model

DEFAULT, INT8 = Options(), Options(profile="int8")
# What else its fold does: weights that are computed are rounded twice as long as they are.
_OTHERS = ("ConstantFolding",)
HEADS = (
    "BNs", "left, default", "left, int8", "BN left in", "onnxruntime's fold", "default",
    "`--profile int8`", "less the best", "foretold", "gate",
)  # fmt: skip
_RANGES = "ranges.npz"  # of a draw, of the inputs it is calibrated with
_FURTHER = {
    "`--profile int8`": INT8,
    "… `--equalize`": replace(INT8, equalize=True),
    "… `--ranges`": replace(INT8, equalize=True, ranges=_RANGES),
    "`--merge-branches`": Options(merge_branches=True),
}
OPTION_HEADS = ("BN left in", *_FURTHER)
FORM_HEADS = ("BN left in", *FORMS, "`--bn-free --profile int8`")


def cells(model: Model, draws: int) -> list[str]:
    """Return what the int8 table says of a network."""
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch) / f"{number}.onnx" for number in range(2)]
        ways = zip(files, (DEFAULT, INT8), strict=True)
        reports = [fold_file(model.path, file, options) for file, options in ways]
        left = [str(len(reports[0].norms)), *(str(len(report.left)) for report in reports)]
        loss = reports[0].int8_loss
        try:
            found = compared(model, {"default": DEFAULT, "int8": INT8}, draws)
        except ModelError as error:
            print(f"{model.path.stem}: {error}", file=sys.stderr)
            return [*left, *["–"] * 4, "–", _foretold(loss), "–"]
        figures = [*map(mean, found.values()), difference(found, "int8")]
        return [*left, *figures, _foretold(loss), _gate(model, files)]


def form_cells(model: Model, draws: int) -> list[str]:
    """Return what the table of forms without a BN says of a network."""
    return _means(model, {**FORMS, "int8": Options(bn_free=True, profile="int8")}, draws)


def option_cells(model: Model, draws: int) -> list[str]:
    """Return what the table of further options says of a network."""
    return _means(model, _FURTHER, draws)


def _means(model: Model, ways: Mapping[str, Options], draws: int) -> list[str]:
    """Return the means of a network as it is, and of each way."""
    try:
        found = compared(model, ways, draws)
    except ModelError:
        return ["–"] * (1 + len(ways))
    return [mean(values) for name, values in found.items() if name != "onnxruntime"]


def compared(
    model: Model, ways: Mapping[str, Options], draws: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the signal-to-noise in dB of each way, ``(draws,)``.

    The first two are ``original`` and ``onnxruntime``, which is its own fold. Of several outputs
    the one that loses most by any of the ways counts, in the mean.

    Raises:
        ModelError: onnxruntime cannot quantise it.
    """
    found = [_draw(model, ways, number) for number in range(draws)]
    outputs = found[0]["original"]
    each = {o: {way: np.array([d[way][o] for d in found]) for way in found[0]} for o in outputs}
    lost = {
        o: v["original"].mean() - min(values.mean() for values in v.values())
        for o, v in each.items()
    }
    return each[max(lost, key=lambda output: lost[output])]


def _draw(model: Model, ways: Mapping[str, Options], number: int) -> dict[str, dict[str, float]]:
    """Return the signal-to-noise of each way and float output, of one draw."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = folder / "original.onnx"
        onnx.save(drawn(onnx.load(model.path), number, int8_step), source)
        files = {"original": source, "onnxruntime": basic(source)}
        order = np.random.default_rng(number).permutation(len(model.inputs))
        halves = np.split(model.inputs[order], [len(order) // 2])
        calibration, test = map(model.feeds, halves)
        ranges = folder / _RANGES
        np.savez(ranges, **join(iter(calibration)))
        for count, (way, options) in enumerate(ways.items()):
            files[way] = folder / f"{count}.onnx"
            fold_file(source, files[way], replace(options, ranges=options.ranges and str(ranges)))
        reference = join(Session(CheckedModel(source, "original")).run(feed) for feed in test)
        contents = {way: file.read_bytes() for way, file in files.items()}
        known: dict[bytes, dict[str, float]] = {}  # two ways may come to the same
        for way, content in contents.items():
            if content not in known:
                float_model = CheckedModel(files[way], way)
                session = Session(quantised(float_model, folder / f"int8 {way}", calibration))
                values = join(session.run(feed) for feed in test)
                known[content] = {
                    k: snr(v, values[k]) for k, v in reference.items() if v.dtype.kind == "f"
                }
        return {way: known[content] for way, content in contents.items()}


def basic(source: Path) -> Path:
    """Fold by onnxruntime's basic optimisations; the result is written beside the model."""
    path = source.with_name("basic.onnx")
    options = session_options(optimised=False)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(
        source, options, providers=["CPUExecutionProvider"], disabled_optimizers=[*_OTHERS]
    )
    onnx.checker.check_model(path)
    return path


def mean(values: npt.NDArray[np.float64]) -> str:
    """Return the mean, and the standard deviation over the draws."""
    return f"{values.mean():.1f} ± {statistics.pstdev(values.tolist()):.1f}".replace("-", "−")


def difference(found: Mapping[str, npt.NDArray[np.float64]], way: str) -> str:
    """Return what a way has less than the best in the mean, and its 95 % interval."""
    best = max(found, key=lambda name: found[name].mean())
    values = found[way] - found[best]
    half = 0.0
    if len(values) > 1:
        student = np.random.default_rng(0).standard_t(len(values) - 1, 100_000)
        half = float(np.quantile(student, 0.975) * values.std(ddof=1) / len(values) ** 0.5)
    figures = (values.mean(), values.mean() - half, values.mean() + half)
    less, low, high = (f"{figure + 0.0:.1f}".replace("-0.0", "0.0") for figure in figures)
    return (f"{less} [{low}, {high}]" if values.any() else less).replace("-", "−")


def _foretold(loss: float | None) -> str:
    return "" if loss is None else f"−{loss:.0f}"


def _gate(model: Model, files: Sequence[Path]) -> str:
    """Return which folds ``check --quantize`` fails, with its default limit."""
    (name, _), *_ = model.feeds()[0].items()
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data.npz"
        np.savez(data, labels=np.zeros(len(model.inputs), np.int64), **{name: model.inputs})
        batch = min(model.batch, len(model.inputs) // 2)
        options = CheckOptions(quantize=True, data=data, batch=batch, runs=1, warm_up=0)
        original = CheckedModel(model.path, "original")
        failing = [
            way
            for way, file in zip(("default", "int8"), files, strict=True)
            if check_quantized(original, CheckedModel(file, "folded"), options)[1]
        ]
    return f"fails: {', '.join(failing)}" if failing else "holds"
