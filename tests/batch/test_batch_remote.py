"""Stores at URLs: in fsspec's memory within this process, and as files with processes."""

import os
import sys
import threading
import uuid
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import onnx
import pytest
from batches import digests, expected, fill, small_model, unfinished, write, write_external
from support import assert_same_function

from onnx_bnfold import Options, UsageError
from onnx_bnfold.batch import fold_store
from onnx_bnfold.batch.opening import location_at
from onnx_bnfold.batch.remote import RemoteLocation
from onnx_bnfold.batch.single import is_single
from onnx_bnfold.batch.task import Batch, Task, perform
from onnx_bnfold.cli.main import main

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def memory():
    """The file system, and the URL of a folder in it."""
    folder = f"/{uuid.uuid4().hex}"
    system = fsspec.filesystem("memory")
    system.makedirs(folder)
    yield system, f"memory:/{folder}"
    system.rm(folder, recursive=True)


def upload(folder, system, url):
    system.put(str(folder), url.removeprefix("memory:/"), recursive=True)


def in_this_process(source, target, names, action="fold"):
    """Memory is not shared with other processes."""
    location_at(target).prepare()
    batch = Batch(source, target, None, Options())
    return [perform(batch, Task(action, name)) for name in names]


def names_of(system, url):
    root = url.removeprefix("memory:/")
    return sorted(path[len(root) + 1 :] for path in system.find(root))


def test_from_memory_to_memory(memory, tmp_path):
    system, url = memory
    store = fill(tmp_path / "models", 3)
    upload(store, system, f"{url}/models")
    names = sorted(digests(store))
    assert sorted(location_at(f"{url}/models").listing().files) == names
    models = [name for name in names if name.endswith(".onnx")]
    others = [name for name in names if name not in models]
    target = f"{url}/folded"
    done = in_this_process(f"{url}/models", target, models)
    done += in_this_process(f"{url}/models", target, others, "copy")
    assert not [o.error for o in done if o.error]
    system.get(target.removeprefix("memory:/"), str(tmp_path / "folded"), recursive=True)
    assert digests(tmp_path / "folded") == expected(store, tmp_path / "expected")
    again = in_this_process(f"{url}/models", target, models)
    assert all(o.skipped for o in again)


@pytest.mark.parametrize("remote", ["source", "target"])
def test_between_memory_and_a_folder(memory, tmp_path, remote):
    system, url = memory
    store = tmp_path / "models"
    write_external(store / "a" / "model.onnx", "sub/weights.bin")
    source, target = str(store), str(tmp_path / "folded")
    if remote == "source":
        upload(store, system, f"{url}/models")
        source = f"{url}/models"
    else:
        target = f"{url}/folded"
    (outcome,) = in_this_process(source, target, ["a/model.onnx"])
    assert outcome.source.keys() == {"a/model.onnx", "a/sub/weights.bin"}
    found = names_of(system, target) if remote == "target" else digests(tmp_path / "folded")
    assert set(found) == outcome.target.keys()
    assert len(found) == 2


def test_missing_data_is_named(memory, tmp_path):
    system, url = memory
    store = tmp_path / "models"
    write_external(store / "model.onnx", "weights.bin")
    (store / "weights.bin").unlink()
    upload(store, system, f"{url}/models")
    (outcome,) = in_this_process(f"{url}/models", f"{url}/folded", ["model.onnx"])
    assert outcome.error.startswith("model.onnx: tensor ")
    assert "weights.bin" in outcome.error
    assert os.sep * 2 not in outcome.error
    assert names_of(system, f"{url}/folded") == []


