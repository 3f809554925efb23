"""A constant takes what many nodes do; the one by which it ceases to fit its type stays."""

import numpy as np
import pytest
from graphs import IMAGE, Net
from support import fold_checked, ops

import onnx_bnfold
from onnx_bnfold.planning import planner


def chain(*factors):
    """A layer, and Muls by these factors behind it."""
    net = Net(IMAGE)
    t = net.conv("x", 4)
    for factor in factors:
        t = net.op("Mul", t, net.const(np.full((4, 1, 1), factor)))
    return net.model(net.op("Sigmoid", t))


def plans(monkeypatch, model):
    """Count the plans that a fold makes of a model that was given, and return its operators."""
    made, plan_graph = [], planner.plan_graph

    def counted(state, *args):
        made.append(len(state.graph.nodes))
        return plan_graph(state, *args)

    monkeypatch.setattr(planner, "plan_graph", counted)
    folded, _ = onnx_bnfold.fold(model)
    return made.count(len(model.graph.node)), ops(folded)


def test_the_first_by_which_it_does_not_fit_stays():
    """The Muls behind it go into that one."""
    folded, _ = fold_checked(chain(1e-10, 1e-32, 1e3, 2.0, 1e-2))
    assert ops(folded) == ["Conv", "Mul", "Sigmoid"]


@pytest.mark.parametrize("count", [20, 40])
def test_a_long_chain_is_planned_twice(monkeypatch, count):
    """Those that do not fit are found at once, not one by one from the end."""
    made, left = plans(monkeypatch, chain(*[1e-3] * count))
    assert made == 2
    assert len(left) <= 2 + count // 10
