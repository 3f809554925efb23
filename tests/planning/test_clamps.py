"""Relus and Clips that become a Max or Min with constants, so that any change passes them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from support import (
    assert_same_function,
    bn,
    conv,
    error,
    fold_checked,
    join,
    layer,
    model_of,
    node,
    ops,
    run,
    tensor,
)

import onnx_bnfold
from onnx_bnfold import Options, UsageError
from onnx_bnfold.planning import clamps

FREE = Options(bn_free=True)
FOR_ONNXRUNTIME = Options(bn_free=True, target="onnxruntime")
X = {"x": ("N", 3, 12, 12)}
PADDED = [1, 1, 1, 1]


@pytest.fixture(autouse=True)
def _small_is_enough(monkeypatch):
    """Let small tensors gain, too."""
    monkeypatch.setattr(clamps, "LEAST_SAVED", 0)


def pool(x: str, y: str, **attributes):
    return node("MaxPool", [x], [y], **{"kernel_shape": [2, 2], "strides": [2, 2]} | attributes)


def sigmoid(x: str, y: str):
    return node("Sigmoid", [x], [y])


def relu(x: str, y: str, **attributes):
    return node("Relu", [x], [y], **attributes)


def clip(x: str, y: str, low: float | None, high: float | None):
    bounds = {"low": low, "high": high}
    given = {f"{y}_{k}": np.float32(v) for k, v in bounds.items() if v is not None}
    names = [f"{y}_{k}" if v is not None else "" for k, v in bounds.items()]
    found = node("Clip", [x, *names], [y])
    return found._replace(initializers=[tensor(k, v) for k, v in given.items()])


def model(*parts, outputs=("y",), inputs=None, **more):
    nodes, initializers = join(*parts)
    return model_of(nodes, X if inputs is None else inputs, outputs, initializers, **more)


def layers(rng):
    return conv("x", "a", (4, 3, 3, 3), rng, pads=PADDED)


def clamped(rng, *, positive=False):
    """Conv → Relu → BN."""
    return join(layers(rng), relu("a", "b"), bn("b", "c", 4, rng, positive=positive))


def keras(rng, *, positive=False, act=relu):
    """Conv → Relu → BN → MaxPool → padded Conv, as Keras writes it."""
    norm = bn("b", "c", 4, rng, positive=positive)
    end = conv("d", "e", (4, 4, 3, 3), rng, pads=PADDED)
    return model(layers(rng), act("a", "b"), norm, pool("c", "d"), end, sigmoid("e", "y"))


# --- behind a pool, unasked -----------------------------------------------------------------


@pytest.mark.parametrize("positive", [True, False])
def test_a_clamp_goes_behind_the_pool(rng, positive):
    folded, report = fold_checked(keras(rng, positive=positive))
    clamps = ["Max"] if positive else ["Max", "Min"]
    assert ops(folded) == ["Conv", "MaxPool", *clamps, "Conv", "Sigmoid"]
    (record,) = report.folded
    assert record.clamps == ("Relu 'n_b'",)
    assert record.clamp_elements == 4 * 6 * 6 * len(clamps)
    told = f"Relu 'n_b' becoming a clamp with constants, {record.form_cost}"
    assert told in record.sentence()
    assert "1 clamp written with constants" in report.summary()


def test_the_bn_may_stand_behind_the_pool(rng):
    norm = bn("c", "d", 4, rng, positive=True)
    end = conv("d", "e", (4, 4, 3, 3), rng, pads=PADDED)
    parts = layers(rng), relu("a", "b"), pool("b", "c"), norm, end, sigmoid("e", "y")
    folded, _ = fold_checked(model(*parts))
    assert ops(folded) == ["Conv", "MaxPool", "Max", "Conv", "Sigmoid"]


def test_a_global_pool(rng):
    norm = bn("b", "c", 4, rng)
    parts = layers(rng), relu("a", "b"), norm, node("GlobalMaxPool", ["c"], ["d"])
    folded, _ = fold_checked(model(*parts, sigmoid("d", "y")))
    assert ops(folded) == ["Conv", "GlobalMaxPool", "Max", "Min", "Sigmoid"]


def test_a_pool_whose_indices_nobody_reads(rng):
    behind = node("MaxPool", ["c"], ["d", "i"], kernel_shape=[2, 2], strides=[2, 2])
    folded, _ = fold_checked(model(clamped(rng, positive=True), behind, sigmoid("d", "y")))
    assert ops(folded) == ["Conv", "MaxPool", "Max", "Sigmoid"]


def test_a_clamp_in_front_that_has_no_bounds_leaves_others_alone(rng):
    """The least number of the first is computed at run time."""
    first = node("Clip", ["x", "least"], ["s"])
    norm = bn("b", "c", 4, rng, positive=True)
    parts = first, conv("s", "a", (4, 3, 3, 3), rng, pads=PADDED), relu("a", "b"), norm
    given = model(*parts, pool("c", "d"), sigmoid("d", "y"))
    given.graph.input.append(onnx.helper.make_tensor_value_info("least", TensorProto.FLOAT, ()))
    folded, _ = fold_checked(given)
    assert ops(folded) == ["Clip", "Conv", "MaxPool", "Max", "Sigmoid"]


@pytest.mark.parametrize(("positive", "kept"), [(True, 0), (False, 1)])
def test_constants_must_not_read_more_than_the_bn_does(rng, positive, kept):
    """Behind a pool of stride 1 one of them reads as much, two read twice as much."""
    norm = bn("b", "c", 4, rng, positive=positive)
    behind = pool("c", "d", kernel_shape=[3, 3], strides=[1, 1], pads=PADDED)
    given = model(layers(rng), relu("a", "b"), norm, behind, sigmoid("d", "y"))
    fold_checked(given, kept=kept)
    fold_checked(given, options=FREE)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 6), (0, None), (-1, 1), (None, 2), (None, None)], ids=str
)
def test_bounds_of_a_clip(rng, low, high):
    fold_checked(keras(rng, act=lambda x, y: clip(x, y, low, high)))


def test_a_clip_of_old(rng):
    def act(x, y):
        return node("Clip", [x], [y], min=-0.5, max=6.0)

    given = keras(rng, act=act)
    given.opset_import[0].version = 10
    fold_checked(given)


MUST_STAY = {
    "its indices are used": lambda rng: model(
        clamped(rng),
        node("MaxPool", ["c"], ["y", "i"], kernel_shape=[2, 2]),
        outputs={"y": None, "i": (np.int64, None)},
    ),
    "a window lies in its padding": lambda rng: model(
        clamped(rng),
        pool("c", "y", kernel_shape=[1, 1], strides=[1, 1], pads=PADDED),
    ),
    "another node reads the clamp": lambda rng: model(
        clamped(rng),
        pool("c", "y"),
        sigmoid("b", "z"),
        outputs=("y", "z"),
    ),
    "another node reads the BN": lambda rng: model(
        clamped(rng),
        pool("c", "y"),
        sigmoid("c", "z"),
        outputs=("y", "z"),
    ),
    "the BN is an output": lambda rng: model(clamped(rng), pool("c", "y"), outputs=("y", "c")),
    "no pool of maxima follows": lambda rng: model(
        clamped(rng),
        node("AveragePool", ["c"], ["d"], kernel_shape=[2, 2]),
        sigmoid("d", "y"),
    ),
    "Max does not broadcast": lambda rng: model(clamped(rng), pool("c", "y"), opset=7),
}


@pytest.mark.parametrize("why", MUST_STAY)
def test_what_stays(why, rng):
    folded, _ = fold_checked(MUST_STAY[why](rng), kept=1, compare=why[:3] != "a w")
    assert "Relu" in ops(folded)


def picture(rng, behind, options, *, kept_front):
    """Add → Relu → Add → pool, whose constants vary over rows: only without a pool do they fit."""
    rows = [tensor(name, rng.standard_normal((1, 1, 12, 1)).astype(np.float32)) for name in "pq"]
    first, second = node("Add", ["s", "p"], ["a"]), node("Add", ["b", "q"], ["c"])
    parts = (
        sigmoid("x", "s"),
        first._replace(initializers=rows),
        relu("a", "b"),
        second,
        behind("c", "d"),
        sigmoid("d", "y"),
    )
    given = model(*parts)
    folded, _ = onnx_bnfold.fold(given, options)
    onnx.checker.check_model(folded, full_check=True)
    assert_same_function(given, folded)
    assert ops(folded)[:-2] == kept_front


@pytest.mark.parametrize(
    "behind", [pool, lambda x, y: node("GlobalMaxPool", [x], [y])], ids=["window", "global"]
)
def test_constants_that_vary_over_positions_stay_in_front_of_the_pool(rng, behind):
    picture(rng, behind, Options(), kept_front=["Sigmoid", "Add", "Relu", "Add"])
    picture(rng, behind, FREE, kept_front=["Sigmoid", "Add", "Max"])


def test_bounds_between_which_no_number_lies(rng):
    """Runtimes differ on what such a Clip gives: it is left alone."""
    for low, high in [(3, 1), (np.nan, 1), (0, np.nan), (np.inf, None), (None, -np.inf)]:
        given = keras(rng, act=lambda x, y, low=low, high=high: clip(x, y, low, high))
        folded, _ = onnx_bnfold.fold(given)
        assert "Clip" in ops(folded)
        assert "BatchNormalization" in ops(folded)


def test_int8_gets_no_new_ranges(rng):
    fold_checked(keras(rng), kept=1, options=Options(profile="int8"))


@pytest.mark.parametrize(
    ("size", "positive", "kept"),
    [(96, True, 1), (128, True, 0), (128, False, 1), (192, False, 0), ("H", True, 1)],
)
def test_it_is_done_where_the_pool_leaves_far_less(monkeypatch, rng, size, positive, kept):
    """By 2^15 elements for each new node; 4 channels of 128x128 lose 49,152 by one."""
    monkeypatch.setattr(clamps, "LEAST_SAVED", 2**15)
    parts = (
        clamped(rng, positive=positive),
        pool("c", "d"),
        sigmoid("d", "y"),
    )
    given = model(*parts, inputs={"x": (1, 3, size, size)})
    fold_checked(given, kept=kept, H=12)
    fold_checked(given, options=FREE, H=12)


# --- everywhere, on request -----------------------------------------------------------------


def test_upstream(rng):
    """Whatever reads it, and whatever its signs."""
    norm = bn("b", "c", 4, rng)
    parts = layers(rng), relu("a", "b"), norm, sigmoid("c", "y"), node("Tanh", ["c"], ["z"])
    given = model(*parts, outputs=("y", "z"))
    folded, _ = fold_checked(given, options=FREE)
    assert ops(folded) == ["Conv", "Max", "Min", "Sigmoid", "Tanh"]
    fold_checked(given, kept=1)


def test_downstream(rng):
    parts = (
        sigmoid("x", "a"),
        bn("a", "b", 3, rng),
        relu("b", "c"),
        conv("c", "d", (4, 3, 3, 3), rng),
    )
    given = model(*parts, sigmoid("d", "y"))
    folded, _ = fold_checked(given, options=FREE)
    assert ops(folded) == ["Sigmoid", "Max", "Min", "Conv", "Sigmoid"]
    fold_checked(given, kept=1)


def written(given, options, *expected):
    folded, report = onnx_bnfold.fold(given, options)
    onnx.checker.check_model(folded, full_check=True)
    assert_same_function(given, folded)
    assert ops(folded) == [*expected]
    again, _ = onnx_bnfold.fold(folded, options)
    assert again.SerializeToString() == folded.SerializeToString()
    return report


@pytest.mark.parametrize(("positive", "clamps"), [(True, ["Relu"]), (False, ["Max", "Min"])])
def test_half_a_fold(rng, positive, clamps):
    """The scale goes through the clamp into the padded Conv, where the shift would be wrong."""
    norm = bn("a", "b", 3, rng, positive=positive)
    parts = sigmoid("x", "a"), norm, relu("b", "c"), conv("c", "d", (4, 3, 3, 3), rng, pads=PADDED)
    given = model(*parts, sigmoid("d", "y"))
    written(given, FREE, "Sigmoid", "Add", *clamps, "Conv", "Sigmoid")
    written(given, FOR_ONNXRUNTIME, "Sigmoid", "Conv", "Relu", "Conv", "Sigmoid")


def test_int8_has_halves_and_no_clamps(rng):
    given = model(clamped(rng), sigmoid("c", "y"))
    options = Options(bn_free=True, profile="int8")
    report = written(given, options, "Conv", "Relu", "Mul", "Add", "Sigmoid")
    assert report.kept[0].written_as == "mul-add"
    cost = "2 nodes, 1,152 elements read, 32 bytes, multiplicative depth 1"
    assert report.kept[0].sentence().endswith(f"; written as mul-add, {cost}")


def test_a_channel_of_gamma_zero(rng):
    norm = bn("b", "c", 4, rng)
    norm.initializers[0].CopyFrom(tensor("c_scale", np.float32([0, 1, -1, 0])))
    given = model(layers(rng), relu("a", "b"), norm, sigmoid("c", "y"))
    fold_checked(given, options=FREE)


@pytest.mark.parametrize("act", [relu, lambda x, y: clip(x, y, 0.5, 1)], ids=["relu", "clip"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_inverse_of_gamma_zero_is_no_bound(rng, dtype, act):
    """What such a channel held is taken back as it was in front of the clamp: it must not pass."""
    norm, cut = bn("a", "b", 4, rng, dtype=dtype), act("b", "c")
    norm.initializers[0].CopyFrom(tensor("b_scale", np.array([0, 0, -1, 1], dtype)))
    norm.initializers[1].CopyFrom(tensor("b_B", np.array([-2, 2, 1, -1], dtype)))
    bounds = [onnx.numpy_helper.to_array(t).astype(dtype) for t in cut.initializers]
    names = [t.name for t in cut.initializers]
    cut = cut._replace(initializers=[tensor(n, b) for n, b in zip(names, bounds, strict=True)])
    end = layer("MatMul", "c", "d", (4, 5), rng, dtype=dtype)
    parts = sigmoid("x", "a"), norm, cut, end, sigmoid("d", "y")
    given = model(*parts, inputs={"x": ("N", 4)}, dtype=dtype)
    folded, _ = onnx_bnfold.fold(given, FREE)
    assert_same_function(given, folded)


def test_several_readers_and_a_concat_with_an_opaque_partner(rng):
    parts = (
        clamped(rng),
        node("Concat", ["c", "p"], ["d"], axis=1),
        node("Softmax", ["x"], ["p"]),
        sigmoid("d", "y"),
        conv("b", "z", (2, 4, 1, 1), rng),
    )
    given = model(*parts, outputs=("y", "z"))
    order = [0, 1, 2, 4, 3, 5, 6]
    nodes = [given.graph.node[i] for i in order]
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del given.graph.node[:]
    given.graph.node.extend(kept)
    fold_checked(given, options=FREE)


def test_a_clamp_that_is_an_output_keeps_its_values(rng):
    parts = clamped(rng), sigmoid("c", "y")
    written(model(*parts, outputs=("y", "b")), FREE, "Conv", "Relu", "Mul", "Add", "Sigmoid")


@pytest.mark.parametrize(("opset", "clamp"), [(11, "Relu"), (12, "Max")])
def test_float16_from_the_opset_on_in_which_runtimes_have_it(rng, opset, clamp):
    parts = (
        layer("Conv", "x", "a", (4, 3, 3, 3), rng, bias_shape=(4,), dtype=np.float16),
        relu("a", "b"),
        bn("b", "c", 4, rng, positive=True, dtype=np.float16),
        sigmoid("c", "y"),
    )
    given = model(*parts, dtype=np.float16, opset=opset)
    folded, _ = onnx_bnfold.fold(given, FREE)
    assert clamp in ops(folded)
    assert_same_function(given, folded)


def test_flat_tensors_of_unknown_batch(rng):
    parts = (
        layer("Gemm", "x", "a", (5, 4), rng),
        relu("a", "b"),
        bn("b", "c", 4, rng),
        sigmoid("c", "y"),
    )
    given = model(*parts, inputs={"x": (None, 5)})
    folded, _ = fold_checked(given, options=FREE)
    assert ops(folded) == ["Gemm", "Max", "Min", "Sigmoid"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.0])
def test_odd_values(rng, value):
    given = keras(rng)
    folded, _ = onnx_bnfold.fold(given, FREE)
    x = rng.standard_normal((1, 3, 12, 12)).astype(np.float32)
    x[0, 1, 4, 4] = value
    (a,), (b,) = run(given, {"x": x}), run(folded, {"x": x})
    assert (np.isnan(a) == np.isnan(b)).all()
    known = np.isfinite(a)
    assert error(a[known], b[known]) < 1e-5


def test_the_second_bn_finds_the_clamp_of_the_first(rng):
    parts = (
        clamped(rng),
        pool("c", "d"),
        bn("d", "e", 4, rng, positive=True),
        sigmoid("e", "y"),
    )
    folded, _ = fold_checked(model(*parts))
    assert ops(folded) == ["Conv", "MaxPool", "Max", "Min", "Sigmoid"]


def test_a_model_whose_constants_lie_in_a_body(rng):
    """Constants of a subgraph become its own."""
    inner = join(
        conv("x", "a", (4, 3, 3, 3), rng), relu("a", "b"), bn("b", "c", 4, rng), pool("c", "then")
    )
    other = join(conv("x", "k", (4, 3, 3, 3), rng), pool("k", "else"))
    bodies = {
        f"{name}_branch": onnx.helper.make_graph(
            parts.nodes,
            name,
            [],
            [onnx.helper.make_tensor_value_info(name, 1, None)],
            parts.initializers,
        )
        for name, parts in {"then": inner, "else": other}.items()
    }
    choice = node("If", ["which"], ["y"], **bodies)
    inputs = {"x": (1, 3, 12, 12), "which": (np.bool_, ())}
    given = model_of(choice.nodes, inputs, {"y": None})
    fold_checked(given)


@pytest.mark.parametrize("positive", [True, False])
def test_what_nodes_say_of_the_devices_of_their_tensors_is_true_of_these(rng, positive):
    given = keras(rng, positive=positive)
    given.ir_version = 11
    given.configuration.add(name="two", num_devices=2)
    for n in given.graph.node:
        device = n.device_configurations.add(configuration_id="two")
        for name in [*n.input, *n.output]:
            device.sharding_spec.add(tensor_name=name, device=[0])
    folded, _ = fold_checked(given)
    for n in folded.graph.node:
        told = {s.tensor_name for d in n.device_configurations for s in d.sharding_spec}
        assert told <= {*n.input, *n.output}, n.op_type


def test_target_alone_says_nothing():
    with pytest.raises(UsageError, match="target"):
        Options(target="onnxruntime")
