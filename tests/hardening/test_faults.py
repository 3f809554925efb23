"""Whatever happens while a model is written, the target is the old pair or the whole new one."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import bn, conv, join, model_of, ops

import onnx_bnfold
from onnx_bnfold.cli.main import main
from onnx_bnfold.errors import BnFoldError

pytestmark = pytest.mark.slow  # hundreds of processes are started and killed

OLD, NEW = "old", "new"
ROUNDS = int(os.environ.get("BNFOLD_KILL_ROUNDS", "6"))


def write_source(path: Path, seed: int, channels: int = 256) -> Path:
    """A model with external data."""
    rng = np.random.default_rng(seed)
    parts = join(
        conv("x", "c", (channels, channels, 1, 1), rng),
        bn("c", "b", channels, rng),
        conv("b", "y", (channels, channels, 1, 1), rng),
    )
    model = model_of(parts.nodes, {"x": (1, channels, 4, 4)}, ["y"], parts.initializers)
    model.producer_name = f"seed {seed}"
    name = f"{path.name}.bin"
    onnx.save(model, path, save_as_external_data=True, location=name, size_threshold=1024)
    return path


def pair(path: Path) -> tuple[bytes, dict[str, bytes]]:
    """A model file and the values of all its tensors."""
    model = onnx.load(path)
    return path.read_bytes(), {t.name: t.raw_data for t in model.graph.initializer}


def temporary(folder: Path) -> list[str]:
    return [n for n in os.listdir(folder) if n.startswith(".") and n.endswith(".tmp")]


@pytest.fixture
def models(tmp_path):
    """Two sources, and what each is folded into at one and the same target."""
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "folded.onnx"
    sources = [write_source(tmp_path / f"{n}.onnx", seed) for n, seed in ((OLD, 1), (NEW, 2))]
    outcomes = []
    for source in sources[::-1]:
        onnx_bnfold.fold_file(source, target)
        outcomes.append(pair(target))
    return sources, outcomes[::-1], target


def assert_whole(target: Path, outcomes) -> None:
    assert pair(target) in outcomes
    onnx.checker.check_model(target)
    assert "BatchNormalization" not in ops(onnx.load(target, load_external_data=False))


@pytest.mark.parametrize("kind", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_signal_at_a_random_moment(kind, models):
    """BNFOLD_KILL_ROUNDS sets the number of rounds of each kind."""
    sources, outcomes, target = models
    choose = random.Random(kind)
    script = (
        "import sys, signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "import onnx_bnfold.api, onnx_bnfold.cli.fold; from onnx_bnfold.cli.main import main;"
        "print(flush=True); code = 0\n"
        "try:\n"
        "  for i in range(9999):\n"
        "    code = code or main([sys.argv[1 + i % 2], '-o', sys.argv[3], '-q'])\n"
        "except KeyboardInterrupt: code = 130\n"  # between two folds
        "sys.exit(code)"
    )
    for _ in range(ROUNDS):
        process = subprocess.Popen(
            [sys.executable, "-c", script, *sources, target],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(choose.uniform(0, 0.4))
        process.send_signal(getattr(signal, kind))
        _, said = process.communicate(timeout=60)
        assert_whole(target, outcomes)
        left = set(os.listdir(target.parent)) - {target.name}
        assert {n for n in left if not n.endswith(".data")} == set(temporary(target.parent))
        if kind == "SIGINT":
            assert process.returncode == 130, said
            assert "Traceback" not in said
        else:
            assert process.returncode == -getattr(signal, kind)
        for name in temporary(target.parent):
            path = target.parent / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    onnx_bnfold.fold_file(sources[0], target)
    assert pair(target) == outcomes[0]


CALLS = ["write", "replace", "open", "close", "lseek", "pread", "copy_file_range", "unlink"]
CALLS += ["preadv", "pwrite", "ftruncate"]


@pytest.mark.parametrize("call", CALLS)
def test_an_error_at_every_call(call, models, monkeypatch):
    """The n-th call fails, for every n until a fold gets through without one."""
    sources, outcomes, target = models
    for number in range(200):
        onnx_bnfold.fold_file(sources[0], target)
        state = {"left": number, "failed": False}
        real = getattr(os, call)

        def fail(*args, state=state, real=real, **kwargs):
            state["left"] -= 1
            if state["left"] == -1:
                state["failed"] = True
                raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            try:
                onnx_bnfold.fold_file(sources[1], target)
                done = True
            except BnFoldError:
                done = False
            except OSError:
                # Taking away what is left behind a failure, or closing a file, may fail as well.
                assert call in ("close", "unlink"), number
                done = False
        assert_whole(target, outcomes)
        if done:
            assert pair(target) == outcomes[1]
        if not state["failed"]:
            assert number > 0, "nothing was tested"
            return
    pytest.fail("more calls than expected")


def test_a_limit_on_file_sizes(models, tmp_path):
    """Like a full disk or a quota, and enforced by the system."""
    sources, _, target = models
    before = pair(target)
    for limit in (0, 1000, 100_000, 300_000):
        done = subprocess.run(
            [sys.executable, "-m", "onnx_bnfold", sources[1], "-o", target],
            capture_output=True,
            text=True,
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit,) * 2),
        )
        assert done.returncode == 2
        assert "cannot be written" in done.stderr
        assert "Traceback" not in done.stderr
        assert pair(target) == before
        assert not temporary(target.parent)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk(models, tmp_path):
    sources, _, _ = models
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", disk], check=False)
    if made.returncode:
        pytest.skip("no right to mount")
    try:
        target = disk / "folded.onnx"
        assert main([str(sources[0]), "-o", str(target), "-q"]) == 0
        before = pair(target)
        # The new pair has no room beside the old one.
        assert main([str(sources[1]), "-o", str(target), "-q"]) == 2
        assert pair(target) == before
        assert not temporary(disk)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_two_processes_with_one_target(models):
    sources, outcomes, target = models
    command = [sys.executable, "-c", "import sys; from onnx_bnfold import fold_file\n"
               "for _ in range(15): fold_file(sys.argv[1], sys.argv[2])"]  # fmt: skip
    running = [subprocess.Popen([*command, source, target]) for source in sources]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    assert_whole(target, outcomes)
    assert not temporary(target.parent)


@pytest.mark.parametrize("change", ["removed", "cut", "target folder removed"])
def test_a_file_that_goes_while_it_is_read(change, models, capsys):
    sources, _, target = models
    before = pair(target)
    data = Path(f"{sources[1]}.bin")

    def interfere(*_: object) -> None:
        if change == "removed":
            data.unlink()
        elif change == "cut":
            os.truncate(data, 100)
        else:
            for path in target.parent.iterdir():
                path.unlink()
            target.parent.rmdir()

    with pytest.MonkeyPatch.context() as patch:
        real = onnx_bnfold.api.Pipeline.apply

        def apply(self, copy):
            interfere()
            return real(self, copy)

        patch.setattr(onnx_bnfold.api.Pipeline, "apply", apply)
        code = main([str(sources[1]), "-o", str(target), "-q"])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "internal error" not in said
    if change == "removed":  # the open file is read to its end
        assert code in (0, 2)
    else:
        assert code == 2
    if change == "cut":
        assert pair(target) == before
