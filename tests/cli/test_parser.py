"""The command line as it is typed: where words may stand, and what is said of the others."""

import os
from pathlib import Path

import onnx
import pytest
from graphs import Net

from onnx_bnfold.cli.main import main
from onnx_bnfold.cli.parser import CHECK, FoldParser, check_parser


@pytest.fixture
def model(tmp_path, monkeypatch) -> Path:
    net = Net([1, 3, 8, 8])
    onnx.save(net.model(net.bn(net.conv("x", 4, 3))), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    return Path("model.onnx")


def refused(capsys, *words) -> str:
    before = sorted(Path().iterdir())
    assert main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert sorted(Path().iterdir()) == before
    assert err.count("\n") == 1
    assert err.startswith("onnx-bnfold: ")
    return err.removeprefix("onnx-bnfold: ")


# --- where the output goes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["model.onnx", "out.onnx"],
        ["model.onnx", "-o", "out.onnx"],
        ["-o", "out.onnx", "model.onnx"],
        ["model.onnx", "-q", "out.onnx"],
        ["-q", "model.onnx", "--max-rescale", "4", "out.onnx"],
        ["--", "model.onnx", "out.onnx"],
    ],
    ids=" ".join,
)
def test_the_output_with_and_without_its_option(words, model):
    assert main(words) == 0
    assert {p.name for p in Path().iterdir()} == {"model.onnx", "out.onnx"}


@pytest.mark.parametrize("words", [["-o", "sub"], ["-o", "sub/"], ["sub/"]], ids=" ".join)
def test_an_output_folder_takes_the_model_under_its_name(words, model):
    Path("sub").mkdir()
    assert main([str(model), *words]) == 0
    assert [p.name for p in Path("sub").iterdir()] == ["model.onnx"]


def test_an_output_folder_that_is_not_there(model, capsys):
    said = refused(capsys, model, "-o", "no/")
    assert "the folder no does not exist; create it first" in said


@pytest.mark.parametrize(
    "words", [["-o", "locked/f.onnx"], ["-o", "f.onnx", "--report", "locked/r.html"]], ids=" ".join
)
def test_a_folder_that_cannot_be_written_to(words, model, capsys, monkeypatch):
    Path("locked").mkdir()  # an administrator may write everywhere
    allowed = os.access
    monkeypatch.setattr(
        "os.access", lambda path, mode: Path(path).name != "locked" and allowed(path, mode)
    )
    said = refused(capsys, model, *words)
    assert said.endswith("the folder locked cannot be written to; give another one\n")


@pytest.mark.parametrize("folder", [".", "./"])
def test_the_folder_of_the_model_itself(folder, model, capsys):
    assert "is a file of the input model" in refused(capsys, model, "-o", folder)


