"""Sabotage is seen and named; rounding is not a fault."""

import dataclasses
import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from pairs import CLASSES, finish, fold, model, pair, weights
from support import saved_external

from onnx_bnfold.check import CheckOptions, check, render_text
from onnx_bnfold.errors import ModelError, UsageError


def _one_percent(w):
    index = np.unravel_index(np.abs(w["w1"]).argmax(), w["w1"].shape)
    w["w1"][index] *= w["w1"].dtype.type(1.01)


def _swap_channels(w):
    w["w0"][[2, 5]] = w["w0"][[5, 2]]


def _transpose(w):
    w["fc"] = np.ascontiguousarray(w["fc"].T)


def _nan(w):
    w["w1"][3, 2, 1, 1] = np.nan


def _no_epsilon(w):
    w |= fold(weights(str(w["w0"].dtype)), epsilon=0)


def _bias_lost(w):
    w["b1"][4] = 0


SABOTAGE = {
    "one weight 1 %": (_one_percent, "bn1"),
    "two channels swapped": (_swap_channels, "bn0"),
    "epsilon left out": (_no_epsilon, "bn0"),
    "transposed Gemm": (_transpose, "y"),
    "a NaN": (_nan, "bn1"),
    "one bias lost": (_bias_lost, "bn1"),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_right_fold_holds(dtype, seed):
    result = check(*pair(dtype, seed=seed), CheckOptions(seed=seed))
    assert result.failures == ()
    assert result.holds
    (output,) = result.numerics.outputs
    assert output.max_abs > 0
    assert output.times_noise < 2.5
    assert output.top1_agreement == 1
    assert result.numerics.first_difference is None


@pytest.mark.parametrize(("break_it", "tensor"), SABOTAGE.values(), ids=SABOTAGE)
def test_sabotage_fails_and_is_named(break_it, tensor):
    values = weights()
    folded = fold(values)
    break_it(folded)
    result = check(model(values), model(folded))
    assert not result.holds
    assert result.numerics.first_difference.tensor == tensor
    (failure,) = result.failures
    assert failure.startswith("numerics: output 'y'")
    assert repr(tensor) in failure


@pytest.mark.parametrize("case", ["two channels swapped", "epsilon left out", "transposed Gemm"])
def test_sabotage_of_float16(case):
    break_it, tensor = SABOTAGE[case]
    values = weights("float16")
    # An epsilon of 0.001 is a rounding unit of float16: nobody can see it missing.
    epsilon = 0.05
    folded = fold(values, epsilon=epsilon)
    break_it(folded)
    result = check(model(values, epsilon=epsilon), model(folded))
    assert not result.holds
    assert result.numerics.first_difference.tensor == tensor


def test_reparametrised_tensor_is_not_named():
    values = weights()
    folded = fold(values)
    assert check(model(values), model(folded, keep_conv_names=True)).holds
    _transpose(folded)
    result = check(model(values), model(folded, keep_conv_names=True))
    assert result.numerics.first_difference.tensor == "y"


def test_changes_are_undone_before_a_tensor_is_named():
    values = weights()
    folded = fold(values)
    _one_percent(folded)
    broken = model(folded, keep_conv_names=True)
    assert check(model(values), broken).numerics.first_difference.tensor == "conv1"
    changes = {}
    for i in range(2):
        a = values[f"scale{i}"] / np.sqrt(values[f"var{i}"].astype(np.float64) + 1e-3)
        shift = values[f"B{i}"] - values[f"mean{i}"] * a
        changes[f"conv{i}"] = (a.reshape(-1, 1, 1), shift.reshape(-1, 1, 1))
    found = check(model(values), broken, changes=changes).numerics.first_difference
    assert found.tensor == "conv1"
    assert found.op_type == "Conv"
    # Only the channel with the changed weight differs once the fold itself is undone.
    assert found.difference.worst_index[1] == _changed_channel(folded)


def _changed_channel(folded):
    return int(np.abs(folded["w1"]).max(axis=(1, 2, 3)).argmax())


def test_tiny_sigmoid_output_is_judged_by_its_noise():
    # A text detector's map peaks at 1e-4 on noise; a limit relative to that peak fails it.
    values = weights()
    values["bias"] -= 12
    result = check(model(values, head=("Sigmoid",)), model(fold(values), head=("Sigmoid",)))
    assert result.numerics.outputs[0].peak < 1e-3
    assert result.holds


def test_nan_and_inf_in_the_same_place_hold():
    original, folded = pair(head=("Log",))  # NaN for negative logits
    result = check(original, folded)
    assert np.isnan(_run(original)).any()
    assert result.holds
    assert result.numerics.outputs[0].mismatched == 0


def _run(proto):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    x = np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype("float32")
    return onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, {"x": x})[0]


