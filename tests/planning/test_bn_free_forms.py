"""Every form without a BatchNormalization, in all that may stand around it.

``FORMS`` has a row for each form of each clamp; every test asks all of them. What one kind of clamp
has for itself is in ``test_clamps.py`` and ``test_clamps_by_constants.py``.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from graphs import Net
from onnx import helper, numpy_helper
from support import TOLERANCE, assert_same_function, error, ops, run

import onnx_bnfold
from onnx_bnfold import Options
from onnx_bnfold.planning import clamps
from onnx_bnfold.planning.record import FormCost
from onnx_bnfold.reports.cost import cost_of

PLAIN, FREE = Options(), Options(bn_free=True)
FOR_ONNXRUNTIME = Options(bn_free=True, target="onnxruntime")
CHANNELS = 4
IMAGE = ("N", CHANNELS, 8, 8)


@pytest.fixture(autouse=True)
def _small_is_enough(monkeypatch):
    """Let small tensors gain, too, if their sizes are known."""
    monkeypatch.setattr(clamps, "LEAST_SAVED", 1)


class Drawn(NamedTuple):
    """A graph that is drawn: its nodes, their type, and how many axes follow the channels."""

    net: Net
    dtype: type[np.floating]
    spread: int

    def constant(self, *values: float) -> str:
        """One value, or one per channel."""
        shape = (-1, *[1] * self.spread) if len(values) > 1 else ()
        return self.net.const(np.array(values).reshape(shape), self.dtype)

    def conv(self, x: str, **attributes) -> str:
        kernel = 3 if "pads" in attributes else 1
        weight = self.net.values(CHANNELS, CHANNELS, *[kernel] * self.spread)
        bias = self.net.random(CHANNELS, dtype=self.dtype)
        op = "Conv" if self.spread else "Gemm"
        return self.net.op(op, x, self.net.const(weight, self.dtype), bias, **attributes)

    def pool(self, x: str) -> str:
        window = [2] * self.spread
        return self.net.op("MaxPool", x, kernel_shape=window, strides=window)


def relu(drawn: Drawn, x: str) -> str:
    return drawn.net.op("Relu", x)


def clip(drawn: Drawn, x: str) -> str:
    return drawn.net.op("Clip", x, drawn.constant(-0.5), drawn.constant(1.5))


def hard_sigmoid(drawn: Drawn, x: str) -> str:
    return drawn.net.op("HardSigmoid", x, alpha=0.25, beta=0.5)


def maximum(drawn: Drawn, x: str) -> str:
    return drawn.net.op("Max", x, drawn.constant(-0.5, 0, 0.25, 0.5))


def minimum(drawn: Drawn, x: str) -> str:
    return drawn.net.op("Min", x, drawn.constant(-0.5, 0, 0.25, 0.5))


Step = Callable[[Drawn, str], str]
Outputs = Callable[[Drawn, str, str], str]
Written = dict[str, list[str]]


class Form(NamedTuple):
    """A form, and a graph that has it.

    Attributes:
        front, behind: of the BatchNormalization.
        written: the operators that the whole is written as, for each of ``SIGNS``.
        refused: those where the form is not possible.
        options: that ask for it.
        changes: whether the BatchNormalization's own input and output get other values; what else
            reads them forbids that.
    """

    front: Step
    behind: Step
    written: Written
    refused: list[str]
    options: Options = FREE
    changes: tuple[bool, bool] = (False, False)


SIGNS = {"positive": [1], "negative": [-1], "mixed": [1, -1], "some zero": [0, 1, -1, 0]}
BOTH, LOW, HIGH = ["Max", "Min"], ["Max"], ["Min"]
# Of each clamp: what it becomes with each of the signs.
CLAMPS: dict[str, tuple[Step, Written]] = {
    "Relu": (relu, {"positive": LOW, "negative": HIGH, "mixed": BOTH, "some zero": BOTH}),
    "Max": (maximum, {"positive": LOW, "negative": HIGH, "mixed": BOTH, "some zero": BOTH}),
    "Min": (minimum, {"positive": HIGH, "negative": LOW, "mixed": BOTH, "some zero": BOTH}),
    "Clip": (clip, dict.fromkeys(SIGNS, BOTH)),
    "HardSigmoid": (hard_sigmoid, dict.fromkeys(SIGNS, BOTH)),
}


def between(first: list[str], made: Written, last: list[str]) -> Written:
    return {signs: [*first, *each, *last] for signs, each in made.items()}


def sigmoid(drawn: Drawn, x: str) -> str:
    return drawn.net.op("Sigmoid", x)


def half_open(drawn: Drawn, x: str) -> str:
    """One of two summands takes a shift, and no scale."""
    return drawn.net.op("Add", drawn.conv(x), drawn.net.op("Sigmoid", x))


def half_closed(drawn: Drawn, x: str) -> str:
    """What is behind the padding takes a scale, and no shift."""
    return drawn.conv(drawn.net.op("Neg", x), pads=[1] * 2 * drawn.spread)


def forms_of(name: str, act: Step, made: Written) -> dict[str, Form]:
    upstream = Form(
        lambda d, x: act(d, d.conv(x)),
        sigmoid,
        between(["Conv"], made, ["Sigmoid"]),
        ["Conv", name, "Mul", "Add", "Sigmoid"],
        changes=(True, False),
    )
    behind = between(["Conv", "MaxPool"], made, ["Sigmoid"])
    if made["positive"] == [name]:  # its own constants take that where it is
        behind["positive"] = ["Conv", name, "MaxPool", "Sigmoid"]
    pool = Form(
        upstream.front,
        lambda d, x: sigmoid(d, d.pool(x)),
        behind,
        ["Conv", name, "BatchNormalization", "MaxPool", "Sigmoid"],
        PLAIN,
        (True, True),
    )
    refused = ["Sigmoid", "Mul", "Add", name, "Conv"]
    downstream = Form(
        sigmoid,
        lambda d, x: d.conv(act(d, x)),
        between(["Sigmoid"], made, ["Conv"]) | {"some zero": refused},
        refused,
        changes=(False, True),
    )
    return {
        f"{name} upstream": upstream,
        f"{name} behind the pool": pool,
        f"{name} downstream": downstream,
    }


def halves(written: list[str], refused: list[str]) -> Written:
    return dict.fromkeys(SIGNS, written) | {"some zero": refused}


ONLY_ADD = ["Sigmoid", "Add", "Neg", "Conv"], ["Sigmoid", "Mul", "Add", "Neg", "Conv"]
ONLY_MUL = (
    ["Conv", "Sigmoid", "Add", "Mul", "Tanh"],
    ["Conv", "Sigmoid", "Add", "Mul", "Add", "Tanh"],
)
PAIR, DEPTHWISE = ["Sigmoid", "Mul", "Add", "Sigmoid"], ["Sigmoid", "Conv", "Sigmoid"]
FORMS = {form: row for name, of in CLAMPS.items() for form, row in forms_of(name, *of).items()} | {
    "Add": Form(sigmoid, half_closed, halves(*ONLY_ADD), ONLY_ADD[1], changes=(False, True)),
    "Mul": Form(
        half_open,
        lambda d, x: d.net.op("Tanh", x),
        halves(*ONLY_MUL),
        ONLY_MUL[1],
        changes=(True, False),
    ),
    "Mul and Add": Form(sigmoid, sigmoid, dict.fromkeys(SIGNS, PAIR), PAIR),
    "depthwise Conv": Form(
        sigmoid, sigmoid, dict.fromkeys(SIGNS, DEPTHWISE), DEPTHWISE, FOR_ONNXRUNTIME
    ),
}
OF_CLAMPS = {name: form for name, form in FORMS.items() if name.split()[0] in CLAMPS}


class Given(NamedTuple):
    """What a graph is drawn with."""

    signs: str = "mixed"
    shape: tuple[int | str | None, ...] = IMAGE
    dtype: type[np.floating] = np.float32
    opset: int = 17


USUAL = Given()


def model_of(form: Form, given: Given = USUAL, more: Outputs | None = None) -> onnx.ModelProto:
    """Return a graph with a form; ``more`` adds outputs by the BN's input and output."""
    net = Net(opset=given.opset)
    drawn = Drawn(net, given.dtype, len(given.shape) - 2)
    net.input("x", given.shape, helper.np_dtype_to_tensor_dtype(np.dtype(given.dtype)))
    before = form.front(drawn, "x")
    after = net.bn(before, channels=CHANNELS, signs=SIGNS[given.signs], dtype=given.dtype)
    outputs = [form.behind(drawn, after)]
    if more is not None:
        outputs.append(more(drawn, before, after))
    return net.model(*outputs)


