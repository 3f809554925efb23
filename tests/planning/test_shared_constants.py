"""Constants that others read: what is copied, for whom, and what a fold may cost."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import IMAGE, Net
from onnx import numpy_helper
from support import fold_checked, ops

import onnx_bnfold
from onnx_bnfold import Options, Reason
from onnx_bnfold.cli.main import main

KEEP = Options(keep_shared_weights=True)
BIG = 32  # channels, so that a copy of a weight is more than a node
X = ("N", BIG, 4, 4)


def layers_of_one_weight(net: Net, count: int, kind: str = "Conv") -> list[str]:
    shape = (BIG, BIG, 1, 1) if kind == "Conv" else (BIG, BIG)
    weight, bias = net.random(*shape), net.random(BIG)
    inputs = (weight,) if kind == "MatMul" else (weight, bias)
    return [net.op(kind, "x", *inputs) for _ in range(count)]


def affine(net: Net, kind: str, x: str) -> str:
    if kind == "scalar":
        return net.op("Mul", x, net.const(np.float32(0.125)))
    return net.op(kind, x, net.random(*[BIG] + [1] * (len(net.shape(x)) - 2)))


@pytest.mark.parametrize("after", ["scalar", "Mul", "Div"])
@pytest.mark.parametrize("kind", ["Conv", "Gemm", "MatMul"])
def test_a_weight_is_not_copied_for_a_mul(kind, after):
    net = Net(X if kind == "Conv" else ("N", BIG))
    outputs = [affine(net, after, y) for y in layers_of_one_weight(net, 3, kind)]
    model = net.model(*outputs)
    folded, report = fold_checked(model)
    assert folded.SerializeToString() == model.SerializeToString(), report.lines()


def test_a_scale_that_two_norms_share_is_not_copied_for_a_mul():
    net = Net(("N", 8 * BIG, 2, 2))
    one, two = (net.bn(net.op(kind, "x")) for kind in ("Sigmoid", "Tanh"))
    net.nodes[3].input[1] = net.nodes[1].input[1]
    model = net.model(affine(net, "scalar", one), two)
    folded, report = fold_checked(model, kept=2)
    assert folded.SerializeToString() == model.SerializeToString(), report.lines()


def test_an_operand_is_not_copied_for_a_mul():
    net = Net(("N", BIG, 8, 8))
    operand = net.random(BIG, 8, 8)
    one, two = (net.op("Mul", net.op(kind, "x"), operand) for kind in ("Sigmoid", "Tanh"))
    model = net.model(affine(net, "scalar", one), two)
    folded, report = fold_checked(model)
    assert folded.SerializeToString() == model.SerializeToString(), report.lines()


def test_a_bias_is_copied_where_a_layer_of_a_computed_weight_reads_it():
    net = Net(X)
    one, two = layers_of_one_weight(net, 2)
    net.nodes[-1].input[1] = net.input("w", (BIG, BIG, 1, 1))
    net.nodes[-2].input[1] = net.random(BIG, BIG, 1, 1)
    folded, report = fold_checked(net.model(net.bn(one), two), options=KEEP)
    assert ops(folded) == ["Conv", "Conv"], report.lines()


@pytest.mark.parametrize("kind", ["Conv", "Gemm"])
def test_a_weight_is_copied_for_a_bn(kind):
    net = Net(X if kind == "Conv" else ("N", BIG))
    model = net.model(*[net.bn(y) for y in layers_of_one_weight(net, 3, kind)])
    folded, _ = fold_checked(model)
    assert ops(folded) == [kind] * 3
    assert len({node.input[1] for node in folded.graph.node}) == 3


@pytest.mark.parametrize("side", ["behind", "in front"])
@pytest.mark.parametrize("kind", ["Conv", "Gemm"])
def test_a_weight_is_not_copied_for_a_bn_on_request(kind, side):
    net = Net(X if kind == "Conv" else ("N", BIG))
    if side == "behind":
        outputs = [net.bn(y) for y in layers_of_one_weight(net, 3, kind)]
    else:
        inputs = [net.bn("x") for _ in range(3)]
        outputs = layers_of_one_weight(net, 3, kind)
        for node, x in zip(net.nodes[-3:], inputs, strict=True):
            node.input[0] = x
    model = net.model(*outputs)
    folded, report = fold_checked(model, kept=3, options=KEEP)
    assert folded.SerializeToString() == model.SerializeToString()
    # Of one side they are refused for that, of the other by what is there.
    for record in report.kept:
        (refusal,) = {r for _, r in record.tried if r.reason is Reason.SHARED_WEIGHT}
        assert "--keep-shared-weights" in refusal.sentence
        assert f"{4 * BIG * BIG:,} bytes" in refusal.sentence


def test_a_bn_whose_weight_nobody_else_reads_goes_all_the_same():
    net = Net(X)
    fold_checked(net.model(net.bn(net.conv("x", BIG))), options=KEEP)


@pytest.mark.parametrize("after", ["scalar", "Mul"])
def test_the_last_reader_takes_the_place_of_the_original(after):
    """The BN's layer gets a copy; the other layer is then the only one of the first weight."""
    net = Net(X)
    one, two = layers_of_one_weight(net, 2)
    model = net.model(net.bn(one), affine(net, after, two))
    folded, _ = fold_checked(model)
    assert ops(folded) == ["Conv", "Conv"]


