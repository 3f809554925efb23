"""A run over a store: what is folded, copied, linked, skipped and refused, and what it says."""

import base64
import errno
import gzip
import html
import json
import os
import subprocess
from pathlib import Path

import onnx
import pytest
from batches import (
    command,
    digests,
    expected,
    fill,
    small_model,
    state_of,
    unfinished,
    write,
    write_external,
)
from graphs import Net
from support import assert_same_function, count

from onnx_bnfold import Options, UsageError
from onnx_bnfold.advice import ADVICE
from onnx_bnfold.batch import fold_store, plan_store, task
from onnx_bnfold.batch.local import LocalLocation
from onnx_bnfold.batch.task import Batch, Task, perform
from onnx_bnfold.cli.main import main
from onnx_bnfold.reasons import Reason

NORM = "BatchNormalization"
NEXT = "next: put right what failed and run the same command again; it does what is not done yet"


def statuses(report):
    return {o.name: "skipped" if o.skipped else o.status for o in report.outcomes}


@pytest.fixture
def store(tmp_path):
    return fill(tmp_path / "models", 5)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "folded"


def fold(store, output, options=None, **settings):
    return fold_store(store, output, options or Options(), jobs=2, **settings)


def run(capfd, *words):
    """Exit code, stdout and stderr of the command line."""
    code = main([str(word) for word in words])
    out, err = capfd.readouterr()
    return code, out, err


# --- what comes out ------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2, None])
def test_models_are_folded_and_the_rest_is_copied(store, output, tmp_path, jobs):
    report = fold_store(store, output, jobs=jobs)
    assert digests(output) == expected(store, tmp_path / "expected")
    assert statuses(report) == {
        name: "folded" if name.endswith(".onnx") else "copied" for name in digests(store)
    }
    assert unfinished(output) == []


def test_the_folded_models_compute_the_same(store, output):
    fold(store, output)
    for path in store.rglob("*.onnx"):
        folded = onnx.load(output / path.relative_to(store))
        assert count(folded) == 0
        assert_same_function(onnx.load(path), folded)


def test_the_store_is_not_changed(store, output):
    before = digests(store)
    fold(store, output)
    assert digests(store) == before


def test_empty_folders_are_kept(store, output):
    (store / "empty" / "inner").mkdir(parents=True)
    fold(store, output)
    assert (output / "empty" / "inner").is_dir()


def test_nothing_but_the_store_appears_in_the_output(store, output):
    """Triton takes any folder in a repository for a model, and refuses to start without it."""
    fold(store, output)
    assert sorted(os.listdir(output)) == sorted(os.listdir(store))


def test_a_copy_keeps_permissions_and_times(store, output):
    script = write(store / "run.sh", b"#!/bin/sh\n")
    script.chmod(0o750)
    os.utime(script, (1, 1))
    fold(store, output)
    status = (output / "run.sh").stat()
    assert (status.st_mode & 0o777, status.st_mtime) == (0o750, 1)


@pytest.mark.parametrize("name", ["a b.onnx", "UPPER.ONNX", "[x]*?.onnx", ".hidden.onnx", "ü.onnx"])
def test_names_of_models(store, output, name):
    write(store / name, small_model(7))
    assert statuses(fold(store, output))[name] == "folded"
    assert count(onnx.load(output / name)) == 0


def test_a_folder_may_be_named_like_a_model(tmp_path, output):
    """Triton's layout for models with external data."""
    store = tmp_path / "models"
    write_external(store / "net" / "1" / "model.onnx" / "model.onnx", "weights.bin")
    fold(store, output)
    assert count(onnx.load(output / "net" / "1" / "model.onnx" / "model.onnx")) == 0


# --- external data -------------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["weights.bin", "sub/weights.bin", "./weights.bin"])
def test_the_data_of_a_model_is_not_copied(tmp_path, output, location):
    store = tmp_path / "models"
    model = write_external(store / "net" / "model.onnx", location)
    write(store / "net" / "notes.bin", b"nobody's")
    report = fold(store, output)
    folded = onnx.load(output / "net" / "model.onnx")
    assert_same_function(onnx.load(model), folded)
    (data,) = (output / "net").glob("model.onnx.*.data")
    files = {path.name for path in output.rglob("*") if path.is_file()}
    assert files == {"model.onnx", data.name, "notes.bin"}
    (outcome,) = report.models
    names = {os.path.normpath(f"net/{location}"), "net/model.onnx"}
    assert outcome.source.keys() == names
    assert list(outcome.target) == [f"net/{data.name}", "net/model.onnx"]


def test_data_that_two_models_share(tmp_path, output):
    store = tmp_path / "models"
    for name in ("a", "b"):
        write_external(store / f"{name}.onnx", "shared.bin", seed=1)
    fold(store, output)
    assert not (output / "shared.bin").exists()
    for name in ("a", "b"):
        assert_same_function(onnx.load(store / f"{name}.onnx"), onnx.load(output / f"{name}.onnx"))


