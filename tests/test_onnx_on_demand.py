"""A process of the command line imports of onnx what it needs, and all of it if it is asked for."""

import subprocess
import sys

import onnx
import pytest
from support import bn, conv, join, model_of

START = "from onnx_bnfold.onnx_on_demand import import_on_demand as on; on(); import sys; "


def output_of(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", START + code, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def whether_loaded(name: str) -> str:
    return f"print({name!r} in sys.modules)"


@pytest.mark.parametrize("name", ["ModelProto, helper", "TensorProto", "numpy_helper", "defs"])
def test_a_message_or_a_module_by_name_imports_nothing_else(name):
    assert output_of(f"from onnx import {name}; {whether_loaded('ml_dtypes')}") == "False"


@pytest.mark.parametrize(
    "code",
    [
        "onnx.load",
        "onnx.__version__",
        "onnx.IR_VERSION",
        "onnx.helper.make_node('Relu', ['x'], ['y'])",
        "onnx.numpy_helper.from_array",
        "onnx.defs.onnx_opset_version()",
        "onnx.compose",
    ],
)
def test_all_else_is_there_when_it_is_asked_for(code):
    assert output_of(f"import onnx; {code}; print('found')") == "found"


def test_the_classes_stay_the_same_once_the_whole_package_is_there():
    code = "import onnx; early = onnx.ModelProto; onnx.load; print(early is onnx.ModelProto)"
    assert output_of(code) == "True"


def test_a_function_that_was_bound_early_works_later():
    code = "from onnx import helper; import onnx; onnx.load; print(helper.make_tensor is not None)"
    assert output_of(code) == "True"


def test_what_onnx_does_not_have_is_an_error_that_names_it():
    code = "import onnx\ntry: onnx.nothing\nexcept AttributeError as error: print(error)"
    assert output_of(code) == "module 'onnx' has no attribute 'nothing'"


def test_shapes_are_inferred_without_the_whole_package():
    code = (
        "import onnx, onnx.shape_inference; "
        "onnx.shape_inference.infer_shapes(onnx.ModelProto(ir_version=9)); "
    )
    assert output_of(code + whether_loaded("onnx.compose")) == "False"


def test_a_package_that_is_imported_already_stays_as_it_is():
    code = (
        "import onnx; from onnx_bnfold.onnx_on_demand import import_on_demand as on; on(); "
        "import sys; print(sys.modules['onnx'] is onnx, type(onnx).__name__)"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert found == ["True", "module"]


def test_an_ordinary_fold_does_without_it(tmp_path, rng):
    parts = join(conv("x", "a", (4, 3, 1, 1), rng), bn("a", "y", 4, rng))
    path = tmp_path / "m.onnx"
    onnx.save(model_of(parts.nodes, {"x": ("N", 3, 5, 5)}, ["y"], parts.initializers), path)
    command = [sys.executable, "-X", "importtime", "-m", "onnx_bnfold", str(path)]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "folded.onnx")], check=True, capture_output=True, text=True
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "onnx.onnx_ml_pb2" in imported
    assert not imported & {"onnx", "onnx.helper", "onnx.numpy_helper", "ml_dtypes"}
