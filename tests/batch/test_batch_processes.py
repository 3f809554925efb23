"""Runs that are killed, interrupted or not alone; processes that die; locks."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import onnx
import pytest
from batches import (
    command,
    digests,
    expected,
    fill,
    is_running,
    small_model,
    start,
    state_of,
    unfinished,
)
from onnx import helper

from onnx_bnfold.batch import fold_store
from onnx_bnfold.batch.local import LocalLocation
from onnx_bnfold.batch.locks import hold
from onnx_bnfold.batch.processes import in_processes

pytestmark = pytest.mark.slow  # hundreds of processes are started and killed

PATIENCE = 60  # seconds until a test gives up


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


# --- killed and interrupted runs -----------------------------------------------------------------

MODELS = 30


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A store, what its output must be, and the seconds that a run takes."""
    folder = tmp_path_factory.mktemp("store")
    store = fill(folder / "models", MODELS, layers=8, channels=24)
    made = expected(store, folder / "expected")
    begin = time.monotonic()
    subprocess.run(command(store, "-o", folder / "folded", "--jobs", "2"), check=True)
    seconds = time.monotonic() - begin
    assert digests(folder / "folded") == made
    return store, made, seconds


@pytest.fixture
def output(tmp_path):
    return tmp_path / "folded"


def assert_whole_files(output, made):
    found = digests(output) if output.exists() else {}
    assert found.items() <= made.items()
    return len(found)


def assert_restart_completes(store, output, made):
    subprocess.run(command(store, "-o", output, "--jobs", "2", "-q"), check=True)
    assert digests(output) == made
    assert unfinished(output) == []


@pytest.mark.parametrize("number", range(10))
def test_a_run_that_is_killed_leaves_whole_files(large, output, number):
    store, made, seconds = large
    process = start(store, "-o", output, "--jobs", "2")
    time.sleep(random.Random(number).uniform(0.1, 1.0) * seconds)
    # The first process alone, or all of them.
    (os.killpg if number % 2 else os.kill)(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not is_running(process.pid))  # its workers die with it
    assert_whole_files(output, made)
    assert_restart_completes(store, output, made)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("whole_group", [True, False], ids=["group", "first process"])
def test_a_run_that_is_interrupted(large, output, signum, whole_group):
    store, made, _ = large
    process = start(store, "-o", output, "--jobs", "2")
    wait_until(lambda: len(list(output.rglob("*.onnx"))) >= 3)
    (os.killpg if whole_group else os.kill)(process.pid, signum)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (130, "")
    assert err == "onnx-bnfold: interrupted; run the same command again to continue\n"
    assert not is_running(process.pid)
    assert 3 <= assert_whole_files(output, made) < len(made)
    assert unfinished(output) == []
    assert_restart_completes(store, output, made)


def test_the_restart_does_not_repeat_what_is_done(large, output):
    store, made, _ = large
    process = start(store, "-o", output, "--jobs", "2")
    records = state_of(output) / "records"
    wait_until(lambda: records.exists() and len(os.listdir(records)) >= 5)
    process.kill()
    process.communicate()
    wait_until(lambda: not is_running(process.pid))
    done = len(os.listdir(records))
    report = fold_store(store, output, jobs=2)
    assert sum(o.skipped for o in report.models) == done
    assert digests(output) == made


def test_two_runs_at_once(large, output):
    store, made, _ = large
    runs = [start(store, "-o", output, "--jobs", "2") for _ in range(2)]
    for process in runs:
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (0, "")
        assert out.splitlines()[-1].startswith(f"{MODELS} models: ")
    assert digests(output) == made
    assert unfinished(output) == []


def test_two_runs_with_other_options_at_once(output, tmp_path):
    """The output of either may win, model by model, and a run alone puts that right."""
    store = tmp_path / "models"
    for number in range(20):
        model = small_model(number, layers=8, channels=24)
        weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
        kind = helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
        model.graph.input.append(kind)
        path = store / f"{number}.onnx"
        path.parent.mkdir(exist_ok=True)
        onnx.save(model, path, save_as_external_data=True, location=f"{number}.bin")
    options = ([], ["--freeze-initializers"])
    alone = []
    for number, words in enumerate(options):
        subprocess.run(command(store, "-o", tmp_path / f"{number}", "-q", *words), check=True)
        alone.append(digests(tmp_path / f"{number}"))
    runs = [start(store, "-o", output, *words) for words in options]
    assert [process.wait(PATIENCE) for process in runs] == [0, 0]
    found = digests(output)
    for number in range(20):
        pairs = [{n: d for n, d in a.items() if n.startswith(f"{number}.onnx")} for a in alone]
        assert len(pairs[0] | pairs[1]) == 3
        assert {n: d for n, d in found.items() if n.startswith(f"{number}.onnx")} in pairs
    assert_restart_completes(store, output, alone[0])


# --- processes -----------------------------------------------------------------------------------


def square(number: int) -> int:
    return number * number


def deadly(item: tuple[int, str]) -> str:
    """Work that kills its process for item 5; `item[1]` is a folder that remembers attempts."""
    number, folder = item
    with open(os.path.join(folder, str(number)), "a") as file:
        file.write("x")
    if number == 5:
        os._exit(1)
    return f"done {number}"