def test_the_output_of_a_fold_is_a_store_too(tmp_path, output):
    store = tmp_path / "models"
    write_external(store / "a.onnx", "a.bin")
    fold(store, output)
    again = fold(output, tmp_path / "again")
    assert not again.failed
    assert len(digests(tmp_path / "again")) == 2


@pytest.mark.parametrize(
    ("change", "names"), [({"seed": 2}, 2), ({"layers": 3}, 3)], ids=["data", "model"]
)
def test_changed_data_is_folded_again_and_the_old_data_goes(tmp_path, output, change, names):
    store = tmp_path / "models"
    model = write_external(store / "a.onnx", "a.bin", seed=1)
    fold(store, output)
    before = set(os.listdir(output))
    (store / "a.bin").unlink()
    write_external(model, "a.bin", **change)
    assert statuses(fold(store, output)) == {"a.onnx": "folded"}
    assert_same_function(onnx.load(model), onnx.load(output / "a.onnx"))
    after = set(os.listdir(output))
    assert len(after) == 2
    assert len(after | before) == names


# --- what fails ----------------------------------------------------------------------------------

BROKEN = {
    "empty": b"",
    "no model": b"version https://git-lfs.github.com/spec/v1\n",
    "cut off": small_model(channels=16).SerializeToString()[:-1000],
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_model_does_not_stop_the_rest(store, output, capfd, content):
    write(store / "net1" / "broken.onnx", content)
    code, out, err = run(capfd, store, "-o", output, "--jobs", 2)
    assert code == 1
    assert err.startswith("onnx-bnfold: failed  net1/broken.onnx: ")
    assert len(err.splitlines()) == 1
    assert str(store) not in err
    *_, summary, following = out.splitlines()
    assert summary.startswith("6 models: 1 failed, 5 folded; 10 of 10 ")
    assert following == NEXT
    assert digests(output).keys() == digests(store).keys() - {"net1/broken.onnx"}


def test_a_model_without_its_data_fails(tmp_path, output, capfd):
    store = tmp_path / "models"
    write_external(store / "a.onnx", "a.bin")
    (store / "a.bin").unlink()
    code, _, err = run(capfd, store, "-o", output)
    assert code == 1
    assert "failed  a.onnx: tensor " in err
    assert "its data file" in err
    assert os.listdir(output) == []


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/hostname"])
def test_data_outside_of_the_store_is_refused(tmp_path, output, location):
    store = tmp_path / "models"
    model = onnx.load(write_external(store / "a.onnx", "a.bin"), load_external_data=False)
    write(tmp_path / "outside.bin", (store / "a.bin").read_bytes())
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    write(store / "a.onnx", model)
    report = fold(store, output)
    assert [o.name for o in report.failed] == ["a.onnx"]
    assert "below the model's folder" in report.failed[0].error


def test_a_model_that_fails_is_tried_again(store, output):
    broken = write(store / "broken.onnx", b"")
    assert fold(store, output).failed
    write(broken, small_model())
    assert statuses(fold(store, output))["broken.onnx"] == "folded"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="everything is readable")
def test_an_unreadable_folder_is_reported(store, output):
    (store / "net1").chmod(0)
    try:
        report = fold(store, output)
    finally:
        (store / "net1").chmod(0o755)
    assert [(o.name, o.error) for o in report.failed] == [
        ("net1", "net1: cannot be read: Permission denied")
    ]


def test_a_folder_in_the_way_is_reported(store, output):
    (output / "README").mkdir(parents=True)
    (report,) = fold(store, output).failed
    assert report.error == "README: cannot be copied: Is a directory"


# --- links ---------------------------------------------------------------------------------------


def test_a_link_to_a_file_becomes_the_file(store, output):
    write(store / "blobs" / "abc", small_model(3))
    (store / "linked.onnx").symlink_to("blobs/abc")
    (store / "linked.txt").symlink_to(store / "README")
    fold(store, output)
    assert not (output / "linked.onnx").is_symlink()
    assert count(onnx.load(output / "linked.onnx")) == 0
    assert (output / "linked.txt").read_bytes() == b"models\n"
    assert not (output / "linked.txt").is_symlink()


@pytest.mark.parametrize("absolute", [False, True], ids=["relative", "absolute"])
def test_a_link_to_a_folder_stays_a_link(store, output, absolute):
    (store / "net0" / "latest").symlink_to(store / "net0" / "3" if absolute else "3")
    report = fold(store, output)
    assert os.readlink(output / "net0" / "latest") == "3"
    assert statuses(report)["net0/latest"] == "linked"
    assert "net0/latest/model.onnx" not in statuses(report)
    assert not fold(store, output).failed


def test_a_link_to_a_folder_follows_its_change(store, output):
    for version in ("0", "3"):
        (store / "net0" / "latest").unlink(missing_ok=True)
        (store / "net0" / "latest").symlink_to(version)
        fold(store, output)
        assert os.readlink(output / "net0" / "latest") == version