@pytest.mark.parametrize("location", ["../out.bin", "a/../../out.bin", "/out.bin"])
def test_data_outside_of_the_folder_is_not_fetched(tmp_path, location, monkeypatch):
    store = tmp_path / "models"
    model = onnx.load(write_external(store / "model.onnx", "w.bin"), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    write(store / "model.onnx", model)
    fetched = []
    monkeypatch.setattr(
        RemoteLocation, "fetch", lambda self, name, scratch: fetched.append(name) or store
    )
    (outcome,) = in_this_process(f"file://{store}", str(tmp_path / "folded"), ["model.onnx"])
    assert "below the model's folder" in outcome.error
    assert fetched == ["model.onnx"]


def test_superseded_data_is_removed(memory, tmp_path):
    system, url = memory
    store = tmp_path / "models"
    for layers in (2, 3):
        (store / "weights.bin").unlink(missing_ok=True)
        write_external(store / "model.onnx", "weights.bin", layers=layers)
        in_this_process(str(store), f"{url}/folded", ["model.onnx"])
        assert len(names_of(system, f"{url}/folded")) == 2


@pytest.mark.parametrize("name", ["../x.onnx", "a/../../x.onnx", "a//x.onnx", "./x.onnx"])
def test_names_that_would_lead_out_of_a_folder(memory, name):
    """Object stores know no folders, and take any name."""
    system, url = memory
    system.store[f"{url.removeprefix('memory:/')}/{name}"] = system.open(f"{url}/fine.onnx", "wb")
    listing = location_at(url).listing()
    assert listing.files.keys() <= {"fine.onnx"}
    assert set(listing.problems.values()) == {"is not a name that a file in a folder can have"}


def test_processes_on_urls(tmp_path, capfd):
    store, output = fill(tmp_path / "models", 4), tmp_path / "folded"
    words = [f"file://{store}", "-o", f"file://{output}", "--jobs", "2"]
    assert main(words) == 0
    assert digests(output) == expected(store, tmp_path / "expected")
    assert unfinished(output) == []
    capfd.readouterr()
    assert main(words) == 0
    assert capfd.readouterr().out.splitlines()[-1].startswith("4 models: 4 done before")


def test_links_at_a_url_are_reported(tmp_path):
    store = fill(tmp_path / "models", 1)
    outside = write(tmp_path / "outside.onnx", small_model())
    (store / "out.onnx").symlink_to(outside)
    (store / "folder").symlink_to(tmp_path)
    report = fold_store(f"file://{store}", tmp_path / "folded", jobs=1)
    assert sorted(o.name for o in report.failed) == ["folder", "out.onnx"]
    assert all("is a link" in o.error for o in report.failed)
    assert count_models(tmp_path / "folded") == 1


def test_a_linked_folder_cannot_go_to_a_url(tmp_path):
    store = fill(tmp_path / "models", 1)
    (store / "latest").symlink_to("net0")
    (failed,) = fold_store(store, f"file://{tmp_path}/folded", jobs=1).failed
    assert failed.error == "latest: is a link to a folder, which cannot be written to a URL"


def count_models(folder):
    return len([onnx.load(path) for path in folder.rglob("*.onnx")])


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("other", ["", "file://"])
def test_an_output_in_the_store_is_refused(tmp_path, scheme, other):
    store = fill(tmp_path / "models", 1)
    with pytest.raises(UsageError, match="is inside the input"):
        fold_store(f"{scheme}{store}", f"{other}{store}/folded")


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("nope://models", "cannot be opened"),
        ("memory://no-such-folder", "there is no such folder"),
        ("file:///no/such/folder", "there is no such folder"),
    ],
)
def test_urls_that_are_no_stores(tmp_path, url, error):
    with pytest.raises(UsageError, match=error):
        fold_store(url, tmp_path / "folded")


def test_a_state_in_another_file_system(tmp_path, memory):
    store = fill(tmp_path / "models", 1)
    with pytest.raises(UsageError, match="another file system"):
        fold_store(store, f"{memory[1]}/folded", state=f"file://{tmp_path}/state")


def test_without_fsspec(tmp_path, monkeypatch):
    for name in ("fsspec", "fsspec.core"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match="needs fsspec; pip install fsspec"):
        fold_store("memory://models", tmp_path / "folded")


def test_a_worker_of_another_version_refuses(tmp_path):
    store = fill(tmp_path / "models", 1)
    batch = Batch(str(store), str(tmp_path / "folded"), None, Options(), version="0.0.0")
    outcome = perform(batch, Task("fold", "net0/0/model.onnx"))
    assert "install one version everywhere" in outcome.error
    assert not (tmp_path / "folded").exists()


# --- one model -----------------------------------------------------------------------------------


@pytest.fixture
def single(memory, tmp_path):
    """A model with its data at a URL."""
    system, url = memory
    write_external(tmp_path / "m" / "model.onnx", "sub/weights.bin")
    upload(tmp_path / "m", system, f"{url}/m")
    return tmp_path / "m" / "model.onnx", f"{url}/m/model.onnx"


