"""What is flushed to the disk, and when: before a file gets its name, and its folder afterwards."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import bn, conv, join, model_of

import onnx_bnfold
from onnx_bnfold import Options, UsageError
from onnx_bnfold.batch import fold_store
from onnx_bnfold.batch.local import LocalLocation
from onnx_bnfold.batch.task import Batch, Task, perform
from onnx_bnfold.cli.main import main
from onnx_bnfold.storage import durable


class Watched:
    """The flushes and the renames of a process, in order."""

    def __init__(self, monkeypatch) -> None:
        self.events: list[tuple[str, int, str]] = []
        flush, rename = os.fsync, os.replace

        def fsync(fd):
            self.events.append(("flush", os.fstat(fd).st_ino, ""))
            flush(fd)

        def replace(old, new):
            self.events.append(("name", os.stat(old).st_ino, os.fspath(new)))
            rename(old, new)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "replace", replace)

    def said(self, *paths: Path) -> list[str]:
        """Return what was done to some files and folders that are there now."""
        there = {os.stat(path).st_ino: path for path in paths}
        # A model that is looked at first is lent another name in between.
        return [
            f"{what} {there[inode].name}"
            for what, inode, new in self.events
            if inode in there and (what == "flush" or new == os.fspath(there[inode]))
        ]


@pytest.fixture
def watched(monkeypatch) -> Watched:
    return Watched(monkeypatch)


def save(path: Path, rng, **external) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = join(conv("x", "c", (40, 40, 3, 3), rng), bn("c", "y", 40, rng))
    model = model_of(parts.nodes, {"x": (1, 40, 8, 8)}, ["y"], parts.initializers)
    onnx.save(model, path, **external)
    return path


def test_a_model_is_flushed_before_it_has_its_name_and_its_folder_afterwards(
    tmp_path, rng, watched
):
    source, target = save(tmp_path / "in" / "model.onnx", rng), tmp_path / "folded.onnx"
    onnx_bnfold.fold_file(source, target, sync=True)
    assert watched.said(target, tmp_path) == [
        "flush folded.onnx",
        "name folded.onnx",
        f"flush {tmp_path.name}",
    ]


@pytest.mark.parametrize("before", [False, True], ids=["new", "replaced"])
def test_data_are_there_for_good_before_the_model_that_refers_to_them(
    before, tmp_path, rng, watched
):
    source = save(tmp_path / "in" / "model.onnx", rng, save_as_external_data=True)
    target = tmp_path / "folded.onnx"
    if before:
        save(source, np.random.default_rng(1), save_as_external_data=True)
        onnx_bnfold.fold_file(source, target)
        save(source, rng, save_as_external_data=True)
        watched.events.clear()
    onnx_bnfold.fold_file(source, target, sync=True)
    [data] = tmp_path.glob("folded.onnx.*.data")
    assert watched.said(target, data, tmp_path) == [
        f"flush {data.name}",
        "flush folded.onnx",
        f"name {data.name}",
        f"flush {tmp_path.name}",
        "name folded.onnx",
        f"flush {tmp_path.name}",
    ]


def test_nothing_is_flushed_unless_asked_for(tmp_path, rng, watched):
    source = save(tmp_path / "in" / "model.onnx", rng)
    onnx_bnfold.fold_file(source, tmp_path / "folded.onnx")
    fold_store(source.parent, tmp_path / "folded", jobs=1)
    assert not [event for event in watched.events if event[0] == "flush"]


def test_the_command_flushes_its_report_too(tmp_path, rng, watched):
    source = save(tmp_path / "in" / "model.onnx", rng)
    out, report = tmp_path / "folded.onnx", tmp_path / "report.json"
    words = ["-q", "--sync", "--report", str(report), str(source), "-o", str(out)]
    assert main(words) == 0
    folder = f"flush {tmp_path.name}"
    assert watched.said(out, report, tmp_path) == [
        "flush folded.onnx", "name folded.onnx", folder,
        "flush report.json", "name report.json", folder,
    ]  # fmt: skip


def test_what_cannot_be_flushed_is_not_renamed(tmp_path, rng, monkeypatch, capsys):
    source, target = save(tmp_path / "in" / "model.onnx", rng), tmp_path / "folded.onnx"
    target.write_bytes(b"earlier")

    def fail(fd):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    assert main(["-q", "--sync", str(source), str(target)]) == 2
    assert "folded.onnx: cannot be flushed to the disk: Input/output" in capsys.readouterr().err
    assert target.read_bytes() == b"earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folded.onnx", "in"]


# --- stores --------------------------------------------------------------------------------------


def store(tmp_path: Path, rng) -> Path:
    source = save(tmp_path / "in" / "a" / "model.onnx", rng, save_as_external_data=True)
    (source.parent / "labels.txt").write_text("cat\n")
    (source.parent / "labels.txt").chmod(0o444)
    (tmp_path / "in" / "empty").mkdir()
    return tmp_path / "in"


def test_each_file_of_a_store_is_flushed_around_its_renaming(tmp_path, rng, watched):
    source, target = store(tmp_path, rng), tmp_path / "folded"
    LocalLocation(os.fspath(target)).prepare()
    batch = Batch(os.fspath(source), os.fspath(target), None, Options(), sync=True)
    for task in Task("fold", "a/model.onnx"), Task("copy", "a/labels.txt"):
        assert perform(batch, task).error is None
    folder = target / "a"
    [data] = folder.glob("*.data")
    names = (data.name, "model.onnx", "labels.txt")
    assert watched.said(*(folder / name for name in names), folder) == [
        event for name in names for event in (f"flush {name}", f"name {name}", "flush a")
    ]


def test_a_store_is_flushed_with_all_its_folders(tmp_path, rng, watched):
    source, target = store(tmp_path, rng), tmp_path / "new" / "folded"
    assert not fold_store(source, target, jobs=1, sync=True).failed
    done = {inode for what, inode, _ in watched.events if what == "flush"}
    places = (target / "a", target / "empty", target, target.parent, tmp_path)
    assert done >= {os.stat(path).st_ino for path in places}


def test_what_an_earlier_run_has_done_is_flushed_too(tmp_path, rng, watched):
    source, target = store(tmp_path, rng), tmp_path / "folded"
    fold_store(source, target, jobs=1)
    watched.events.clear()
    report = fold_store(source, target, jobs=1, sync=True)
    assert all(outcome.skipped for outcome in report.outcomes)
    files = [path for path in target.rglob("*") if path.is_file()]
    done = {inode for _, inode, _ in watched.events}
    assert len(files) == 3
    assert done >= {os.stat(path).st_ino for path in files}


def test_a_store_that_cannot_be_flushed_has_failed(tmp_path, rng, monkeypatch, capsys):
    source, target = store(tmp_path, rng), tmp_path / "folded"

    def fail(path):
        raise UsageError(f"{path}: cannot be flushed to the disk: Invalid argument")

    monkeypatch.setattr(durable, "flush_folder", fail)
    assert main(["-q", "--sync", "--jobs", "1", str(source), str(target)]) == 1
    assert "--sync" in capsys.readouterr().err


def test_a_store_at_a_url_flushes_by_itself(tmp_path, rng, capsys):
    source = store(tmp_path, rng)
    assert main(["-q", "--sync", str(source), "s3://bucket/folded"]) == 2
    assert "sync flushes folders of this machine alone" in capsys.readouterr().err
