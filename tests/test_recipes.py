"""The recipes in docs/ do what they say: their shell lines are run."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import bn, conv, count, join, model_of, node

yaml = pytest.importorskip("yaml")

DOCS = Path(__file__).parent.parent / "docs"
X = {"x": ("N", 3, 8, 8)}


@pytest.fixture
def folder(tmp_path, rng) -> Path:
    """A checkout with `model.onnx`, whose BNs all go, and `test.npz`."""
    parts = join(
        conv("x", "c", (8, 3, 3, 3), rng),
        bn("c", "b", 8, rng),
        node("Relu", ["b"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]),
        node("Flatten", ["p"], ["y"]),
    )
    onnx.save(
        model_of(parts.nodes, X, {"y": ("N", 8)}, parts.initializers), tmp_path / "model.onnx"
    )
    images = rng.standard_normal((50, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "test.npz", x=images, labels=rng.integers(0, 8, 50))
    return tmp_path


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line as GitHub does, with this Python as `python`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-e", "-c", line]
    environment = os.environ | {"PATH": path}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def lines() -> list[str]:
    steps = yaml.safe_load((DOCS / "ci-example.yml").read_text())["jobs"]["fold"]["steps"]
    return [step["run"] for step in steps if "run" in step]


def artifacts() -> list[str]:
    steps = yaml.safe_load((DOCS / "ci-example.yml").read_text())["jobs"]["fold"]["steps"]
    return steps[-1]["with"]["path"].split()


def test_the_job_installs_the_package():
    """From its repository: the package is on no index."""
    assert lines()[0] == 'python -m pip install "git+$ONNX_BNFOLD"'


def test_the_job_on_a_model_that_folds(folder):
    for line in lines()[1:]:
        done = shell(line, folder)
        assert done.returncode == 0, done.stderr
    assert count(onnx.load(folder / "model.folded.onnx")) == 0
    assert all((folder / name).exists() for name in artifacts())


def test_the_job_on_a_model_that_gets_worse(folder):
    """A gate that cannot hold: labels that make the folded model's accuracy drop are not to be
    had, so the smallest agreement is asked to be more than all."""
    line = lines()[1].replace("0.9999", "1.5")
    done = shell(line, folder)
    assert done.returncode == 1
    assert "agreement" in done.stderr
    assert not (folder / "model.folded.onnx").exists()
    assert (folder / "fold.html").exists()


def test_the_job_on_a_model_of_which_something_stays(folder, rng):
    parts = join(node("Sigmoid", ["x"], ["s"]), bn("s", "y", 3, rng))
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    onnx.save(model, folder / "model.folded.onnx")
    done = shell(lines()[2], folder)
    assert done.returncode == 1
    assert "--require-all" in done.stderr


def test_the_hook(folder):
    (hook,) = yaml.safe_load((DOCS / "pre-commit-example.yml").read_text())["repos"][0]["hooks"]
    assert shell(f"{hook['entry']} model.onnx", folder).returncode == 1
    assert shell(lines()[1], folder).returncode == 0
    done = shell(f"{hook['entry']} model.folded.onnx model.folded.onnx", folder)
    assert done.returncode == 0, done.stderr
    assert shell(f"{hook['entry']} model.folded.onnx model.onnx", folder).returncode == 1
    done = shell(f"{hook['entry']} .", folder)
    assert done.returncode == 1
    assert "failed  model.onnx: --require-folded" in done.stderr
