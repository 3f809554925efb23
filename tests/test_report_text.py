"""What is alike in a report is said once; with --verbose everything is said."""

import onnx
import pytest
from graphs import Net

from onnx_bnfold import fold
from onnx_bnfold.advice import ADVICE
from onnx_bnfold.cli.main import main
from onnx_bnfold.planning.record import Record, first_of
from onnx_bnfold.reasons import Reason
from onnx_bnfold.report_text import long_lines, short_lines


def chain(folded: int, kept: int) -> onnx.ModelProto:
    """So many BNs behind a Conv, and so many that a Sigmoid shuts in."""
    net, x = Net([1, 3, 8, 8]), "x"
    for _ in range(folded):
        x = net.op("Relu", net.bn(net.conv(x, 3, 1)))
    for _ in range(kept):
        x = net.op("Sigmoid", net.bn(net.op("Sigmoid", x)))
    return net.model(x)


def report(folded: int, kept: int):
    return fold(chain(folded, kept))[1]


@pytest.mark.parametrize(("number", "lines"), [(1, 1), (10, 10), (11, 11), (12, 11), (30, 11)])
def test_folded_ones_are_listed_up_to_a_number(number, lines):
    shown = short_lines(report(number, 0))
    assert len(shown) == lines
    if number > lines:
        assert shown[-1] == f"folded  {number - 10} more (--verbose lists all)"


def test_kept_ones_are_grouped_by_their_reason():
    made = report(1, 7)
    _, kept, advice = short_lines(made)
    names = [record.name.partition(" ")[2] for record in made.kept]
    assert kept.startswith(f"kept    7 BatchNormalization {', '.join(names[:3])} and 4 more: ")
    assert "[opaque_operator] the first: Sigmoid" in kept
    assert advice == f"advice  [opaque_operator] {ADVICE[Reason.OPAQUE]}"


def test_one_that_stays_is_told_as_ever():
    made = report(0, 1)
    assert short_lines(made)[0] == made.lines()[0]


def test_forms_are_groups_of_their_own():
    from onnx_bnfold import Options

    model = chain(0, 3)
    kept, _ = short_lines(fold(model, Options(standalone="mul-add"))[1])
    assert "; written as mul-add, 2 nodes, " in kept


def test_the_advice_comes_once_for_each_reason():
    net = Net([1, 3, 8, 8])
    x = net.op("Sigmoid", net.bn(net.op("Sigmoid", "x")))
    for _ in range(2):
        x = net.op("Sigmoid", net.bn(net.op("Sigmoid", x), channels=3, training_mode=1))
    shown = short_lines(fold(net.model(x))[1])
    assert [line.split("]")[0] for line in shown if line.startswith("advice")] == [
        "advice  [opaque_operator",
        "advice  [training_mode",
    ]


def test_verbose_has_a_line_for_each():
    made = report(30, 7)
    *records, advice = long_lines(made)
    assert records == made.lines()
    assert len(records) == 37
    assert advice.startswith("advice  [opaque_operator] ")


def test_verbose_is_an_option(tmp_path, capsys):
    onnx.save(chain(30, 7), tmp_path / "m.onnx")
    lines = {}
    for words in ([], ["-v"], ["--verbose"]):
        assert main([str(tmp_path / "m.onnx"), "--dry-run", *words]) == 0
        lines[len(words) and words[0]] = len(capsys.readouterr().out.splitlines())
    assert lines["-v"] == lines["--verbose"] == lines[0] + 19 + 6


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, ""), (1, "a"), (3, "a, b, c"), (4, "a, b, c, d"), (6, "a, b, c and 3 more")],
)
def test_lists_are_capped(number, text):
    assert first_of("abcdef"[:number], 3) == text
    assert first_of("abcdef"[:number], None) == ", ".join("abcdef"[:number])


