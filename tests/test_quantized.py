"""A BatchNormalization behind a layer of quantised weights goes into their scale."""

import numpy as np
import pytest
from support import bn, fold_checked, join, model_of, node, ops, reasons, tensor

from onnx_bnfold import Reason

X = {"x": ["N", 4, 6, 6]}


def quantised(rng, kind=np.int8, low=-127, high=128, zero=None, per_axis=True, axis=0):
    """A 1x1..3x3 weight of shape (5, 4, 3, 3) behind DequantizeLinear, and its Conv."""
    scale = rng.uniform(0.001, 0.02, 5 if axis == 0 else 4) if per_axis else np.array(0.01)
    initializers = [
        tensor("q", rng.integers(low, high, (5, 4, 3, 3)).astype(kind)),
        tensor("s", scale.astype(np.float32)),
    ]
    inputs = ["q", "s"]
    if zero is not None:
        initializers.append(tensor("z", np.full(scale.shape, zero, kind)))
        inputs.append("z")
    attributes = {"axis": axis} if per_axis else {}
    dequantize = node("DequantizeLinear", inputs, ["w"], **attributes)
    return join(
        dequantize._replace(initializers=initializers), node("Conv", ["x", "w"], ["c"]),
        bn("c", "y", 5, rng),
    )  # fmt: skip


CASES = {
    "int8": {},
    "uint8": {"kind": np.uint8, "low": 20, "high": 230, "zero": 128},
    "zero-point": {"low": -100, "high": 100, "zero": 3},
    "per-tensor": {"per_axis": False},
    "per-tensor-with-zero-point": {"per_axis": False, "zero": 1, "low": -100, "high": 100},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_scale_goes_into_the_quantisation_scale(case, rng):
    parts = quantised(rng, **case)
    folded, _ = fold_checked(model_of(parts.nodes, X, ["y"], parts.initializers))
    assert ops(folded) == ["DequantizeLinear", "Conv"]
    kinds = {t.name: t.data_type for t in folded.graph.initializer}
    assert kinds["q"] == parts.initializers[0].data_type


def test_a_negative_factor_of_the_lowest_integer_stays(rng):
    parts = quantised(rng, low=-128, high=-127)
    _, report = fold_checked(model_of(parts.nodes, X, ["y"], parts.initializers), kept=1)
    assert report.kept[0].refusal.reason is Reason.QUANTIZED


def test_small_negative_factors_mirror_the_integers(rng):
    """All of them lie between -1 and 0."""
    parts = quantised(rng)
    scale, _, _, variance = parts.initializers[-4:]
    scale.CopyFrom(tensor(scale.name, -rng.uniform(0.1, 0.9, 5).astype(np.float32)))
    variance.CopyFrom(tensor(variance.name, np.ones(5, np.float32)))
    fold_checked(model_of(parts.nodes, X, ["y"], parts.initializers))


def test_a_scale_along_another_axis_stays(rng):
    parts = quantised(rng, axis=1)
    _, report = fold_checked(model_of(parts.nodes, X, ["y"], parts.initializers), kept=1)
    assert Reason.QUANTIZED in reasons(report)[0]


def test_a_norm_in_front_of_quantised_weights_stays(rng):
    parts = quantised(rng)
    front = join(bn("x", "f", 4, rng), node("Conv", ["f", "w"], ["y"]))
    model = model_of([parts.nodes[0], *front.nodes], X, ["y"],
                     [*parts.initializers[:2], *front.initializers])  # fmt: skip
    _, report = fold_checked(model, kept=1)
    assert Reason.QUANTIZED in reasons(report)[0]