def test_a_layer_that_has_its_copy_takes_more():
    net = Net(X)
    one, two, three = layers_of_one_weight(net, 3)
    folded, _ = fold_checked(net.model(affine(net, "scalar", net.bn(one)), two, three))
    assert ops(folded) == ["Conv"] * 3


def test_a_weight_that_is_an_output_is_not_replaced():
    net = Net(X)
    (y,) = layers_of_one_weight(net, 1)
    weight = net.nodes[-1].input[1]
    model = net.model(affine(net, "scalar", y), weight)
    folded, _ = fold_checked(model)
    assert folded.SerializeToString() == model.SerializeToString()


def test_small_constants_are_copied():
    """A number that two nodes share takes less than a node."""
    net = Net(IMAGE)
    number = net.const(np.float32(3))
    t = net.op("Mul", net.op("Sigmoid", "x"), number)
    y = net.op("Mul", t, number)
    folded, _ = fold_checked(net.model(y, net.op("Mul", net.op("Tanh", "x"), number)))
    assert ops(folded) == ["Sigmoid", "Mul", "Tanh", "Mul"]


def weight_norm(net: Net) -> str:
    """g * v / |v|, over which no constant is evaluated."""
    v, g = net.random(BIG, BIG, 3, 3), net.random(BIG, 1, 1, 1)
    size = net.op("ReduceL2", v, axes=[1, 2, 3], keepdims=1)
    return net.op("Mul", net.op("Div", v, size), g)


@pytest.mark.parametrize("bias", [False, True])
def test_nodes_over_constants_alone_are_left(bias):
    net = Net(X)
    inputs = (net.random(BIG),) if bias else ()
    t = net.op("Conv", "x", weight_norm(net), *inputs, pads=[1] * 4)
    model = net.model(net.relu(net.op("Conv", net.relu(t), weight_norm(net))))
    folded, _ = fold_checked(model)
    assert folded.SerializeToString() == model.SerializeToString()


def test_a_mul_over_constants_alone_is_left():
    """It could go into the number that is divided, and the model would grow."""
    net = Net(X)
    size = net.op("ReduceL2", net.random(BIG, BIG), axes=[0], keepdims=0)
    scale = net.op("Mul", net.op("Div", net.const(np.float32(2)), size), net.random(BIG))
    model = net.model(net.op("Add", net.op("Transpose", "x", perm=[0, 3, 2, 1]), scale))
    folded, _ = fold_checked(model)
    assert folded.SerializeToString() == model.SerializeToString()


@pytest.mark.parametrize("dims", [(), (1,), (4, 1, 1)], ids=str)
def test_a_constant_grows_to_one_value_per_channel(dims):
    net = Net(IMAGE)
    t = net.op("Mul", net.bn(net.op("Sigmoid", "x")), net.random(*dims))
    folded, _ = fold_checked(net.model(net.conv(t, 2)))
    sizes = [int(np.prod(t.dims)) for t in folded.graph.initializer]
    assert max(sizes) <= 64


@pytest.mark.parametrize("long", [256, 257])
@pytest.mark.parametrize("dims", [("L", 1), (1, "L"), (1, 1, "L", 1)], ids=str)
def test_a_constant_grows_along_several_axes_only_if_it_stays_small(dims, long):
    """Its four channels and a long axis are 1,024 values, or more."""
    sizes = [long if d == "L" else d for d in dims]
    net = Net(("N", 4, *sizes[-2:]))
    t = net.op("Add", net.conv("x", 4), net.random(*sizes))
    model = net.model(net.op("Sigmoid", net.bn(t)))
    _, report = fold_checked(model, kept=int(long > 256))
    assert all(record.refusal.reason is Reason.NOT_SMALLER for record in report.kept)


def test_the_option_is_one_of_the_command_line(tmp_path):
    net = Net(X)
    source, target = tmp_path / "m.onnx", tmp_path / "f.onnx"
    onnx.save(net.model(*[net.bn(y) for y in layers_of_one_weight(net, 2)]), source)
    words = [str(source), "-o", str(target), "-q", "--no-metadata"]
    assert main([*words, "--keep-shared-weights"]) == 0
    assert len(onnx_bnfold.plan(onnx.load(target)).norms) == 2
    assert main(words) == 0
    assert len(onnx_bnfold.plan(onnx.load(target)).norms) == 0


# --- what is said of bytes ----------------------------------------------------------------------


