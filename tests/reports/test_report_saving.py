"""A report writes itself: the page and the JSON that the command line writes."""

import copy
import json
import pickle
from pathlib import Path

import onnx
import pytest
from reporting import SCHEMA
from support import half_folding, saved_external

import onnx_bnfold
from onnx_bnfold import Options, UsageError
from onnx_bnfold.cli.main import main
from onnx_bnfold.reports import write

X = {"x": ("N", 3, 8, 8)}
jsonschema = pytest.importorskip("jsonschema")


@pytest.fixture
def model(rng) -> onnx.ModelProto:
    return half_folding(rng, 48, X)


@pytest.fixture
def path(model, tmp_path) -> Path:
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def written(report, path: Path) -> dict:
    report.save(path)
    data = json.loads(path.read_text())
    jsonschema.validate(data, SCHEMA)
    return data


def test_of_a_file_it_is_what_the_command_writes(path, tmp_path):
    report = onnx_bnfold.fold_file(path, tmp_path / "folded.onnx")
    for ending in ("json", "html"):
        report.save(tmp_path / f"mine.{ending}")
        command = [str(path), "-o", str(tmp_path / "folded.onnx"), "-q"]
        assert main([*command, "--report", str(tmp_path / f"theirs.{ending}")]) == 0
        mine, theirs = (tmp_path / f"{who}.{ending}" for who in ("mine", "theirs"))
        assert mine.read_bytes() == theirs.read_bytes()


def test_of_a_plan(path, model, tmp_path):
    for report in (onnx_bnfold.plan_file(path), onnx_bnfold.plan(path), onnx_bnfold.plan(model)):
        data = written(report, tmp_path / "r.json")
        assert data["result"] is None
        assert not data["written"]
        assert [each["status"] for each in data["batch_normalizations"]] == ["folded", "kept"]


@pytest.mark.parametrize("form", ["message", "bytes", "onnx_ir"])
def test_of_a_model_in_memory(form, model, tmp_path):
    given = {"message": lambda: model, "bytes": model.SerializeToString}.get(form)
    given = given() if given else pytest.importorskip("onnx_ir").from_proto(model)
    _, report = onnx_bnfold.fold(given, Options(standalone="mul-add"))
    data = written(report, tmp_path / "r.json")
    assert data["source"][0]["name"] == "model-in-memory.onnx"
    assert data["result"][0]["name"] == "folded.onnx"
    assert data["written"]
    assert data["options"]["standalone"] == "mul-add"
    report.save(tmp_path / "r.html")
    assert "model-in-memory" in (tmp_path / "r.html").read_text()


def test_of_external_data_that_is_not_loaded(model, tmp_path):
    path = tmp_path / "external.onnx"
    saved_external(model, path)
    bare = onnx.load(path, load_external_data=False)
    _, report = onnx_bnfold.fold(bare, base_dir=tmp_path)
    assert written(report, tmp_path / "r.json")["written"]


def test_a_model_that_has_changed(model, path, tmp_path):
    report = onnx_bnfold.plan(path)
    del model.graph.node[-1]
    model.graph.output[0].name = "s"
    onnx.save(model, path)
    with pytest.raises(UsageError, match=r"has changed since it was folded.*model\.onnx"):
        report.save(tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize("gone", ["folded.onnx", "folded.onnx.*.data"])
def test_a_folded_model_that_is_gone(gone, model, tmp_path):
    saved_external(model, tmp_path / "external.onnx")
    report = onnx_bnfold.fold_file(tmp_path / "external.onnx", tmp_path / "folded.onnx")
    [lost] = tmp_path.glob(gone)
    lost.unlink()
    with pytest.raises(UsageError, match=r"folded\.onnx: the folded model, or its data, cannot be"):
        report.save(tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize("name", [None, 3, "r.pdf", "missing/r.html", "model.onnx"])
def test_a_name_that_cannot_be_written(name, path, tmp_path):
    report = onnx_bnfold.plan(path)
    with pytest.raises(UsageError):
        report.save(tmp_path / name if isinstance(name, str) else name)


def test_write_takes_the_names_that_save_takes(tmp_path):
    with pytest.raises(UsageError, match=r"r\.pdf: give a name that ends in \.html or \.json"):
        write(tmp_path / "r.pdf", {})


def test_a_pickled_report_knows_a_file_and_carries_no_model(model, path, tmp_path):
    report = pickle.loads(pickle.dumps(onnx_bnfold.plan(path)))
    assert written(report, tmp_path / "r.json")
    _, report = onnx_bnfold.fold(model)
    other = pickle.loads(pickle.dumps(report))
    assert other == report == copy.copy(report)
    with pytest.raises(UsageError, match="save it where it was made"):
        other.save(tmp_path / "r.json")
