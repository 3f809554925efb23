import json
import re

import numpy as np
import onnx
import pytest
from PIL import Image

from tools.mnist import data
from tools.mnist.__main__ import main
from tools.mnist.measure import count
from tools.mnist.table import SEED_PARAMETERS


@pytest.fixture
def run(folder, tmp_path, capsys):
    """Run the command line on the generated data; give its exit code, stdout and stderr."""

    def call(*arguments):
        code = main([*map(str, arguments), "--data", str(folder)])
        return code, *capsys.readouterr()

    return call


@pytest.mark.slow
def test_reproduce_then_predict_then_restore(run, folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    code, table, errors = run("reproduce", "--quick", "--runs", 2, "--out", out)
    assert (code, errors) == (0, "")
    table, last = table.split("\n\n")
    assert_table_is_complete(table)
    assert_files_are_complete(out)
    written, verdict = last.splitlines()
    assert written.startswith(f"written: {out / 'tinyCNN.pt'}, {out / 'tinyCNN.onnx'}, ")
    assert verdict == "OK  64 of 64 predictions are the same without BatchNormalization"
    for name in ("tinyCNN.onnx", "NoBN_tinyCNN.onnx"):
        assert_predicts(run, folder, out / name)

    labels = folder / "t10k-labels-idx1-ubyte"
    content = np.frombuffer(labels.read_bytes(), np.uint8).copy()
    content[8:] = (content[8:] + 1) % 10
    labels.write_bytes(content.tobytes())
    monkeypatch.setattr(data, "_checked", lambda path: path.read_bytes())
    code, table, errors = run("reproduce", "--restore", "--runs", 1, "--out", out)
    assert code == 1
    assert_table_is_complete(table.split("\n\n")[0])
    assert re.fullmatch(r"onnx-bnfold: test accuracy [\d.]+% is below 98\.5%\n", errors)


def assert_table_is_complete(table):
    assert len({len(line) for line in table.splitlines()}) == 1
    for figure in ("99.02%", "13.62%", "68.54%", "48.1 ms, 38.2 ms", "55,000 / 5,000 / 10,000"):
        assert figure in table
    for name in SEED_PARAMETERS:
        assert name in table


def assert_files_are_complete(out):
    models = [onnx.load(out / name) for name in ("tinyCNN.onnx", "NoBN_tinyCNN.onnx")]
    assert [count(model, "BatchNormalization") for model in models] == [2, 0]
    assert (out / "mnist.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "mnist.png").stat().st_size < 60_000
    results = json.loads((out / "results.json").read_text())
    assert results["training"]["steps"] == 5
    assert results["sizes"] == {"train": 640, "validation": 64, "test": 64}
    assert results["accuracies"]["with BN"] == results["accuracies"]["after the trick"]
    assert results["comparison"]["agreeing"] == 64
    modes = [mode["mode"] for mode in results["check"]["latency"]["modes"]]
    assert modes == ["disabled", "enabled"]


def assert_predicts(run, folder, model):
    test = data.load_test(folder)
    picture = folder / "digit.png"
    Image.fromarray(255 - test.images[3, 0]).save(picture)
    expected = rf"digit {test.labels[3]}, probability [01]\.\d{{4}}"
    for arguments, ending in (
        (("--index", 3), f", label {test.labels[3]}"),
        (("--image", picture, "--invert"), ""),
    ):
        code, line, errors = run("predict", model, *arguments)
        assert (code, errors) == (0, "")
        assert re.fullmatch(f"{expected}{ending}\n", line)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("reproduce", "--restore"), "tinyCNN.pt is not there"),
        (("predict", "absent.onnx", "--index", "0"), "absent.onnx"),
        (("predict", "absent.onnx", "--index", "64"), "go from 0 to 63"),
        (("predict", "absent.onnx", "--index=-1"), "go from 0 to 63"),
        (("predict", "absent.onnx", "--image", "absent.png"), "absent.png"),
        (("predict", "absent.onnx", "--image", __file__), "cannot read it as a picture"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, output, errors = run(*arguments)
    assert (code, output) == (2, "")
    assert errors.startswith("onnx-bnfold: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert not list(tmp_path.glob("runs"))
