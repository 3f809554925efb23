"""The steps of the GitHub Action in action.yml, and the hook in .pre-commit-hooks.yaml."""

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from support import bn, conv, count, join, model_of, node

import onnx_bnfold
from onnx_bnfold.hook import main as hook

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent
X = {"x": ("N", 3, 8, 8)}


@pytest.fixture
def folder(tmp_path, rng) -> Path:
    """A checkout with a model all of whose BNs go, and with one of which one stays."""
    goes = join(conv("x", "c", (8, 3, 3, 3), rng), bn("c", "y", 8, rng))
    stays = join(node("Sigmoid", ["x"], ["s"]), bn("s", "y", 3, rng))
    for name, parts in (("model", goes), ("stays", stays)):
        model = model_of(parts.nodes, X, ["y"], parts.initializers)
        onnx.save(model, tmp_path / f"{name}.onnx")
    onnx_bnfold.fold_file(tmp_path / "model.onnx", tmp_path / "folded.onnx")
    return tmp_path


def step(name: str) -> dict:
    steps = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]
    (found,) = [each for each in steps if each["name"] == name]
    return found


def fold(folder: Path, **given: str) -> tuple[int, str, Path]:
    """Run the step that folds, as the runner does; return its code, the summary, the reports."""
    described = yaml.safe_load((ROOT / "action.yml").read_text())["inputs"]
    values = {name: each.get("default", "") for name, each in described.items()} | given
    reports = folder / "temp" / "onnx-bnfold"
    summary = folder / "summary.md"
    environment = os.environ | {
        "MODEL": values["model"],
        "OUTPUT": values["output"],
        "OPTIONS": values["options"],
        "REPORTS": str(reports),
        "GITHUB_STEP_SUMMARY": str(summary),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step("Fold")["run"]]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    text = summary.read_text() if summary.exists() else ""
    return done.returncode, text, reports


def test_a_model_is_folded_and_reported(folder):
    code, summary, reports = fold(folder, model="model.onnx", output="out.onnx", options="--check")
    assert code == 0, summary
    assert count(onnx.load(folder / "out.onnx")) == 0
    assert {path.name for path in reports.iterdir()} == {"fold.html", "fold.json", "log.txt"}
    assert "1 of 1 BatchNormalization folded" in summary
    assert all(line.startswith("    ") for line in summary.splitlines()[2:] if line)


def test_without_an_output_nothing_is_written(folder):
    before = {path.name for path in folder.iterdir()}
    code, summary, _ = fold(folder, model="model.onnx")
    assert code == 0
    assert "exit code 0" in summary
    assert {path.name for path in folder.iterdir()} - before == {"temp", "summary.md"}


def test_a_gate_that_does_not_hold_keeps_the_reports(folder):
    code, summary, reports = fold(
        folder, model="stays.onnx", output="out.onnx", options="--require-all"
    )
    assert code == 1
    assert "--require-all" in summary
    assert not (folder / "out.onnx").exists()
    assert not json.loads((reports / "fold.json").read_text())["written"]


def test_options_are_words_of_a_shell(folder):
    code, _, reports = fold(folder, model="model.onnx", options="--keep 'n_y|no such name'")
    assert code == 0
    options = json.loads((reports / "fold.json").read_text())["options"]
    assert options["keep"] == ["n_y|no such name"]


def test_options_that_are_no_words_of_a_shell_are_not_left_out(folder):
    options = "--require-all --keep 'n_y"
    code, _, _ = fold(folder, model="stays.onnx", output="out.onnx", options=options)
    assert code != 0
    assert not (folder / "out.onnx").exists()


def test_what_a_caller_gives_is_never_part_of_a_script():
    """It would be run by the shell."""
    steps = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]
    assert not [each for each in steps if "${{" in each.get("run", "")]
    assert step("Fold")["env"].keys() == {"MODEL", "OUTPUT", "OPTIONS", "REPORTS"}
    kept = step("Keep the reports")
    assert kept["if"] == "always()"
    assert kept["with"]["path"] == step("Fold")["env"]["REPORTS"]


def test_the_hook_tells_of_every_bad_model(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "pointer.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")
    onnx_bnfold.fold_file("model.onnx", "other.onnx", onnx_bnfold.Options(keep=("n_y",)))
    assert hook(["folded.onnx", "stays.onnx"]) == 0
    assert hook(["model.onnx", "folded.onnx", "other.onnx"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1] for line in said] == [" model.onnx", " other.onnx"]
    assert hook(["pointer.onnx", "model.onnx"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert hook(["--require-all", "folded.onnx", "stays.onnx"]) == 1
    assert hook([]) == 0


def test_the_entry_of_the_hook(folder):
    (described,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert described["language"] == "python"
    program, *words = described["entry"].split()
    assert program == "python"
    command = [sys.executable, *words, "model.onnx", "folded.onnx"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, cwd=folder, env=environment, check=False).returncode == 1
