"""The pass for Microsoft Olive, in workflows of the real package."""

import json
import os
import subprocess
import sys

import onnx
import pytest
from support import assert_same_function, bn, conv, join, model_of, node, ops

os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
olive = pytest.importorskip("olive.workflows")
from onnx_bnfold import Options  # noqa: E402
from onnx_bnfold.olive import OnnxBatchNormFold, package_config  # noqa: E402 - if olive is here

FOLD = {"type": "OnnxBatchNormFold"}


@pytest.fixture
def model(rng) -> onnx.ModelProto:
    parts = join(
        conv("x", "c", (48, 3, 3, 3), rng),
        bn("c", "b", 48, rng),
        node("Sigmoid", ["b"], ["s"]),
        bn("s", "t", 48, rng),
        conv("t", "y", (32, 48, 3, 3), rng),
    )
    return model_of(parts.nodes, {"x": (1, 3, 16, 16)}, ["y"], parts.initializers, ir_version=10)


def workflow(tmp_path, passes, **settings):
    return {
        "input_model": {"type": "ONNXModel", "model_path": str(tmp_path / "model.onnx")},
        "passes": passes,
        "output_dir": str(tmp_path / "out"),
        "cache_dir": str(tmp_path / "cache"),
        **settings,
    }


def result(tmp_path) -> onnx.ModelProto:
    return onnx.load(tmp_path / "out" / "model.onnx")


@pytest.mark.parametrize("external", [False, True], ids=["inside", "external data"])
def test_a_fold(external, model, tmp_path):
    layout = {"save_as_external_data": True, "size_threshold": 0, "location": "w"}
    onnx.save(model, tmp_path / "model.onnx", **(layout if external else {}))
    olive.run(workflow(tmp_path, {"fold": FOLD}), package_config=package_config())
    assert ops(result(tmp_path)) == ["Conv", "Sigmoid", "Conv"]
    assert_same_function(onnx.load(tmp_path / "model.onnx"), result(tmp_path))


def test_options_are_settings(model, tmp_path):
    onnx.save(model, tmp_path / "model.onnx")
    passes = {"fold": {**FOLD, "keep": ["n_t"], "standalone": "mul-add", "metadata": False}}
    olive.run(workflow(tmp_path, passes), package_config=package_config())
    assert ops(result(tmp_path)) == ["Conv", "Sigmoid", "BatchNormalization", "Conv"]
    assert not [p for p in result(tmp_path).metadata_props if p.key == "onnx_bnfold"]


def test_in_front_of_static_quantisation(model, tmp_path, rng):
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "images" / "x").mkdir(parents=True)
    for number in range(4):
        image = rng.standard_normal((1, 3, 16, 16)).astype("float32")
        image.tofile(tmp_path / "images" / "x" / f"{number}.bin")
    where = {
        "data_dir": str(tmp_path / "images"),
        "input_names": ["x"],
        "input_shapes": [[1, 3, 16, 16]],
        "input_suffix": ".bin",
    }
    data = {
        "name": "calibration",
        "type": "RawDataContainer",
        "load_dataset_config": {"params": where},
    }
    passes = {
        "fold": {**FOLD, "profile": "int8"},
        "quantize": {"type": "OnnxStaticQuantization", "data_config": "calibration"},
    }
    olive.run(workflow(tmp_path, passes, data_configs=[data]), package_config=package_config())
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= set(ops(result(tmp_path)))
    assert "BatchNormalization" not in ops(result(tmp_path))


def test_from_the_command_line(model, tmp_path):
    """As the recipe has it: the configuration is printed, and Olive reads it."""
    onnx.save(model, tmp_path / "model.onnx")
    passes = {"fold": FOLD, "quantize": {"type": "OnnxDynamicQuantization"}}
    (tmp_path / "workflow.json").write_text(json.dumps(workflow(tmp_path, passes)))
    printed = subprocess.run(
        [sys.executable, "-m", "onnx_bnfold.olive"], capture_output=True, check=True
    ).stdout
    (tmp_path / "package.json").write_bytes(printed)
    command = [
        sys.executable, "-m", "olive", "run", "--config", tmp_path / "workflow.json",
        "--package-config", tmp_path / "package.json",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ConvInteger" in ops(result(tmp_path))
    assert "BatchNormalization" not in ops(result(tmp_path))


def test_its_settings_are_all_options():
    settings = OnnxBatchNormFold._default_config(None)
    assert {name: each.default_value for name, each in settings.items()} == vars(Options())


def test_olives_own_passes_stay():
    found = package_config()["passes"]
    assert {"OnnxBatchNormFold", "OnnxStaticQuantization"} <= found.keys()
    assert all(each["module_path"] for each in found.values())


def test_without_olive_it_says_what_to_install():
    code = "import sys; sys.modules['olive'] = None; import onnx_bnfold.olive"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert "install the package olive-ai, and what it imports" in done.stderr.splitlines()[-1]
