"""Both models in int8: the record, its gate and what it is measured on."""

import dataclasses
import json
import re
from importlib.resources import files

import numpy as np
import onnx.parser
import onnx.printer
import pytest
from onnx import helper
from pairs import CLASSES, finish, fold, model, pair, weights

from onnx_bnfold.check import CheckOptions, check, render_text
from onnx_bnfold.check.int8_names import free_names
from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.quantize import _failures, _ranges, snr
from onnx_bnfold.check.results import Int8Output
from onnx_bnfold.cli.main import main
from onnx_bnfold.errors import ModelError, UsageError

QUICK = CheckOptions(quantize=True, runs=3, warm_up=1)


@pytest.fixture(scope="module")
def result():
    return check(*pair(), QUICK)


def test_record(result):
    assert result.holds
    quantized = result.quantized
    assert (quantized.source, quantized.calibration_sets, quantized.sets) == ("random", 8, 8)
    (output,) = quantized.outputs
    assert output.name == "y"
    for decibels in (output.snr_original_db, output.snr_folded_db):
        assert 15 < decibels < 60
    for top1 in (output.top1_original, output.top1_folded):
        assert 0.5 < top1 <= 1
    assert quantized.latency.speedup > 0


def test_ranges_hold_what_the_models_compute(result):
    ranges = {found.tensor: found for found in result.quantized.ranges}
    low, high = ranges["x"].original
    assert ranges["x"].folded == (low, high)
    assert -6 < low < -2 < 2 < high < 6  # standard normal
    assert any(found.folded is None for found in ranges.values())  # in front of a BN


def test_text(result):
    text = render_text(result)
    assert "int8      calibrated on 8, compared on 8 random" in text
    assert f"{result.quantized.outputs[0].snr_folded_db:.2f}" in text


def test_the_same_model_costs_the_same():
    original, _ = pair()
    output = check(original, original, QUICK).quantized.outputs[0]
    assert output.snr_original_db == output.snr_folded_db


@pytest.mark.parametrize(
    ("old", "new"),
    [("w0", "x_scale"), ("fc", "relu0_zero_point"), ("y", "flat_scale"), ("fc", "w1_quantized")],
)
def test_names_that_quantisation_makes_may_be_taken(old, new, result):
    """It makes them of a tensor's name; the model's own stay as they are in its record."""
    original, folded = pair()
    for proto in (original, folded):
        for item in (*proto.graph.initializer, *proto.graph.output):
            item.name = new if item.name == old else item.name
        for taken in proto.graph.node:
            taken.input[:] = [new if name == old else name for name in taken.input]
            taken.output[:] = [new if name == old else name for name in taken.output]
    found = check(original, folded, QUICK)
    assert found.holds
    (output,), (expected,) = found.quantized.outputs, result.quantized.outputs
    assert output.name == (new if old == "y" else "y")
    assert output.snr_folded_db == expected.snr_folded_db
    assert output.snr_original_db == expected.snr_original_db