def test_links_in_circles_end(store, output):
    (store / "net0" / "all").symlink_to("..")
    assert statuses(fold(store, output))["net0/all"] == "linked"
    assert os.readlink(output / "net0" / "all") == ".."


@pytest.mark.parametrize("name", ["model.onnx", "file", "folder", "up"])
def test_a_link_out_of_the_store_is_reported_and_not_followed(store, output, tmp_path, name):
    outside = {
        "model.onnx": write(tmp_path / "outside.onnx", small_model()),
        "file": write(tmp_path / "outside.txt"),
        "folder": write(tmp_path / "outside" / "secret").parent,
        "up": Path("../.."),
    }
    (store / "net0" / name).symlink_to(outside[name])
    (failed,) = fold(store, output).failed
    assert failed.error.startswith(f"net0/{name}: is a link that leads out of the store")
    assert not os.path.lexists(output / "net0" / name)
    assert len(digests(output)) == 7


def test_a_link_that_leads_nowhere_is_reported(store, output):
    (store / "gone.onnx").symlink_to("nothing")
    (failed,) = fold(store, output).failed
    assert failed.error == "gone.onnx: is a broken link"


def test_a_pipe_is_reported(store, output):
    os.mkfifo(store / "pipe.onnx")
    (failed,) = fold(store, output).failed
    assert failed.error == "pipe.onnx: is neither a file nor a folder"


def test_a_link_in_the_output_is_not_written_through(store, output, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    output.mkdir()
    (output / "net1").symlink_to(tmp_path / "elsewhere")
    report = fold(store, output)
    assert {o.name for o in report.failed} == {"net1", "net1/1", "net1/4"} | {
        "net1/1/model.onnx",
        "net1/4/model.onnx",
    }
    assert all("is a link in the output" in o.error for o in report.failed)
    assert list((tmp_path / "elsewhere").iterdir()) == []


# --- the second run ------------------------------------------------------------------------------


def test_what_is_done_is_skipped(store, output):
    fold(store, output)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert set(statuses(fold(store, output)).values()) == {"skipped"}
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_only_what_changed_is_done_again(store, output):
    fold(store, output)
    write(store / "net1" / "1" / "model.onnx", small_model(99))
    write(store / "README", b"MODELS\n")
    write(store / "new.onnx", small_model(100))
    done = {n: s for n, s in statuses(fold(store, output)).items() if s != "skipped"}
    assert done == {"net1/1/model.onnx": "folded", "README": "copied", "new.onnx": "folded"}


def test_content_counts_and_time_does_not(store, output):
    fold(store, output)
    path = store / "net1" / "1" / "model.onnx"
    before = path.stat()
    os.utime(path, (1, 1))
    assert set(statuses(fold(store, output)).values()) == {"skipped"}
    content = bytearray(path.read_bytes())
    content[content.index(b"n_conv")] += 1  # a node's name
    write(path, bytes(content))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert statuses(fold(store, output))["net1/1/model.onnx"] == "folded"


def test_other_options_are_other_work(store, output):
    fold(store, output)
    report = fold(store, output, Options(metadata=False))
    assert {s for n, s in statuses(report).items() if n.endswith(".onnx")} == {"folded"}


@pytest.mark.parametrize("damage", ["removed", "changed"])
def test_a_damaged_output_is_made_again(store, output, damage):
    fold(store, output)
    path = output / "net1" / "1" / "model.onnx"
    good = path.read_bytes()
    path.unlink()
    if damage == "changed":
        path.write_bytes(bytes(len(good)))
    assert statuses(fold(store, output))["net1/1/model.onnx"] == "folded"
    assert path.read_bytes() == good


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"{", b"null", b'{"outcome": {}}'])
def test_a_damaged_record_is_no_record(store, output, content):
    fold(store, output)
    for path in (state_of(output) / "records").iterdir():
        path.write_bytes(content)
    assert {s for n, s in statuses(fold(store, output)).items() if n.endswith(".onnx")} == {
        "folded"
    }


# --- usage ---------------------------------------------------------------------------------------


def usage(capfd, *words):
    code, out, err = run(capfd, *words)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    return err


def test_a_store_without_models(tmp_path, output, capfd):
    write(tmp_path / "models" / "README")
    assert "there is no .onnx file" in usage(capfd, tmp_path / "models", "-o", output)
    assert not output.exists()
    assert not state_of(output).exists()


def test_no_such_store(tmp_path, output):
    with pytest.raises(UsageError, match="there is no such folder"):
        fold_store(tmp_path / "models", output)
    assert not output.exists()


@pytest.mark.parametrize("place", ["", ".", "folded", "net0/../folded", "net0"])
def test_an_output_in_the_store_is_refused(store, capfd, place):
    before = digests(store)
    said = usage(capfd, store, "-o", store / place)
    assert "is inside the input" in said
    assert said.startswith(f"onnx-bnfold: {store}")
    assert digests(store) == before


