"""What the tests of the reports share: the report of a fold, and a model with hostile names."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto
from support import bn, conv, join, model_of, node

from onnx_bnfold import Options, fold_file
from onnx_bnfold.check import CheckOptions, CheckResult, check
from onnx_bnfold.reports import FoldReport, fold_report

X = {"x": ("N", 3, 5, 6)}
SCHEMA = json.loads(files("onnx_bnfold.reports").joinpath("schema.json").read_text())

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    "\"><b onmouseover='alert(3)'>",
    "'; alert(4); '",
    "\x1b[31mred\x1b[0m\x07",
    "a\u202eb\u2066c\u200f",
    "]]><!-- ${title} $title --> {{7*7}}",
    "&lt;i&gt;&#x27;",
]


def half(rng) -> ModelProto:
    """A model with a BN that goes and one that stays, scores (N, 4)."""
    parts = join(
        conv("x", "c", (4, 3, 3, 3), rng),
        bn("c", "b", 4, rng),
        node("Sigmoid", ["b"], ["s"]),
        bn("s", "t", 4, rng),
        node("GlobalAveragePool", ["t"], ["p"]),
        node("Flatten", ["p"], ["y"]),
    )
    return model_of(parts.nodes, X, {"y": ("N", 4)}, parts.initializers)


def hostile(rng) -> ModelProto:
    """A chain of Conv, BN and Sigmoid in which every name is hostile."""
    parts, last = [], "x"
    for i, name in enumerate(HOSTILE):
        # The first BN is direct, the second stays behind a Sigmoid.
        parts += [
            conv(last, f"{name}c{i}", (3, 3, 1, 1), rng, name=f"{name}conv{i}"),
            bn(f"{name}c{i}", f"{name}b{i}", 3, rng, name=f"{name}bn{i}"),
            node("Sigmoid", [f"{name}b{i}"], [f"{name}s{i}"], name=f"{name}sig{i}"),
        ]
        last = f"{name}s{i}"
    parts.append(bn(last, f"{HOSTILE[0]}y", 3, rng, name=f"{HOSTILE[1]}kept"))
    whole = join(*parts)
    return model_of(whole.nodes, X, [f"{HOSTILE[0]}y"], whole.initializers)


def report_of(
    model: ModelProto,
    folder: Path,
    options: Options | None = None,
    checked: CheckOptions | None = None,
    *,
    sizes: dict[str, tuple[int, ...]] | None = None,
    **save: Any,
) -> FoldReport:
    """The report of a fold from `folder / m.onnx` to `folder / f.onnx`."""
    found: list[FoldReport] = []

    def look(outcome) -> None:
        result: CheckResult | None = None
        if checked is not None:
            changes = outcome.pipeline.changes()
            result = check(outcome.source, outcome.path, checked, changes=changes)
        found.append(fold_report(outcome, sizes or {}, result))

    onnx.save(model, folder / "m.onnx", **save)
    fold_file(folder / "m.onnx", folder / "f.onnx", options or Options(), inspect=look)
    return found[0]