def test_takers_are_capped():
    names = tuple("abcdef")
    record = Record("BatchNormalization 'n'", True, "upstream", names, names[:5], clamps=names)
    assert record.sentence(most=3) == (
        "folded  BatchNormalization 'n' into a, b, c and 3 more (scale) and a, b, c and 2 more "
        "(shift), a, b, c and 3 more becoming clamps with constants"
    )
    assert "d, e, f (scale)" in record.sentence()


# --- the last lines ------------------------------------------------------------------------------


def last_lines(tmp_path, capsys, model, *words) -> list[str]:
    onnx.save(model, tmp_path / "m.onnx")
    assert main([str(tmp_path / "m.onnx"), *map(str, words)]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_model_without_norms_says_so(tmp_path, capsys):
    net = Net([1, 3, 8, 8])
    model = net.model(net.conv("x", 3, 1))
    for producer, named in (("pytorch", "PyTorch"), ("tf2onnx", "tf2onnx"), ("mine", None)):
        model.producer_name = producer
        lines = last_lines(tmp_path, capsys, model, tmp_path / "f.onnx")
        assert lines[0].startswith("there is no BatchNormalization in this model, 1 -> 1 nodes, ")
        explained = [
            f"{named}, which has made this model, folds them when it exports one in eval mode"
        ]
        assert lines[1:-1] == (explained if named else [])
        assert lines[-1] == f"written, with nothing changed: {tmp_path / 'f.onnx'}"


def test_an_earlier_fold_explains_why_there_are_no_norms(tmp_path, capsys):
    model = chain(1, 0)
    model.producer_name = "pytorch"
    last_lines(tmp_path, capsys, model, tmp_path / "f.onnx")
    lines = last_lines(tmp_path, capsys, onnx.load(tmp_path / "f.onnx"), "--dry-run")
    assert "onnx-bnfold has folded this model before, as its metadata says" in lines
    assert "pytorch" not in "".join(lines).lower()


def test_a_producer_explains_nothing_where_norms_are_left(tmp_path, capsys):
    model = chain(1, 1)
    model.producer_name = "pytorch"
    assert "exports" not in "".join(last_lines(tmp_path, capsys, model, "--dry-run"))


def test_another_form_is_a_change(tmp_path, capsys):
    target = tmp_path / "f.onnx"
    lines = last_lines(tmp_path, capsys, chain(0, 1), target, "--standalone", "conv")
    assert f"written: {target}" in lines


def test_a_dry_run_says_that_nothing_is_written(tmp_path, capsys):
    assert last_lines(tmp_path, capsys, chain(1, 0), "--dry-run")[-1] == (
        "nothing is written in a dry run"
    )


def test_a_form_is_suggested_for_what_stays(tmp_path, capsys):
    def suggested(*words):
        lines = last_lines(tmp_path, capsys, chain(1, 1), "--dry-run", *words)
        return any("--bn-free" in line for line in lines)

    assert suggested()
    assert not suggested("--bn-free")
    assert not suggested("--standalone", "mul-add")
    assert not suggested("--keep", "")


def test_no_form_is_suggested_where_there_is_none(tmp_path, capsys):
    net = Net([1, 3, 8, 8])
    model = net.model(net.bn("x", training_mode=1))
    assert "--bn-free" not in "".join(last_lines(tmp_path, capsys, model, "--dry-run"))


def test_the_command_of_a_check_can_be_copied(tmp_path, capsys):
    folder = tmp_path / "a b"
    folder.mkdir()
    line = last_lines(folder, capsys, chain(1, 0), folder / "f.onnx")[-1]
    assert line == f"next: compare both: onnx-bnfold check '{folder}/m.onnx' '{folder}/f.onnx'"


def test_a_gate_that_does_not_hold_says_that_nothing_is_written(tmp_path, capsys):
    onnx.save(chain(1, 1), tmp_path / "m.onnx")
    target = tmp_path / "f.onnx"
    words = [str(tmp_path / "m.onnx"), str(target), "--require-all"]
    assert main(words) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"not written: {target}"
    assert main([*words, "-q"]) == 1
    assert not capsys.readouterr().out
