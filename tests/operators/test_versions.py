"""A rule speaks for the versions of its operator that somebody has read, and for no newer one."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from graphs import IMAGE, Net
from support import fold_checked, reasons

from onnx_bnfold import Reason
from onnx_bnfold.model.standard import version_of
from onnx_bnfold.operators import batchnorm_parameters, dequantized_weight
from onnx_bnfold.operators.table import OPERATORS, every_entry

KNOWN = {
    **{operator: entry.version for operator, entry in every_entry().items()},
    dequantized_weight.OPERATOR: dequantized_weight.VERSION,
}
# Operators of which the newest version is not known, and why that is right.
BEHIND = {
    "Scatter": "version 11 says only that the operator is deprecated",
    "Upsample": "version 10 says only that the operator is deprecated",
}


@pytest.mark.parametrize("operator", KNOWN)
def test_the_newest_version_is_known(operator):
    """Read what onnx's newest version changes, test it, and raise the number of the entry."""
    newest = version_of(operator, onnx.defs.onnx_opset_version())
    assert newest > 0
    assert (newest <= KNOWN[operator]) is (operator not in BEHIND)


def test_versions_of_an_operator():
    assert [version_of("Relu", opset) for opset in (1, 5, 6, 12, 13, 14, 20)] == [
        1, 1, 6, 6, 13, 14, 14,
    ]  # fmt: skip
    assert version_of("Resize", 9) == 0
    assert version_of("NoSuchOperator", 17) == 0


def relu(net):
    return net.bn(net.op("Relu", net.conv("x", 4)), signs="positive", shift=False)


def layer(net):
    return net.bn(net.conv("x", 4))


def decomposed(net):
    return net.affine(net.conv("x", 4), 4, 1, 1)


def quantised(net):
    weight = net.const(np.arange(16, dtype=np.int8).reshape(4, 4, 1, 1))
    real = net.op("DequantizeLinear", weight, net.const(np.float32(0.1)))
    return net.bn(net.op("Conv", "x", real), channels=4)


@pytest.mark.parametrize(
    ("build", "operator"),
    [
        (relu, "Relu"),
        (layer, "Conv"),
        (layer, batchnorm_parameters),
        (quantised, dequantized_weight),
    ],
)
def test_a_newer_version_is_refused(build, operator, monkeypatch):
    net = Net(IMAGE)
    model = net.model(build(net))
    fold_checked(model)
    if isinstance(operator, str):
        monkeypatch.setitem(OPERATORS, operator, replace(OPERATORS[operator], version=7))
    else:
        monkeypatch.setattr(operator, "VERSION", 7)
    _, report = fold_checked(model, kept=1)
    assert Reason.UNKNOWN_VERSION in reasons(report)[0]
    tried = [refusal for _, refusal in report.kept[0].tried] + [report.kept[0].refusal]
    assert any("no version after 7 is known" in refusal.sentence for refusal in tried)


def test_a_newer_version_of_a_mul_stays(monkeypatch):
    net = Net(IMAGE)
    model = net.model(decomposed(net))
    folded, _ = fold_checked(model)
    assert len(folded.graph.node) == 1
    monkeypatch.setitem(OPERATORS, "Mul", replace(OPERATORS["Mul"], version=7))
    folded, _ = fold_checked(model)
    assert [n.op_type for n in folded.graph.node] == ["Conv", "Mul", "Add"]