def deadly_once(item: tuple[int, str]) -> str:
    number, folder = item
    path = os.path.join(folder, "died")
    if number == 5 and not os.path.exists(path):
        open(path, "w").close()
        os.kill(os.getpid(), 9)
    return f"done {number}"


def failing(number: int) -> int:
    raise ZeroDivisionError


def handlers(_: object) -> list[object]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def no_death(item):
    raise AssertionError(f"{item} did not kill its process")


@pytest.mark.parametrize("start_method", multiprocessing.get_all_start_methods())
@pytest.mark.parametrize("jobs", [1, 3])
def test_all_results_come(jobs, start_method):
    results = in_processes(square, range(20), jobs, no_death, start_method)
    assert sorted(results) == [square(n) for n in range(20)]


def test_the_first_process_decides_what_ctrl_c_means():
    assert list(in_processes(handlers, [0], 1, no_death)) == [[signal.SIG_IGN, signal.SIG_DFL]]


def test_no_items():
    assert list(in_processes(square, [], 2, no_death)) == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_item_that_kills_its_process(tmp_path, jobs):
    items = [(number, str(tmp_path)) for number in range(20)]
    results = list(in_processes(deadly, items, jobs, lambda item: f"died {item[0]}"))
    assert sorted(results) == sorted(["died 5", *(f"done {n}" for n in range(20) if n != 5)])
    attempts = {path.name: len(path.read_text()) for path in tmp_path.iterdir()}
    assert attempts["5"] == 2
    assert max(attempts.values()) == 2


def test_an_item_whose_process_dies_once(tmp_path):
    items = [(number, str(tmp_path)) for number in range(20)]
    results = in_processes(deadly_once, items, 2, no_death)
    assert sorted(results) == sorted(f"done {n}" for n in range(20))


def test_an_error_of_the_work_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(in_processes(failing, range(3), 2, no_death))


def test_processes_end_with_the_iteration():
    before = set(multiprocessing.active_children())
    results = in_processes(time.sleep, [0, 1000, 1000], 2, no_death)
    begin = time.monotonic()
    next(results)
    assert set(multiprocessing.active_children()) - before
    results.close()
    assert set(multiprocessing.active_children()) - before == set()
    assert time.monotonic() - begin < 500


# --- locks ---------------------------------------------------------------------------------------


def test_a_lock_is_held_by_one(tmp_path):
    path = tmp_path / "lock"
    with hold(path) as held:
        assert held
        with hold(path, wait=False) as again:
            assert not again
        assert path.exists()
    assert not path.exists()
    with hold(path, wait=False) as held:
        assert held


HOLDER = """
import sys, time
from pathlib import Path
from onnx_bnfold.batch.locks import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(1000)
"""


def test_a_lock_goes_with_its_process(tmp_path):
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        with hold(path, wait=False) as held:
            assert not held
        process.kill()
        process.wait()
    with hold(path) as held:
        assert held


def add_one(path) -> None:
    """Not atomic by itself."""
    with hold(path.with_name("lock")):
        number = int(path.read_text())
        time.sleep(0.001)
        path.write_text(str(number + 1))


def test_a_lock_that_is_removed_and_made_again_excludes(tmp_path):
    path = tmp_path / "number"
    path.write_text("0")
    list(in_processes(add_one, [path] * 200, 4, no_death))
    assert path.read_text() == "200"


def test_a_file_is_published_whole(tmp_path):
    """By a rename: a reader has all of the old file or all of the new one."""
    place = LocalLocation(str(tmp_path / "folded"))
    place.prepare()
    with place.claim("key") as scratch:
        for content in ("old", "new"):
            (scratch / content).write_text(content)
        place.publish(scratch / "old", "a/file")
        with open(tmp_path / "folded" / "a" / "file") as reader:
            place.publish(scratch / "new", "a/file")
            assert reader.read() == "old"
    assert (tmp_path / "folded" / "a" / "file").read_text() == "new"


def test_a_run_begins_with_a_sweep(tmp_path, monkeypatch):
    """What a killed run left may fill the disk."""
    output = tmp_path / "folded"
    LocalLocation(str(output)).prepare()
    (state_of(output) / "unfinished" / "dead.x.d").mkdir()
    seen = []
    monkeypatch.setattr(
        "onnx_bnfold.batch.run.in_processes", lambda *args: seen.append(unfinished(output)) or []
    )
    fold_store(fill(tmp_path / "models", 1), output)
    assert seen == [[], []]


def test_a_sweep_removes_what_the_dead_left_and_nothing_else(tmp_path):
    place = LocalLocation(str(tmp_path / "folded"))
    place.prepare()
    dead = state_of(tmp_path / "folded") / "unfinished" / "dead.x.d"
    dead.mkdir()
    (dead / "half").touch()
    with place.claim("alive") as scratch:
        (scratch / "half").touch()
        place.sweep()
        assert (scratch / "half").exists()
        assert not dead.exists()
    assert unfinished(tmp_path / "folded") == []


def test_work_goes_on_where_there_are_no_locks(tmp_path, monkeypatch):
    monkeypatch.setattr("onnx_bnfold.batch.locks.fcntl", None)
    place = LocalLocation(str(tmp_path / "folded"))
    place.prepare()
    with place.claim("key") as one, place.claim("key") as other:
        assert one != other
        place.sweep()
        assert one.exists()
