"""Both models in int8: the record, its gate and what it is measured on."""

import dataclasses
import json
from importlib.resources import files

import numpy as np
import pytest
from pairs import CLASSES, fold, model, pair, weights

from onnx_bnfold.check import CheckOptions, check, render_text
from onnx_bnfold.check.cli import main
from onnx_bnfold.errors import UsageError

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
    for snr in (output.snr_original_db, output.snr_folded_db):
        assert 15 < snr < 60
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


def test_a_range_that_int8_cannot_resolve_fails_the_gate():
    """The same function, but one channel of the tensor between is 1,000 times larger."""
    values = fold(weights())
    factor = np.ones(16, np.float32)
    factor[0] = 1024
    spread = dict(values)
    spread["w0"] = values["w0"] * factor.reshape(-1, 1, 1, 1)
    spread["b0"] = values["b0"] * factor
    spread["w1"] = values["w1"] / factor.reshape(1, -1, 1, 1)
    options = dataclasses.replace(QUICK, max_snr_drop=1.0)
    result = check(model(values), model(spread), options)
    assert not result.holds
    (failure,) = result.failures
    assert failure.startswith("quantize: output 'y'")
    assert "max_snr_drop is 1" in failure


def test_labelled_data_are_split(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "data.npz"
    labels = rng.integers(0, CLASSES, 50)
    np.savez(path, x=rng.standard_normal((50, 3, 12, 12)).astype("float32"), labels=labels)
    result = check(*pair(), dataclasses.replace(QUICK, data=path))
    quantized = result.quantized
    assert (quantized.source, quantized.calibration_sets, quantized.sets) == ("data", 1, 1)


def test_the_gate_needs_the_measurement():
    with pytest.raises(UsageError, match="add --quantize"):
        CheckOptions(max_snr_drop=1.0)


def test_command_and_schema(tmp_path, capsys):
    jsonschema = pytest.importorskip("jsonschema")
    import onnx

    paths = [tmp_path / "original.onnx", tmp_path / "folded.onnx"]
    for proto, path in zip(pair(), paths, strict=True):
        onnx.save(proto, path)
    report, page = tmp_path / "check.json", tmp_path / "check.html"
    words = [*map(str, paths), "--max-snr-drop", "3", "--runs", "3"]
    assert main([*words, "--report", str(report), "--report", str(page)]) == 0
    assert "int8" in capsys.readouterr().out
    schema = json.loads(files("onnx_bnfold.reports").joinpath("schema.json").read_text())
    record = json.loads(report.read_text())
    part = {"$schema": schema["$schema"], "$ref": "#/$defs/check", "$defs": schema["$defs"]}
    jsonschema.Draft202012Validator(part).validate(record)
    text = page.read_text()
    assert "Ranges of the activations" in text
    assert f"{record['quantized']['outputs'][0]['snr_folded_db']:.2f} dB" in text
