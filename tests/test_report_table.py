"""What a report shows by itself: one line as text, a table in a notebook."""

import itertools
import re

from support import bn, chained, conv, join, node

import onnx_bnfold
from onnx_bnfold.report_table import MOST_ROWS

X = {"x": ("N", 3, 8, 8)}


def planned(*parts):
    return onnx_bnfold.plan(chained(*parts, inputs=X))


def test_text_is_the_summary(rng):
    report = planned(conv("x", "c", (4, 3, 3, 3), rng), bn("c", "y", 4, rng))
    assert str(report) == report.summary()
    assert "\n" not in str(report)
    assert repr(report) == f"<Report: {report.summary()}>"


def test_a_table_names_what_stays_first(rng):
    report = planned(
        conv("x", "c", (4, 3, 3, 3), rng),
        bn("c", "b", 4, rng),
        node("Sigmoid", ["b"], ["s"]),
        bn("s", "y", 4, rng),
    )
    shown = report._repr_html_()
    assert re.findall(r"BatchNormalization &#x27;(\w+)&#x27;", shown) == ["n_y", "n_b"]
    assert "Conv &#x27;n_c&#x27;" in shown
    assert report.summary() in shown


def test_names_cannot_be_markup(rng):
    parts = join(conv("x", "c", (4, 3, 3, 3), rng), bn("c", "y", 4, rng))
    parts.nodes[1].name = "<script>\x1b"
    shown = planned(parts)._repr_html_()
    assert "<script" not in shown
    assert "\x1b" not in shown
    assert "&lt;script" in shown


def test_a_model_without_any(rng):
    assert "<table" not in planned(conv("x", "y", (4, 3, 3, 3), rng))._repr_html_()


def test_a_long_table_is_cut(rng):
    names = ["x", *(f"t{i}" for i in range(MOST_ROWS + 5)), "y"]
    parts = [bn(a, b, 3, rng) for a, b in itertools.pairwise(names)]
    shown = planned(*parts)._repr_html_()
    assert shown.count("<tr>") == MOST_ROWS + 1
    assert "6 more; report.save" in shown
