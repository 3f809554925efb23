"""The pass for onnx_ir."""

import inspect
import subprocess
import sys

import onnx
import pytest
from support import assert_same_function, bn, conv, either, join, model_of, node, saved_external

import onnx_bnfold
from onnx_bnfold import ModelError, Options, UsageError
from onnx_bnfold.rewriting.node_origins import KEY

ir = pytest.importorskip("onnx_ir")
from onnx_bnfold.ir import FoldBatchNormalization  # noqa: E402 - where onnx_ir is installed

X = {"x": ("N", 3, 8, 8)}


@pytest.fixture
def proto(rng) -> onnx.ModelProto:
    parts = join(
        conv("x", "c", (48, 3, 3, 3), rng),
        bn("c", "b", 48, rng),
        conv("b", "d", (32, 48, 3, 3), rng),
        node("Sigmoid", ["d"], ["s"]),
        bn("s", "y", 32, rng),
    )
    return model_of(parts.nodes, X, {"y": ("N", 32, 4, 4)}, parts.initializers, ir_version=10)


def operators(model) -> list[str]:
    return [each.op_type for each in model.graph]


def test_a_model_is_folded_and_not_changed(proto):
    model = ir.from_proto(proto)
    before = ir.to_proto(model)
    fold = FoldBatchNormalization()
    result = fold(model)
    assert result.modified
    assert operators(result.model) == ["Conv", "Conv", "Sigmoid", "BatchNormalization"]
    assert ir.to_proto(model) == before
    expected, report = onnx_bnfold.fold(proto)
    assert fold.report == report
    assert_same_function(proto, ir.to_proto(result.model))
    assert_same_function(expected, ir.to_proto(result.model), tolerance=0)
    assert KEY in result.model.graph[0].metadata_props


def test_tensors_that_do_not_change_are_shared(proto):
    model = ir.from_proto(proto)
    result = FoldBatchNormalization()(model)
    shared = [
        name
        for name, value in result.model.graph.initializers.items()
        if value.const_value is model.graph.initializers[name].const_value
    ]
    assert shared == ["d_W"]


def test_what_cannot_be_folded_is_not_modified(proto):
    fold = FoldBatchNormalization(Options(keep=("n_b", "n_y")))
    model = ir.from_proto(proto)
    result = fold(model)
    assert not result.modified
    assert ir.to_proto(result.model) == ir.to_proto(model)
    assert len(fold.report.kept) == 2


def test_in_a_pass_manager_until_nothing_changes(proto):
    passes = ir.passes.PassManager([FoldBatchNormalization()], steps=5)
    result = passes(ir.from_proto(proto))
    assert result.modified
    again = passes(result.model)
    assert not again.modified
    assert ir.to_proto(again.model) == ir.to_proto(result.model)


def test_in_a_pass_manager_with_others(proto):
    import onnx_ir.passes.common as common

    passes = ir.passes.PassManager(
        [
            common.ShapeInferencePass(),
            FoldBatchNormalization(Options(standalone="mul-add")),
            common.RemoveUnusedNodesPass(),
            common.CheckerPass(),
        ]
    )
    result = passes(ir.from_proto(proto))
    assert "BatchNormalization" not in operators(result.model)
    assert_same_function(proto, ir.to_proto(result.model))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_types(dtype, rng):
    """Values that stay are those of the model, bit by bit."""
    kind = ir.DataType[{"float64": "DOUBLE"}.get(dtype, dtype.upper())].numpy()
    parts = join(
        conv("x", "c", (48, 3, 3, 3), rng, dtype=kind),
        bn("c", "b", 48, rng, dtype=kind),
        node("Sigmoid", ["b"], ["s"]),
        conv("s", "y", (48, 48, 3, 3), rng, dtype=kind),
    )
    proto = model_of(
        parts.nodes, X, {"y": ("N", 48, 4, 4)}, parts.initializers, dtype=kind, opset=22,
        ir_version=10,
    )  # fmt: skip
    folded = ir.to_proto(FoldBatchNormalization()(ir.from_proto(proto)).model)
    expected, _ = onnx_bnfold.fold(proto)
    mine, others = ({t.name: t for t in m.graph.initializer} for m in (folded, expected))
    assert mine.keys() == others.keys()
    for name, each in mine.items():
        assert each.data_type == others[name].data_type
        assert each.raw_data == others[name].raw_data, name


def test_bodies_and_functions(rng):
    """Initializers of a body, too, stay where they are."""
    inner = join(conv("x", "c", (48, 48, 1, 1), rng), bn("c", "b", 48, rng))
    proto = either(inner, ("N", 48, 4, 4), ir_version=10)
    fold = FoldBatchNormalization()
    folded = ir.to_proto(fold(ir.from_proto(proto)).model)
    assert len(fold.report.folded) == 1
    assert_same_function(proto, folded)


def test_values_that_cannot_be_read(proto, tmp_path):
    model = ir.load(saved_external(proto, tmp_path / "model.onnx"))
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        FoldBatchNormalization()(model)


@pytest.mark.parametrize("wrap", [lambda proto: proto, lambda _: "model.onnx"])
def test_what_is_no_model_of_onnx_ir(wrap, proto):
    given = wrap(proto)
    said = f"is of type {type(given).__name__}; give an onnx_ir.Model, such as the model of a torch"
    with pytest.raises(UsageError, match=said):
        FoldBatchNormalization()(given)


def test_options_are_those_of_a_model_in_memory():
    with pytest.raises(UsageError, match="ranges need a model in a file"):
        FoldBatchNormalization(Options(equalize=True, ranges="x.npz"))
    with pytest.raises(UsageError, match="options is 'int8'"):
        FoldBatchNormalization("int8")


def test_what_is_public():
    assert onnx_bnfold.ir.__all__ == ["FoldBatchNormalization"]
    assert [*inspect.signature(FoldBatchNormalization).parameters] == ["options"]
    fold = FoldBatchNormalization()
    assert (fold.options, fold.report) == (Options(), None)
    assert not fold.in_place
    assert not fold.changes_input


def test_without_onnx_ir_it_says_what_to_install():
    code = "import sys; sys.modules['onnx_ir'] = None; import onnx_bnfold.ir"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert "install onnx_bnfold[ir]" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_on_what_torch_exports():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.BatchNorm2d(3),
        torch.nn.Conv2d(3, 64, 3),
        torch.nn.Sigmoid(),
        torch.nn.BatchNorm2d(64),
    ).eval()
    for each in network.modules():
        if isinstance(each, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(each.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(each.running_mean, -0.5, 0.5)
    image = torch.randn(2, 3, 8, 8)
    program = torch.onnx.export(network, (image,), dynamo=True)
    before = program.model_proto
    program.model = FoldBatchNormalization()(program.model).model
    assert [n.op_type for n in program.model_proto.graph.node].count("BatchNormalization") == 1
    folded, report = onnx_bnfold.fold(program)
    assert not report.folded
    assert_same_function(before, program.model_proto)
    assert_same_function(before, folded)
    torch.testing.assert_close(program(image)[0], network(image), rtol=1e-4, atol=1e-5)