def test_class_ids_must_be_equal():
    values = weights()
    folded = fold(values)
    result = check(model(values, head=("ArgMax",)), model(folded, head=("ArgMax",)))
    assert result.numerics.outputs[0].dtype == "int64"
    assert result.holds
    _transpose(folded)
    result = check(model(values, head=("ArgMax",)), model(folded, head=("ArgMax",)))
    assert not result.holds
    assert "elements differ" in result.failures[0]


@pytest.mark.parametrize(
    ("limits", "holds"),
    [({"atol": 1e-3}, True), ({"rtol": 1e-12}, False), ({"atol": 1e-12, "rtol": 1e-2}, True)],
    ids=str,
)
def test_tolerances_replace_the_noise(limits, holds):
    result = check(*pair(), CheckOptions(**limits))
    assert result.holds is holds
    assert result.numerics.outputs[0].limit is None
    assert (result.numerics.outputs[0].outside_tolerance == 0) is holds


def test_a_fault_within_the_given_tolerance_holds():
    values = weights()
    folded = fold(values)
    _one_percent(folded)
    assert check(model(values), model(folded), CheckOptions(atol=0.1)).holds


def _renamed_output(m):
    m.graph.node[-1].output[0] = m.graph.output[0].name = "z"


def _renamed_input(m):
    m.graph.input[0].name = m.graph.node[0].input[0] = "z"


def _float64_input(m):
    m.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    cast = helper.make_node("Cast", ["x"], ["x32"], to=onnx.TensorProto.FLOAT)
    m.graph.node[0].input[0] = "x32"
    m.graph.node.insert(0, cast)


def _larger_input(m):
    m.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 99


def _does_not_load(m):
    m.graph.node[0].op_type = "Nonsense"


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        (_renamed_output, "signature: the folded model has no output 'y'"),
        (_renamed_input, "signature: the folded model has no input 'x'"),
        (_float64_input, "signature: input 'x' is tensor(double) instead of tensor(float)"),
        (_larger_input, "signature: input 'x' is [N, 3, 99, 12] instead of [N, 3, 12, 12]"),
        (_does_not_load, "load: onnxruntime cannot load the folded model"),
    ],
)
def test_models_that_cannot_be_compared_fail(change, failure):
    original, folded = pair()
    change(folded)
    result = check(original, folded)
    assert not result.holds
    assert result.numerics is None
    assert any(f.startswith(failure) for f in result.failures), result.failures
    assert "FAILED" in render_text(result)


def test_an_input_of_open_shape_contradicts_none():
    original, folded = pair()
    folded.graph.input[0].type.tensor_type.ClearField("shape")
    assert check(original, folded).holds
    assert check(folded, original, CheckOptions(shapes={"x": (2, 3, 12, 12)})).holds


def test_a_limit_above_the_least_is_noted():
    note = "output 'y': its limit is "
    assert not any(note in line for line in check(*pair()).numerics.notes)
    result = check(*pair(), CheckOptions(factor=0.1))
    assert result.holds
    assert any(line.startswith(note) for line in result.numerics.notes)


def test_output_type_must_stay():
    values = weights()
    nodes = [helper.make_node("Gemm", ["x", "fc"], ["h"])]
    cast = helper.make_node("Cast", ["h"], ["y"], to=onnx.TensorProto.DOUBLE)
    same = helper.make_node("Identity", ["h"], ["y"])
    models = [finish([*nodes, last], values, ("N", CLASSES)) for last in (same, cast)]
    result = check(*models)
    assert "it is float64" in result.failures[0]


def test_unreadable_original_is_an_error(tmp_path):
    _, folded = pair()
    path = tmp_path / "text.onnx"
    path.write_text("not a model")
    with pytest.raises(ModelError, match=r"text\.onnx"):
        check(path, folded)
    with pytest.raises(UsageError, match="there is no file"):
        check(tmp_path / "absent.onnx", folded)


