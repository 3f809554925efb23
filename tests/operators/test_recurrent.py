"""The weights by which LSTM, GRU and RNN multiply their data take a norm in front of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import Net
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from support import fold_checked, initializer, ops, reasons

import onnx_bnfold
from onnx_bnfold import Reason
from onnx_bnfold.cli.main import main

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, CHANNELS, HIDDEN = 5, 2, 3, 4


def net_of(opset: int = 17) -> tuple[Net, str]:
    """A net, and the output of a norm over the channels of its sequence."""
    net = Net((STEPS, CHANNELS, BATCH), opset=opset)
    return net, net.op("Transpose", net.bn("x"), perm=[0, 2, 1])


def recurrent(
    net: Net, op: str, x: str, *more: str, bias: bool = True, outputs: int = 1, **attributes
) -> str:
    """A layer; `more` are the inputs behind B."""
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    gates = GATES[op] * HIDDEN
    weights = [net.random(directions, gates, n) for n in (CHANNELS, HIDDEN)]
    own = net.random(directions, 2 * gates) if bias else ""
    read = [x, *weights, own, *more]
    while not read[-1]:
        read.pop()
    return net.op(op, *read, outputs=outputs, hidden_size=HIDDEN, **attributes)


@pytest.mark.parametrize("opset", [7, 13, 14, 17, 22])
@pytest.mark.parametrize("op", GATES)
def test_a_norm_in_front_goes_into_it(op, opset):
    net, x = net_of(opset)
    folded, report = fold_checked(net.model(recurrent(net, op, x)))
    assert ops(folded) == ["Transpose", op]
    assert report.folded[0].scale_to == report.folded[0].shift_to


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", GATES)
def test_each_direction(op, direction, bias):
    net, x = net_of()
    outputs = 3 if op == "LSTM" else 2
    y = recurrent(net, op, x, bias=bias, outputs=outputs, direction=direction)
    folded, _ = fold_checked(net.model(*y))
    assert ops(folded) == ["Transpose", op]
    directions = 2 if direction == "bidirectional" else 1
    made = initializer(folded, folded.graph.node[-1].input[3])
    assert made.shape == (directions, 2 * GATES[op] * HIDDEN)


SETTINGS = [
    ("LSTM", {"clip": 0.7}),
    ("LSTM", {"input_forget": 1}),
    ("LSTM", {"activations": ["HardSigmoid", "Tanh", "Softsign"]}),
    ("GRU", {"clip": 0.7}),
    ("GRU", {"linear_before_reset": 1}),
    ("GRU", {"linear_before_reset": 1, "clip": 0.7}),
    ("RNN", {"clip": 0.7}),
    ("RNN", {"activations": ["Relu"]}),
]


@pytest.mark.parametrize(("op", "attributes"), SETTINGS, ids=str)
def test_what_happens_behind_the_sum_does_not_matter(op, attributes):
    net, x = net_of()
    folded, _ = fold_checked(net.model(recurrent(net, op, x, **attributes)))
    assert ops(folded) == ["Transpose", op]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("op", GATES)
def test_lengths_states_and_peepholes_stay(op, bias):
    """Steps behind the end of a sequence are not read, whatever they hold."""
    net, x = net_of()
    kept = [net.const(np.array([5, 2], np.int32)), net.random(1, BATCH, HIDDEN)]
    if op == "LSTM":
        kept += [net.random(1, BATCH, HIDDEN), net.random(1, 3 * HIDDEN)]
    model = net.model(*recurrent(net, op, x, *kept, bias=bias, outputs=2))
    folded, _ = fold_checked(model)
    assert ops(folded) == ["Transpose", op]
    assert list(folded.graph.node[-1].input[4:]) == kept
    for name in kept:
        np.testing.assert_array_equal(initializer(folded, name), initializer(model, name))


def test_only_what_multiplies_the_data_changes():
    net, x = net_of()
    model = net.model(recurrent(net, "GRU", x))
    folded, _ = fold_checked(model)
    old, new = (m.graph.node[-1].input for m in (model, folded))
    gamma, beta, mean, variance = (
        initializer(model, name).astype(float) for name in model.graph.node[0].input[1:]
    )
    a = gamma / np.sqrt(variance + model.graph.node[0].attribute[0].f)
    weight, bias = (initializer(model, old[slot]).astype(float) for slot in (1, 3))
    half = GATES["GRU"] * HIDDEN
    np.testing.assert_allclose(initializer(folded, new[1]), weight * a, rtol=1e-6)
    expected = bias[:, :half] + weight @ (beta - mean * a)
    np.testing.assert_allclose(initializer(folded, new[3])[:, :half], expected, rtol=1e-5)
    np.testing.assert_array_equal(initializer(folded, new[3])[:, half:], np.float32(bias[:, half:]))
    np.testing.assert_array_equal(initializer(folded, new[2]), initializer(model, old[2]))


def test_a_scale_alone_makes_no_bias():
    net = Net((STEPS, CHANNELS, BATCH))
    x = net.op("Transpose", net.bn("x", shift=False), perm=[0, 2, 1])
    folded, _ = fold_checked(net.model(recurrent(net, "LSTM", x, bias=False)))
    assert len(folded.graph.node[-1].input) == 3


@pytest.mark.skipif(
    tuple(map(int, onnx.__version__.split(".")[:2])) < (1, 23),
    reason="the reference evaluator of onnx before 1.23 misreads layout 1",
)
@pytest.mark.parametrize("op", GATES)
def test_batch_first(op):
    """No kernel of onnxruntime, so onnx's reference evaluator judges."""
    net = Net((BATCH, CHANNELS, STEPS))
    x = net.op("Transpose", net.bn("x"), perm=[0, 2, 1])
    model = net.model(recurrent(net, op, x, layout=1))
    folded, _ = fold_checked(model, compare=False)
    assert ops(folded) == ["Transpose", op]
    feed = {"x": net.rng.standard_normal((BATCH, CHANNELS, STEPS)).astype(np.float32)}
    before, after = (ReferenceEvaluator(m).run(None, feed)[0] for m in (model, folded))
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_a_stack_of_them():
    """As in Deep Speech: a norm over rows of features in front of each."""
    net = Net((STEPS, BATCH, CHANNELS))

    def normed(x: str, channels: int) -> str:
        rows = net.op("Reshape", x, net.ints(-1, channels))
        return net.op("Reshape", net.bn(rows), net.ints(STEPS, BATCH, channels))

    y = recurrent(net, "GRU", normed("x", CHANNELS))
    y = normed(net.op("Squeeze", y, net.ints(1)), HIDDEN)
    weights = net.random(1, 4 * HIDDEN, HIDDEN), net.random(1, 4 * HIDDEN, HIDDEN)
    y = net.op("LSTM", y, *weights, hidden_size=HIDDEN)
    folded, _ = fold_checked(net.model(y))
    assert "BatchNormalization" not in ops(folded)
    assert ops(folded)[-1] == "LSTM"


