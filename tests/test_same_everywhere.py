"""The same bytes whatever runs the fold, and wherever the files are.

BNFOLD_PYTHONS names further interpreters that have the dependencies, separated as in PATH.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import IMAGE, Net
from onnx import ModelProto
from support import bn, conv, join, model_of, node

import onnx_bnfold

ROOT = Path(__file__).parents[1]
SURROUNDINGS: dict[str, dict[str, str]] = {
    "plain": {},
    "hash seed 1": {"PYTHONHASHSEED": "1"},
    "hash seed 2": {"PYTHONHASHSEED": "2"},
    "C locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "Turkish": {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"},
    "one thread": {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    "seven threads": {"OMP_NUM_THREADS": "7", "OPENBLAS_NUM_THREADS": "7"},
    "optimised": {"PYTHONOPTIMIZE": "2"},
}


def write_model(folder: Path, *, external: bool) -> Path:
    """A padded Conv behind a BN, a Concat, two readers of one tensor, names beyond ASCII."""
    rng = np.random.default_rng(0)
    parts = join(
        conv("x", "größe", (8, 4, 3, 3), rng, pads=[1] * 4),
        bn("größe", "a", 8, rng, positive=True),
        node("Relu", ["a"], ["b"]), conv("b", "c", (8, 8, 1, 1), rng), bn("c", "d", 8, rng),
        conv("b", "e", (8, 8, 1, 1), rng, bias=False), node("Concat", ["d", "e"], ["f"], axis=1),
        bn("f", "g", 16, rng), conv("g", "y", (4, 16, 1, 1), rng),
    )  # fmt: skip
    model = model_of(parts.nodes, {"x": ["N", 4, 8, 8]}, ["y"], parts.initializers)
    path = folder / "model.onnx"
    how = {"save_as_external_data": True, "location": "model.bin", "size_threshold": 0}
    onnx.save(model, path, **(how if external else {}))
    return path


def fold(source: Path, target: Path, python: str = sys.executable, **environment: str) -> None:
    command = [python, "-m", "onnx_bnfold", str(source), "-o", str(target), "--quiet"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def pythons() -> list[str]:
    return [sys.executable, *filter(None, os.environ.get("BNFOLD_PYTHONS", "").split(os.pathsep))]


@pytest.mark.parametrize("external", [False, True])
def test_same_bytes(tmp_path, external):
    source = write_model(tmp_path, external=external)
    found = set()
    for python in pythons():
        for number, environment in enumerate(SURROUNDINGS.values()):
            folder = tmp_path / f"{len(found)}_{number}"
            folder.mkdir(exist_ok=True)
            fold(source, folder / "out.onnx", python, **environment)
            found.add(tuple(p.read_bytes() for p in sorted(folder.iterdir())))
    assert len(found) == 1


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize(
    "folder", ["with spaces", "Größe-模型-🧪", "/".join(["n" * 200] * 3), "-o", "%s{}$HOME'\""]
)
def test_paths(tmp_path, folder, external):
    home = tmp_path / folder
    home.mkdir(parents=True)
    source = write_model(home, external=external)
    fold(source, home / "out put.onnx")
    left = onnx.load(home / "out put.onnx")
    assert [n.op_type for n in left.graph.node].count("BatchNormalization") == 0


@pytest.mark.parametrize("external", [False, True])
def test_the_longest_name(tmp_path, external):
    """Temporary files must not be longer than the names a folder takes."""
    source = write_model(tmp_path, external=external)
    rest = len(".onnx") + external * len(f".{0:016}.data")
    fold(source, tmp_path / ("o" * (255 - rest) + ".onnx"))


@pytest.mark.parametrize("external", [False, True])
def test_the_folder_of_the_input_is_only_read(tmp_path, external):
    home = tmp_path / "home"
    home.mkdir()
    source = write_model(home, external=external)
    home.chmod(0o555)
    try:
        before = home.stat().st_mtime_ns  # changes with every file made or removed
        fold(source, tmp_path / "out.onnx")
        assert home.stat().st_mtime_ns == before
    finally:
        home.chmod(0o755)


def odd_bytes(model: ModelProto) -> bytes:
    """The bytes of a model, its last field first."""
    first, last = ModelProto(), ModelProto()
    first.CopyFrom(model)
    first.ClearField("opset_import")
    last.opset_import.extend(model.opset_import)
    return last.SerializeToString() + first.SerializeToString()


@pytest.mark.parametrize("folds", [False, True])
def test_a_model_in_which_nothing_changes_keeps_its_bytes(tmp_path, folds):
    net = Net(IMAGE)
    y = net.op("Sigmoid", net.conv("x", 64, 5))
    model = net.model(net.op("Sigmoid", net.bn(net.conv(y, 4)) if folds else y))
    (tmp_path / "m.onnx").write_bytes(odd_bytes(model))
    onnx_bnfold.fold_file(tmp_path / "m.onnx", tmp_path / "out.onnx")
    same = (tmp_path / "m.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()
    assert same is not folds


def test_nodes_that_are_sorted_do_not_keep_theirs(tmp_path):
    net = Net(IMAGE)
    model = net.model(net.op("Sigmoid", net.op("Tanh", "x")))
    nodes = [*model.graph.node][::-1]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    onnx_bnfold.fold_file(tmp_path / "m.onnx", tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx")
    assert [node.op_type for node in written.graph.node] == ["Tanh", "Sigmoid"]
