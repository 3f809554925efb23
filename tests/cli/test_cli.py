"""The command line: its options, what it prints and where, and its exit codes."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from support import (
    assert_same_function,
    bn,
    conv,
    count,
    join,
    model_of,
    node,
    saved_external,
    value_of,
)

import onnx_bnfold
from onnx_bnfold.cli.main import main

X = {"x": ("N", 3, 5, 6)}


@pytest.fixture
def whole(tmp_path, rng) -> Path:
    """A model whose only BN goes."""
    parts = join(conv("x", "c", (4, 3, 3, 3), rng), bn("c", "y", 4, rng))
    path = tmp_path / "whole.onnx"
    onnx.save(model_of(parts.nodes, X, ["y"], parts.initializers), path)
    return path


@pytest.fixture
def half(tmp_path, rng) -> Path:
    """A model with a BN that goes and one that stays."""
    parts = join(
        conv("x", "c", (4, 3, 3, 3), rng),
        bn("c", "b", 4, rng),
        node("Sigmoid", ["b"], ["s"]),
        bn("s", "y", 4, rng),
    )
    path = tmp_path / "half.onnx"
    onnx.save(model_of(parts.nodes, X, ["y"], parts.initializers), path)
    return path


def call(*arguments) -> int:
    """The exit code, whether `main` returns it or leaves with it."""
    try:
        return main([str(a) for a in arguments])
    except SystemExit as left:
        return left.code or 0


def contents(folder) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_it_folds_and_says_what(half, tmp_path, capsys):
    target = tmp_path / "f.onnx"
    assert call(half, "-o", target) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == 7
    assert lines[0].startswith("folded")
    assert "n_b" in lines[0]
    assert "n_c" in lines[0]
    assert lines[1].startswith("kept")
    assert "opaque_operator" in lines[1]
    assert "n_s" in lines[1]
    assert lines[2].startswith("advice  [opaque_operator] ")
    assert lines[3].startswith(
        "1 of 2 BatchNormalization folded, 2 -> 1 BatchNormalization, 4 -> 3"
    )
    assert "--bn-free" in lines[4]
    assert lines[5:] == [
        f"written: {target}",
        f"next: compare both: onnx-bnfold check {half} {target}",
    ]
    assert not err
    assert_same_function(onnx.load(half), onnx.load(target))


@pytest.mark.parametrize("option", ["-o", "--output"])
def test_the_output_may_come_first(option, whole, tmp_path):
    assert call(option, tmp_path / "f.onnx", whole) == 0
    assert count(onnx.load(tmp_path / "f.onnx")) == 0


@pytest.mark.parametrize("option", ["-q", "--quiet"])
def test_quiet(option, half, tmp_path, capsys):
    assert call(half, "-o", tmp_path / "f.onnx", option) == 0
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "f.onnx").exists()


@pytest.mark.parametrize("output", [True, False], ids=["-o", "no -o"])
def test_a_dry_run_writes_nothing(output, half, tmp_path, capsys):
    before = contents(tmp_path)
    arguments = ["-o", tmp_path / "f.onnx"] if output else []
    assert call(half, "--dry-run", *arguments) == 0
    out, _ = capsys.readouterr()
    assert contents(tmp_path) == before
    assert [line.split()[0] for line in out.splitlines()[:2]] == ["folded", "kept"]


def test_a_dry_run_tells_what_the_fold_tells(half, tmp_path, capsys):
    call(half, "--dry-run")
    dry = capsys.readouterr().out.splitlines()
    call(half, "-o", tmp_path / "f.onnx")
    assert capsys.readouterr().out.splitlines()[:2] == dry[:2]


def test_require_all_that_holds(whole, tmp_path):
    assert call(whole, "-o", tmp_path / "f.onnx", "--require-all") == 0
    assert (tmp_path / "f.onnx").exists()


def test_require_all_that_does_not_hold(half, tmp_path, capsys):
    assert call(half, "-o", tmp_path / "f.onnx", "--require-all") == 1
    assert "--require-all" in capsys.readouterr().err
    assert not (tmp_path / "f.onnx").exists()


@pytest.mark.parametrize("form", ["mul-add", "conv"])
def test_require_all_counts_what_is_left_a_bn(form, half, tmp_path, capsys):
    assert call(half, "-o", tmp_path / "f.onnx", "--require-all", "--standalone", form) == 0
    assert f"; written as {form}, " in capsys.readouterr().out
    assert count(onnx.load(tmp_path / "f.onnx")) == 0


@pytest.mark.parametrize(("model", "code"), [("whole", 0), ("half", 1)])
def test_require_all_as_a_check_that_nothing_is_left(model, code, request, tmp_path):
    path = request.getfixturevalue(model)
    before = contents(tmp_path)
    assert call(path, "--dry-run", "--require-all") == code
    assert contents(tmp_path) == before


def test_require_all_of_a_model_without_norms(tmp_path, rng):
    parts = conv("x", "c", (4, 3, 1, 1), rng)
    onnx.save(model_of(parts.nodes, X, ["c"], parts.initializers), tmp_path / "m.onnx")
    assert call(tmp_path / "m.onnx", "-o", tmp_path / "f.onnx", "--require-all") == 0


def test_freeze_initializers(whole, tmp_path):
    model = onnx.load(whole)
    model.graph.input.append(value_of("c_W", (4, 3, 3, 3)))
    onnx.save(model, whole)
    target = tmp_path / "f.onnx"
    assert call(whole, "-o", target) == 0
    assert count(onnx.load(target)) == 1
    assert call(whole, "-o", target, "--freeze-initializers") == 0
    assert count(onnx.load(target)) == 0
    assert [i.name for i in onnx.load(target).graph.input] == ["x"]


@pytest.mark.parametrize(("options", "entries"), [([], 1), (["--no-metadata"], 0)], ids=str)
def test_metadata(options, entries, whole, tmp_path):
    assert call(whole, "-o", tmp_path / "f.onnx", *options) == 0
    assert len(onnx.load(tmp_path / "f.onnx").metadata_props) == entries


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("side", ["model", "output"])
def test_what_is_no_regular_file(side, whole, tmp_path, capsys):
    """A device or pipe: renaming a file over it would replace it, reading it might wait forever."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    model, output = (pipe, tmp_path / "f.onnx") if side == "model" else (whole, pipe)
    assert call(model, "-o", output) == 2
    assert "pipe" in capsys.readouterr().err
    assert pipe.is_fifo()


