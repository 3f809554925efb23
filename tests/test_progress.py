"""The progress bar draws on a terminal only."""

import io

from onnx_bnfold.progress import progress


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