def test_a_linked_output_in_the_store_is_refused(store, output, capfd):
    output.symlink_to(store / "net0")
    assert "is inside the input" in usage(capfd, store, "-o", output)


def test_a_store_in_the_output_is_refused(store, tmp_path, capfd):
    assert "is inside the output" in usage(capfd, store, "-o", tmp_path)


def test_a_store_beside_an_output_of_a_similar_name(store, tmp_path):
    assert not fold(store, tmp_path / "models2").failed


def test_errors_name_paths_as_they_were_given(store, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, named in (
        (["none", "-o", "out"], "none"),
        (["models", "-o", "models/out"], "models/out"),
        (["models", "-o", "out", "--state", "models/st"], "models/st"),
        (["models", "-o", "."], "models"),
        (["models", "-o", "models/net0/0/model.onnx/out"], "models/net0/0/model.onnx/out"),
    ):
        code, _, err = run(capfd, *words)
        assert code == 2
        assert err.startswith(f"onnx-bnfold: {named}: ")
    (tmp_path / "empty").mkdir()
    assert usage(capfd, "empty", "-o", "out").startswith("onnx-bnfold: empty: there is no .onnx")
    with pytest.raises(UsageError, match=r"^models/net0/0/model.onnx: is one file; .* fold_file$"):
        fold_store("models/net0/0/model.onnx", "out")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "locked/a/b"], "locked/a/b: cannot be created: the folder locked takes no"),
        (["-o", "out", "--state", "locked/st"], "locked/st: cannot be created: the folder locked"),
        (["-o", "locked"], "locked.onnx_bnfold: cannot be created: the folder . takes no"),
    ],
    ids=["output", "state", "beside"],
)
def test_a_folder_that_takes_no_new_one(words, said, store, tmp_path, capfd, monkeypatch):
    """An administrator may write everywhere, so the system is played."""
    monkeypatch.chdir(tmp_path)
    Path("locked").mkdir()
    make = os.mkdir

    def refuse(path, *rest, **named):
        if "locked" in str(path) and os.path.isdir(os.path.dirname(path)):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        make(path, *rest, **named)

    monkeypatch.setattr("os.mkdir", refuse)
    err = usage(capfd, "models", *words)
    assert err.startswith(f"onnx-bnfold: {said}")
    assert "(Permission denied); give another one" in err
    assert ("as --state, on the file system" in err) == (words == ["-o", "locked"])


def test_a_file_where_the_output_should_be(store, output, capfd):
    write(output)
    said = usage(capfd, store, "-o", output)
    assert "cannot be created: a file is there; give the name of a folder" in said


def test_a_state_in_the_store_is_refused(store, output, capfd):
    assert "is inside the input" in usage(capfd, store, "-o", output, "--state", store / "state")


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="there is only one file system")
def test_a_state_on_another_file_system_is_refused(store, output, capfd):
    folder = Path(f"/dev/shm/onnx_bnfold-test-{os.getpid()}")
    if os.stat("/dev/shm").st_dev == os.stat(store).st_dev:
        pytest.skip("there is only one file system")
    try:
        assert "another file system" in usage(capfd, store, "-o", output, "--state", folder)
    finally:
        for path in (folder / "unfinished", folder / "records", folder):
            path.rmdir()


def test_a_state_elsewhere(store, output, tmp_path, capfd):
    assert run(capfd, store, "-o", output, "--state", tmp_path / "s")[0] == 0
    assert not state_of(output).exists()
    assert (tmp_path / "s" / "report.json").exists()


@pytest.mark.parametrize("jobs", ["0", "-1", "two"])
def test_a_wrong_number_of_jobs(store, output, jobs, capfd):
    assert "--jobs" in usage(capfd, store, "-o", output, "--jobs", jobs)


@pytest.mark.parametrize("report", ["no/report.json", "report.txt", "models"])
def test_a_report_that_cannot_be_written(store, output, capfd, tmp_path, report):
    usage(capfd, store, "-o", output, "--report", tmp_path / report)
    assert not output.exists()


# --- what it says --------------------------------------------------------------------------------


def kept_model():
    model = small_model()
    (norm, *_) = (n for n in model.graph.node if n.op_type == "BatchNormalization")
    norm.input[1] = "x"  # a parameter of run time
    del model.graph.value_info[:]
    return model


