"""Exit codes, streams and the report of the command line."""

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from pairs import fold, model, weights

from onnx_bnfold.cli.main import main as command


def main(arguments) -> int:
    return command(["check", *arguments])


@pytest.fixture
def files(tmp_path):
    """Paths of an original, a right and a wrong fold."""
    values = weights()
    right, wrong = fold(values), fold(values)
    wrong["w0"][0, 0, 1, 1] += 0.1
    paths = []
    for name, proto in [("o", model(values)), ("right", model(right)), ("wrong", model(wrong))]:
        onnx.save(proto, tmp_path / f"{name}.onnx")
        paths.append(str(tmp_path / f"{name}.onnx"))
    return paths


def test_right_fold(files, capsys):
    assert main(files[:2]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("OK  all gates hold\n")
    assert err == ""


def test_wrong_fold(files, tmp_path, capsys):
    report = tmp_path / "report.json"
    assert main([files[0], files[2], "--report", str(report)]) == 1
    out, err = capsys.readouterr()
    assert "FAILED  numerics: output 'y'" in out
    assert "the first tensor to differ is 'bn0', from BatchNormalization 'bn0'" in out
    assert out.endswith(f"\nreport: {report}\n")
    assert err.startswith("onnx-bnfold: numerics: output 'y'")
    record = json.loads(report.read_text())
    assert record["holds"] is False
    assert record["numerics"]["first_difference"]["tensor"] == "bn0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.onnx", "{1}"], "there is no file absent.onnx"),
        (["{0}", "absent.onnx"], "there is no file absent.onnx"),
        (["{0}", "{1}", "--shape", "z=1"], "no input or dimension 'z'"),
        (["{0}", "{1}", "--shape", "x=1,1,5,5"], "does not fit input 'x'"),
        (["{0}", "{1}", "--inputs", "absent.npz"], "cannot read inputs"),
        (["{0}", "{1}", "--data", "absent.npz"], "cannot read data"),
        (
            ["{0}", "{1}", "--inputs", "{0}"],
            "it is neither .npz nor .npy; write it with numpy.savez",
        ),
        (["{0}", "{1}", "--data", "{0}"], "it is neither an .npz nor a folder of IDX files"),
        (["{0}", "{1}", "--min-agreement", "1"], "--min-agreement needs labelled data"),
        (["{0}", "{1}", "--draws", "0"], "--draws is 0"),
        (["{0}", "{1}", "--atol=-1"], "--atol is -1"),
        (["{0}", "{1}", "--range=2,1"], "is empty"),
        (["{0}", "{1}", "--latency", "--modes", "warp"], "'warp'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(files, tmp_path, capsys, arguments, message):
    report = tmp_path / "report.json"
    arguments = [argument.format(*files) for argument in arguments]
    assert main([*arguments, "--report", str(report)]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert err.startswith("onnx-bnfold: ")
    assert err.count("\n") == 1
    assert out == ""
    assert not report.exists()


def test_report_that_cannot_be_written(files, tmp_path, capsys):
    assert main([*files[:2], "--report", str(tmp_path / "no" / "r.json")]) == 2
    assert "r.json" in capsys.readouterr().err
    assert {p.suffix for p in tmp_path.iterdir()} == {".onnx"}


@pytest.mark.parametrize("place", [0, 1], ids=["original", "folded"])
def test_what_cannot_be_read_is_no_failed_gate(place, files, tmp_path, capsys):
    (tmp_path / "lfs.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")
    files[place] = str(tmp_path / "lfs.onnx")
    assert main(files[:2]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "lfs.onnx: is a Git LFS pointer" in err


def test_a_model_that_onnxruntime_cannot_load_is_a_failed_gate(files, tmp_path, capsys):
    broken = onnx.load(files[1])
    broken.graph.node[0].op_type = "Mystery"
    onnx.save(broken, tmp_path / "broken.onnx")
    assert main([files[0], str(tmp_path / "broken.onnx")]) == 1
    assert "FAILED  load: " in capsys.readouterr().out


@pytest.mark.parametrize("argument", ["--shape=x", "--shape=x=a", "--range=1", "--nonsense"])
def test_bad_options(files, argument, capsys):
    assert main([*files[:2], argument]) == 2
    option = argument.partition("=")[0]
    assert option in capsys.readouterr().err


@pytest.mark.parametrize("number", [0, 1, 3])
def test_two_models_are_compared(number, files, capsys):
    assert main(files[:number]) == 2
    assert f"a check compares two models, not {number}; give" in capsys.readouterr().err


def test_quiet(files, capsys):
    assert main([*files[:2], "-q"]) == 0
    assert main([files[0], files[2], "--quiet"]) == 1
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("onnx-bnfold: numerics: output 'y'")
    assert err.count("\n") == 1


def test_shape_and_range_reach_the_inputs(files, tmp_path):
    report = tmp_path / "report.json"
    arguments = ["--shape", "N=3", "--range=-1,1", "--sets", "1", "--report", str(report)]
    assert main([*files[:2], *arguments]) == 0
    record = json.loads(report.read_text())
    assert record["numerics"]["inputs"][0]["shape"] == [3, 3, 12, 12]
    assert record["numerics"]["sets"] == 1


def test_user_inputs_take_the_place_of_random_ones(files, tmp_path, rng, capsys):
    path = tmp_path / "in.npy"
    np.save(path, np.zeros((1, 3, 12, 12), np.float32))
    assert main([files[0], files[2], "--inputs", str(path)]) == 0  # zeros hide a weight
    np.save(path, rng.standard_normal((1, 3, 12, 12)))
    assert main([files[0], files[2], "--inputs", str(path)]) == 1
    assert str(path) in capsys.readouterr().out


def test_as_a_process_without_a_terminal(files):
    environment = os.environ | {"NO_COLOR": "1", "TERM": "dumb"}
    command = [sys.executable, "-m", "onnx_bnfold", "check", files[0], files[2]]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "FAILED" in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr.count("\n") == 1
