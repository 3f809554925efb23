"""What is recorded of the standard is what onnx says, and plain folds ask nobody else."""

import onnx
import pytest
from graphs import IMAGE, Net

import onnx_bnfold
from onnx_bnfold.model import standard, standard_record
from onnx_bnfold.model.standard import recorded, registered, signature
from tools import record_standard

VERSIONS = record_standard.versions()
NEWEST = onnx.defs.onnx_opset_version()


@pytest.mark.skipif(NEWEST < standard_record.NEWEST, reason="onnx has been corrected since")
@pytest.mark.parametrize("operator", VERSIONS)
def test_the_record_says_what_onnx_says(operator):
    for opset in range(1, standard_record.NEWEST + 1):
        assert recorded(operator, opset) == registered(operator, opset), opset


@pytest.mark.skipif(standard_record.NEWEST != NEWEST, reason="recorded with another onnx")
def test_the_record_is_what_the_tool_writes():
    assert record_standard.record() == standard_record.RECORD.rstrip()


def test_there_is_no_other_operator():
    assert signature("NoSuchOperator", 17) is None
    assert signature(None, 17) is None
    assert signature("Resize", 9) is None
    assert {*standard._lines()} >= {*VERSIONS}


def test_onnx_is_asked_about_a_newer_operator_set(monkeypatch):
    monkeypatch.setattr(standard, "NEWEST", 12)
    monkeypatch.setattr(standard, "registered", lambda operator, opset: (operator, opset))
    standard.signature.cache_clear()
    try:
        assert signature("Relu", 13) == ("Relu", 13)
        assert signature("Relu", 12).version == 6
    finally:
        standard.signature.cache_clear()


def test_a_deprecated_operator_has_a_version_alone():
    found = signature("Upsample", 13)
    assert (found.version, found.is_deprecated, found.attributes) == (10, True, {})


def test_what_needs_no_input_in_front():
    assert signature("Concat", 13).required == 0
    assert signature("Clip", 13).required == 1
    assert signature("Concat", 13).inputs == (1, standard.UNLIMITED)


def test_a_plain_fold_does_not_let_onnx_register_its_operators(monkeypatch):
    net = Net(IMAGE)
    model = net.model(net.op("Relu", net.bn(net.conv("x", 4))))

    def ask(*_):
        raise AssertionError("onnx registers all operators before it answers")

    monkeypatch.setattr(onnx.defs, "get_schema", ask)
    _, report = onnx_bnfold.fold(model)
    assert len(report.folded) == 1