def test_unloaded_external_data_need_a_path(tmp_path):
    original, folded = pair()
    path = saved_external(original, tmp_path / "m.onnx")
    bare = onnx.load(path, load_external_data=False)
    with pytest.raises(ModelError, match="give its path"):
        check(bare, folded)
    values = weights()
    sabotaged = fold(values)
    _one_percent(sabotaged)
    assert check(path, folded).holds
    assert check(path, model(sabotaged)).numerics.first_difference.tensor == "bn1"


def test_inputs_are_left_alone(tmp_path):
    original, folded = pair()
    before = original.SerializeToString(), folded.SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(before[0])
    assert check(path, folded).holds
    assert (original.SerializeToString(), folded.SerializeToString()) == before
    assert path.read_bytes() == before[0]
    assert list(tmp_path.iterdir()) == [path]


def test_same_call_same_record():
    original, folded = pair()
    first, second = (check(original, folded).to_dict() for _ in range(2))
    for record in (first, second):
        del record["numerics"]["seconds"], record["numerics"]["onnxruntime_seconds"]
    assert first == second


@pytest.mark.parametrize("broken", [False, True])
def test_json_is_strict(broken):
    values = weights()
    folded = fold(values)
    if broken:
        _nan(folded)
    result = check(model(values), model(folded))

    def refuse(constant):
        raise AssertionError(constant)

    record = json.loads(result.to_json(), parse_constant=refuse)
    assert record["schema_version"] == 1
    assert record["holds"] is not broken
    assert record["numerics"]["outputs"][0]["shape"] == [4, CLASSES]
    assert (record["numerics"]["first_difference"] is None) is not broken


def test_infinite_figures_are_null_in_json():
    result = check(*pair())
    output = dataclasses.replace(result.numerics.outputs[0], max_abs=np.inf, rms=np.nan)
    numerics = dataclasses.replace(result.numerics, outputs=(output,))
    record = json.loads(dataclasses.replace(result, numerics=numerics).to_json())
    assert record["numerics"]["outputs"][0]["max_abs"] is None
    assert record["numerics"]["outputs"][0]["rms"] is None


def test_outputs_of_few_elements_get_more_draws():
    original, folded = pair(batch=1)
    for proto in (original, folded):
        proto.graph.node.append(helper.make_node("ReduceMax", ["y"], ["top"], keepdims=0))
        proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("top", 1, []))
    result = check(original, folded)
    assert result.holds
    assert result.numerics.draws >= 8


@pytest.mark.parametrize(
    ("times", "draws", "holds"), [(0.5, 4, True), (8, 64, False), (1e6, 4, False)]
)
def test_draws_go_on_only_where_they_leave_it_open(times, draws, holds):
    original, folded = pair()
    noise = check(original, folded).numerics.outputs[0].noise_rms
    for proto in (original, folded):
        proto.graph.node.append(helper.make_node("Add", ["y", "fault"], ["z"]))
        proto.graph.output[0].name = "z"
    step = np.float32(times * noise) * np.ones(CLASSES, "float32")
    original.graph.initializer.append(numpy_helper.from_array(0 * step, "fault"))
    folded.graph.initializer.append(numpy_helper.from_array(step, "fault"))
    result = check(original, folded)
    assert result.numerics.draws == draws
    assert result.holds is holds


def test_models_that_are_equal_but_for_rounding_hold_either_way():
    # The roles of the original and of its fold are one.
    assert check(*reversed(pair())).holds


def test_resize_scales_are_not_moved():
    scales = np.array([1, 1, 2, 2], "float32")
    values = weights() | {"scales": scales}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c"]),
        helper.make_node("Resize", ["c", "", "scales"], ["y"]),
    ]
    proto = finish(nodes, values, ("N", 3, 12, 12))
    result = check(proto, proto)
    assert result.holds
    assert result.numerics.outputs[0].reason == ""


def test_lost_overridable_initializer_is_noted():
    original, folded = pair()
    info = helper.make_tensor_value_info("fc", onnx.TensorProto.FLOAT, [CLASSES, 16])
    original.graph.input.append(info)
    result = check(original, folded)
    assert result.holds
    assert result.numerics.notes == ("initializer 'fc' can no longer be overridden by an input",)
    folded.graph.input.append(info)
    assert check(original, folded).numerics.notes == ()


