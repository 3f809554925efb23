"""The report of a fold as plain data; ``schema.json`` beside this file describes its JSON form.

It contains no time, no path and nothing about the machine: folding the same file gives the same
report, except for what a check measures.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx_bnfold.api import Outcome
from onnx_bnfold.check.results import CheckResult
from onnx_bnfold.provenance import sha256_of
from onnx_bnfold.report import Rescaled
from onnx_bnfold.reports.changes import Changes, changes_of
from onnx_bnfold.reports.compared_files import changes_between
from onnx_bnfold.reports.cost import Sizes, input_shapes
from onnx_bnfold.reports.figures import Figures, figures_of
from onnx_bnfold.reports.layers import Layer, layers_of
from onnx_bnfold.reports.nodes import NodeRecord, merged_records, never_run_records, records_of
from onnx_bnfold.storage.data_files import data_files_of, files
from onnx_bnfold.version import __version__

SCHEMA_VERSION = 1
_TOOL = {"name": "onnx_bnfold", "version": __version__}
_PACKAGES = ("numpy", "onnx", "onnxruntime")


@dataclass(frozen=True)
class File:
    """A file of a model.

    Attributes:
        name: without its folder.
        bytes: its length.
        sha256: as ``sha256sum`` prints it.
    """

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class FoldReport:
    """A fold, or the fold that a dry run has planned.

    Attributes:
        tool: name and version of this package.
        packages: name → version of Python and of the packages used; None if not installed.
        options: the attributes of ``Options``.
        source: the model's file, then its data files.
        result: the folded model's file, then its data file; None for a dry run.
        bytes_before: length of the files of ``source``.
        bytes_after: length of the files of ``result``; None for a dry run.
        copied_bytes: bytes of weights that were copied because several nodes read them.
        inlined_calls: number of calls of local functions that were inlined.
        open_choices: how many more BatchNormalizations could go at most if others stayed.
        written: whether the folded model was written; False if a gate did not hold.
        input_shapes: name → shape that the figures are counted for; None for an unknown size.
        before, after: figures of the model.
        batch_normalizations: one record per BatchNormalization, in the order of the graphs.
        affine_nodes: one record per Mul, Add, Sub or Div by a constant that was folded as well.
        kept_affine_nodes: the same of those that hold a value per channel (decomposed
            BatchNormalizations), that a fold was tried for and that stay.
        changes: the nodes and initializers that differ, by name.
        layers: the weights of every node that took a scale or a shift.
        rescaled_tensors: tensors that remain in the model with other values.
        int8_loss: what their ranges are expected to cost in int8, in dB; None if that is not much.
        coarser_in_float16: whether rounding constants to float16 is expected to cost far more than
            in the original.
        check: the record of the check, if one ran.
        schema_version: of the JSON.
    """

    tool: dict[str, str]
    packages: dict[str, str | None]
    options: dict[str, str | float | tuple[str, ...] | None]
    source: tuple[File, ...]
    result: tuple[File, ...] | None
    bytes_before: int
    bytes_after: int | None
    copied_bytes: int
    inlined_calls: int
    open_choices: int
    written: bool
    input_shapes: dict[str, tuple[int | None, ...]]
    before: Figures
    after: Figures
    batch_normalizations: tuple[NodeRecord, ...]
    affine_nodes: tuple[NodeRecord, ...]
    kept_affine_nodes: tuple[NodeRecord, ...]
    changes: Changes
    layers: tuple[Layer, ...]
    rescaled_tensors: tuple[Rescaled, ...]
    int8_loss: float | None
    coarser_in_float16: bool
    check: CheckResult | None
    schema_version: int = SCHEMA_VERSION

    def with_result(self, paths: Sequence[Path]) -> FoldReport:
        """Return the report of a fold whose result is in some files."""
        result = _files(paths)
        return dataclasses.replace(self, result=result, bytes_after=_length(result))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        nodes = ("batch_normalizations", "affine_nodes", "kept_affine_nodes")
        none: dict[str, Any] = dict.fromkeys(nodes, ())
        rest = dataclasses.replace(self, **none, check=None)
        return {
            "schema_version": self.schema_version,
            **dataclasses.asdict(rest),
            **{name: tuple(r.to_dict() for r in getattr(self, name)) for name in nodes},
            "check": None if self.check is None else self.check.to_dict(),
        }


@dataclass(frozen=True)
class CheckReport(CheckResult):
    """A check of two files, and what they and the packages were.

    Attributes:
        tool: name and version of this package.
        packages: name → version of Python and of the packages used; None if not installed.
        original_files, folded_files: the model's file, then its data files.
        changes: the nodes and initializers that differ, by name.
    """

    tool: dict[str, str] = field(kw_only=True)
    packages: dict[str, str | None] = field(kw_only=True)
    original_files: tuple[File, ...] = field(kw_only=True)
    folded_files: tuple[File, ...] = field(kw_only=True)
    changes: Changes = field(kw_only=True)


def check_report(result: CheckResult) -> CheckReport:
    """Return the report of a check whose models are files."""
    original, folded = map(Path, (result.original, result.folded))
    return CheckReport(
        **{each.name: getattr(result, each.name) for each in dataclasses.fields(result)},
        tool=_TOOL,
        packages=_packages(),
        original_files=_files(files(original, data_files_of(original))),
        folded_files=_files(files(folded, data_files_of(folded))),
        changes=changes_between(original, folded),
    )


def fold_report(outcome: Outcome, sizes: Sizes, check: CheckResult | None) -> FoldReport:
    """Return the report of a fold.

    Args:
        outcome: the fold; its source is still open.
        sizes: name of an input → shape, or name of a symbolic dimension → one size.
        check: the record of its check, if one ran.

    Returns:
        The report; its ``written`` is False, as the model is not in its place yet.
    """
    pipeline, told = outcome.pipeline, outcome.report
    layers, places = layers_of([*pipeline.rounds])
    merged = merged_records(pipeline.merged, pipeline.unmerged)
    never = never_run_records(pipeline.never_run)
    records = [*merged, *never, *records_of(pipeline, pipeline.recorded, places)]
    source = _files(outcome.source_files)
    result = None if outcome.path is None else _files(outcome.files)
    return FoldReport(
        tool=_TOOL,
        packages=_packages(),
        options=dataclasses.asdict(pipeline.options),
        source=source,
        result=result,
        bytes_before=_length(source),
        bytes_after=None if result is None else _length(result),
        copied_bytes=told.copied_bytes,
        inlined_calls=told.inlined_calls,
        open_choices=told.open_choices,
        written=False,
        input_shapes=input_shapes(outcome.original, sizes),
        before=figures_of(outcome.original, pipeline.read, sizes),
        after=figures_of(outcome.folded, pipeline.read, sizes),
        batch_normalizations=tuple(r for r in records if r.record.is_norm),
        affine_nodes=tuple(r for r in records if not r.record.is_norm),
        kept_affine_nodes=tuple(records_of(pipeline, pipeline.decomposed_bns, places)),
        changes=changes_of(outcome.original, outcome.folded, outcome.computed),
        layers=layers,
        rescaled_tensors=told.rescaled,
        int8_loss=told.int8_loss,
        coarser_in_float16=told.coarser_in_float16,
        check=check,
    )


def _packages() -> dict[str, str | None]:
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _files(paths: Sequence[Path]) -> tuple[File, ...]:
    return tuple(File(path.name, path.stat().st_size, sha256_of(path)) for path in paths)


def _length(files: Sequence[File]) -> int:
    return sum(file.bytes for file in files)
