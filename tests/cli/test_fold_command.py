"""A fold with gates and reports, from the command line."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import bn, conv, feeds_for, join, model_of, node, run

from onnx_bnfold import fold_file
from onnx_bnfold.cli.main import main

X = {"x": ("N", 3, 5, 6)}
IMPOSSIBLE = ("--rtol", "0", "--atol", "0")  # no fold is equal to the last bit


@pytest.fixture
def model(tmp_path, rng) -> Path:
    """A model with a BN that goes and one that stays; its output is a matrix of scores."""
    parts = join(
        conv("x", "c", (4, 3, 3, 3), rng),
        bn("c", "b", 4, rng),
        node("Sigmoid", ["b"], ["s"]),
        bn("s", "t", 4, rng),
        node("GlobalAveragePool", ["t"], ["p"]),
        node("Flatten", ["p"], ["y"]),
    )
    path = tmp_path / "m.onnx"
    onnx.save(model_of(parts.nodes, X, {"y": ("N", 4)}, parts.initializers), path)
    return path


@pytest.fixture
def data(tmp_path, rng) -> Path:
    path = tmp_path / "data.npz"
    images = rng.standard_normal((20, 3, 5, 6)).astype(np.float32)
    np.savez(path, x=images, labels=rng.integers(0, 4, 20))
    return path


def call(*words) -> int:
    try:
        return main([str(word) for word in words])
    except SystemExit as left:
        return left.code or 0


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_check_that_holds(model, tmp_path, capsys):
    assert call(model, "-o", tmp_path / "f.onnx", "--check", "--sets", "1") == 0
    out, err = capsys.readouterr()
    assert "OK  all gates hold" in out.splitlines()
    assert out.splitlines()[-1] == f"written: {tmp_path / 'f.onnx'}"
    assert str(tmp_path / "f.onnx") in out
    assert ".tmp" not in out
    assert not err
    assert names(tmp_path) == {"m.onnx", "f.onnx"}


@pytest.mark.parametrize("existing", [False, True], ids=["new", "existing"])
def test_a_check_that_does_not_hold(existing, model, tmp_path, capsys):
    target = tmp_path / "f.onnx"
    if existing:
        target.write_bytes(b"old")
    reports = "--report", tmp_path / "r.json", "--report", tmp_path / "r.html"
    assert call(model, "-o", target, "--check", *IMPOSSIBLE, *reports) == 1
    out, err = capsys.readouterr()
    assert "FAILED  numerics: output 'y'" in out
    assert "numerics: output 'y'" in err
    assert target.read_bytes() == b"old" if existing else not target.exists()
    assert names(tmp_path) - {"f.onnx"} == {"m.onnx", "r.json", "r.html"}
    report = json.loads((tmp_path / "r.json").read_text())
    assert not report["written"]
    assert not report["check"]["holds"]
    assert report["check"]["folded"] == str(target)


def test_the_gates_on_data(model, data, tmp_path, capsys):
    gates = "--data", data, "--max-accuracy-drop", "0", "--min-agreement", "1"
    assert call(model, "-o", tmp_path / "f.onnx", "--check", *gates) == 0
    assert "predictions changed: 0" in capsys.readouterr().out


def test_a_gate_on_speed_that_cannot_hold(model, tmp_path, capsys):
    gates = "--runs", "3", "--modes", "disabled", "--min-speedup", "1000"
    assert call(model, "-o", tmp_path / "f.onnx", "--check", *gates) == 1
    assert "speedup" in capsys.readouterr().err
    assert not (tmp_path / "f.onnx").exists()


def test_require_all_comes_before_the_check(model, tmp_path, capsys):
    words = "--check", "--require-all", *IMPOSSIBLE, "--report", tmp_path / "r.json"
    assert call(model, "-o", tmp_path / "f.onnx", *words) == 1
    out, err = capsys.readouterr()
    assert (
        err
        == f"onnx-bnfold: {model}: --require-all: 1 BatchNormalization left: 1 opaque_operator\n"
    )
    assert "kept" in out
    assert not (tmp_path / "f.onnx").exists()
    assert json.loads((tmp_path / "r.json").read_text())["check"] is None


def test_where_the_data_went_is_said(model, tmp_path, capsys):
    proto = onnx.load(model)
    onnx.save(proto, model, save_as_external_data=True, location="m.data", size_threshold=0)
    target = tmp_path / "f.onnx"
    assert call(model, "-o", target) == 0
    (data,) = tmp_path.glob("f.onnx.*.data")
    assert f"\nwritten: {target} with its data in {data}\n" in capsys.readouterr().out


def test_a_dry_run_with_a_report(model, tmp_path, capsys):
    assert call(model, "--dry-run", "--report", tmp_path / "r.json") == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["result"] is None
    assert not report["written"]
    assert report["after"]["batch_normalizations"] == 1
    assert names(tmp_path) == {"m.onnx", "r.json"}


def test_a_quiet_check(model, tmp_path, capsys):
    assert call(model, "-o", tmp_path / "f.onnx", "--check", "-q") == 0
    assert capsys.readouterr() == ("", "")
    assert call(model, "-o", tmp_path / "g.onnx", "--check", "-q", *IMPOSSIBLE) == 1
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1


def test_no_metadata(model, tmp_path):
    assert call(model, "-o", tmp_path / "f.onnx", "--no-metadata") == 0
    assert not onnx.load(tmp_path / "f.onnx").metadata_props


def test_the_check_is_told_how_tensors_in_between_changed(tmp_path, rng):
    """Without that it would take a tensor that was rescaled for the first that differs."""
    pool = {"kernel_shape": [1, 1]}
    parts = join(
        conv("i", "x", (3, 3, 1, 1), rng),
        node("MaxPool", ["x"], ["z"], **pool),  # another reader: the BN has to go downstream
        bn("x", "b", 3, rng, positive=True),
        node("MaxPool", ["b"], ["m"], **pool),
        conv("m", "y", (4, 3, 1, 1), rng),
    )
    path = tmp_path / "m.onnx"
    model = model_of(parts.nodes, {"i": (1, 3, 5, 6)}, ["y", "z"], parts.initializers)
    onnx.save(model, path)
    changes = {}
    fold_file(path, tmp_path / "f.onnx", inspect=lambda o: changes.update(o.pipeline.changes()))
    folded = onnx.load(tmp_path / "f.onnx")
    assert "m" in changes
    values = []
    for each in (model, folded):
        each.graph.output.append(onnx.ValueInfoProto(name="m"))
        values.append(run(each, feeds_for(model))[-1])
    scale, shift = changes["m"]
    np.testing.assert_allclose(values[1], scale * values[0] + shift, rtol=1e-5, atol=1e-5)
    assert np.abs(values[1] - values[0]).max() > 0.1


USAGE = {
    "check option without check": ["-o", "{f}", "--data", "{d}"],
    "check of a dry run": ["--dry-run", "--check"],
    "check option that contradicts": ["-o", "{f}", "--check", "--min-agreement", "1"],
    "unknown ending": ["-o", "{f}", "--report", "{t}/r.txt"],
    "no folder": ["-o", "{f}", "--report", "{t}/no/r.json"],
    "a folder": ["-o", "{f}", "--report", "{t}/d.json"],
    "twice": ["-o", "{f}", "--report", "{t}/r.json", "--report", "{t}/r.json"],
    "the output itself": ["-o", "{t}/f.json", "--report", "{t}/f.json"],
}


@pytest.mark.parametrize("words", USAGE.values(), ids=USAGE)
def test_bad_usage(words, model, data, tmp_path, capsys):
    (tmp_path / "d.json").mkdir()
    before = names(tmp_path)
    places = {"f": tmp_path / "f.onnx", "d": data, "t": tmp_path}
    assert call(model, *(word.format(**places) for word in words)) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "Traceback" not in err
    assert names(tmp_path) == before


def test_a_model_that_the_check_cannot_run(tmp_path, rng, capsys):
    """It folds, but onnxruntime does not know an operator in it."""
    parts = join(
        conv("x", "c", (4, 3, 1, 1), rng),
        bn("c", "b", 4, rng),
        node("Mystery", ["b"], ["y"], domain="my.domain"),
    )
    path = tmp_path / "m.onnx"
    model = model_of(parts.nodes, X, {"y": None}, parts.initializers, imports={"my.domain": 1})
    onnx.save(model, path)
    assert call(path, "-o", tmp_path / "f.onnx", "--check") == 2
    assert "onnxruntime cannot load" in capsys.readouterr().err
    assert names(tmp_path) == {"m.onnx"}


def test_the_options_of_a_check_may_come_first(model, data, tmp_path):
    """Even one whose value is a folder, which could be taken for a store of models."""
    words = "--check", "--data", data, "--sets", "1", model, "-o", tmp_path / "f.onnx"
    assert call(*words) == 0
    folder = tmp_path / "idx"
    folder.mkdir()
    assert call("--check", "--data", folder, model, "-o", tmp_path / "g.onnx") == 2


def test_a_model_that_should_be_folded_already(model, tmp_path, capsys):
    assert call(model, "--dry-run", "--require-folded") == 1
    assert "--require-folded" in capsys.readouterr().err
    assert call(model, "-o", tmp_path / "f.onnx") == 0
    assert call(tmp_path / "f.onnx", "--dry-run", "--require-folded") == 0
    assert call(tmp_path, "-o", tmp_path / "out", "--require-folded") == 2


def test_the_check_command_writes_the_same_kinds_of_reports(model, tmp_path):
    assert call(model, "-o", tmp_path / "f.onnx") == 0
    reports = "--report", tmp_path / "r.json", "--report", tmp_path / "r.html"
    assert call("check", model, tmp_path / "f.onnx", "--sets", "1", *reports) == 0
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["schema_version"] == 1
    assert record["holds"]
    assert "check holds" in (tmp_path / "r.html").read_text()
    assert call("check", model, tmp_path / "f.onnx", "--report", tmp_path / "f.onnx") == 2


def test_the_options_of_a_store_may_come_first(model, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    model.rename(store / "m.onnx")
    assert call("--jobs", "1", store, "-o", tmp_path / "out", "-q") == 0
    assert (tmp_path / "out" / "m.onnx").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--check", "--data", "no.npz"],
        ["--check", "--inputs", "no.npz"],
        ["--equalize", "--ranges", "no.npz"],
        ["--report", "no/r.html"],
        ["--report", "r.txt"],
        ["-o", "no/f.onnx"],
        ["-o", "{model}"],
    ],
    ids=" ".join,
)
def test_what_is_known_before_the_work_is_said_before_it(
    words, model, tmp_path, monkeypatch, capsys
):
    def work(*_, **__):
        raise AssertionError("the fold has begun")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("onnx_bnfold.pipeline.Pipeline.plan", work)
    output = [] if "-o" in words else ["-o", "f.onnx"]
    assert call(model, *(word.format(model=model) for word in words), *output) == 2
    assert "internal error" not in capsys.readouterr().err
