"""What fold, plan and check take: a path, bytes, a message, and models of torch and onnx_ir."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from support import assert_same_function, bn, conv, count, join, model_of, saved_external

import onnx_bnfold
from onnx_bnfold import ModelError, Options, UsageError
from onnx_bnfold.check import CheckOptions, check

X = {"x": ("N", 3, 8, 8)}
QUICK = CheckOptions(sets=1, draws=1)


@pytest.fixture
def model(rng) -> onnx.ModelProto:
    """A Conv that a BN goes into, of more than 4 KiB, and one that stays as it is."""
    parts = join(
        conv("x", "c", (48, 3, 3, 3), rng),
        bn("c", "b", 48, rng),
        conv("b", "y", (32, 48, 3, 3), rng),
    )
    return model_of(parts.nodes, X, {"y": ("N", 32, 4, 4)}, parts.initializers, ir_version=10)


@pytest.fixture
def external(model, tmp_path):
    """The path of the same model, its values in a file beside it."""
    return saved_external(model, tmp_path / "external.onnx")


class Program:
    """Holds a model of onnx_ir, as torch's ONNXProgram does."""

    def __init__(self, model):
        self.model = model


def from_ir(model, tmp_path):
    return pytest.importorskip("onnx_ir").from_proto(model)


def saved(model, tmp_path):
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


FORMS = {
    "path": saved,
    "text": lambda model, tmp_path: str(saved(model, tmp_path)),
    "bytes": lambda model, _: model.SerializeToString(),
    "message": lambda model, _: model,
    "onnx_ir": from_ir,
    "program": lambda model, tmp_path: Program(from_ir(model, tmp_path)),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_the_same_fold(form, model, tmp_path):
    expected, report = onnx_bnfold.fold(model)
    given = FORMS[form](model, tmp_path)
    folded, other = onnx_bnfold.fold(given)
    assert other == report
    assert onnx_bnfold.plan(given).records == report.records
    assert count(folded) == 0
    names = {t.name: onnx.numpy_helper.to_array(t) for t in expected.graph.initializer}
    assert names.keys() == {t.name for t in folded.graph.initializer}
    for tensor in folded.graph.initializer:
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), names[tensor.name])
    assert list(folded.graph.node) == list(expected.graph.node)
    assert_same_function(model, folded)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_checked_against_each_other(form, model, tmp_path):
    folded, _ = onnx_bnfold.fold(model)
    result = check(FORMS[form](model, tmp_path), FORMS[form](folded, tmp_path), QUICK)
    assert result.holds, result.failures


def test_a_file_is_loaded_with_its_external_data(external, model):
    folded, _ = onnx_bnfold.fold(external)
    assert all(t.data_location == onnx.TensorProto.DEFAULT for t in folded.graph.initializer)
    assert_same_function(model, folded)


def test_a_model_of_onnx_ir_reads_its_external_data(external, model):
    ir = pytest.importorskip("onnx_ir")
    folded, _ = onnx_bnfold.fold(ir.load(external))
    assert_same_function(model, folded)
    (external.parent / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"tensor '\w+': its data file .*cannot be read"):
        onnx_bnfold.fold(ir.load(external))


@pytest.mark.parametrize("form", ["bytes", "message"])
def test_external_data_that_is_not_loaded(form, external, model):
    bare = onnx.load(external, load_external_data=False)
    given = FORMS[form](bare, external.parent)
    with pytest.raises(ModelError, match=r"in the file 'weights\.bin', external data that"):
        onnx_bnfold.fold(given)
    folded, _ = onnx_bnfold.fold(given, base_dir=external.parent)
    assert count(folded) == 0
    with pytest.raises(ModelError, match=r"original model refers to .* not loaded; give its path"):
        check(given, model, QUICK)
    with pytest.raises(ModelError, match=r"folded model .* onnx\.load_external_data_for_model\("):
        check(external, folded, QUICK)
    onnx.load_external_data_for_model(folded, str(external.parent))
    assert check(external, folded, QUICK).holds


def test_external_data_of_a_node_that_is_not_loaded(model):
    """onnxruntime would not find it beside the temporary file that the check writes."""
    whole = model.SerializeToString()
    values = onnx.TensorProto(name="k", dims=[2000], data_type=onnx.TensorProto.FLOAT)
    values.data_location = onnx.TensorProto.EXTERNAL
    values.external_data.add(key="location", value="weights.bin")
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["k"], value=values))
    with pytest.raises(ModelError, match="folded model refers to external data that is not loaded"):
        check(whole, model, QUICK)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"<html>", "the file is a web page"),
        (b"version https://git-lfs.github.com/spec/v1", r"Git LFS pointer.*git lfs pull"),
        (b"\x0a\x02ab", "not an ONNX model or were cut off"),
    ],
)
def test_bytes_that_are_no_model(content, said):
    with pytest.raises(ModelError, match=f"the bytes are .*{said}"):
        onnx_bnfold.plan(content)


@pytest.mark.parametrize("given", [None, 3, ["model.onnx"], object()])
def test_anything_else(given, model):
    said = r"of type \w+; give the path of a file, its bytes, an onnx.ModelProto, a torch"
    for call in (onnx_bnfold.fold, onnx_bnfold.plan, lambda given: check(given, model)):
        with pytest.raises(UsageError, match=said):
            call(given)


@pytest.mark.parametrize("options", [None, {"sets": 1}, Options()])
def test_options_of_a_check_that_are_none(options, model):
    with pytest.raises(UsageError, match=r"options is .*; give CheckOptions"):
        check(model, model, options)


@pytest.mark.parametrize("call", [onnx_bnfold.fold, onnx_bnfold.plan, onnx_bnfold.plan_file])
def test_a_folder_is_for_another_function(call, tmp_path):
    with pytest.raises(ModelError, match=r": is a folder; .*onnx_bnfold\.batch folds all"):
        call(tmp_path)


def test_a_path_of_no_characters_is_seen_in_the_message():
    with pytest.raises(ModelError, match=r"^'': cannot be opened"):
        onnx_bnfold.fold("")


def test_anything_else_where_onnx_ir_is_not_installed():
    code = "import sys; sys.modules['onnx_ir'] = None; import onnx_bnfold; onnx_bnfold.fold(3)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "UsageError: the model is of type int" in done.stderr.splitlines()[-1]


def test_ranges_are_measured_on_a_file_alone(model, tmp_path, rng):
    np.savez(tmp_path / "x.npz", x=rng.standard_normal((2, 3, 8, 8)).astype(np.float32))
    options = Options(equalize=True, ranges=str(tmp_path / "x.npz"))
    onnx_bnfold.fold(saved(model, tmp_path), options)
    with pytest.raises(UsageError, match="ranges need a model in a file; give its path"):
        onnx_bnfold.fold(model, options)


def test_a_fold_of_a_path_imports_neither_torch_nor_onnx_ir(model, tmp_path):
    code = "import sys, onnx_bnfold; onnx_bnfold.fold(sys.argv[1]); print(*sys.modules)"
    path = saved(model, tmp_path)
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True)
    assert not {b"torch", b"onnx_ir", b"onnxruntime"} & {*done.stdout.split()}
