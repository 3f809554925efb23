"""What a plan may look at is limited by the size of its graph, and what stays for that says so."""

import random

import pytest
from graphs import IMAGE, Net
from random_graphs import random_model
from support import fold_checked

import onnx_bnfold
from onnx_bnfold import Options, Reason
from onnx_bnfold.planning import work
from onnx_bnfold.planning.work import Work


def branches(count: int = 6):
    """A tree of Adds over BNs that are all folded, each after a search of its own."""
    net = Net(IMAGE)
    parts = [net.bn(net.op("Relu", net.conv("x", 4))) for _ in range(count)]
    while len(parts) > 1:
        parts = [net.op("Add", *parts[:2]), *parts[2:]]
    return net.model(net.conv(parts[0], 2))


@pytest.fixture
def steps(monkeypatch):
    """How many steps every plan took."""
    found: list[int] = []

    class Watched(Work):
        def left(self, records):
            found.append(self.steps)
            return super().left(records)

    monkeypatch.setattr("onnx_bnfold.planning.graph_nodes.Work", Watched)
    return found


def limited(monkeypatch, most):
    monkeypatch.setattr(work, "ALWAYS", most)
    monkeypatch.setattr(work, "PER_NODE", 0)


def test_what_is_not_tried_any_more_stays_and_says_so(monkeypatch, steps):
    model = branches()
    _, whole = fold_checked(model)
    assert len(whole.folded) == 6
    limited(monkeypatch, steps[0] // 2)
    kept = len(onnx_bnfold.plan(model).kept)
    assert 0 < kept < 6
    _, report = fold_checked(model, kept=kept)
    left = [r.refusal for r in report.kept if "steps" in r.refusal.sentence]
    assert left
    assert {refusal.reason for refusal in left} == {Reason.SEARCH_LIMIT}
    assert f"taken {steps[0] // 2} steps" in left[0].sentence


def test_another_fold_does_not_go_on_where_one_has_ended(monkeypatch, steps):
    model = branches()
    onnx_bnfold.fold(model)
    limited(monkeypatch, steps[0] // 2)
    once, report = onnx_bnfold.fold(model)
    assert any("steps" in r.refusal.sentence for r in report.kept)
    monkeypatch.undo()
    twice, again = onnx_bnfold.fold(once)
    assert not again.folded
    assert twice.graph.node == once.graph.node


def test_nothing_is_searched_beyond_the_limit(monkeypatch, steps):
    """But for the search that reaches it, which has a limit of its own."""
    limited(monkeypatch, -1)
    report = onnx_bnfold.plan(branches())
    assert not any(steps)
    assert {r.refusal.reason for r in report.kept} == {Reason.SEARCH_LIMIT}


def test_what_goes_into_the_layer_in_front_needs_no_search(monkeypatch):
    limited(monkeypatch, -1)
    net = Net(IMAGE)
    assert not onnx_bnfold.plan(net.model(net.bn(net.conv("x", 4)))).kept


def test_looking_counts_less_than_asking():
    some = Work(10)
    some.asked, some.looked_at = some.most, 7
    assert not some.is_spent
    some.looked_at = 8
    assert some.is_spent


@pytest.mark.parametrize(
    "options", [Options(), Options(bn_free=True), Options(profile="int8")], ids=str
)
def test_random_graphs_take_less_than_a_tenth(steps, options):
    for seed in range(40):
        onnx_bnfold.plan(random_model(random.Random(seed), steps=15 + seed), options)
    assert max(steps) < work.ALWAYS / 10