def test_a_shared_weight_is_copied():
    net, x = net_of()
    weight, state = net.random(1, 200, CHANNELS), net.const(0.02 * net.values(1, 200, 200))
    other = net.op("Transpose", "x", perm=[0, 2, 1])
    y = [net.op("RNN", each, weight, state, hidden_size=200) for each in (x, other)]
    model = net.model(*y)
    folded, _ = fold_checked(model)
    read = [node.input[1] for node in folded.graph.node if node.op_type == "RNN"]
    assert len({*read}) == 2
    fold_checked(model, kept=1, options=onnx_bnfold.Options(keep_shared_weights=True))


def test_data_that_are_its_state_stay():
    net = Net((1, HIDDEN, BATCH))
    x = net.op("Transpose", net.bn("x"), perm=[0, 2, 1])
    weights = net.random(1, HIDDEN, HIDDEN), net.random(1, HIDDEN, HIDDEN)
    y = net.op("RNN", x, *weights, "", "", x, hidden_size=HIDDEN)
    _, report = fold_checked(net.model(y), kept=1)
    assert Reason.OPAQUE in reasons(report)[0]


@pytest.mark.parametrize("output", [0, 1, 2])
def test_a_norm_behind_stays(output):
    net = Net((STEPS, BATCH, CHANNELS))
    y = net.op("Transpose", recurrent(net, "LSTM", "x", outputs=3)[output], perm=[0, 2, 1, 3][:3]
               if output else [0, 3, 2, 1])  # fmt: skip
    model = net.model(net.bn(y))
    _, report = fold_checked(model, kept=1)
    assert Reason.OPAQUE in reasons(report)[0]
    expected = "goes back into them" if output == 0 else "beside its data"
    assert expected in "\n".join(report.lines())


