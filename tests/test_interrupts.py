"""Interrupts: one sentence and exit code 130 at every moment, and nothing half done."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import onnx
import pytest
from support import bn, conv, join, model_of

from onnx_bnfold.cli.main import main
from onnx_bnfold.interrupts import held_back

# Sends SIGINT when a module begins to be imported; the command line is run then. An extension takes
# an interrupt for a failed import.
INTERRUPTING = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                if {extension!r}:
                    raise ImportError("initialization failed") from None
                raise
sys.meta_path.insert(0, Finder())
from onnx_bnfold.__main__ import run
run()
"""
EARLY = ("onnx_bnfold.cli.main", "argparse", "onnx_bnfold.provenance")
OF_A_FOLD = ("numpy", "google.protobuf", "onnx", "onnx.onnx_cpp2py_export")
EXTENSIONS = (*OF_A_FOLD, "ml_dtypes")
ONNXRUNTIME = "onnxruntime.capi.onnxruntime_pybind11_state"
MOMENTS = [
    *(("file", module) for module in (*EARLY, *OF_A_FOLD, "onnx_bnfold.planning.planner")),
    ("store", "onnx_bnfold.cli.main"),
    ("store", "onnx"),
    ("store", "onnx_bnfold.batch.task"),
    ("checked", "onnx"),
    ("checked", ONNXRUNTIME),
    ("check", "onnx"),
    ("check", "ml_dtypes"),
    ("check", "onnx_bnfold.check.results"),
    ("check", ONNXRUNTIME),
]


@pytest.fixture
def model(tmp_path):
    rng = np.random.default_rng(0)
    parts = join(conv("x", "c", (2, 3, 1, 1), rng), bn("c", "y", 2, rng))
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "model.onnx"
    onnx.save(model_of(parts.nodes, {"x": (1, 3, 4, 4)}, ["y"], parts.initializers), path)
    return path


@pytest.mark.parametrize(("kind", "module"), MOMENTS)
def test_an_interrupt_while_modules_are_imported(kind, module, model, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    words = {
        "file": [model, "-o", folder / "folded.onnx"],
        "store": [model.parent, "-o", folder / "folded"],
        "checked": [model, "-o", folder / "folded.onnx", "--check"],
        "check": ["check", model, model],
    }[kind]
    script = INTERRUPTING.format(module=module, extension=module in (*EXTENSIONS, ONNXRUNTIME))
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.startswith("onnx-bnfold: interrupted; ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert not list(folder.iterdir())


@pytest.mark.parametrize("where", ["write_folded", "plan_file"])
def test_an_interrupt_of_a_fold(where, model, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"onnx_bnfold.cli.fold.{where}", interrupted)
    words = [str(model), *(["--dry-run"] if where == "plan_file" else [])]
    assert main([*words, "-o", str(tmp_path / "folded.onnx")]) == 130
    assert capsys.readouterr().err == ("onnx-bnfold: interrupted; no incomplete file was written\n")


def test_an_interrupt_of_a_store_behind_its_work(model, tmp_path, monkeypatch, capsys):
    """While it says what was done, too."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("onnx_bnfold.cli.batch.tell", interrupted)
    assert main([str(model.parent), "-o", str(tmp_path / "out"), "--jobs", "1"]) == 130
    assert "run the same command again to continue" in capsys.readouterr().err


def interrupt_itself():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("error", [None, ValueError])
def test_an_interrupt_waits_for_the_end_of_the_context(error):
    """Who asks for an end is not answered with another error."""
    done = []

    def work():
        with held_back():
            interrupt_itself()
            done.append("all the same")
            if error:
                raise error

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None], ids=["ignored", "own"])
def test_who_has_another_handler_keeps_it(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        with held_back():
            assert signal.getsignal(signal.SIGINT) is handler
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_has_no_part_in_it():
    """Signals go to the main thread, and only there a handler can be set."""
    met = []

    def enter():
        with held_back():
            met.append("entered")

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert met == ["entered"]
