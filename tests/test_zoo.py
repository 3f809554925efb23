"""Whole networks: how many BatchNormalizations go, that the outputs stay, and why the rest stays.

`support.fold_checked` asserts what holds after every fold: a valid model, the same outputs to 1e-5
of their peak in onnxruntime without optimisations, and that a second fold changes nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import support
import zoo
from onnx import numpy_helper

import onnx_bnfold
from onnx_bnfold import Reason

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
# Model → (BatchNormalizations, how many can be removed at least).
LIGHT_NORMS = {
    "resnet50": (53, 53),
    "inception_v2": (69, 69),
    "shufflenet": (49, 49),
    "densenet121": (121, 62),
}
MIXED_TOO = ("densenet121", "nasnet_cells", "repvgg_a0")
# onnxruntime loads none of these as the exporter writes them: nothing can be compared.
UNLOADABLE = {("deeplabv3_resnet50", "functions")}


def _case(name: str, exporter: str, mixed: bool) -> object:
    quick = zoo.ENTRIES[name].quick and exporter == "torchscript"
    label = f"{name}-{exporter}-{'mixed' if mixed else 'positive'}"
    return pytest.param(name, exporter, mixed, marks=() if quick else pytest.mark.slow, id=label)


def _cases() -> list[object]:
    positive = [
        _case(name, how, False)
        for how in zoo.FORMS
        for name in zoo.ENTRIES
        if (name, how) not in UNLOADABLE
    ]
    mixed = [
        _case(name, "torchscript", True)
        for name, entry in zoo.ENTRIES.items()
        if entry.quick or name in MIXED_TOO
    ]
    return positive + mixed


@pytest.mark.parametrize(("name", "exporter", "mixed"), _cases())
def test_network(name, exporter, mixed):
    entry = zoo.ENTRIES[name]
    model = zoo.load(name, exporter, mixed=mixed)
    assert support.count(model) == entry.norms, "the exporter folded some itself"
    _, report = support.fold_checked(
        model, kept=entry.norms - (entry.mixed if mixed else entry.folded)
    )
    # Whichever way is tried, a ReLU or PReLU is what stops it.
    expected = {Reason.NEEDS_POSITIVE_SCALE, Reason.NO_SHIFT} if mixed else {Reason.NO_SHIFT}
    assert {record.refusal.reason for record in report.kept} <= expected


def _all_cases() -> list[object]:
    return [
        _case(name, how, mixed)
        for how in zoo.FORMS
        for name in zoo.ENTRIES
        if (name, how) not in UNLOADABLE
        for mixed in (False, True)
    ]


@pytest.mark.parametrize(("name", "exporter", "mixed"), _all_cases())
def test_network_without_bns(name, exporter, mixed):
    model = zoo.load(name, exporter, mixed=mixed)
    folded, report = onnx_bnfold.fold(model, onnx_bnfold.Options(bn_free=True))
    assert report.left == ()
    assert support.count(folded) == 0
    assert len(report.norms) == zoo.ENTRIES[name].norms
    support.assert_same_function(model, folded)


def _light(name: str) -> onnx.ModelProto:
    return onnx.load(LIGHT / f"light_{name}.onnx")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "densenet121" else name
        for name in LIGHT_NORMS
    ],
)
def test_light_models_of_the_onnx_wheel(name):
    norms, folded = LIGHT_NORMS[name]
    report = onnx_bnfold.plan(_light(name))
    assert len(report.norms) == norms
    assert len(report.folded) >= folded


def _with_random_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace the light models' weights, which are 0.02 throughout, by random ones.

    As shipped, all channels are equal and the last Softmax returns 0.001 whatever comes before.
    """
    rng = np.random.default_rng(0)
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        if node.op_type == "ConstantOfShape":
            shape = shapes[node.input[0]]
            positive = rng.uniform(0.5, 1.5, shape)
            values = positive if len(shape) == 1 else rng.normal(0, shape[1:].prod() ** -0.5, shape)
            weight = numpy_helper.from_array(values.astype(np.float32), node.output[0])
            model.graph.initializer.append(weight)
            # The models have IR version 3: every initializer is listed as an input.
            model.graph.input.append(support.value_of(weight.name, weight.dims))
        else:
            kept = model.graph.node.add()
            kept.CopyFrom(node)
            kept.op_type = "Identity" if node.op_type == "Softmax" else node.op_type
            if node.op_type == "Softmax":
                kept.ClearField("attribute")
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", LIGHT_NORMS)
def test_light_models_with_random_weights(name):
    norms, folded = LIGHT_NORMS[name]
    model = _with_random_weights(_light(name))
    report = onnx_bnfold.plan(model)
    support.fold_checked(model, kept=norms - len(report.folded))
    assert len(report.folded) >= folded