@pytest.mark.parametrize(("count", "copies"), [(1, 0), (3, 2)])
def test_a_report_says_what_copies_take(count, copies):
    net = Net(X)
    model = net.model(*[net.bn(y) for y in layers_of_one_weight(net, count)])
    folded, report = onnx_bnfold.fold(model)
    assert report.bytes_before == len(model.SerializeToString())
    assert report.bytes_after == len(folded.SerializeToString())
    assert report.copied_bytes == copies * 4 * (BIG * BIG + BIG)
    summary = report.summary()
    assert f"{report.bytes_before:,} -> {report.bytes_after:,} bytes" in summary
    assert ("copies of shared weights" in summary) == (copies > 0)


def test_a_weight_that_others_keep_costs_a_copy():
    net = Net(X)
    one, two = layers_of_one_weight(net, 2)
    assert onnx_bnfold.fold(net.model(net.bn(one), two))[1].copied_bytes == 4 * (BIG * BIG + BIG)


@pytest.mark.parametrize("external", [False, True], ids=["inside", "external"])
def test_a_report_of_files_says_their_length(tmp_path, external):
    net = Net(X)
    model = net.model(*[net.bn(y) for y in layers_of_one_weight(net, 2)])
    assert onnx_bnfold.plan(model).bytes_before is None
    for folder in ("before", "after"):
        (tmp_path / folder).mkdir()
    source, target = tmp_path / "before" / "m.onnx", tmp_path / "after" / "f.onnx"
    onnx.save(model, source, save_as_external_data=external, size_threshold=64)
    report = onnx_bnfold.fold_file(source, target)
    lengths = [sum(f.stat().st_size for f in path.parent.iterdir()) for path in (source, target)]
    assert [report.bytes_before, report.bytes_after] == lengths


def expanded(net: Net) -> str:
    """A weight that takes a few bytes in the model."""
    return net.op("Expand", net.random(1, 1, 1, 1), net.ints(BIG, BIG, 3, 3))


def positive(net: Net) -> str:
    return net.op("Sqrt", net.const(abs(net.values(BIG, BIG, 3, 3))))


@pytest.mark.parametrize(
    ("weight", "goes"), [(expanded, False), (positive, True)], ids=["from less", "from as much"]
)
def test_a_weight_that_is_computed_is_not_stored_for_a_mul(weight, goes):
    net = Net(X)
    model = net.model(affine(net, "Mul", net.op("Conv", "x", weight(net), net.random(BIG))))
    folded, _ = fold_checked(model)
    assert (ops(folded) == ["Conv"]) is goes
    assert folded.ByteSize() <= model.ByteSize()


def test_a_weight_whose_source_others_read_is_not_stored_for_a_mul():
    net = Net(X)
    v = net.random(BIG, BIG, 3, 3)
    y = net.op("Conv", "x", net.op("Abs", v), net.random(BIG))
    model = net.model(affine(net, "Mul", y), net.op("Conv", "x", v))
    folded, _ = fold_checked(model)
    assert folded == model


def test_a_weight_that_is_computed_is_stored_for_a_norm():
    net = Net(X)
    folded, _ = fold_checked(net.model(net.bn(net.op("Conv", "x", expanded(net)))))
    assert ops(folded) == ["Conv"]


def test_it_does_not_matter_where_the_value_of_a_constant_node_lies(tmp_path):
    def made(net: Net) -> str:
        values = net.values(BIG, BIG, 3, 3).astype(np.float32)
        return net.op("Constant", value=numpy_helper.from_array(values))

    net = Net(X)
    model = net.model(affine(net, "Mul", net.op("Conv", "x", made(net), net.random(BIG))))
    assert ops(fold_checked(model)[0]) == ["Conv"]
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    how = {"save_as_external_data": True, "size_threshold": 0, "convert_attribute": True}
    onnx.save(model, source, **how, location="weights")
    onnx_bnfold.fold_file(source, target, Options(metadata=False))
    assert ops(onnx.load(target)) == ["Conv"]


@pytest.mark.parametrize("other", [False, True], ids=["the bias", "an output, too"])
def test_what_only_a_bias_was_computed_from_is_not_copied(other):
    """As PyTorch writes a Conv without a bias at first: zeros in a shape of the weight."""
    net = Net(X)
    weight = net.random(BIG, BIG, 1, 1)
    channels = net.op("Slice", net.op("Shape", weight), net.ints(0), net.ints(1))
    zeros = net.op("Expand", net.const(np.float32(0)), channels)
    outputs = [net.bn(net.op("Conv", "x", weight, zeros), channels=BIG)]
    if other:
        outputs.append(net.op("Conv", "x", weight))
    model = net.model(*outputs)
    folded, report = fold_checked(model)
    assert report.copied_bytes == (4 * BIG * BIG if other else 0)
    assert onnx_bnfold.plan(model).copied_bytes == report.copied_bytes
    assert (folded.ByteSize() > model.ByteSize()) == other