def test_a_model_without_weights_is_noted():
    proto = finish([helper.make_node("Relu", ["x"], ["y"])], {}, ("N", 4))
    result = check(proto, proto)
    assert result.holds
    assert "no layer or BN" in result.numerics.notes[0]


def test_output_whose_shape_depends_on_rounding_is_noted(tmp_path):
    # Which elements reach the values they had in another evaluation is up to the rounding.
    values = weights()
    threshold = _run(model(values))
    proto = model(values, head=("Identity",))
    constant = numpy_helper.from_array(threshold, "t")
    proto.graph.initializer.append(constant)
    proto.graph.node.append(helper.make_node("GreaterOrEqual", ["y", "t"], ["m"]))
    proto.graph.node.append(helper.make_node("NonZero", ["m"], ["found"]))
    proto.graph.output.append(helper.make_tensor_value_info("found", 7, [2, None]))
    x = np.random.default_rng(0).standard_normal((2, 3, 12, 12))
    path = tmp_path / "x.npy"
    np.save(path, x)
    result = check(proto, proto, CheckOptions(inputs=path))
    assert result.holds
    assert "cannot be compared" in result.numerics.notes[0]
    assert "not compared" in render_text(result)
    del proto.graph.output[0]
    with pytest.raises(UsageError, match="so there is nothing to compare"):
        check(proto, proto, CheckOptions(inputs=path))


def test_a_check_that_compares_nothing_is_an_error(tmp_path):
    values = weights()
    broken = fold(values)
    _transpose(broken)
    models = model(values), model(broken)
    with pytest.raises(
        UsageError, match=r"all outputs are empty for the inputs x \[0, 3, 12, 12\]"
    ):
        check(*models, CheckOptions(shapes={"x": (0, 3, 12, 12)}))
    path = tmp_path / "x.npy"
    np.save(path, np.empty((0, 3, 12, 12), "float32"))
    with pytest.raises(UsageError, match="all outputs are empty"):
        check(*models, CheckOptions(inputs=path, atol=1.0))
    np.save(path, np.full((1, 3, 12, 12), np.nan, "float32"))
    with pytest.raises(UsageError, match="all outputs are NaN"):
        check(*models, CheckOptions(inputs=path))


def test_an_empty_output_beside_others_is_noted():
    original, folded = pair()
    for proto in (original, folded):
        none = numpy_helper.from_array(np.array([], np.int64), "none")
        proto.graph.initializer.append(none)
        proto.graph.node.append(helper.make_node("Gather", ["y", "none"], ["e"], axis=1))
        proto.graph.output.append(helper.make_tensor_value_info("e", 1, ["N", 0]))
    result = check(original, folded)
    assert result.holds
    assert "output 'e' is empty: [4, 0]" in result.numerics.notes[0]


@pytest.mark.parametrize("kind", ["sabotaged", "right"])
def test_numbers_without_axes(kind):
    # An output, and a tensor in front of the fault: (2, 3, 12, 12) -> () by ReduceMean.
    values = weights()
    folded = fold(values)
    if kind == "sabotaged":
        _swap_channels(folded)
    models = []
    for proto in (model(values), model(folded)):
        mean = helper.make_node("ReduceMean", ["x"], ["m"], keepdims=0)
        proto.graph.node.insert(0, helper.make_node("Sub", ["x", "m"], ["centred"]))
        proto.graph.node.insert(0, mean)
        proto.graph.node[2].input[0] = "centred"
        proto.graph.node.append(helper.make_node("ReduceSum", ["y"], ["s"], keepdims=0))
        proto.graph.output.append(helper.make_tensor_value_info("s", 1, []))
        models.append(proto)
    result = check(*models)
    assert result.holds is (kind == "right")
    if kind == "sabotaged":
        assert result.numerics.first_difference.tensor == "bn0"


def test_text_has_no_control_characters():
    values = weights()
    folded = fold(values)
    _nan(folded)
    for other in (model(folded), model(fold(values))):
        text = render_text(check(model(values), other))
        assert text.isascii()
        assert not any(ord(c) < 32 and c != "\n" for c in text)


def test_an_index_that_does_not_exist_names_the_range():
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        "g",
        [helper.make_tensor_value_info("i", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.ones((3, 4), np.float32), "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ModelError, match=r"; give indices that exist with --range 0,2 or --inputs"):
        check(model, model)
    assert check(model, model, CheckOptions(value_range=(0, 2))).holds