def test_the_lines(store, output, capfd):
    write(store / "kept.onnx", kept_model())
    code, out, err = run(capfd, store, "-o", output, "--jobs", 2)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    lengths = [(folder / "kept.onnx").stat().st_size for folder in (store, output)]
    assert lines[0] == (
        "folded  kept.onnx: 1 of 2 BatchNormalization folded, 6 -> 5 nodes, "
        f"{lengths[0]:,} -> {lengths[1]:,} bytes"
    )
    assert len(lines) == 10
    assert lines[6] == "kept    1 BatchNormalization: 1 parameters_not_constant"
    assert lines[7].startswith("advice  [parameters_not_constant] export with constant parameters")
    assert lines[8] == f"written: {output}; what is done is recorded in {state_of(output)}"
    totals = [
        sum(p.stat().st_size for p in folder.rglob("*") if ".onnx" in p.name and p.is_file())
        for folder in (store, output)
    ]
    assert lines[-1] == (
        "6 models: 6 folded; 11 of 12 BatchNormalization folded; "
        f"{totals[0]:,} -> {totals[1]:,} bytes; other files: 2 copied"
    )
    assert run(capfd, store, "-o", output)[1].splitlines()[-1].startswith("6 models: 6 done before")


def test_the_last_lines_of_a_dry_run(store, capfd):
    """With what a fold would do about a model that fails, unless it fails for what it is not."""
    assert run(capfd, store, "--dry-run")[1].splitlines()[-2] == "nothing is written in a dry run"
    gated = run(capfd, store, "--dry-run", "--require-folded")
    assert (gated[0], gated[1].splitlines()[-1][:9]) == (1, "5 models:")
    write(store / "empty.onnx")
    code, out, _ = run(capfd, store, "--dry-run")
    assert code == 1
    assert out.endswith("\nnext: put right what failed; a fold does the rest all the same\n")


def test_a_report_of_a_store_in_a_notebook(store, output, tmp_path):
    write(store / "<b>.onnx")
    report = fold(store, output)
    assert str(report) == report.summary()
    assert repr(report) == f"<StoreReport: {report.summary()}>"
    shown = report._repr_html_()
    assert shown.count("<tr>") == 7  # with the head
    assert shown.index("failed  &lt;b&gt;.onnx") < shown.index("folded  net")
    report.save(tmp_path / "r.html")
    report.save(tmp_path / "r.json")
    assert "</html>" in (tmp_path / "r.html").read_text()
    assert json.loads((tmp_path / "r.json").read_text()) == json.loads(report.to_json())
    with pytest.raises(UsageError, match=r"ends in \.html or \.json"):
        report.save(tmp_path / "r.txt")


def test_quiet(store, output, capfd):
    assert run(capfd, store, "-o", output, "--quiet") == (0, "", "")


def test_require_all(store, output, capfd):
    """A model that does not hold what was asked of it is not written, as in a fold of one file."""
    write(store / "kept.onnx", kept_model())
    code, out, err = run(capfd, store, "-o", output, "--require-all")
    assert (code, err) == (
        1,
        "onnx-bnfold: failed  kept.onnx: --require-all: 1 BatchNormalization left: "
        "1 parameters_not_constant\n",
    )
    assert out.splitlines()[-2].startswith("6 models: 1 failed, 5 folded; ")
    assert digests(output).keys() == digests(store).keys() - {"kept.onnx"}
    assert run(capfd, store, "-o", output)[0] == 0
    assert run(capfd, store, "-o", output, "--require-all")[0] == 1
    assert run(capfd, store, "--dry-run", "--require-all")[0] == 1


def test_require_folded(store, output, capfd):
    run(capfd, store, "-o", output)
    write(output / "late.onnx", small_model())
    code, _, err = run(capfd, output, "--dry-run", "--require-folded")
    assert code == 1
    assert err == (
        "onnx-bnfold: failed  late.onnx: --require-folded: 2 nodes to fold; fold it first\n"
    )
    (output / "late.onnx").unlink()
    assert run(capfd, output, "--dry-run", "--require-folded")[0] == 0
    assert "give --dry-run with it" in usage(capfd, store, "-o", output, "--require-folded")


def test_require_all_counts_what_is_left_a_bn(store, output, capfd):
    net = Net([1, 3, 8, 8])
    write(store / "kept.onnx", net.model(net.op("Sigmoid", net.bn("x"))))
    words = (store, "-o", output, "--standalone", "mul-add", "--require-all")
    assert run(capfd, *words)[0] == 0
    assert "6 models: 6 done before" in run(capfd, *words)[1]
    assert run(capfd, *words[:3], "--require-all")[0] == 1


def test_a_pattern_of_keep_need_not_match_in_every_model(store, output, capfd):
    write(store / "plain.onnx", Net([1, 3, 8, 8]).model("x"))
    write(store / "other.onnx", small_model(layers=3))
    third = next(n.name for n in small_model(layers=3).graph.node[::-1] if n.op_type == NORM)
    words = (store, "-o", output, "--keep", f"^{third}$")
    code, out, err = run(capfd, *words)
    assert (code, err) == (0, "")
    assert [count(onnx.load(output / n)) for n in ("other.onnx", "plain.onnx")] == [1, 0]
    assert "12 of 13 BatchNormalization folded" in out
    assert " 7 done before" in run(capfd, *words)[1]