def test_max_rescale_is_an_option(half, tmp_path):
    assert call(half, "-o", tmp_path / "f.onnx", "--max-rescale", "4") == 0


def test_version(capsys):
    assert call("--version") == 0
    assert onnx_bnfold.__version__ in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="a shell's redirection")
def test_a_closed_stdout_is_no_failure(half, tmp_path):
    words = [sys.executable, "-m", "onnx_bnfold", str(half), "-o", str(tmp_path / "f.onnx")]
    run = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *words], capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert (tmp_path / "f.onnx").exists()


def test_help_names_the_exit_codes(capsys):
    assert call("--help") == 0
    out = capsys.readouterr().out
    codes = out.partition("exit codes:")[2].split()
    assert {"0", "1", "2", "130"} <= set(codes)
    for option in ("--dry-run", "--require-all", "--freeze-initializers", "--quiet"):
        assert option in out


# --- what is refused -----------------------------------------------------------------------------


def refused(capsys, folder, *arguments) -> str:
    """Assert exit code 2, one message and unchanged files; return the message."""
    before = contents(folder)
    assert call(*arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "Traceback" not in err
    assert contents(folder) == before
    message = err.splitlines()[-1]
    assert message.startswith("onnx-bnfold: ")
    return message


@pytest.mark.parametrize(
    "arguments",
    [
        ["{whole}"],
        ["-o", "{folder}/f.onnx"],
        ["{whole}", "-o"],
        ["{whole}", "-o", "{folder}/f.onnx", "--no-such-option"],
        ["{whole}", "-o", "{folder}/f.onnx", "--max-rescale", "many"],
        ["{whole}", "-o", "{folder}/f.onnx", "--max-rescale", "-1"],
        ["{whole}", "-o", "{folder}/f.onnx", "--max-rescale", "0.5"],
        ["{whole}", "-o", "{folder}/f.onnx", "--max-rescale", "nan"],
        ["{whole}", "-o", ""],
        [""],
        [],
    ],
    ids=" ".join,
)
def test_bad_usage(arguments, whole, tmp_path, capsys):
    filled = [a.format(whole=whole, folder=tmp_path) for a in arguments]
    refused(capsys, tmp_path, *filled)


def test_a_model_that_is_not_there(tmp_path, capsys):
    message = refused(capsys, tmp_path, tmp_path / "no.onnx", "-o", tmp_path / "f.onnx")
    assert "no.onnx" in message


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08"], ids=str)
def test_a_model_that_is_none(content, tmp_path, capsys):
    (tmp_path / "m.onnx").write_bytes(content)
    message = refused(capsys, tmp_path, tmp_path / "m.onnx", "-o", tmp_path / "f.onnx")
    assert "m.onnx" in message


def test_a_folder_that_is_not_there(whole, tmp_path, capsys):
    message = refused(capsys, tmp_path, whole, "-o", tmp_path / "no" / "f.onnx")
    assert str(tmp_path / "no") in message


@pytest.mark.parametrize("kind", ["same", "dots", "symlink", "hardlink"])
def test_the_model_itself_as_output(kind, whole, tmp_path, capsys):
    target = {"same": whole, "dots": tmp_path / ".." / tmp_path.name / whole.name}.get(kind)
    if target is None:
        target = tmp_path / "other.onnx"
        (target.symlink_to if kind == "symlink" else target.hardlink_to)(whole)
    refused(capsys, tmp_path, whole, "-o", target)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_folder_that_may_not_be_written(whole, tmp_path, capsys):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert call(whole, "-o", locked / "f.onnx") == 2
    assert "locked" in capsys.readouterr().err


def test_external_data_that_is_missing(whole, tmp_path, capsys):
    saved_external(onnx.load(whole), whole, "w.bin")
    (tmp_path / "w.bin").unlink()
    assert "w.bin" in refused(capsys, tmp_path, whole, "-o", tmp_path / "f.onnx")


# --- as a process --------------------------------------------------------------------------------


def process(*command, **options):
    return subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, timeout=120, **options
    )


