"""Callers get types: mypy finds the package as an editable install has it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

mypy = pytest.importorskip("mypy.api")

ROOT = Path(__file__).parent.parent
CALLER = """
import onnx
import onnx_bnfold
from onnx_bnfold.check import check

folded, report = onnx_bnfold.fold("model.onnx", onnx_bnfold.Options(bn_free=True))
reveal_type(folded)
reveal_type(report)
reveal_type(onnx_bnfold.plan(b"").kept[0].name)
check(onnx.load("model.onnx"), folded)
onnx_bnfold.fold(3)
onnx_bnfold.Options(profile="int-8")
"""


@pytest.mark.slow
def test_a_caller_is_checked(tmp_path):
    (tmp_path / "caller.py").write_text(CALLER)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "c", "caller.py"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    found = [re.sub(r"^caller\.py:(\d+): ", r"\1 ", line) for line in done.stdout.splitlines()]
    assert found[:3] == [
        '7 note: Revealed type is "onnx.onnx_ml_pb2.ModelProto"',
        '8 note: Revealed type is "onnx_bnfold.report.Report"',
        '9 note: Revealed type is "str"',
    ]
    assert [line.split()[0] for line in found[3:-1]] == ["11", "12"], done.stdout


def test_an_editable_install_puts_the_folder_on_the_path():
    """A type checker cannot follow the import hook that setuptools installs otherwise."""
    text = (ROOT / "pyproject.toml").read_text()
    assert 'package-dir = { "" = "." }' in text
    assert (ROOT / "onnx_bnfold" / "py.typed").exists()
