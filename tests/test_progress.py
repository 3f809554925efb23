"""A bar is drawn on a terminal; in a pipe there is a line now and then, for commands."""

import io
import itertools

import onnx
import pytest
from graphs import Net

from onnx_bnfold import progress as module
from onnx_bnfold.cli.console import show_progress
from onnx_bnfold.cli.main import main
from onnx_bnfold.progress import note, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_silent_in_a_pipe():
    stream = io.StringIO()
    assert list(progress("abc", total=3, label="letters", stream=stream)) == ["a", "b", "c"]
    assert stream.getvalue() == ""


def test_draws_on_a_terminal_and_cleans_up(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("onnx_bnfold.progress._INTERVAL", 0)
    stream = Terminal()
    assert list(progress(iter("ab"), total=2, label="letters", stream=stream)) == ["a", "b"]
    drawn = stream.getvalue().split("\r")
    assert drawn[1].startswith("letters [---")
    assert " 50% 1/2" in drawn[2]
    assert drawn[-2].strip() == ""
    assert "\x1b" not in stream.getvalue()


def test_what_is_drawn_is_shown_before_the_next_item(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream, shown = Terminal(), []
    stream.flush = lambda: shown.append(stream.getvalue())
    bar = progress(iter("ab"), total=2, label="letters", stream=stream)
    assert next(bar) == "a"
    assert shown == [stream.getvalue()]
    assert "0/2" in shown[0]
    assert list(bar) == ["b"]
    assert shown[-1] == stream.getvalue()
    assert shown[-1].endswith(" \r")


def test_silent_on_a_dumb_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    assert list(progress([1], total=1, label="one", stream=stream)) == [1]
    assert stream.getvalue() == ""


def test_cleans_up_when_the_loop_is_left(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    bar = progress([1, 2], total=2, label="numbers", stream=stream)
    assert next(bar) == 1
    bar.close()
    assert stream.getvalue().split("\r")[-2].strip() == ""
    assert stream.getvalue().endswith("\r")


def test_more_items_than_expected_fill_the_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("onnx_bnfold.progress._INTERVAL", 0)
    stream = Terminal()
    list(progress("abc", total=1, label="letters", stream=stream))
    assert f"[{'#' * 30}] 100% 2/1" in stream.getvalue()


@pytest.fixture
def seconds(monkeypatch):
    """A clock that goes on by ten seconds whenever it is looked at."""
    monkeypatch.setenv("TERM", "xterm")
    clock = itertools.count(0, 10)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))


def test_the_rest_is_estimated(seconds):
    stream = Terminal()
    list(progress(range(4), total=4, label="numbers", stream=stream))
    drawn = [part.strip() for part in stream.getvalue().split("\r")]
    # At the start of item k, 10 (k + 1) seconds have gone by.
    assert drawn[1].endswith("0% 0/4")
    assert drawn[2].endswith("25% 1/4, about 1 min left")
    assert drawn[3].endswith("50% 2/4, about 30 s left")
    assert drawn[4].endswith("75% 3/4, about 13 s left")


@pytest.mark.parametrize(
    ("done", "total", "gone", "text"),
    [
        (1, 2, 0.5, ""),
        (0, 2, 5, ""),
        (2, 2, 5, ""),
        (1, 2, 5, ", about 5 s left"),
        (999, 1000, 5, ", about 1 s left"),
        (1, 4, 60, ", about 3 min left"),
        (1, 100, 60, ", about 1 h 39 min left"),
    ],
)
def test_times(done, total, gone, text):
    assert module._rest(done, total, gone) == text


def test_no_bar_before_its_time(seconds):
    stream = Terminal()
    list(progress(range(4), total=4, label="numbers", after=25, stream=stream))
    assert "1/4" not in stream.getvalue()
    assert "2/4" in stream.getvalue()
    stream = Terminal()
    list(progress(range(4), total=4, label="numbers", after=1e3, stream=stream))
    assert stream.getvalue() == ""


def test_a_line_now_and_then_in_a_pipe(seconds):
    show_progress(quiet=False)
    stream = io.StringIO()
    assert list(progress(range(8), total=8, label="numbers", stream=stream)) == list(range(8))
    assert stream.getvalue().splitlines() == [
        "onnx-bnfold: numbers: 2 of 8, about 1 min left",
        "onnx-bnfold: numbers: 5 of 8, about 36 s left",
    ]


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_quiet_means_nothing(kind, seconds, capsys):
    show_progress(quiet=True)
    stream = kind()
    assert list(progress(range(8), total=8, label="numbers", stream=stream)) == list(range(8))
    assert stream.getvalue() == ""
    note("waiting")
    assert capsys.readouterr().err == ""


def test_notes_are_for_commands_in_a_pipe(capsys):
    note("waiting")
    assert capsys.readouterr().err == ""
    show_progress(quiet=False)
    note("waiting")
    assert capsys.readouterr().err == "onnx-bnfold: waiting\n"


def test_a_long_fold_shows_its_stages(seconds, tmp_path, monkeypatch):
    net, x = Net([1, 3, 8, 8]), "x"
    for _ in range(4):
        x = net.op("Relu", net.bn(net.conv(x, 40, 3)))
    onnx.save(net.model(x), tmp_path / "m.onnx")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    words = [str(tmp_path / "m.onnx"), str(tmp_path / "f.onnx"), "-q"]
    assert main(words) == 0
    assert terminal.getvalue() == ""
    assert main(words[:2]) == 0
    assert "planning [" in terminal.getvalue()
    assert "writing [" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")