def test_the_module_and_the_console_script(half, tmp_path):
    script = shutil.which("onnx-bnfold", path=os.path.dirname(sys.executable))
    assert script, "the package is not installed"
    results = [
        process(*command, half, "-o", tmp_path / "f.onnx")
        for command in ([sys.executable, "-m", "onnx_bnfold"], [script])
    ]
    assert results[0].stdout == results[1].stdout
    assert [r.returncode for r in results] == [0, 0]
    assert [r.stderr for r in results] == ["", ""]
    assert "\x1b" not in results[0].stdout
    assert "\r" not in results[0].stdout


def test_an_error_of_the_process(tmp_path):
    result = process(sys.executable, "-m", "onnx_bnfold", tmp_path / "no.onnx", "--dry-run")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert not result.stdout


def test_names_with_odd_characters_are_printed_everywhere(tmp_path, rng):
    """A terminal without UTF-8, and a name that tries to steer it."""
    parts = join(conv("x", "c", (4, 3, 1, 1), rng), bn("c", "y", 4, rng, name="é\x1b[2J\n雪"))
    path = tmp_path / "m.onnx"
    onnx.save(model_of(parts.nodes, X, ["y"], parts.initializers), path)
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    result = process(
        sys.executable, "-m", "onnx_bnfold", path, "-o", tmp_path / "f.onnx", env=environment
    )
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert len(result.stdout.splitlines()) == 4


def test_a_reader_that_stops_early(tmp_path, rng):
    """As in `onnx-bnfold ... | head -1`: no traceback."""
    numbers = range(300)
    parts = join(*(bn("x", f"y{i}", 3, rng, name=f"{i}{'n' * 300}") for i in numbers))
    path = tmp_path / "m.onnx"
    outputs = {f"y{i}": X["x"] for i in numbers}
    onnx.save(model_of(parts.nodes, X, outputs, parts.initializers), path)
    command = [sys.executable, "-m", "onnx_bnfold", str(path), "--dry-run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout.readline()
        running.stdout.close()
        assert not running.stderr.read()


def test_an_old_output_stays_until_the_new_one_is_whole(whole, tmp_path):
    target = tmp_path / "f.onnx"
    target.write_bytes(b"old")
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(whole.read_bytes()[:-5])
    assert call(damaged, "-o", target) == 2
    assert target.read_bytes() == b"old"
    assert call(whole, "-o", target) == 0
    assert_same_function(onnx.load(whole), onnx.load(target))


LONG = f"{'n' * 300}."


@pytest.mark.parametrize(
    "arguments",
    [
        [f"{LONG}onnx", "-o", "{folder}/f.onnx"],
        ["{whole}", "-o", f"{{folder}}/{LONG}onnx"],
        ["{whole}", "-o", f"{{folder}}/{LONG}/f.onnx"],
        ["{whole}", "-o", "{folder}/f.onnx", "--report", f"{{folder}}/{LONG}html"],
    ],
    ids=["model", "output", "folder", "report"],
)
def test_a_name_that_is_too_long(arguments, whole, tmp_path, capsys):
    filled = [a.format(whole=whole, folder=tmp_path) for a in arguments]
    message = refused(capsys, tmp_path, *filled)
    assert "ile name too long" in message
    assert "; give " in message