def test_names_are_freed_in_branches_too():
    made = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (bool k, float[2] x) => (float[2] y_scale)
        <float[2] x_scale = {1, 2}> {
          y = Mul(x, x_scale)
          y_scale = If (k) <
            then_branch = t () => (float[2] y_zero_point) { y_zero_point = Mul(y, x_scale) },
            else_branch = e () => (float[2] q) { q = Neg(y) }
          >
        }
    """)
    free_names(made)
    onnx.checker.check_model(made, full_check=True)
    text = onnx.printer.to_text(made)
    assert [value.name for value in made.graph.output] == ["y_scale"]
    assert "x_scale_ =" in text
    for name in ("x_scale", "y", "y_zero_point"):
        assert not re.search(rf"\b{name}\b", text)


def uneven(largest: float):
    """A model, and one of the same function of which a channel between layers is larger."""
    values = fold(weights())
    factor = np.ones(16, np.float32)
    factor[0] = largest
    spread = dict(values)
    spread["w0"] = values["w0"] * factor.reshape(-1, 1, 1, 1)
    spread["b0"] = values["b0"] * factor
    spread["w1"] = values["w1"] / factor.reshape(1, -1, 1, 1)
    return model(values), model(spread)


@pytest.mark.parametrize(
    ("limit", "said"),
    [(1.0, "; max_snr_drop is 1"), (None, " on either half of the inputs); --profile int8 ")],
)
def test_a_range_that_int8_cannot_resolve_fails_the_gate(limit, said):
    options = dataclasses.replace(QUICK, max_snr_drop=limit)
    result = check(*uneven(1024), options)
    assert not result.holds
    (failure,) = result.failures
    assert failure.startswith("quantize: output 'y'")
    assert said in failure
    (output,) = result.quantized.outputs
    assert len(output.half_drops_db) == (2 if limit is None else 0)
    assert all(abs(drop - output.drop_db) < 6 for drop in output.half_drops_db)


def test_an_even_range_needs_no_further_calibration():
    result = check(*uneven(1.5), QUICK)
    assert result.holds
    assert not result.quantized.outputs[0].half_drops_db


def test_a_single_set_cannot_be_halved(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).standard_normal((16, 3, 12, 12), np.float32))
    result = check(*uneven(1024), dataclasses.replace(QUICK, inputs=path))
    (failure,) = result.failures
    assert "half" not in failure
    assert "max_snr_drop is by default 8" in failure


def test_labelled_data_are_split(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "data.npz"
    labels = rng.integers(0, CLASSES, 50)
    np.savez(path, x=rng.standard_normal((50, 3, 12, 12)).astype("float32"), labels=labels)
    result = check(*pair(), dataclasses.replace(QUICK, data=path))
    quantized = result.quantized
    assert (quantized.source, quantized.calibration_sets, quantized.sets) == ("data", 1, 1)


def test_nothing_is_written_beside_the_models(tmp_path):
    """onnxruntime writes, and removes, <name>-inferred.onnx beside what it quantises."""
    import onnx

    paths = [tmp_path / "original.onnx", tmp_path / "folded.onnx"]
    for proto, path in zip(pair(), paths, strict=True):
        onnx.save(proto, path)
        path.with_name(f"{path.stem}-inferred.onnx").write_text("precious")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    check(*paths, QUICK)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0], np.inf),
        ([1.0, np.nan], -np.inf),
        ([1.0, 2.2], 10 * np.log10(5 / 0.04)),
    ],
    ids=["exact", "not-finite", "off"],
)
def test_signal_to_noise(values, expected):
    assert snr(np.array([1.0, 2.0]), np.array(values)) == pytest.approx(expected)
    # What is not finite in the original says nothing.
    reference, array = np.array([1.0, 2.0, np.nan]), np.array([*values, 0.0])
    assert snr(reference, array) == pytest.approx(expected)
    assert snr(np.zeros(2), np.array([0.0, 1.0])) == -np.inf


@pytest.mark.parametrize(
    ("before", "after", "holds"),
    [(30, 29.5, True), (30, 28.5, False), (np.inf, np.inf, True), (np.inf, 50, False),
     (30, -np.inf, False), (-np.inf, -np.inf, True)],
)  # fmt: skip
def test_gate(before, after, holds):
    outputs = [Int8Output("y", before, after, None, None)]
    options = CheckOptions(quantize=True, max_snr_drop=1.0)
    assert (not list(_failures(outputs, options))) is holds


@pytest.mark.parametrize(
    ("after", "halves", "holds"),
    [(25, (), True), (22.5, (), True), (21.5, (), False), (25, (4.5, 4.1), False),
     (25, (4.5, 3.9), True), (25, (0, 9), True), (27, (9, 9), True), (-np.inf, (9, 9), False),
     (-np.inf, (np.inf, np.inf), False), (31, (9, 9), True)],
)  # fmt: skip
def test_the_gate_by_default(after, halves, holds):
    """Every calibration has to say so; one alone has to say more."""
    outputs = [Int8Output("y", 30, after, None, None, halves)]
    assert (not list(_failures(outputs, CheckOptions(quantize=True)))) is holds
    lifted = CheckOptions(quantize=True, max_snr_drop=1000)
    alone = [dataclasses.replace(outputs[0], half_drops_db=())]
    assert (not list(_failures(alone, lifted))) == np.isfinite(after)


def test_outputs_of_changing_size_are_left_out():
    from onnx import TensorProto, helper

    original, folded = pair()
    for proto in (original, folded):
        proto.graph.node.append(helper.make_node("Relu", ["y"], ["r"]))
        proto.graph.node.append(helper.make_node("NonZero", ["r"], ["i"]))
        proto.graph.node.append(helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT))
        proto.graph.output.append(helper.make_tensor_value_info("f", TensorProto.FLOAT, None))
    result = check(original, folded, dataclasses.replace(QUICK, seed=1))
    assert "y" in [output.name for output in result.quantized.outputs]


def test_codes_of_a_quantised_model_are_read(tmp_path):
    import onnx

    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y)
        <float s = {0.5}, uint8 z = {128}>
        { a = QuantizeLinear(x, s) b = DequantizeLinear(a, s)
          c = QuantizeLinear(b, s, z) y = DequantizeLinear(c, s, z) }"""
    )
    onnx.save(proto, tmp_path / "m.onnx")
    found = _ranges(CheckedModel(tmp_path / "m.onnx", "m"))
    assert found == {"x": (0.0, 127.5), "b": (-64.0, 63.5)}


