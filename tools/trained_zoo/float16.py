"""A network in float16: converted as it is, folded and converted, converted and folded.

Errors are the root mean square of the difference from the network in float32, relative to its
outputs. In float16 onnxruntime computes on a CPU in float32 and may skip a rounding between two
nodes; so what a tensor holds is asked of the model in float32, and where it is beyond what float16
holds, that is said.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, shape_inference

from onnx_bnfold import Options, fold_file, plan_file
from onnx_bnfold.check.latency import count_bns
from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.sessions import Feed, Session, join
from tools.trained_zoo.draws import drawn, float16_step
from tools.trained_zoo.folds import error_of
from tools.trained_zoo.models import Model

HEADS = (
    "converter", "BNs", "left", "left, fp16", "left, converted", "converted", "by onnxruntime",
    "folded, converted", "fp16, converted", "converted, folded", "largest", "folded", "fp16",
)  # fmt: skip
_FORMS = {
    "default": Options(),
    "`--profile fp16`": Options(profile="fp16"),
    "`--bn-free`": Options(bn_free=True),
    "`--bn-free --profile fp16`": Options(bn_free=True, profile="fp16"),
}
FORM_HEADS = ("converted", *_FORMS, "said of")
FOLDS = {"default": Options(), "fp16": Options(profile="fp16")}
_LARGEST = float(np.finfo(np.float16).max)


def _common(model: ModelProto) -> ModelProto:
    from onnxconverter_common import float16

    return float16.convert_float_to_float16(model, keep_io_types=True)


def _transformers(model: ModelProto) -> ModelProto:
    from onnxruntime.transformers import float16

    return float16.convert_float_to_float16(model, keep_io_types=True)


CONVERTERS: Mapping[str, Callable[[ModelProto], ModelProto]] = {
    "onnxconverter-common": _common,
    "onnxruntime": _transformers,
}


def rows(model: Model, draws: int) -> Iterator[list[str]]:
    """Yield what the table says of a network, for each converter."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sources = [folder / f"{number}.onnx" for number in range(draws)]
        for number, source in enumerate(sources):
            onnx.save(drawn(onnx.load(model.path), number, float16_step), source)
        models = [model._replace(path=source) for source in sources]
        files = _folded(model.path, folder)
        left = [_count(path) for path in (model.path, *files.values())]
        peaks = [largest(path, model) for path in (model.path, *files.values())]
        for converter in CONVERTERS:
            found = [_errors(each, converter) for each in models]
            errors = np.mean([values for _, values in found], axis=0)
            yield [
                converter, *map(str, [*left, found[0][0]]), *(f"{e:.1e}" for e in errors),
                *(f"{peak:.3g}" if peak <= _LARGEST else f"**{peak:.3g}**" for peak in peaks),
            ]  # fmt: skip


def form_cells(model: Model, draws: int) -> list[str]:
    """Return the error of a network converted, that of forms in units of it, and what is said."""
    errors = []
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch) / f"{number}.onnx" for number in range(1 + len(_FORMS))]
        for number in range(draws):
            onnx.save(drawn(onnx.load(model.path), number, float16_step), files[0])
            each = model._replace(path=files[0])
            reference = join(each.session().run(feed) for feed in each.feeds())
            for file, options in zip(files[1:], _FORMS.values(), strict=True):
                fold_file(files[0], file, options)
            errors.append([_error(each, file, reference) for file in files])
    own, *others = np.mean(errors, axis=0)
    said = [
        name
        for name, options in _FORMS.items()
        if plan_file(model.path, options).coarser_in_float16
    ]
    return [f"{own:.1e}", *(f"{other / own:.2f}" for other in others), ", ".join(said)]


def _error(model: Model, file: Path, reference: Feed) -> float:
    """Return the error of a fold of a model that is converted by onnxconverter-common."""
    converted = file.with_suffix(".converted")
    onnx.save(_common(onnx.load(file)), converted)
    session = Session(CheckedModel(converted, str(file)))
    return error_of(reference, join(session.run(feed) for feed in model.feeds()))


def _folded(source: Path, folder: Path) -> dict[str, Path]:
    files = {way: folder / f"{source.stem}.{way}.onnx" for way in FOLDS}
    for way, options in FOLDS.items():
        fold_file(source, files[way], options)
    return files


def _count(path: Path) -> int:
    return count_bns(onnx.load(path))


def _errors(model: Model, converter: str) -> tuple[int, list[float]]:
    """Return how many BNs stay where the converted model is folded, and the errors of all ways."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = {"original": model.path, **_folded(model.path, folder)}
        for way, path in files.items():
            files[way] = folder / f"{way}.converted.onnx"
            onnx.save(CONVERTERS[converter](onnx.load(path)), files[way])
        last = folder / "last.onnx"
        fold_file(files["original"], last)
        original, *others = [CheckedModel(path, str(path)) for path in (*files.values(), last)]
        own = Session(original, optimised=True)
        sessions = [Session(original), own, *map(Session, others)]
        feeds = model.feeds()
        reference = join(model.session().run(feed) for feed in feeds)
        found = [join(session.run(feed) for feed in feeds) for session in sessions]
        return _count(last), [error_of(reference, values) for values in found]


def largest(path: Path, model: Model) -> float:
    """Return the largest number that a tensor of a model in float32 holds, of real inputs."""
    exposed = shape_inference.infer_shapes(onnx.load(path))
    known = {v.name for v in exposed.graph.output}
    exposed.graph.output.extend(
        v
        for v in exposed.graph.value_info
        if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and v.name not in known
    )
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "exposed.onnx"
        onnx.save(exposed, file)
        session = Session(CheckedModel(file, str(path)))
        values = (v for feed in model.feeds() for v in session.run(feed).values())
        return max(float(np.abs(v).max(initial=0)) for v in values if v.dtype.kind == "f")