def test_a_pattern_of_keep_that_matches_in_no_model(store, output, capfd):
    words = (store, "-o", output, "--keep", "typo", "--keep", NORM.lower())
    expected = (
        "onnx-bnfold: failed  --keep 'typo': no BatchNormalization of any model has such a name or "
        "first output; correct the pattern or leave it out\n"
    )
    for again in range(2):
        code, out, err = run(capfd, *words)
        assert (code, err) == (1, expected)
        assert ("5 done before" if again else "5 folded") in out
        assert out.endswith(f"; other files: 2 copied; failed: --keep\n{NEXT}\n")
    code, _, err = run(capfd, *words, "--dry-run")
    assert (code, err) == (1, expected)
    write(store / "broken.onnx", b"")  # it might have such a node
    assert "typo" not in run(capfd, *words)[2]


def test_a_pattern_of_only_need_not_match_in_every_model(store, output, capfd):
    """A model in which it matches nothing is not folded at all."""
    net = Net([1, 3, 8, 8])
    write(store / "affine.onnx", net.model(net.affine(net.conv("x", 3), 3, 1, 1)))
    write(store / "other.onnx", small_model(layers=3))
    third = next(n.name for n in small_model(layers=3).graph.node[::-1] if n.op_type == NORM)
    words = (store, "-o", output, "--only", f"^{third}$")
    code, out, err = run(capfd, *words)
    assert (code, err) == (0, "")
    assert "1 of 13 BatchNormalization folded" in out
    assert count(onnx.load(output / "other.onnx")) == 2
    assert len(onnx.load(output / "affine.onnx").graph.node) == 3
    assert " 7 done before" in run(capfd, *words)[1]


def test_a_pattern_of_only_that_matches_in_no_model(store, output, capfd):
    words = (store, "-o", output, "--only", "typo", "--keep", "slip", "--keep", NORM.lower())
    for _ in range(2):
        code, _, err = run(capfd, *words)
        assert code == 1
        assert [line.split(":")[1] for line in err.splitlines()] == [
            " failed  --keep 'slip'", " failed  --only 'typo'",
        ]  # fmt: skip


def test_a_dry_run_writes_nothing(store, output, capfd, tmp_path):
    write(store / "kept.onnx", kept_model())
    code, out, _ = run(capfd, store, "-o", output, "--dry-run", "--report", tmp_path / "r.json")
    assert code == 0
    assert out.splitlines()[-2:] == [
        "6 models: 6 planned; 11 of 12 BatchNormalization folded",
        f"report: {tmp_path / 'r.json'}",
    ]
    assert sorted(os.listdir(tmp_path)) == ["models", "r.json"]
    assert [len(o.counts.kept) for o in plan_store(store).models if o.name == "kept.onnx"] == [1]