def test_an_old_opset_is_refused_before_the_work(monkeypatch):
    monkeypatch.setattr("onnx_bnfold.check.api.check_numerics", None)
    original, folded = pair()
    folded.opset_import[0].version = 11
    with pytest.raises(ModelError, match=r"the folded model is of opset 11"):
        check(original, folded, QUICK)


def test_too_few_examples_and_old_opsets_are_refused(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros((1, 3, 12, 12), "float32"), labels=np.zeros(1, "int64"))
    with pytest.raises(UsageError, match="fewer than two batches"):
        check(*pair(), dataclasses.replace(QUICK, data=path))
    original, folded = pair()
    original.opset_import[0].version = 11
    with pytest.raises(ModelError, match=r"opset 11.*version_converter"):
        check(original, folded, QUICK)


def test_the_gate_needs_the_measurement():
    with pytest.raises(UsageError, match="give quantize=True"):
        CheckOptions(max_snr_drop=1.0)


def test_command_and_schema(tmp_path, capsys):
    jsonschema = pytest.importorskip("jsonschema")
    import onnx

    paths = [tmp_path / "original.onnx", tmp_path / "folded.onnx"]
    for proto, path in zip(pair(), paths, strict=True):
        onnx.save(proto, path)
    report, page = tmp_path / "check.json", tmp_path / "check.html"
    words = [*map(str, paths), "--max-snr-drop", "3", "--runs", "3"]
    assert main(["check", *words, "--report", str(report), "--report", str(page)]) == 0
    assert "int8" in capsys.readouterr().out
    schema = json.loads(files("onnx_bnfold.reports").joinpath("schema.json").read_text())
    record = json.loads(report.read_text())
    part = {"$schema": schema["$schema"], "$ref": "#/$defs/check_report", "$defs": schema["$defs"]}
    jsonschema.Draft202012Validator(part).validate(record)
    text = page.read_text()
    assert "Ranges of the activations" in text
    assert f"{record['quantized']['outputs'][0]['snr_folded_db']:.2f} dB" in text


@pytest.mark.parametrize("gate", [None, 1.0])
def test_nothing_to_quantise_or_to_compare_is_an_error(gate):
    options = dataclasses.replace(QUICK, max_snr_drop=gate)
    relu = finish([helper.make_node("Neg", ["x"], ["y"])], {}, ("N", 4))
    with pytest.raises(UsageError, match="quantises no tensor"):
        check(relu, relu, options)
    values = weights()
    classes = model(values, head=("ArgMax",))
    with pytest.raises(UsageError, match="no float output"):
        check(classes, model(fold(values), head=("ArgMax",)), options)