def freed(model: onnx.ModelProto, form: Form, **sizes: int) -> list[str]:
    """Return the operators of the folded model, which is the same function."""
    folded, _ = onnx_bnfold.fold(model, form.options)
    onnx.checker.check_model(folded, full_check=True)
    again, _ = onnx_bnfold.fold(folded, form.options)
    assert again.SerializeToString() == folded.SerializeToString()
    assert_same_function(model, folded, **sizes)
    return ops(folded)


every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@every_form
@pytest.mark.parametrize("signs", SIGNS)
def test_signs(form, signs):
    assert freed(model_of(form, Given(signs)), form) == form.written[signs]


def held(model: onnx.ModelProto) -> tuple[int, int]:
    """Count the nodes that can hold a form, and the bytes of the constants that they read."""
    nodes = [n for n in model.graph.node if n.op_type in {"Max", "Min", "Mul", "Add", "Conv"}]
    sizes = {t.name: numpy_helper.to_array(t).nbytes for t in model.graph.initializer}
    return len(nodes), sum(sizes.get(name, 0) for n in nodes for name in n.input)


@every_form
@pytest.mark.parametrize("signs", SIGNS)
def test_what_it_costs(form, signs):
    """A clamp that had constants before costs what it has more."""
    model = model_of(form, Given(signs))
    folded, report = onnx_bnfold.fold(model, form.options)
    before, after = held(model), held(folded)
    more = after[0] - before[0], after[1] - before[1]
    [record] = report.norms
    cost = record.form_cost or FormCost(0, 0, 0)
    assert (cost.nodes, cost.bytes) == more
    assert cost.elements == cost.nodes * CHANNELS * (16 if "MaxPool" in ops(folded) else 64)
    depths = [
        cost_of(each, numpy_helper.to_array, {}).multiplicative_depth for each in (model, folded)
    ]
    assert cost.multiplicative_depth == depths[1] - (depths[0] - 1)  # the BN counts one
    assert (str(cost) in record.sentence()) == (record.form_cost is not None)


