"""The recipes in docs/ do what they say: their shell lines are run."""

import os
import re
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


# --- what needs packages that the tests do not bring along ---------------------------------------


def snippet(language: str, named: str) -> str:
    """The only block of a language in recipes.md that has a text in it."""
    page = (DOCS / "recipes.md").read_text()
    found = re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (block,) = [block for block in found if named in block]
    return block


def python(code: str, folder: Path) -> str:
    """Run a snippet in a folder, with this checkout, and return the last line that it prints."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return (done.stdout.splitlines() or [""])[-1]


ALL = r"([1-9]\d*) of \1 BatchNormalization folded"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "name", "said"),
    [
        ("timm", "densenet121.onnx", ALL),
        ("ultralytics", "yolov8n.folded.onnx", "there is no BatchNormalization in this model"),
        ("optimum.exporters.onnx", "levit/model.folded.onnx", ALL),
    ],
    ids=["timm", "ultralytics", "optimum"],
)
def test_after_an_exporter(package, name, said, tmp_path):
    """The very lines of the page, with the real package."""
    pytest.importorskip(package)
    assert re.match(said, python(snippet("python", package), tmp_path))
    assert count(onnx.load(tmp_path / name)) == 0


PADDLE = """
import paddle

network = paddle.vision.models.mobilenet_v3_small()
network.eval()
spec = [paddle.static.InputSpec([1, 3, 64, 64], "float32", "image")]
paddle.jit.save(network, "inference/inference", spec)
"""


@pytest.mark.slow
def test_after_paddle(tmp_path):
    """A network as paddle's export leaves it, converted by the line of the page."""
    pytest.importorskip("paddle")
    pytest.importorskip("paddle2onnx")
    python(PADDLE, tmp_path)
    for line in snippet("console", "paddle2onnx").splitlines():
        done = shell(line.removeprefix("$ "), tmp_path)
        assert done.returncode == 0, done.stderr
    before, after = (onnx.load(tmp_path / f"model{end}.onnx") for end in ("", ".folded"))
    assert (count(before), count(after)) == (34, 0)
