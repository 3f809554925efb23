"""Long rows of Mul and Add by constants, most of which go without a search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from graphs import IMAGE, Net
from support import fold_checked, ops

import onnx_bnfold
from onnx_bnfold.operators.affine import Affine
from onnx_bnfold.planning.long_rows import LongRows
from onnx_bnfold.planning.planner import LONG_ROW
from onnx_bnfold.planning.precision_limits import Limits
from onnx_bnfold.planning.propagation import Search
from onnx_bnfold.planning.shared_constants import SharedConstants


def row(net: Net, t: str, kinds: Sequence[str], low: float = 0.9, high: float = 1.1) -> str:
    channels = IMAGE[1]
    for kind in kinds:
        values = net.rng.uniform(low, high, (channels, 1, 1))
        t = net.op(kind, t, net.const(values))
    return t


def settled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return what gets a number of nodes by each search."""
    counts, run = list[int](), Search.run

    def counted(self, reach=None):
        before = self.settled
        try:
            return run(self, reach)
        finally:
            counts.append(self.settled - before)

    monkeypatch.setattr(Search, "run", counted)
    return counts


@pytest.mark.parametrize("kinds", [("Mul", "Add"), ("Mul", "Sub", "Div", "Add"), ("Add", "Add")])
def test_a_layer_takes_a_row_as_a_search_would(kinds, monkeypatch):
    net = Net(IMAGE)
    model = net.model(net.op("Sigmoid", row(net, net.conv("x", IMAGE[1]), kinds * 10)))
    counts = settled(monkeypatch)
    folded, _ = fold_checked(model)
    assert ops(folded) == ["Conv", "Sigmoid"]
    assert not counts
    monkeypatch.setattr(LongRows, "taken", lambda self, index: [])
    assert onnx_bnfold.fold(model)[0] == folded


@pytest.mark.parametrize(
    "kinds",
    [("Mul", "Add"), ("Mul", "Mul", "Add"), ("Mul", "Add", "Add"), ("Mul", "Sub", "Mul", "Add")],
)
@pytest.mark.parametrize(("low", "high"), [(0.9, 1.1), (0.3, 0.6), (-2.5, -1.5)])
def test_a_product_and_a_sum_stay_of_a_row_that_nothing_takes(kinds, low, high):
    net = Net(IMAGE)
    t = row(net, net.op("Sigmoid", "x"), kinds * 8, low, high)
    folded, _ = fold_checked(net.model(net.op("Sigmoid", t)))
    assert len(ops(folded)) <= 5


def test_products_that_leave_the_type_are_cut():
    """The time per node does not grow, and each part is as long as its constants fit."""
    net = Net(IMAGE)
    t = row(net, net.op("Sigmoid", "x"), ("Mul", "Add") * 150, 0.2, 0.3)
    folded, _ = fold_checked(net.model(net.op("Sigmoid", t)))
    assert len(ops(folded)) <= 12  # each part scales by at most 2 ** 100


def test_searches_do_not_reach_along_a_row(monkeypatch):
    counts = settled(monkeypatch)
    net = Net(IMAGE)
    t = row(net, net.op("Sigmoid", "x"), ("Mul", "Add") * 100, -1.5, 1.5)
    onnx_bnfold.plan(net.model(net.op("Sigmoid", t)))
    assert sum(counts) < 200


def test_a_factor_of_few_digits_rounds_nothing():
    """The sum behind it may cancel what it makes of pixels to the last digit."""
    net = Net(IMAGE)
    state = net.state(row(net, "x", ("Mul", "Add") * LONG_ROW, 2.0, 2.0))
    assert _taken(state) == []


@pytest.mark.parametrize("kept", [0, 6, 17])
def test_what_is_not_free_stays(kept):
    net = Net(IMAGE)
    state = net.state(row(net, "x", ("Mul", "Add") * 20))
    nodes = range(40)
    free = {*nodes} - {kept}
    rows = _taken(state, free)
    gone = {index for row in rows for index in row.takers}
    assert kept not in gone
    assert len(gone) >= 34


def test_every_node_that_goes_is_an_identity_by_what_changes():
    net = Net(IMAGE)
    state = net.state(row(net, "x", ("Mul", "Add", "Mul", "Mul", "Sub", "Add") * 8, 0.5, 1.5))
    taken = _taken(state)[0]
    assert len(taken.takers) > 30
    for index in taken.takers:
        before, after = state.sides(index)
        own = state.original_map(index)
        still = Affine.identity(own.rank)
        into, out = taken.changes.get(before, still), taken.changes.get(after, still)
        both = own.then(out)
        assert np.allclose(into.scale, both.scale, rtol=1e-9)
        assert np.allclose(into.shift, both.shift, rtol=1e-9, atol=1e-9 * abs(into.shift).max())


@pytest.mark.parametrize("length", [LONG_ROW - 1, 5])
def test_short_rows_are_left_to_a_search(length):
    net = Net(IMAGE)
    assert _taken(net.state(row(net, "x", (("Mul", "Add") * length)[:length]))) == []


@pytest.mark.parametrize("profile", ["int8", "fp16"])
def test_other_profiles_are_left_to_a_search(profile):
    net = Net(IMAGE)
    state = net.state(row(net, "x", ("Mul", "Add") * 20))
    assert _taken(state, profile=profile) == []


def _taken(state, free=None, profile="float"):
    nodes = range(len(state.graph.nodes))
    limits = Limits(None, profile)
    rows = LongRows(state, limits, SharedConstants(state), nodes, nodes if free is None else free)
    return [taken for index in nodes for taken in rows.taken(index)]