@pytest.mark.parametrize("role", ["W", "B", "overridable"])
def test_what_is_computed_refuses(role):
    net, x = net_of()
    weight, bias = net.random(1, HIDDEN, CHANNELS), net.random(1, 2 * HIDDEN)
    if role == "W":
        weight = net.input("w", (1, HIDDEN, CHANNELS))
    elif role == "B":
        bias = net.input("b", (1, 2 * HIDDEN))
    else:
        net.input(weight, (1, HIDDEN, CHANNELS))
    y = net.op("RNN", x, weight, net.random(1, HIDDEN, HIDDEN), bias, hidden_size=HIDDEN)
    expected = {
        "W": Reason.WEIGHT_NOT_CONSTANT,
        "B": Reason.BIAS_NOT_CONSTANT,
        "overridable": Reason.OVERRIDABLE_INITIALIZER,
    }[role]
    _, report = fold_checked(net.model(y), kept=1)
    assert expected in reasons(report)[0]


def test_a_computed_state_weight_does_not_matter():
    net, x = net_of()
    state = net.input("r", (1, HIDDEN, HIDDEN))
    y = net.op("RNN", x, net.random(1, HIDDEN, CHANNELS), state, hidden_size=HIDDEN)
    folded, _ = fold_checked(net.model(y))
    assert ops(folded) == ["Transpose", "RNN"]


@pytest.mark.parametrize("perm", [[0, 1, 2], [1, 0, 2]], ids=str)
def test_a_norm_over_steps_or_batch_stays(perm):
    net = Net((3, 3, 3))
    y = recurrent(net, "RNN", net.op("Transpose", net.bn("x"), perm=perm))
    _, report = fold_checked(net.model(y), kept=1)
    assert Reason.AXES in reasons(report)[0]


def test_a_quantised_weight_refuses():
    net, x = net_of()
    codes = net.const(net.rng.integers(-90, 90, (1, HIDDEN, CHANNELS)).astype(np.int8))
    weight = net.op("DequantizeLinear", codes, net.const(np.float32(0.05)))
    y = net.op("RNN", x, weight, net.random(1, HIDDEN, HIDDEN), hidden_size=HIDDEN)
    _, report = fold_checked(net.model(y), kept=1)
    assert Reason.QUANTIZED in reasons(report)[0]


def test_weights_of_another_rank_refuse():
    net, x = net_of()
    y = net.op("RNN", x, net.random(HIDDEN, CHANNELS), net.random(1, HIDDEN, HIDDEN))
    _, report = fold_checked(net.model(y), kept=1, compare=False)
    assert Reason.INCONSISTENT_SHAPES in reasons(report)[0]


def test_other_types():
    net = Net()
    net.input("x", (STEPS, CHANNELS, BATCH), TensorProto.DOUBLE)
    x = net.op("Transpose", net.bn("x", dtype=np.float64), perm=[0, 2, 1])
    weights = [net.random(1, HIDDEN, n, dtype=np.float64) for n in (CHANNELS, HIDDEN)]
    model = net.model(net.op("RNN", x, *weights, hidden_size=HIDDEN))
    folded, _ = fold_checked(model, compare=False)
    assert {tensor.data_type for tensor in folded.graph.initializer} == {TensorProto.DOUBLE}
    feed = {"x": net.rng.standard_normal((STEPS, CHANNELS, BATCH))}
    before, after = (ReferenceEvaluator(m).run(None, feed)[0] for m in (model, folded))
    np.testing.assert_allclose(after, before, atol=1e-12)


def test_report_check_and_equalizing_know_it(tmp_path):
    net = Net((STEPS, CHANNELS, BATCH))
    y = net.bn(net.relu(net.op("Conv", net.bn("x"), net.random(CHANNELS, CHANNELS, 1))))
    y = recurrent(net, "LSTM", net.op("Transpose", net.relu(y), perm=[0, 2, 1]))
    onnx.save(net.model(y), tmp_path / "model.onnx")
    for more in ([], ["--equalize"]):
        names = ("model.onnx", f"folded{len(more)}.onnx", f"report{len(more)}.json")
        files = [str(tmp_path / name) for name in names]
        assert main([files[0], "-o", files[1], "--check", "--report", files[2], *more]) == 0
        found = json.loads(Path(files[2]).read_text(encoding="utf-8"))
        assert not found["check"]["failures"]
        assert "is not known" in found["before"]["unknown"]