def test_the_report(store, output, capfd, tmp_path):
    write(store / "kept.onnx", kept_model())
    write(store / "broken.onnx", b"")
    run(capfd, store, "-o", output, "--report", tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text()
    assert text == (state_of(output) / "report.json").read_text()
    assert str(tmp_path) not in text
    data = json.loads(text)
    models = {entry["name"]: entry for entry in data["models"]}
    assert list(models) == sorted(n for n in digests(store) if n.endswith(".onnx"))
    assert [entry["name"] for entry in data["files"]] == ["README", "net0/config.pbtxt"]
    assert models["broken.onnx"]["status"] == "failed"
    assert models["broken.onnx"]["error"].startswith("broken.onnx: is empty")
    counts = models["kept.onnx"]["counts"]
    assert (counts["norms"], counts["folded"]) == (2, 1)
    assert [kept["reason"] for kept in counts["kept"]] == ["parameters_not_constant"]
    for name, entry in models.items():
        if name != "broken.onnx":
            assert entry["source"][name]["sha256"] == digests(store)[name]
            assert entry["target"][name]["sha256"] == digests(output)[name]


def test_the_report_is_the_same_for_any_number_of_jobs(store, tmp_path):
    reports = []
    for jobs in (1, 2):
        fold_store(store, tmp_path / str(jobs), jobs=jobs)
        reports.append((state_of(tmp_path / str(jobs)) / "report.json").read_text())
    assert reports[0] == reports[1]


def test_the_main_command_line_is_quiet_in_a_pipe(store, output):
    done = subprocess.run(command(store, "-o", output), capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "\r" not in done.stdout


def test_a_broken_target_stays_as_it_was(store, output, tmp_path):
    """A model that breaks later does not take its earlier fold along."""
    fold(store, output)
    before = digests(output)
    write(store / "net1" / "1" / "model.onnx", b"")
    assert fold(store, output).failed
    assert digests(output) == before


def test_usage_errors_from_python(store):
    with pytest.raises(UsageError, match="is inside the input"):
        fold_store(store, store)


def test_the_records_are_of_this_version(store, output, monkeypatch):
    fold(store, output)
    monkeypatch.setattr("onnx_bnfold.batch.ledger.__version__", "0.0.0")
    batch = Batch(str(store), str(output), None, Options())
    assert not perform(batch, Task("fold", "net1/1/model.onnx")).skipped
    monkeypatch.undo()
    assert not perform(batch, Task("fold", "net1/1/model.onnx")).skipped


# --- a disk that is full --------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["claim", "save"])
def test_a_report_that_cannot_be_saved_ends_no_run(store, output, monkeypatch, where):
    """What became of the files is said, and that of the report is."""
    real = getattr(LocalLocation, where)

    def refuse(self, *args):
        if "report" in str(args[-1]):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, *args)

    monkeypatch.setattr(LocalLocation, where, refuse)
    report = fold_store(store, output, jobs=1)
    (failed,) = report.failed
    assert failed.error.endswith("report.json: cannot be written: No space left on device")
    assert digests(output) == expected(store, output.with_name("expected"))


def test_an_output_that_takes_nothing_any_more(store, output, monkeypatch):
    """An error says on which side it is; a file that cannot be read is another one."""

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("onnx_bnfold.batch.local.os.replace", refuse)
    said = {o.error.removeprefix(o.name) for o in fold_store(store, output, jobs=1).failed}
    assert ": cannot be written into the output: Permission denied" in said
    monkeypatch.undo()
    monkeypatch.setattr("onnx_bnfold.batch.task.sha256_of", refuse)
    said = {o.error.removeprefix(o.name) for o in fold_store(store, output, jobs=1).failed}
    assert said == {
        ": cannot be folded: Permission denied",
        ": cannot be copied: Permission denied",
    }


def test_every_file_says_that_the_disk_is_full(store, output, monkeypatch, capfd):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("onnx_bnfold.batch.task.fold_file", refuse)
    monkeypatch.setattr("onnx_bnfold.batch.task.shutil.copy2", refuse)
    code, out, err = run(capfd, store, "-o", output, "--jobs", "1")
    assert code == 1
    assert out.splitlines()[0] == f"nothing was written: {output}"
    assert "failed" in out.splitlines()[-2]
    lines = err.splitlines()
    assert lines
    assert {line.rpartition(": ")[2] for line in lines} == {"No space left on device"}
    assert not unfinished(output)


def test_a_report_of_the_command_line_that_cannot_be_written(store, output, monkeypatch, capfd):
    """The summary is printed all the same."""

    def refuse(self, path):
        raise UsageError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr("onnx_bnfold.reports.files.OutputFile.commit", refuse)
    words = [store, "-o", output, "--jobs", "1", "--report", output.with_name("r.json")]
    monkeypatch.setattr("onnx_bnfold.cli.batch.fold_store", lambda *_, **__: plan_store(store))
    code, out, err = run(capfd, *words)
    assert code == 2
    assert "models:" in out.splitlines()[-1]
    assert err.endswith("r.json: cannot be written: No space left on device\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("two\nlines"), "internal error, please report it: RuntimeError: two lines"),
        (MemoryError(), "not enough memory"),
    ],
    ids=repr,
)
def test_an_error_of_ours_names_the_file(error, said):
    assert task.failed(Task("fold", "a.onnx"), error).error == f"a.onnx: {said}"


def test_a_sweep_of_a_full_disk_is_none(store, output, monkeypatch):
    place = LocalLocation(str(output))
    place.prepare()
    (state_of(output) / "unfinished" / "key.rest.d").mkdir()

    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("onnx_bnfold.batch.locks._acquire", refuse)
    place.sweep()
    assert unfinished(output) == ["key.rest.d"]


def test_verbose_has_the_reasons_of_each_model(store, output, capfd):
    write(store / "kept.onnx", kept_model())
    _, out, _ = run(capfd, store, "-o", output, "--jobs", 1, "--verbose")
    assert out.splitlines()[0].endswith(" bytes; kept: 1 parameters_not_constant")


# --- a check of every model ----------------------------------------------------------------------


def test_every_model_is_checked(tmp_path, output, capfd):
    store = fill(tmp_path / "models", 2)
    code, out, err = run(capfd, store, "-o", output, "--jobs", 1, "--check", "--sets", 1)
    assert (code, err) == (0, "")
    said = [line for line in out.splitlines() if "; the check holds: at most " in line]
    assert len(said) == 2
    data = json.loads((state_of(output) / "report.json").read_text())
    assert data["check"]["sets"] == 1
    assert all(model["check"].startswith("the check holds") for model in data["models"])


def test_a_model_whose_check_does_not_hold_is_not_written(tmp_path, output, capfd):
    store = fill(tmp_path / "models", 1)
    words = store, "-o", output, "--check", "--rtol", 0, "--atol", 0
    code, _, err = run(capfd, *words)
    assert code == 1
    assert err.startswith("onnx-bnfold: failed  net0/0/model.onnx: numerics: output ")
    assert not list(output.rglob("*.onnx"))