def command(capfd, *words):
    code = main([str(word) for word in words])
    return code, *capfd.readouterr()


@pytest.mark.parametrize("output", ["f.onnx", "", "sub/"])
def test_one_model_at_a_url(output, single, tmp_path, capfd):
    local, url = single
    (tmp_path / "sub").mkdir()
    assert command(capfd, url, "-o", f"{tmp_path}/{output}")[0] == 0
    target = tmp_path / output / ("" if output.endswith(".onnx") else "model.onnx")
    assert_same_function(onnx.load(local), onnx.load(target))


def test_one_model_at_a_url_is_checked_and_called_by_it(single, tmp_path, capfd):
    _, url = single
    code, out, err = command(capfd, url, tmp_path / "f.onnx", "--check", "--sets", 1)
    assert (code, err) == (0, "")
    assert f"original  {url}" in out
    assert "onnx_bnfold." not in out
    _, out, _ = command(capfd, url, tmp_path / "f.onnx")
    assert out.splitlines()[-1].startswith(f"written: {tmp_path / 'f.onnx'} with its data in ")


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("broken.onnx", [], "/m/broken.onnx: is empty"),
        ("model.onnx", ["--keep", "xyzzy"], "xyzzy"),
        ("model.onnx", ["-o", "memory://f.onnx"], "is folded into a file of this machine"),
        ("none.onnx", [], "there is no such folder"),
    ],
    ids=["broken", "keep", "output", "missing"],
)
def test_one_model_that_cannot_be_folded(name, words, said, single, memory, tmp_path, capfd):
    system, url = memory
    system.touch(f"{url}/m/broken.onnx".removeprefix("memory:/"))
    output = [] if "-o" in words else ["-o", tmp_path / "f.onnx"]
    code, out, err = command(capfd, f"{url}/m/{name}", *words, *output)
    assert (code, out) == (2, "")
    assert said in err
    assert "internal error" not in err
    assert not (tmp_path / "f.onnx").exists()


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def web(tmp_path):
    """A web server, and the folder that it serves."""
    folder = tmp_path / "a b"
    folder.mkdir()
    handler = partial(_Silent, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/a%20b"
        server.shutdown()
        thread.join()


def test_one_model_of_a_web_server(web, tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    folder, url = web
    local = write_external(folder / "m é.onnx", "sub/w 1.bin")
    address = f"{url}/m%20%C3%A9.onnx?download=true"
    code, out, _ = command(capfd, address, "-o", f"{tmp_path}/")
    assert code == 0
    assert_same_function(onnx.load(local), onnx.load(tmp_path / "m é.onnx"))
    assert out.splitlines()[-1].startswith(f"written: {tmp_path}/m é.onnx with its data in ")


def test_what_a_web_server_does_not_have(web, tmp_path, capfd):
    folder, url = web
    write_external(folder / "m.onnx", "w.bin")
    (folder / "w.bin").unlink()
    for name, missing in (("none.onnx", "none.onnx"), ("m.onnx", "w.bin")):
        code, _, err = command(capfd, f"{url}/{name}", "-o", tmp_path / "f.onnx")
        assert code == 2
        assert err.startswith(f"onnx-bnfold: {url}/{missing}: cannot be downloaded: HTTP Error 404")


def test_a_web_server_that_is_not_there(web, tmp_path, capfd):
    address = "http://127.0.0.1:1/m.onnx"
    code, _, err = command(capfd, address, "-o", tmp_path / "f.onnx")
    assert code == 2
    assert err.startswith(f"onnx-bnfold: {address}: cannot be downloaded: [Errno ")
    assert err.rstrip().endswith("; check the address and the connection")


def test_a_local_model_goes_to_no_url(single, capfd):
    local, _ = single
    assert "is folded into a file of this machine" in command(capfd, local, "memory://f.onnx")[2]


def test_a_folder_named_like_a_model_is_a_folder(memory, tmp_path):
    system, url = memory
    system.makedirs(f"{url}/folder.onnx".removeprefix("memory:/"))
    assert not is_single(f"{url}/folder.onnx")
    assert is_single("https://host.example/model.onnx?download=true")
    assert not is_single("https://host.example/models")
