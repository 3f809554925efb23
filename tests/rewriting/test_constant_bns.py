"""A BatchNormalization that computes a constant is replaced by it."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from graphs import IMAGE, Net
from onnx import TensorProto, helper
from support import assert_same_function, fold_checked, ops

import onnx_bnfold
from onnx_bnfold import Options, Reason
from onnx_bnfold.cli.main import main
from onnx_bnfold.model import evaluate
from onnx_bnfold.reasons import Refused


def of_constant(net, *, training=False, outputs=3):
    """A BN of a constant of the shape of a flat 3x3 kernel; its first output."""
    flat = net.random(1, 4, 36)
    if not training:
        return net.bn(flat, channels=4)
    parameters = [net.const(v) for v in net.rng.uniform(0.5, 1.5, (4, 4))]
    made = net.op("BatchNormalization", flat, *parameters, outputs=outputs, training_mode=1)
    return made[0] if outputs > 1 else made


def kernel(net, flat):
    return net.op("Reshape", flat, net.ints(4, 4, 3, 3))


forms = pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])


@forms
def test_the_weight_of_a_layer(training):
    net = Net(IMAGE)
    model = net.model(net.op("Conv", "x", kernel(net, of_constant(net, training=training))))
    folded, report = fold_checked(model)
    assert ops(folded) == ["Constant", "Reshape", "Conv"]
    assert len(folded.graph.initializer) == 1, "what it was made of goes"
    assert folded.ByteSize() < model.ByteSize()
    (record,) = report.records
    assert record.way == "constant"
    assert record.sentence().endswith("into the constant that it computes")


@forms
def test_in_front_of_a_layer_with_a_bn_of_its_own(training):
    net = Net(IMAGE)
    y = net.bn(net.op("Conv", "x", kernel(net, of_constant(net, training=training))), channels=4)
    folded, report = fold_checked(net.model(y))
    assert ops(folded) == ["Conv"]
    assert len(report.folded) == 2


@forms
def test_an_output_of_the_graph(training):
    net = Net(IMAGE)
    y = of_constant(net, training=training)
    folded, _ = fold_checked(net.model(net.relu("x"), y))
    assert sorted(ops(folded)) == ["Constant", "Relu"]


def test_a_standalone_form_beside_it():
    net = Net(IMAGE)
    y = net.op("Sigmoid", net.bn(net.op("Sigmoid", "x"), channels=4))
    z = net.op("Add", net.op("Conv", y, kernel(net, of_constant(net))), net.random(1))
    model = net.model(z)
    folded, report = onnx_bnfold.fold(model, Options(standalone="mul-add"))
    assert ops(folded) == ["Sigmoid", "Mul", "Add", "Sigmoid", "Constant", "Reshape", "Conv"]
    assert [len(report.folded), len(report.kept)] == [1, 1]
    assert_same_function(model, folded)


def test_a_file_and_its_report(tmp_path):
    net, source = Net(IMAGE), tmp_path / "m.onnx"
    onnx.save(net.model(net.op("Conv", "x", kernel(net, of_constant(net)))), source)
    target, report = tmp_path / "f.onnx", tmp_path / "r.json"
    assert main([str(source), "-o", str(target), "--report", str(report), "--quiet"]) == 0
    assert '"folded":1' in onnx.load(target).metadata_props[0].value
    (record,) = json.loads(report.read_text())["batch_normalizations"]
    found = [record[key] for key in ("status", "way", "taken_by", "written_as", "input", "output")]
    assert found == [
        "folded",
        "constant",
        [],
        None,
        net.initializers[0].name,
        "batchnormalization5",
    ]


@pytest.mark.parametrize("form", ["If", "function"])
def test_in_another_body(form):
    net, inner = Net(IMAGE), Net(prefix="b_")
    if form == "If":
        y = inner.op("Conv", "x", kernel(inner, of_constant(inner)))
        branch = inner.graph(y, name="branch")
        branch.output[0].CopyFrom(
            helper.make_tensor_value_info(y, TensorProto.FLOAT, ["N", 4, 2, 2])
        )
        made = net.op("If", net.input("c", [], TensorProto.BOOL), then_branch=branch,
                      else_branch=branch)  # fmt: skip
    else:
        values = net.rng.uniform(0.5, 1.5, (5, 4)).astype(np.float32)
        names = [inner.op("Constant", value_floats=[*map(float, v)]) for v in values]
        row = inner.op("Unsqueeze", names[0], inner.op("Constant", value_ints=[0]))
        bn = inner.op("BatchNormalization", row, *names[1:])
        y = inner.op("Add", "x", inner.op("Squeeze", bn))
        imports = [helper.make_opsetid("", 17)]
        net.functions.append(helper.make_function("f", "F", ["x"], [y], inner.nodes, imports))
        made = net.op("F", "x", domain="f")
    fold_checked(net.model(made))


def test_one_that_is_to_be_kept_stays_whatever_reads_it():
    net = Net(IMAGE)
    y = net.bn(net.op("Conv", "x", kernel(net, of_constant(net, training=True))), channels=4)
    kept = next(n.name for n in net.nodes if n.op_type == "BatchNormalization")
    model = net.model(y)
    folded, report = fold_checked(model, kept=2, options=Options(keep=(f"^{kept}$",)))
    assert folded == model
    assert report.kept[0].refusal.reason is Reason.EXCLUDED
    assert report.kept[1].refusal.reason is Reason.WEIGHT_NOT_CONSTANT


def test_statistics_that_are_read_stay():
    """One Constant cannot write them, too."""
    net = Net(IMAGE)
    y = of_constant(net, training=True)
    mean = f"{y.removesuffix('_0')}_1"
    model = net.model(net.op("Conv", "x", kernel(net, y)), mean)
    _, report = onnx_bnfold.fold(model)
    assert report.kept[0].refusal.reason is Reason.TRAINING_MODE


def test_one_that_cannot_be_computed_says_so(monkeypatch):
    net = Net(IMAGE)
    model = net.model(net.op("Conv", "x", kernel(net, of_constant(net))))
    real = evaluate.run_node

    def run_node(graph, index, feeds, read):
        if graph.ops[index] == "BatchNormalization":
            raise Refused(Reason.PARAMETERS_NOT_CONSTANT, graph.label(index), "it cannot be")
        return real(graph, index, feeds, read)

    monkeypatch.setattr(evaluate, "run_node", run_node)
    folded, report = onnx_bnfold.fold(model)
    assert folded == model
    assert report.kept[0].refusal.sentence == "it cannot be"