def test_what_was_checked_is_not_folded_again_without_a_check(tmp_path, output):
    from onnx_bnfold.check import CheckOptions

    store = fill(tmp_path / "models", 1)
    check = CheckOptions(sets=1, shapes={"x": (1, 3, 8, 8)})
    name = "net0/0/model.onnx"
    assert statuses(fold(store, output))[name] == "folded"
    assert statuses(fold(store, output, check=check))[name] == "folded"
    assert statuses(fold(store, output, check=check))[name] == "skipped"
    assert statuses(fold(store, output))[name] == "skipped"
    assert statuses(fold(store, output, check=CheckOptions(sets=3)))[name] == "folded"


# --- models that are gone ------------------------------------------------------------------------


def test_a_model_that_is_gone_is_listed_and_pruned(store, output, capfd):
    fold(store, output)
    (store / "net0" / "0" / "model.onnx").unlink()
    for _ in range(2):
        code, out, _ = run(capfd, store, "-o", output)
        assert code == 0
        assert "gone  net0/0/model.onnx: is no longer in the source" in out
        assert "--prune" in out
        assert out.splitlines()[-1].startswith("5 models: 4 done before, 1 gone; ")
        assert (output / "net0" / "0" / "model.onnx").exists()
    _, out, _ = run(capfd, store, "-o", output, "--prune")
    assert "removed  net0/0/model.onnx: " in out
    assert not (output / "net0" / "0" / "model.onnx").exists()
    assert "gone  " not in run(capfd, store, "-o", output)[1]


def test_the_data_of_a_model_that_is_gone_goes_with_it(tmp_path, output):
    store = tmp_path / "models"
    write_external(store / "a.onnx", "a.bin", seed=1)
    write(store / "b.onnx", small_model())
    fold(store, output)
    for name in ("a.onnx", "a.bin"):
        (store / name).unlink()
    assert statuses(fold(store, output, prune=True))["a.onnx"] == "removed"
    assert os.listdir(output) == ["b.onnx"]


def test_what_somebody_has_changed_is_not_pruned(store, output):
    fold(store, output)
    (store / "net0" / "0" / "model.onnx").unlink()
    write(output / "net0" / "0" / "model.onnx", b"mine")
    fold(store, output, prune=True)
    assert (output / "net0" / "0" / "model.onnx").read_bytes() == b"mine"


def test_models_of_another_source_are_not_gone(store, output, tmp_path):
    other = fill(tmp_path / "others", 1)
    (other / "net0" / "0" / "model.onnx").rename(other / "other.onnx")
    fold(other, output)
    fold(store, output, prune=True)
    assert (output / "other.onnx").exists()
    assert not [o for o in fold(other, output).outcomes if o.status in ("gone", "removed")]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_a_folder_that_cannot_be_read_has_lost_nothing(store, output):
    fold(store, output)
    (store / "net0").chmod(0)
    try:
        report = fold(store, output, prune=True)
    finally:
        (store / "net0").chmod(0o755)
    assert not [o for o in report.outcomes if o.status in ("gone", "removed")]


def test_what_cannot_be_read_has_lost_nothing(store, output, monkeypatch):
    fold(store, output)
    listing = LocalLocation.listing

    def unreadable(self):
        found = listing(self)
        found.files = {k: v for k, v in found.files.items() if not k.startswith("net0/")}
        found.problems["net0"] = "cannot be read: Permission denied"
        return found

    monkeypatch.setattr(LocalLocation, "listing", unreadable)
    report = fold(store, output, prune=True)
    assert not [o for o in report.outcomes if o.status in ("gone", "removed")]


# --- the page ------------------------------------------------------------------------------------


def test_the_page(store, output, capfd, tmp_path):
    write(store / "kept.onnx", kept_model())
    write(store / "<b>.onnx", b"")
    page, record = tmp_path / "r.html", tmp_path / "r.json"
    _, out, _ = run(capfd, store, "-o", output, "--report", page, "--report", record)
    assert out.splitlines()[-3:] == [f"report: {page}", f"report: {record}", NEXT]
    text = page.read_text()
    assert "<h2>Failed: 1</h2>" in text
    assert "&lt;b&gt;.onnx" in text
    assert "<b>" not in text.partition("<main")[2]
    assert "kept.onnx" in text
    assert "2 → 1" in text
    assert '<span class="pill bad">1 failed</span>' in text
    assert "All options are as by default." in text
    embedded = text.partition('id="data">')[2].partition("<")[0]
    data = json.loads(gzip.decompress(base64.b64decode(embedded)))
    assert data == json.loads(record.read_text())
    [reason] = [kept["reason"] for model in data["models"] if "counts" in model
                for kept in model["counts"]["kept"]]  # fmt: skip
    assert f"What you can do: </strong>{html.escape(ADVICE[Reason(reason)])}." in text


def test_errors_begin_with_the_file():
    failed = task.failed(Task("fold", "a/b.onnx"), UsageError("b.onnx: cannot be written"))
    assert failed.error == "a/b.onnx: b.onnx: cannot be written"
