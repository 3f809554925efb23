"""BNs that compete: more of them go where another choice allows it, and else the report says so."""

from itertools import pairwise

import pytest
from graphs import IMAGE, Net
from support import assert_same_function, fold_checked

import onnx_bnfold
from onnx_bnfold.planning import competition


def wide_against_narrow(net, parts=2):
    """One BN over a Concat, with the most elements, against one on each of its parts."""
    convs = [net.conv("x", 3) for _ in range(parts)]
    return net.bn(net.op("Concat", *convs, axis=1)), *(net.bn(t) for t in convs)


def rows(net, count):
    """BNs that read one Conv's output each with the next one's: no two in a row can both go."""
    convs = [net.conv("x", 3) for _ in range(count + 1)]
    return tuple(net.bn(net.op("Concat", *pair, axis=1)) for pair in pairwise(convs))


def folded_names(report):
    return [r.folded for r in report.norms]


def test_two_go_rather_than_one_that_is_larger():
    net = Net(IMAGE)
    model = net.model(*wide_against_narrow(net))
    _, report = fold_checked(model, kept=1)
    assert folded_names(report) == [False, True, True]
    (kept,) = report.kept
    assert "by another choice" not in report.summary()
    culprit = "batchnormalization"  # the outputs that the others have become
    assert culprit in kept.refusal.culprit, report.lines()


@pytest.mark.parametrize("parts", [(3, 3), (2, 4), (4, 2)], ids=str)
def test_of_as_many_those_go_that_went_before(parts):
    """A BN over a Concat, one on one of its parts: either goes, and the larger saves more."""
    net = Net(IMAGE)
    convs = [net.conv("x", channels) for channels in parts]
    narrow = net.bn(convs[0])
    _, report = fold_checked(net.model(narrow, net.bn(net.op("Concat", *convs, axis=1))), kept=1)
    assert folded_names(report) == [False, True]


def test_each_part_of_a_graph_gets_its_own_choice():
    net = Net(IMAGE)
    outputs = [y for _ in range(3) for y in wide_against_narrow(net)]
    _, report = fold_checked(net.model(*outputs), kept=3)
    assert folded_names(report) == [False, True, True] * 3


@pytest.mark.parametrize("count", range(2, 10))
def test_every_other_one_of_a_row_goes(count):
    """All are of one size, so that the first goes first; that is as good as any."""
    net = Net(IMAGE)
    _, report = fold_checked(net.model(*rows(net, count)), kept=count // 2)
    assert folded_names(report) == [index % 2 == 0 for index in range(count)]


def test_the_middle_one_of_three_stays():
    """It goes first, as it is the largest; the two beside it take more together."""
    net = Net(IMAGE)
    a, b, c, d = net.conv("x", 2), net.conv("x", 4), net.conv("x", 4), net.conv("x", 2)
    outputs = [net.bn(net.op("Concat", *pair, axis=1)) for pair in ((a, b), (b, c), (c, d))]
    _, report = fold_checked(net.model(*outputs), kept=1)
    assert folded_names(report) == [True, False, True]


def test_a_choice_is_the_same_in_any_order_of_nodes():
    net = Net(IMAGE)
    convs = [net.conv("x", 3) for _ in range(2)]
    narrow = [net.bn(t) for t in convs]
    wide = net.bn(net.op("Concat", *convs, axis=1))
    _, report = fold_checked(net.model(*narrow, wide), kept=1)
    assert folded_names(report) == [True, True, False]


@pytest.mark.parametrize(
    ("limit", "value"), [("MOST_COMPETING", 2), ("MOST_TRIALS", 0), ("MOST_STEPS", -1000)]
)
def test_where_not_all_choices_are_searched_the_report_says_how_many_more_may_go(
    monkeypatch, limit, value
):
    monkeypatch.setattr(competition, limit, value)
    net = Net(IMAGE)
    model = net.model(*wide_against_narrow(net, parts=3))
    folded, report = onnx_bnfold.fold(model)
    assert_same_function(model, folded)
    assert folded_names(report) == [True, False, False, False]
    assert report.open_choices == 2
    assert "1 of 4 BatchNormalization folded, at most 2 more by another choice" in report.summary()


@pytest.mark.parametrize("parts", [11, 12])
def test_up_to_twelve_all_choices_are_searched(parts):
    net = Net(IMAGE)
    report = onnx_bnfold.plan(net.model(*wide_against_narrow(net, parts)))
    searched = parts + 1 <= competition.MOST_COMPETING
    assert len(report.folded) == (parts if searched else 1)
    assert report.open_choices == (0 if searched else parts - 1)


@pytest.mark.parametrize("limit", range(1, 8))
def test_a_search_that_is_cut_off_keeps_what_it_has_found(monkeypatch, limit):
    monkeypatch.setattr(competition, "MOST_TRIALS", limit)
    net = Net(IMAGE)
    model = net.model(*wide_against_narrow(net, parts=4))
    kept = len(onnx_bnfold.plan(model).kept)
    _, report = fold_checked(model, kept=kept)
    assert kept in (1, 4)
    assert report.open_choices == (3 if kept == 4 else 0)


def dense_block(net, layers):
    """Each layer reads the features of all before it by a BN of its own and a ReLU."""
    features = [net.conv("x", 4)]
    for _ in range(layers):
        t = net.op("Concat", *features, axis=1) if len(features) > 1 else features[0]
        features.append(net.conv(net.relu(net.bn(t, signs="positive")), 3))
    return net.conv(net.op("Concat", *features, axis=1), 2)


def test_in_a_dense_block_nothing_is_searched_and_nothing_left_open(monkeypatch):
    """Any two of its BNs need other shifts of the first features."""
    monkeypatch.setattr(competition, "MOST_TRIALS", 0)
    net = Net(IMAGE)
    _, report = fold_checked(net.model(dense_block(net, 16)), kept=15)
    assert report.open_choices == 0


def test_bns_that_stay_for_reasons_of_their_own_are_no_competition(monkeypatch):
    """A BN goes into the Convs in front of it, and the one that stays has not met it."""

    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(competition.Chooser, "choose", fail)
    net = Net(IMAGE)
    other = net.op("Sigmoid", net.bn("x"))
    y = net.bn(net.op("Concat", net.conv("x", 3), net.conv("x", 3), axis=1))
    report = onnx_bnfold.plan(net.model(other, y))
    assert folded_names(report) == [False, True]


def test_which_of_many_clash_is_not_asked_of_every_two():
    class Counted(set):
        asked = 0

        def __contains__(self, clash):
            self.asked += 1
            return super().__contains__(clash)

    clashes = Counted(frozenset(pair) for pair in pairwise(range(100)))
    assert competition._most(range(100), clashes) == 50
    assert clashes.asked <= 2 * 100
