"""The table of operators is the only place that knows an operator by its name."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import onnx
import pytest
from graphs import Net
from support import needs_kernels_as_read

import onnx_bnfold
from onnx_bnfold.check.rescaled import rescaled
from onnx_bnfold.cli.main import main
from onnx_bnfold.operators import batchnorm, by_name
from onnx_bnfold.operators.entries import UNKNOWN, Absorbing
from onnx_bnfold.operators.late import late
from onnx_bnfold.operators.layouts import LINEAR_LAYERS
from onnx_bnfold.operators.table import (
    NORMALIZATIONS,
    OPERATORS,
    RECURRENT,
    entry_of,
    every_entry,
)
from onnx_bnfold.operators.transparent import RULES
from onnx_bnfold.storage import ModelFile

PACKAGE = Path(onnx_bnfold.__file__).parent
ENTRIES = every_entry()
# Where the entries stand.
FAMILIES = {
    "operators/batchnorm.py",
    "operators/layouts.py",
    "operators/table.py",
    "operators/transparent.py",
    *(f"operators/by_name/{operator.lower()}.py" for operator in by_name.every_entry()),
}
# They list operators without an entry. One that has an entry now is asked for that.
OF_OTHERS = {"reports/cost.py", "reports/depth.py"}
# Modules that name operators that have an entry, and why they may.
EXCEPTIONS = {
    "check/reference.py": "what onnx's reference evaluator gets wrong",
    "check/rescaled.py": "it makes a Mul",
    "check/weight_uses.py": "what hands a weight on in front of a layer",
    "model/determinism.py": "which evaluator computes what, and what of a node alone matters",
    "planning/equalize.py": "what onnxruntime quantises together with the node in front",
    "model/inference_hints.py": "types and ranks where onnx's shape inference is not asked",
    "rewriting/parallel_branches.py": "it looks for Convs that meet in an Add or a Sum",
    "model/misread.py": "what onnx's shape inference gets wrong",
    "model/suspects.py": "it makes a Reshape to an unknown shape",
    "operators/clamps.py": "it says what a clamp is written with",
    "operators/fused_patterns.py": "what onnxruntime runs as one operator",
    "operators/data_movement.py": "the scales of a Resize are another input in an old version",
    "planning/value_ranges.py": "what is known of the spread of an operator's output",
    "rewriting/graph_editor.py": "it makes a Gemm of a product of matrices, and an Add",
    "rewriting/constant_ifs.py": "writes an Identity for what a branch hands on",
    "rewriting/inlining.py": "it makes an Identity",
    "model/box_rules.py": "which parts of constants a part of a computed one is made of",
    "model/inference_guard.py": "what onnx's shape inference gets wrong of a Slice",
    "model/numpy_nodes.py": "what one call of numpy computes of constants",
    "model/reshaped_sizes.py": "what onnx's shape inference leaves open of a Reshape",
    "model/shape_vectors.py": "how sizes are computed from sizes",
    "rewriting/standalone.py": "it makes a Mul, an Add, a Conv",
}


def modules() -> list[str]:
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def named(module: str) -> set[str]:
    """The operators of the table that a module names in a string of its own."""
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    strings = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {value for value in strings if isinstance(value, str) and value in ENTRIES}


def cells(rule: object) -> list[object]:
    """Return what a rule was made of."""
    return [cell.cell_contents for cell in getattr(rule, "__closure__", None) or ()]


@pytest.mark.parametrize("module", sorted({*modules()} - FAMILIES - OF_OTHERS - EXCEPTIONS.keys()))
def test_no_operator_is_asked_for_by_name(module):
    assert not named(module), (
        f"{module} names operators that have an entry: ask the entry; a module that has to name "
        "some is in EXCEPTIONS"
    )


@pytest.mark.parametrize("module", sorted(FAMILIES | EXCEPTIONS.keys()))
def test_the_exceptions_are_needed(module):
    assert named(module)


def test_every_operator_has_one_entry():
    families = [*RULES, *LINEAR_LAYERS, *NORMALIZATIONS, *RECURRENT, batchnorm.OPERATOR]
    assert sorted(families) == sorted(OPERATORS)
    assert OPERATORS.keys().isdisjoint(by_name.every_entry())
    assert len(ENTRIES) == len(OPERATORS) + len(by_name.every_entry())
    assert entry_of("NoSuchOperator") is entry_of(None) is UNKNOWN


@pytest.mark.parametrize("operator", by_name.every_entry())
def test_a_file_is_found_by_the_name_of_its_operator(operator):
    assert entry_of(operator) is ENTRIES[operator]


@pytest.mark.parametrize("name", ["", "einsum", "EINSUM", "by_name.einsum", "__init__", "..linear"])
def test_what_is_no_name_of_an_operator_finds_no_file(name):
    assert entry_of(name) is UNKNOWN


def test_a_file_of_an_operator_is_imported_for_its_nodes_alone():
    program = (
        "import sys; from onnx_bnfold.operators.table import entry_of; entry_of('Trilu');"
        "print(*(name for name in sys.modules if '.by_name.' in name))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["onnx_bnfold.operators.by_name.trilu"]


LATE = sorted(
    {
        found.args
        for entry in ENTRIES.values()
        for found in (*vars(entry).values(), *cells(getattr(entry, "rule", None)))
        if isinstance(found, partial) and found.func is late("", "").func
    }
)


@pytest.mark.parametrize(("module", "name"), LATE)
def test_what_is_imported_late_is_there(module, name):
    assert callable(getattr(import_module(f"onnx_bnfold.operators.{module}"), name))


@pytest.mark.parametrize("op", [op for op, e in ENTRIES.items() if isinstance(e, Absorbing)])
def test_the_weights_of_an_absorbing_operator_are_told(op):
    entry = ENTRIES[op]
    assert isinstance(entry, Absorbing)
    assert entry.weights
    assert {slot for choice in entry.linear_in for slot in choice} <= entry.weights


def behind_einsum(net: Net) -> str:
    return net.op("Einsum", "x", net.random(4, 3), equation="nchw,oc->nohw")


def behind_deform_conv(net: Net) -> str:
    net.opset = 22
    return net.op("DeformConv", "x", net.random(4, 3, 1, 1), net.random(2, 2, 4, 5))


def behind_instance_normalization(net: Net) -> str:
    return net.op("InstanceNormalization", net.conv("x", 4), net.random(4), net.random(4))


def behind_group_normalization(net: Net) -> str:
    net.opset = 21
    y = net.conv("x", 4)
    return net.op("GroupNormalization", y, net.random(4), net.random(4), num_groups=2)


def behind_layer_normalization(net: Net) -> str:
    rows = net.op("Transpose", net.conv("x", 4), perm=[0, 2, 3, 1])
    y = net.op("LayerNormalization", rows, net.random(4), net.random(4))
    return net.op("Transpose", y, perm=[0, 3, 1, 2])


def behind_rms_normalization(net: Net) -> str:
    net.opset = 23
    rows = net.op("Transpose", net.conv("x", 4), perm=[0, 2, 3, 1])
    return net.op("Transpose", net.op("RMSNormalization", rows, net.random(4)), perm=[0, 3, 1, 2])


def behind_causal_conv(net: Net) -> str:
    net.opset = 27
    line = net.op(
        "Reshape", net.op("Concat", "x", net.random(2, 1, 4, 5), axis=1), net.ints(0, 4, -1)
    )
    return net.op("CausalConvWithState", line, net.random(4, 1, 3), outputs=2)[0]


@pytest.mark.parametrize(
    ("build", "operator"),
    [pytest.param(behind_causal_conv, "CausalConvWithState", marks=needs_kernels_as_read),
     (behind_einsum, "Einsum"),
     pytest.param(behind_deform_conv, "DeformConv", marks=needs_kernels_as_read),
     (behind_group_normalization, "GroupNormalization"),
     (behind_instance_normalization, "InstanceNormalization"),
     (behind_layer_normalization, "LayerNormalization"),
     pytest.param(
         behind_rms_normalization, "RMSNormalization", marks=needs_kernels_as_read)],
)  # fmt: skip
def test_report_and_check_know_what_absorbs(build, operator, tmp_path):
    """Folded from file to file, with a report of weights and cost, and checked."""
    net = Net((2, 3, 4, 5))
    norm = net.bn(build(net), channels=4, shift=operator != "RMSNormalization")
    onnx.save(net.model(norm), tmp_path / "model.onnx")
    files = [str(tmp_path / name) for name in ("model.onnx", "folded.onnx", "report.json")]
    assert main([files[0], "-o", files[1], "--check", "--require-all", "--report", files[2]]) == 0
    found = json.loads(Path(files[2]).read_text(encoding="utf-8"))
    assert not found["check"]["failures"]
    assert [layer["op"] for layer in found["layers"]] == [operator]
    before, after = found["before"], found["after"]
    assert before["unknown"] is after["unknown"] is None
    assert before["multiply_adds"] - after["multiply_adds"] == 2 * 4 * 20  # those of the norm
    assert before["multiplicative_depth"] - after["multiplicative_depth"] == 1


def test_the_check_moves_the_weights_of_what_absorbs(tmp_path):
    """What is measured as rounding noise is that of every absorbing operator's weights."""
    net = Net((2, 3, 4, 5))
    onnx.save(net.model(behind_einsum(net)), tmp_path / "model.onnx")
    with ModelFile(tmp_path / "model.onnx") as file:
        found = rescaled(file)
    assert [list(group.weights) for group in found.groups] == [list(found.weights)]
    assert len(found.weights) == 1
