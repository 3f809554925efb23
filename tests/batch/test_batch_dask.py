"""A store on a Dask cluster of two processes, of which one is killed."""

import os
import signal
import sys
import threading
import time

import pytest
from batches import digests, expected, fill, unfinished, write

from onnx_bnfold import UsageError, progress
from onnx_bnfold.batch import fold_store, plan_store
from onnx_bnfold.batch.dask_cluster import connected, on_dask
from onnx_bnfold.cli.main import main

pytest.importorskip("distributed")

import dask
from distributed import Client, LocalCluster

pytestmark = pytest.mark.slow  # starts a cluster and kills a worker

MODELS = 40


def two_workers() -> LocalCluster:
    return LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")


@pytest.fixture(scope="module")
def cluster():
    with two_workers() as started:
        yield started


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A store, and what its output must be."""
    folder = tmp_path_factory.mktemp("store")
    store = fill(folder / "models", MODELS, layers=8, channels=24)
    return store, expected(store, folder / "expected")


def workers(cluster) -> dict[str, int]:
    with Client(cluster) as client:
        return client.run(os.getpid)


def kill_in_the_middle(output, pid) -> threading.Thread:
    """Kills a process once five models are done."""

    def watch():
        deadline = time.monotonic() + 60
        while len(list(output.rglob("*.onnx"))) < 5 and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.parametrize("scheme", ["", "file://"], ids=["paths", "URLs"])
def test_a_worker_that_is_killed_in_the_middle(large, tmp_path, cluster, scheme):
    store, made = large
    output = tmp_path / "folded"
    cluster.wait_for_workers(2, timeout=60)
    victim = next(iter(workers(cluster).values()))
    thread = kill_in_the_middle(output, victim)
    report = fold_store(f"{scheme}{store}", f"{scheme}{output}", dask=cluster.scheduler_address)
    thread.join()
    assert victim not in workers(cluster).values()
    assert not report.failed
    assert [o.status for o in report.models] == ["folded"] * MODELS
    assert not any(o.skipped for o in report.models)
    assert digests(output) == made
    # Of an upload nobody can tell whether it is dead; in a file system its lock tells.
    assert len(unfinished(output)) <= bool(scheme)
    again = fold_store(f"{scheme}{store}", f"{scheme}{output}", dask=cluster.scheduler_address)
    assert all(o.skipped for o in again.outcomes)


def test_a_broken_model_on_dask(tmp_path, cluster, capfd):
    store = fill(tmp_path / "models", 3)
    write(store / "broken.onnx", b"")
    words = [str(store), "-o", str(tmp_path / "folded"), "--dask", cluster.scheduler_address]
    assert main(words) == 1
    out, err = capfd.readouterr()
    assert err.startswith("onnx-bnfold: failed  broken.onnx: is empty")
    assert out.splitlines()[-2].startswith("4 models: 1 failed, 3 folded; ")


def test_a_plan_on_dask(tmp_path, cluster):
    store = fill(tmp_path / "models", 3)
    report = plan_store(store, dask=cluster.scheduler_address)
    assert [o.status for o in report.models] == ["planned"] * 3


def name_error(item, error):
    return item, type(error).__name__


def deadly(number: int) -> int:
    if number == 1:
        os._exit(1)
    return number


def test_an_item_that_kills_its_workers():
    """Those that were on a worker with it are done, though Dask gives them up too."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        two_workers() as cluster,
        connected(cluster.scheduler_address) as client,
    ):
        results = on_dask(client, deadly, range(4), name_error)
        assert set(results) == {0, 2, 3, (1, "KilledWorker")}


def test_an_item_that_raises(cluster):
    with connected(cluster.scheduler_address) as client:
        results = on_dask(client, int, ["1", "x"], name_error)
        assert set(results) == {1, ("x", "ValueError")}


def test_a_scheduler_that_is_gone(cluster):
    with connected(cluster.scheduler_address) as client:
        client.close()
        results = on_dask(client, int, ["1", "2"], name_error)
        assert list(results) == [("1", "ConnectionError"), ("2", "ConnectionError")]


def test_it_says_that_it_waits_for_workers(monkeypatch, capsys):
    monkeypatch.setattr("onnx_bnfold.batch.dask_cluster._PATIENCE", 1)
    progress.show("bars and lines")
    with LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=":0") as cluster:
        late = threading.Timer(1.5, cluster.scale, [1])
        late.start()
        with connected(cluster.scheduler_address) as client:
            assert list(on_dask(client, int, ["1"], name_error)) == [1]
        late.join()
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"onnx-bnfold: {cluster.scheduler_address} has no workers yet; ")
    assert len(said) > 1


def test_no_scheduler(tmp_path, capfd):
    store = fill(tmp_path / "models", 1)
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        words = [str(store), "-o", str(tmp_path / "folded"), "--dask", "tcp://127.0.0.1:1"]
        assert main(words) == 2
    assert "no Dask scheduler answers" in capfd.readouterr().err


@pytest.mark.parametrize("address", ["nonsense", "tcp://", "nope://127.0.0.1:1"])
def test_a_wrong_address(tmp_path, address):
    store = fill(tmp_path / "models", 1)
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(UsageError, match="no Dask scheduler answers"),
    ):
        fold_store(store, tmp_path / "folded", dask=address)
    assert os.listdir(tmp_path) == ["models"]


def test_without_dask(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match="pip install dask distributed"):
        fold_store(fill(tmp_path / "models", 1), tmp_path / "folded", dask="tcp://127.0.0.1:1")