def test_a_dry_run_takes_an_output_too(model):
    assert main(["model.onnx", "out.onnx", "--dry-run"]) == 0
    assert not Path("out.onnx").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.onnx", "a.onnx", "b.onnx"], "'b.onnx' is one name too many"),
        (["model.onnx", "a.onnx", "-o", "b.onnx"], "'a.onnx' is one name too many"),
        (["model.onnx"], "give -o FILE for the folded model, or --dry-run"),
        ([], "there is no model; give one"),
        (["-o", "a.onnx"], "there is no model; give one"),
        (["-", "-o", "a.onnx"], "a model is not read from standard input"),
        (["model.onnx", "-o", "-"], "a model is not written to standard output"),
        (["model.onnx", "-"], "a model is not written to standard output"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_names_that_do_not_fit(words, said, model, capsys):
    assert said in refused(capsys, *words)


# --- near misses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["model.onnx", "a.onnx", "--maxrescale", "4"], "--max-rescale"),
        (["model.onnx", "a.onnx", "--max_rescale=4"], "--max-rescale"),
        (["model.onnx", "--dryrun"], "--dry-run"),
        (["--jbos", "2", "model.onnx", "a.onnx"], "--jobs"),
        (["model.onnx", "a.onnx", "--check", "--inptus", "x.npz"], "--inputs"),
        (["modle.onnx", "a.onnx"], "model.onnx"),
        (["./model.onx", "a.onnx"], "./model.onnx"),
        (["chekc", "model.onnx", "a.onnx"], "check"),
        (["check", "model.onnx", "a.onnx", "--latncy"], "--latency"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_near_miss_is_suggested(words, meant, model, capsys):
    assert refused(capsys, *words).endswith(f"did you mean {meant}?\n")


def test_what_is_like_nothing(model, capsys):
    said = refused(capsys, model, "a.onnx", "--xyzzy", "1")
    assert said == "there is no option --xyzzy; see onnx-bnfold --help\n"
    said = refused(capsys, "check", model, "a.onnx", "--xyzzy")
    assert said == "there is no option --xyzzy; see onnx-bnfold check --help\n"
    said = refused(capsys, model, "a.onnx", "--bogus")  # has the dashes in common with --verbose
    assert said == "there is no option --bogus; see onnx-bnfold --help\n"
    assert "cannot be opened" in refused(capsys, "other", "a.onnx")


def test_a_file_that_looks_like_an_option(model, capsys):
    model.rename("-x.onnx")
    assert refused(capsys, "-x.onnx", "a.onnx") == "-x.onnx: write ./-x.onnx for the file\n"


def test_names_behind_two_dashes(model, capsys):
    """Names all of them, whatever they look like."""
    model.rename("-x.onnx")
    assert main(["--", "-x.onnx", "--y.onnx"]) == 0
    assert capsys.readouterr().out.endswith("onnx-bnfold check ./-x.onnx ./--y.onnx\n")
    assert main(["-o", "a.onnx", "--", "-x.onnx"]) == 0
    assert main(["check", "--sets", "1", "--", "-x.onnx", "--y.onnx"]) == 0
    capsys.readouterr()
    assert "standard input" in refused(capsys, "--", "-", "a.onnx")
    assert "'./--' is one name too many" in refused(capsys, "-o", "a.onnx", "--", "a.onnx", "--")


def test_a_check_of_folders(model, capsys):
    Path("models").mkdir()
    said = refused(capsys, "check", "models", model)
    assert said.startswith("models: is a folder, and a check compares two models; ")
    assert said.endswith("onnx-bnfold FOLDER -o FOLDER --check\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--keep", "("], "--keep has '(', which is no regular expression: "),
        (["--max-rescale", "0.5"], "--max-rescale is 0.5; it must be at least 1"),
        (["--check", "--draws", "0"], "--draws is 0; it must be at least 1"),
        (["--check", "--min-agreement", "1"], "--min-agreement needs labelled data; "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_value_is_of_an_option(words, said, model, capsys):
    assert refused(capsys, model, "a.onnx", *words).startswith(said)


def test_check_that_comes_late(model, capsys):
    assert "check has to come first" in refused(capsys, "--sets", "1", "check", model, "b.onnx")


def test_a_command_that_is_not_needed(model, capsys):
    assert "'fold', and no need for one" in refused(capsys, "fold", model, "-o", "b.onnx")


def test_an_option_that_is_meant_as_the_command_replaces_nothing(model, capsys):
    Path("b.onnx").write_bytes(b"another fold")
    said = refused(capsys, "--check", model, "b.onnx")
    assert f"write onnx-bnfold check {model} b.onnx, and to replace it, -o b.onnx" in said
    assert Path("b.onnx").read_bytes() == b"another fold"
    assert main(["--check", "--quiet", str(model), "new.onnx"]) == 0
    assert main([str(model), "new.onnx", "--check", "--quiet"]) == 0
    assert main(["--check", "--quiet", str(model), "-o", "b.onnx"]) == 0


def test_a_wrong_value(model, capsys):
    said = refused(capsys, model, "a.onnx", "--profile", "fp61")
    assert said.startswith("--profile: invalid choice: 'fp61' (choose from ")
    assert "fp16" in said


def test_a_file_is_not_suggested_for_its_ending(model, capsys):
    assert "did you mean" not in refused(capsys, "other.onnx", "a.onnx")


def test_a_flag_takes_no_value(model, capsys):
    assert refused(capsys, model, "a.onnx", "--bn-free=1") == "--bn-free takes no value\n"


# --- options that do not fit each other ----------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sets", "1"], "--sets has no effect without --check; give both"),
        (["--latency"], "--latency has no effect without --check; give both"),
        (["--shape", "N=1"], "--shape has no effect without --check; give both"),
        (["--min-speedup", "1"], "--min-speedup has no effect without --check; give both"),
        (["--ranges", "x.npz"], "--ranges has no effect without --equalize; give both"),
        (["--target", "onnxruntime"], "--target has no effect without --bn-free; give both"),
        (["--jobs", "2"], "--jobs is for a folder of models, but model.onnx is one model"),
        (["--state", "s"], "--state is for a folder of models, but model.onnx is one model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_without_effect(words, said, model, capsys):
    assert refused(capsys, model, "a.onnx", *words) == f"{said}\n"


# --- the help ------------------------------------------------------------------------------------


def test_the_help_of_a_fold_has_all_options_in_groups(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert not left.value.code
    out = capsys.readouterr().out
    assert out.startswith("usage: onnx-bnfold MODEL [-o] FILE [options]\n")
    titles = ["\nwhat is written and required:", "\na store:", "\nwith --check: accuracy:"]
    assert [title for title in titles if title not in out] == []
    for option in ("--jobs", "--dask", "--state", "--data", "--quantize", "--standalone"):
        assert f"\n  {option} " in out


def test_the_help_of_a_check_names_the_command(capsys):
    with pytest.raises(SystemExit):
        main([CHECK, "--help"])
    assert capsys.readouterr().out.startswith("usage: onnx-bnfold check ORIGINAL FOLDED")


def test_one_name_has_one_meaning():
    """No option of a fold, a store or a check goes to a field that another one fills."""
    for parser in (FoldParser(["--help"]), check_parser()):
        fields = [action.dest for action in parser._actions]
        assert len(fields) == len(set(fields))


@pytest.mark.parametrize("words", [[], ["-q"], ["--profile", "int8"], ["--standalone=conv"]])
def test_a_plain_fold_adds_no_options_of_others(words):
    """They would take as long as reading a small model."""
    assert not FoldParser(["m.onnx", "-o", "f.onnx", *words]).is_whole


@pytest.mark.parametrize("word", ["--help", "-h", "--check", "--jobs=2", "--che", "--unknown"])
def test_a_word_that_may_be_of_others_adds_all(word):
    assert FoldParser(["m.onnx", word]).is_whole
