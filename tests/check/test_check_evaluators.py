"""Models that onnxruntime has no kernels for, or not without a library."""

import shutil
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from pairs import CLASSES, finish, model, weights

import onnx_bnfold
from onnx_bnfold.check import CheckOptions, check, render_text
from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.reference import ReferenceSession
from onnx_bnfold.check.sessions import Session
from onnx_bnfold.cli.main import main
from onnx_bnfold.errors import ModelError, UsageError


def in_type(proto: onnx.ModelProto, kind: str, opset: int) -> onnx.ModelProto:
    """The same network with parameters, input and output of another type."""
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(kind)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    proto.opset_import[0].version = opset
    return proto


@pytest.mark.parametrize(("kind", "opset"), [("float64", 17), ("bfloat16", 22), ("bfloat16", 17)])
def test_the_reference_evaluator_judges_what_onnxruntime_cannot(kind, opset):
    original = in_type(model(weights()), kind, opset)
    folded, _ = onnx_bnfold.fold(original)
    result = check(original, folded)
    assert result.holds
    assert result.numerics.evaluator == "onnx's reference evaluator"
    assert "judged by onnx's reference evaluator, since onnxruntime" in result.numerics.notes[0]
    assert "onnx's reference evaluator, optimisations disabled" in render_text(result)
    (output,) = result.numerics.outputs
    assert output.noise_rms > 0
    tensor = next(t for t in folded.graph.initializer if numpy_helper.to_array(t).ndim == 4)
    wrong = numpy_helper.to_array(tensor) * np.array([-1], ml_dtypes.bfloat16).astype(kind)
    tensor.CopyFrom(numpy_helper.from_array(wrong, tensor.name))
    found = check(original, folded)
    assert not found.holds
    assert found.numerics.first_difference is not None


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15, 17])
def test_its_norm_is_that_of_onnxruntime(tmp_path, opset):
    proto = model(weights())
    del proto.graph.node[3:]
    proto.opset_import[0].version = opset
    proto.graph.output[0].name = proto.graph.node[-1].output[0]
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    checked = CheckedModel(path, "the model")
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype("float32")}
    (theirs,) = ReferenceSession(checked, "").run(feed).values()
    (wanted,) = Session(checked).run(feed).values()
    np.testing.assert_allclose(theirs, wanted, rtol=1e-5, atol=1e-5)


def grouped() -> onnx.ModelProto:
    values = {"w": np.ones((4, 1, 2, 2))}
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=4)
    return finish([node], values, (1, 4, 3, 3))


def training() -> onnx.ModelProto:
    return in_type(model(weights()), "float32", 6)  # a BN of opset 6 says is_test=1 if it is not


@pytest.mark.parametrize(
    ("proto", "reason"), [(grouped(), "ConvTranspose with groups"), (training(), "training mode")]
)
def test_what_it_is_wrong_about_is_refused(proto, reason, tmp_path, capsys):
    with pytest.raises(ModelError, match=rf"onnxruntime cannot load .*{reason}"):
        check(proto, proto)
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    assert main(["check", str(path), str(path)]) == 2
    assert capsys.readouterr().err.startswith("onnx-bnfold: onnxruntime cannot load")


def custom() -> onnx.ModelProto:
    proto = finish([helper.make_node("MatMul", ["x", "fc"], ["y"])], weights(), ("N", CLASSES))
    proto.graph.node[0].CopyFrom(helper.make_node("Own", ["x", "fc"], ["y"], domain="own"))
    proto.opset_import.append(helper.make_opsetid("own", 1))
    return proto


def test_an_unknown_operator_asks_for_its_library():
    with pytest.raises(ModelError, match="name the library that has it by --custom-ops"):
        check(custom(), custom())


def test_libraries_that_are_none_are_refused(tmp_path):
    with pytest.raises(UsageError, match="there is no file"):
        CheckOptions(custom_ops=(tmp_path / "absent.so",))
    path = tmp_path / "text.so"
    path.write_text("no library")
    with pytest.raises(UsageError, match="cannot load custom operators"):
        check(custom(), custom(), CheckOptions(custom_ops=(path,)))


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_library_is_loaded_for_every_session(tmp_path):
    # It registers nothing, but tells that it was asked.
    log = tmp_path / "asked"
    source = tmp_path / "ops.c"
    source.write_text(
        "#include <stdio.h>\n"
        "void *RegisterCustomOps(void *options, const void *api) {\n"
        f'  FILE *log = fopen("{log}", "a"); fputc(\'x\', log); fclose(log); return 0;\n'
        "}\n"
    )
    library = tmp_path / "ops.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    path = Path(tmp_path) / "m.onnx"
    onnx.save(model(weights()), path)
    assert main(["check", str(path), str(path), "--custom-ops", str(library)]) == 0
    assert log.read_text() == "xxx"  # original, folded, noise
