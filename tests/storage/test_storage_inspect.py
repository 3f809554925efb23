"""What sees a written model before it gets its place."""

import os
from pathlib import Path

import onnx
import pytest
from support import bn, conv, join, model_of, run

from onnx_bnfold import fold_file
from onnx_bnfold.errors import CheckFailed

X = {"x": (1, 3, 5, 6)}
KINDS = {"inside": False, "external data": True}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def source(request, tmp_path, rng) -> Path:
    parts = join(conv("x", "c", (64, 3, 3, 3), rng), bn("c", "y", 64, rng))
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    path = tmp_path / "in" / "m.onnx"
    path.parent.mkdir()
    onnx.save(model, path, save_as_external_data=request.param, size_threshold=0, location="w")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refuse(outcome) -> None:
    raise CheckFailed("no")


def test_it_sees_the_files_that_get_their_place(source, tmp_path):
    seen = {}
    target = tmp_path / "out" / "f.onnx"
    target.parent.mkdir()

    def look(outcome) -> None:
        seen.update(contents(outcome.path.parent))
        assert not target.exists()
        assert outcome.path.parent.parent == target.parent
        onnx.checker.check_model(outcome.path, full_check=True)

    fold_file(source, target, inspect=look)
    assert contents(target.parent) == seen
    assert run(onnx.load(target), {"x": onnx.numpy_helper.to_array(_ones())})


def _ones() -> onnx.TensorProto:
    return onnx.helper.make_tensor("x", onnx.TensorProto.FLOAT, (1, 3, 5, 6), [1.0] * 90)


def test_no_file_stays_open(source, tmp_path):
    fold_file(source, tmp_path / "f.onnx", inspect=lambda outcome: None)
    before = os.listdir("/proc/self/fd")
    fold_file(source, tmp_path / "f.onnx", inspect=lambda outcome: None)
    assert os.listdir("/proc/self/fd") == before


def test_what_it_refuses_leaves_nothing(source, tmp_path):
    target = tmp_path / "out" / "f.onnx"
    target.parent.mkdir()
    with pytest.raises(CheckFailed):
        fold_file(source, target, inspect=refuse)
    assert not contents(target.parent)


def test_a_report_that_fails_leaves_nothing(source, tmp_path, monkeypatch):
    target = tmp_path / "out" / "f.onnx"
    target.parent.mkdir()
    monkeypatch.setattr("onnx_bnfold.api.report_of", refuse)
    with pytest.raises(TypeError):
        fold_file(source, target)
    assert not contents(target.parent)


def test_what_it_refuses_leaves_the_old_output(source, tmp_path):
    target = tmp_path / "out" / "f.onnx"
    target.parent.mkdir()
    fold_file(source, target)
    before = contents(target.parent)
    # The same graph with other weights: an external output of it has the same file names.
    other = onnx.load(source)
    for tensor in other.graph.initializer:
        if tensor.name == "c_W":
            tensor.raw_data = bytes(len(tensor.raw_data))
    external = len(before) > 1
    onnx.save(other, source, save_as_external_data=external, size_threshold=0, location="w")
    with pytest.raises(CheckFailed):
        fold_file(source, target, inspect=refuse)
    assert contents(target.parent) == before
    fold_file(source, target, inspect=lambda outcome: None)
    assert contents(target.parent) != before