# Another reader of the BatchNormalization's output, or of its input, that takes no change.
OTHERS: dict[str, tuple[int, Outputs]] = {
    "another reader": (1, lambda d, before, after: d.net.op("Sin", after)),
    "an opaque partner in a Concat": (
        1,
        lambda d, before, after: d.net.op("Concat", after, d.net.op("Sin", "x"), axis=1),
    ),
    "an output": (1, lambda d, before, after: after),
    "another reader of its input": (0, lambda d, before, after: d.net.op("Sin", before)),
    "its input is an output": (0, lambda d, before, after: before),
}


@every_form
@pytest.mark.parametrize(("side", "more"), OTHERS.values(), ids=OTHERS)
def test_what_others_read(form, side, more):
    """A form that changes what they read is not possible, and any other is."""
    written = [op for op in freed(model_of(form, more=more), form) if op not in {"Sin", "Concat"}]
    assert sorted(written) == sorted(form.refused if form.changes[side] else form.written["mixed"])


@pytest.mark.parametrize("form", OF_CLAMPS.values(), ids=OF_CLAMPS)
def test_the_far_side_of_a_clamp_is_an_output(form):
    """It keeps its values, so the clamp keeps its bounds."""

    def far(drawn: Drawn, before: str, after: str) -> str:
        clamp = next(n for n in drawn.net.nodes if n.op_type in CLAMPS)
        return clamp.input[0] if clamp.output[0] == before else clamp.output[0]

    assert freed(model_of(form, more=far), form) == form.refused


@every_form
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.0])
def test_odd_values(form, value):
    """NaN comes out where it did, and what is finite is the same."""
    model = model_of(form)
    folded, _ = onnx_bnfold.fold(model, form.options)
    assert ops(folded) == form.written["mixed"]
    x = np.random.default_rng(0).standard_normal((1, *IMAGE[1:])).astype(np.float32)
    x[0, 1, 4, 4] = value
    [before], [after] = run(model, {"x": x}), run(folded, {"x": x})
    if "HardSigmoid" not in form.refused:  # onnxruntime makes a number of NaN there, sometimes
        np.testing.assert_array_equal(np.isnan(before), np.isnan(after))
    known = np.isfinite(before)
    assert known.any()
    assert error(before[known], after[known]) <= TOLERANCE[before.dtype]


@every_form
@pytest.mark.parametrize("shape", [("N", CHANNELS, "H", "W"), (None, CHANNELS, None)], ids=str)
def test_dynamic_sizes(form, shape):
    """Unasked it is not known whether a pool leaves far fewer elements; all else is as it was."""
    model = model_of(form, Given(shape=shape))
    asked = form._replace(options=FREE) if form.options is PLAIN else form
    assert freed(model, asked, H=6, W=7) == form.written["mixed"]
    if form.options is PLAIN:
        assert freed(model, form, H=6, W=7) == form.refused


FLAT = {name: form for name, form in FORMS.items() if "pool" not in name and name != "Add"}


@pytest.mark.parametrize("form", FLAT.values(), ids=FLAT)
def test_vectors(form):
    """A Gemm takes the Conv's place; a depthwise Conv has no axes to go over."""
    written = PAIR if form.written["mixed"] == DEPTHWISE else form.written["mixed"]
    found = freed(model_of(form, Given(shape=(None, CHANNELS))), form)
    assert found == [op.replace("Conv", "Gemm") for op in written]


@every_form
def test_float16(form):
    given = Given(dtype=np.float16)
    assert freed(model_of(form, given), form) == form.written["mixed"]


@pytest.mark.parametrize("form", OF_CLAMPS.values(), ids=OF_CLAMPS)
def test_float16_of_before_runtimes_had_it(form):
    """A Max or Min that is one already takes a shift all the same."""
    found = freed(model_of(form, Given(dtype=np.float16, opset=11)), form)
    assert found in (form.refused, ["Conv", form.refused[1], "Mul", "Sigmoid"])
