"""Broken and hostile models: one sentence and exit code 2, or the norm stays; never a traceback.

Each case changes one thing about a sound model of a Conv and a BatchNormalization.
"""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from support import bn, conv, join, model_of, tensor

from onnx_bnfold.cli.main import main


def sound() -> ModelProto:
    rng = np.random.default_rng(0)
    parts = join(conv("x", "c", (2, 3, 1, 1), rng), bn("c", "y", 2, rng))
    return model_of(parts.nodes, {"x": ("N", 3, 4, 4)}, ["y"], parts.initializers)


def initializer(model: ModelProto, name: str) -> TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def fold(content: bytes, folder: Path, capsys) -> tuple[int, str]:
    """Exit code and messages of a fold; nothing is left behind by one that fails."""
    source, target = folder / "model.onnx", folder / "folded.onnx"
    source.write_bytes(content)
    before = sorted(os.listdir(folder))
    code = main([str(source), "-o", str(target)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert "internal error" not in captured.err
    if code:
        assert sorted(os.listdir(folder)) == before
        assert captured.err.count("\n") == 1, captured.err
    assert source.read_bytes() == content
    return code, captured.err + captured.out


# What is done to the model -> a part of the sentence, and of what it names.
Damage = Callable[[ModelProto], object]
REFUSED: dict[str, tuple[Damage, tuple[str, ...]]] = {}

NO_TEXT = "\N{PILE OF POO}"  # stands for bytes that are no text


def refused(*parts: str) -> Callable[[Damage], Damage]:
    def add(damage: Damage) -> Damage:
        REFUSED[damage.__name__] = damage, parts
        return damage

    return add


@refused("no graph")
def no_graph(model):
    model.ClearField("graph")


@refused("Conv 'n_c'", "BatchNormalization 'n_y'", "cycle")
def cycle(model):
    model.graph.node[0].input[0] = "y"


@refused("'n_c'", "reads its own output")
def a_node_that_reads_itself(model):
    model.graph.node[0].input[0] = "c"


@refused("'c'", "two nodes")
def a_tensor_written_twice(model):
    model.graph.node.add().CopyFrom(model.graph.node[0])


@refused("'x'", "input of the graph")
def a_node_that_writes_an_input(model):
    model.graph.node.append(helper.make_node("Relu", ["y"], ["x"]))


@refused("'c_W'", "more than once")
def two_initializers_of_one_name(model):
    model.graph.initializer.add().CopyFrom(initializer(model, "c_W"))


@refused("'c_W'", "more than once")
def a_sparse_initializer_of_the_name_of_another(model):
    sparse = model.graph.sparse_initializer.add(dims=[4, 3, 3, 3])
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "c_W"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64)))


@refused("'s'", "more than once")
def two_sparse_initializers_of_one_name(model):
    for _ in range(2):
        sparse = model.graph.sparse_initializer.add(dims=[4])
        sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "s"))
        sparse.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64)))


@refused("Conv 'n_c'", "'c_W'", "nothing defines")
def a_missing_initializer(model):
    model.graph.initializer.remove(initializer(model, "c_W"))


@refused("'ghost'", "no node")
def an_output_of_nothing(model):
    model.graph.output[0].name = "ghost"


@refused("'c_W'", "bytes", "shape")
def dims_that_disagree_with_the_data(model):
    initializer(model, "c_W").dims[2] = 20


@refused("'c_W'", "impossible shape", "-2")
def a_negative_dim(model):
    initializer(model, "c_W").dims[0] = -2


@refused("'c_W'", "impossible shape")
def dims_that_overflow(model):
    initializer(model, "c_W").dims[:] = [2**40, 2**23, 1, 1]


@refused("'c_W'", "bytes", "shape")
def a_tiny_file_with_huge_dims(model):
    initializer(model, "c_W").dims[:] = [2, 2**40, 1, 1]


@refused("Conv 'n_c'", "1 inputs", "2 to 3")
def too_few_inputs(model):
    del model.graph.node[0].input[1:]


@refused("BatchNormalization 'n_y'", "6 inputs", "5")
def too_many_inputs(model):
    model.graph.node[1].input.append("c")


@refused("BatchNormalization 'n_y'", "0 outputs")
def no_outputs(model):
    del model.graph.node[1].output[:]


@refused("Conv 'n_c'", "lacks an input")
def a_required_input_left_out(model):
    model.graph.node[0].input[0] = ""


@refused("Conv 'n_c'", "'pads'", "INTS")
def an_attribute_of_another_type(model):
    model.graph.node[0].attribute.append(helper.make_attribute("pads", 1))


@refused("BatchNormalization 'n_y'", "a graph as attribute 'body'", "does not have")
def a_graph_in_a_node_of_none(model):
    body = helper.make_graph([helper.make_node("Neg", ["x"], ["z"])], "body", [], [])
    model.graph.node[1].attribute.append(helper.make_attribute("body", body))


@refused("Conv 'n_c'", "two attributes 'pads'")
def an_attribute_twice(model):
    for pads in ([1, 1, 1, 1], [0, 0, 0, 0]):
        model.graph.node[0].attribute.append(helper.make_attribute("pads", pads))


@refused("99", "upgrade onnx")
def a_future_opset(model):
    model.opset_import[0].version = 99


@refused("version 0 ", "ONNX operator set")
def an_opset_of_zero(model):
    model.opset_import[0].version = 0


@refused("version -1", "ONNX operator set")
def a_negative_opset(model):
    model.opset_import[0].version = -1


@refused("UTF-8")
def an_operator_that_is_no_text(model):
    model.graph.node[0].op_type = f"Conv{NO_TEXT}"


@refused("UTF-8")
def an_unknown_operator_that_is_no_text(model):
    model.graph.node[0].op_type, model.graph.node[0].domain = NO_TEXT, "com.example"


@refused("UTF-8")
def a_domain_that_is_no_text(model):
    model.graph.node[0].domain = NO_TEXT


@refused("UTF-8")
def a_tensor_name_that_is_no_text(model):
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = f"c{NO_TEXT}"


def external(model: ModelProto, **entries: object) -> None:
    weight = initializer(model, "c_W")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        weight.external_data.add(key=key, value=str(value))


OUTSIDE = "folder"


@refused("'c_W'", OUTSIDE)
def external_data_in_the_folder_above(model):
    external(model, location="../secret")


@refused("'c_W'", OUTSIDE)
def external_data_at_an_absolute_path(model):
    external(model, location="/etc/passwd")


@refused("'c_W'", OUTSIDE)
def external_data_without_a_place(model):
    external(model)


@refused("'c_W'", "cannot be read")
def external_data_that_is_not_there(model):
    external(model, location="nothing.bin")


@refused("'c_W'", "cannot be read", "its values end at byte")
def an_offset_beyond_the_file(model):
    external(model, location="model.onnx", offset=1 << 40)


@refused("'c_W'", "offset")
def an_offset_that_overflows(model):
    external(model, location="model.onnx", offset=2**70)


@refused("'c_W'", "offset")
def a_negative_offset(model):
    external(model, location="model.onnx", offset=-1)


@refused("'c_W'", "bytes")
def a_length_beyond_the_file(model):
    external(model, location="model.onnx", length=1 << 40)


def with_bytes_that_are_no_text(content: bytes) -> bytes:
    """Bytes 0xff where a case writes NO_TEXT: a string of protobuf takes none but text here."""
    return content.replace(NO_TEXT.encode(), b"\xff\xff\xff\xff")


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_is_refused(name, tmp_path, capsys):
    damage, parts = REFUSED[name]
    model = sound()
    damage(model)
    code, said = fold(with_bytes_that_are_no_text(model.SerializeToString()), tmp_path, capsys)
    assert code == 2, said
    for part in parts:
        assert part in said


# What is done to the model -> the reason for which the norm stays.
KEPT: dict[str, tuple[Damage, str]] = {}


def kept(reason: str) -> Callable[[Damage], Damage]:
    def add(damage: Damage) -> Damage:
        KEPT[damage.__name__] = damage, reason
        return damage

    return add


@kept("unknown_shape")
def an_unknown_operator(model):
    model.graph.node[0].op_type = "Nonesuch"


@kept("unknown_shape")
def an_unknown_domain(model):
    model.graph.node[0].domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)


@kept("unknown_shape")
def an_operator_of_onnx_ml(model):
    model.graph.node[0].op_type, model.graph.node[0].domain = "Normalizer", "ai.onnx.ml"
    model.opset_import.add(domain="ai.onnx.ml", version=3)


@kept("inconsistent_shapes")
def a_weight_of_rank_0(model):
    initializer(model, "c_W").CopyFrom(tensor("c_W", np.float32(1)))


@kept("inconsistent_shapes")
def norm_parameters_of_rank_0(model):
    for t in model.graph.initializer:
        if t.name.startswith("y_"):
            t.CopyFrom(tensor(t.name, np.float32(1)))


@kept("inconsistent_shapes")
def parameters_of_different_lengths(model):
    initializer(model, "y_mean").CopyFrom(tensor("y_mean", np.ones(5, np.float32)))


@kept("axes")
def channel_counts_that_disagree(model):
    for t in model.graph.initializer:
        if t.name.startswith("y_"):
            t.CopyFrom(tensor(t.name, np.linspace(1, 2, 5, dtype=np.float32)))


@kept("inconsistent_shapes")
def a_group_of_zero(model):
    model.graph.node[0].attribute.append(helper.make_attribute("group", 0))


@kept("training_mode")
def no_opset_import(model):
    del model.opset_import[:]


@kept("unsupported_type")
def a_weight_of_an_unknown_type(model):
    initializer(model, "c_W").data_type = 99
    del model.graph.node[0].input[2]  # or the bias would be blamed


@kept("not_finite")
def a_weight_that_is_nan(model):
    initializer(model, "c_W").CopyFrom(tensor("c_W", np.full((2, 3, 1, 1), np.nan, np.float32)))


@kept("not_finite")
def a_variance_that_is_infinite(model):
    initializer(model, "y_var").CopyFrom(tensor("y_var", np.full(2, np.inf, np.float32)))


@kept("bad_variance")
def a_negative_variance(model):
    initializer(model, "y_var").CopyFrom(tensor("y_var", np.full(2, -1, np.float32)))


@pytest.mark.parametrize("name", KEPT)
def test_a_norm_that_stays(name, tmp_path, capsys):
    damage, reason = KEPT[name]
    model = sound()
    damage(model)
    code, said = fold(model.SerializeToString(), tmp_path, capsys)
    assert code == 0, said
    assert f"[{reason}]" in said


@pytest.mark.parametrize("indices", [[7], [-1], [0, 1], [2**40]], ids=str)
def test_sparse_weights_with_bad_indices(indices, tmp_path, capsys):
    model = sound()
    weight = initializer(model, "c_W")
    sparse = model.graph.sparse_initializer.add(dims=weight.dims)
    sparse.values.CopyFrom(tensor("c_W", np.ones(1, np.float32)))
    sparse.indices.CopyFrom(tensor("", np.array(indices)))
    model.graph.initializer.remove(weight)
    code, said = fold(model.SerializeToString(), tmp_path, capsys)
    assert code == 2
    assert "'c_W'" in said


CONTENT = sound().SerializeToString()


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"\x80PROTO", b"PK\x03\x04" + bytes(50), b"<html></html>", os.urandom(64)],
    ids=["empty", "a zero", "pickle", "zip", "html", "noise"],
)
def test_what_is_no_model(content, tmp_path, capsys):
    code, said = fold(content, tmp_path, capsys)
    assert code == 2
    assert "model.onnx" in said


def test_cut_at_every_byte(tmp_path, capsys):
    for length in range(len(CONTENT)):
        code, said = fold(CONTENT[:length], tmp_path, capsys)
        assert code == 2 or "model.onnx" not in said, length
        (tmp_path / "folded.onnx").unlink(missing_ok=True)


@pytest.mark.parametrize("depth", [20, 200, 10_000])
def test_nested_subgraphs(depth, tmp_path, capsys):
    """Built from the bytes: protobuf itself writes nothing so deep."""
    inner = b""
    for _ in range(depth):
        attribute = AttributeProto(name="then_branch", type=AttributeProto.GRAPH)
        node = NodeProto(op_type="If", input=["x"], output=["o"])
        body = attribute.SerializeToString() + _field(6, inner)
        inner = _field(1, node.SerializeToString() + _field(5, body))
    model = sound()
    content = model.SerializeToString() + _field(7, inner)  # repeated messages are merged
    code, said = fold(content, tmp_path, capsys)
    assert code == (0 if depth < 30 else 2), said  # protobuf reads messages nested 100 deep


def _field(number: int, body: bytes) -> bytes:
    length, coded = len(body), b""
    while length > 0x7F:
        coded += bytes([length & 0x7F | 0x80])
        length >>= 7
    return bytes([number << 3 | 2]) + coded + bytes([length]) + body


@pytest.mark.parametrize("kind", ["symlink", "fifo", "device", "folder"])
def test_external_data_that_is_no_file_of_the_model(kind, tmp_path, capsys):
    folder, place = tmp_path / "model", tmp_path / "model" / "w.bin"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(64))
    if kind == "symlink":
        place.symlink_to(tmp_path / "secret")
    elif kind == "fifo":
        os.mkfifo(place)
    elif kind == "device":
        place.symlink_to("/dev/zero")
    else:
        place.mkdir()
    model = sound()
    external(model, location="w.bin")
    code, said = fold(model.SerializeToString(), folder, capsys)
    assert code == 2
    assert "'c_W'" in said


BOMBS = {
    "ConstantOfShape": "big = ConstantOfShape(n)",
    "Expand": "big = Expand(one, n)",
    "Tile": "big = Tile(one, n)",
    "Range": "end = Cast<to=1>(n) flat = Squeeze(end) big = Range(zero, flat, one0)",
    "repeated Concat": "a0 = Expand(one, k) "
    + " ".join(f"a{i + 1} = Concat<axis=0>(a{i}, a{i}, a{i}, a{i})" for i in range(20))
    + " big = Identity(a20)",
}
MEMORY = 3 << 30  # of address space: numpy, onnx and protobuf alone take most of a GiB


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_take_neither_memory_nor_time(kind, tmp_path):
    text = f"""<ir_version: 8, opset_import: ["": 17]> g (float[N,2,3,3] x) => (float[N,2,3,3] y)
    {{ {BOMBS[kind]} c = Conv(x, W) y = BatchNormalization(c, big, big, big, big) }}"""
    model = onnx.parser.parse_model(text)
    constants = {
        "n": np.array([10**12]), "k": np.array([1024]), "one": np.ones(1, np.float32),
        "zero": np.float32(0), "one0": np.float32(1), "W": np.ones((2, 2, 1, 1), np.float32),
    }  # fmt: skip
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(tensor(n, v) for n, v in constants.items() if n in used)
    source = tmp_path / "model.onnx"
    source.write_bytes(model.SerializeToString())
    done = subprocess.run(
        [sys.executable, "-m", "onnx_bnfold", source, "-o", tmp_path / "folded.onnx"],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr
    assert "kept" in done.stdout


@pytest.mark.parametrize("name", ["\x1b[2J\x1b]0;owned\x07", "<script>alert(1)</script>", "a\nb"])
def test_names_do_not_steer_what_reads_them(name, tmp_path, capsys):
    model = sound()
    for node in model.graph.node:
        node.name = name
    report = tmp_path / "report.html"
    source = tmp_path / "m.onnx"
    source.write_bytes(model.SerializeToString())
    assert main([str(source), "-o", str(tmp_path / "f.onnx"), "--report", str(report)]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\x07" not in said
    assert "<script>alert" not in report.read_text()
    model.graph.node[0].input[0] = "c"
    code, said = fold(model.SerializeToString(), tmp_path, capsys)
    assert code == 2
    assert "\x1b" not in said


def test_a_bug_of_ours_is_no_traceback_either(tmp_path, monkeypatch, capsys):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("surprise\nof two lines")

    monkeypatch.setattr("onnx_bnfold.cli.fold.run", fail)
    assert main([str(tmp_path / "a"), "-o", str(tmp_path / "b")]) == 2
    said = capsys.readouterr().err
    assert "internal error" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("dim", [-1, -5])
def test_a_negative_size_of_an_input_is_an_open_one(dim, tmp_path, capsys):
    """Some converters write -1; onnx aborts the process when it slices such a tensor."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N,2,3,3] x) => (float[N,2,2,3] z)
        <int64[1] s = {1}, int64[1] e = {3}, int64[1] a = {2}, float[2] k = {1, 2}>
        { c = Conv(x, W) y = BatchNormalization(c, k, k, k, k) z = Slice(y, s, e, a) }"""
    )
    model.graph.initializer.append(tensor("W", np.ones((2, 2, 1, 1), np.float32)))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = dim
    code, said = fold(model.SerializeToString(), tmp_path, capsys)
    assert code == 0, said


def test_a_deprecated_operator_may_have_the_inputs_of_an_older_version(tmp_path, capsys):
    """Opset 10 deprecates Upsample, of which that of opset 7 has one input, of opset 9 two."""
    model = onnx.parser.parse_model(
        """<ir_version: 5, opset_import: ["": 10]> g (float[N,2,3,3] x) => (float[N,2,6,6] z)
        <float[2] k = {1, 2}>
        { y = BatchNormalization(x, k, k, k, k) z = Upsample<scales = [1.0, 1.0, 2.0, 2.0]>(y) }"""
    )
    code, said = fold(model.SerializeToString(), tmp_path, capsys)
    assert code == 0, said


def survive(model: ModelProto, folder: Path) -> None:
    """Fold a model in a process of its own, which a failed assertion of onnx would end."""
    source = folder / "model.onnx"
    source.write_bytes(model.SerializeToString())
    command = [sys.executable, "-m", "onnx_bnfold", source, "-o", folder / "folded.onnx"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 2)
    assert "Traceback" not in done.stderr


# Bodies that end in y: a Slice of what SMALLER makes of a tensor by a window larger than it.
SMALLER = ("Conv(b, W)", "MaxPool<kernel_shape=[9, 9]>(b)", "Pad(b, p)")
BODIES = {
    "of-an-input": "b = Identity(x) c = {0} y = Slice(c, s, e, a)",
    "behind-a-slice": "b = Slice(x, s, e, a) c = {0} y = Slice(c, s, e, a)",
    "behind-two": "d = Slice(x, s, e, a) b = Slice(d, s, e, a) c = {0} y = Slice(c, s, e, a)",
    "in-a-branch": """y = If(k0) <
        then_branch = t () => (float[N,M,H,V] u)
          {{ b = Slice(x, s, e, a) c = {0} u = Slice(c, s, e, a) }},
        else_branch = o () => (float[N,M,H,V] w) {{ w = Identity(x) }}>""",
    "in-a-function": "b = Slice(x, s, e, a) y = local.f(b, W, s, e, a, p)",
}


@pytest.mark.parametrize("smaller", SMALLER)
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_slice_of_a_tensor_of_negative_size(body, smaller, tmp_path):
    """onnx 1.23 ends the process in shape inference."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[2,2,3,3] x) => (float[N,M,H,V] z)
        <int64[1] s = {{1}}, int64[1] e = {{3}}, int64[1] a = {{2}}, float[2] k = {{1, 2}},
         bool k0 = {{1}}, int64[8] p = {{0, 0, -9, 0, 0, 0, 0, 0}}>
        {{ {body.format(smaller)} z = BatchNormalization(y, k, k, k, k) }}
        <domain: "local", opset_import: ["": 17]> f (b, W, s, e, a, p) => (y)
        {{ c = {smaller} y = Slice(c, s, e, a) }}"""
    )
    model.graph.initializer.append(tensor("W", np.ones((2, 2, 9, 9), np.float32)))
    survive(model, tmp_path)


@pytest.mark.parametrize("is_sparse", [False, True], ids=["dense", "sparse"])
def test_a_slice_of_a_constant_of_negative_size(is_sparse, tmp_path):
    """onnx 1.23 ends the process in shape inference."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x) => (float[N,M] z)
        <int64[1] s = {0}, int64[1] e = {1}, float[2] k = {1, 2}>
        { y = BatchNormalization(x, k, k, k, k) c = Constant() a = Slice(c, s, e) z = Add(y, a) }"""
    )
    held = tensor("", np.ones(1, np.float32))
    if is_sparse:
        index = tensor("", np.zeros(1, np.int64))
        held = helper.make_sparse_tensor(held, index, [-4])
    else:
        held.dims[:] = [-4]
    attribute = {"sparse_value" if is_sparse else "value": held}
    model.graph.node[1].attribute.append(helper.make_attribute(*attribute.popitem()))
    survive(model, tmp_path)


SLICED = """s1 = Constant <value = int64[1] {0}> () e1 = Constant <value = int64[1] {2}> ()
    a1 = Constant <value = int64[1] {2}> () r = Slice(p, s1, e1, a1)"""
# Whole graphs in which sizes become negative where inference is told less than there is to know.
NEGATIVE = {
    "known-by-values": """g (float[1,3,2,2] x, float[N] v) => (float[A,B,C,D] z)
        { s = Shape(x) q = Reshape(v, s) c = Conv(q, W) y = Slice(c, s0, e0, a0)
          z = BatchNormalization(y, k, k, k, k) }""",
    "handed-into-a-scan": """g (float[1,3,4,4] x, float[5,3] v) => (float[A,B,C,D] z)
        { b = Slice(x, s0, e0, a0) c = Conv(b, W)
          y, w = Scan <num_scan_inputs = 1, body = l (float[A,B,C,D] p, float[3] q) =>
            (float[A,B,C,D] o, float[E,F,G,H] r) { o = Identity(p) SLICED }> (c, v)
          z = BatchNormalization(y, k, k, k, k) }""",
    "declared-in-a-loop": """g (float[1,3,4,4] x, int64 n, bool t) => (float[A,B,C,D] z)
        { b = Slice(x, s0, e0, a0) y, w = Loop(n, t, b) <body =
            l (int64 i, bool go, float[1,3,77,77] p) =>
            (bool on, float[A,B,C,D] o, float[E,F,G,H] r)
            { on = Identity(go) o = Identity(p) SLICED }>
          z = BatchNormalization(y, k, k, k, k) }""",
}


@pytest.mark.parametrize("graph", NEGATIVE.values(), ids=NEGATIVE)
def test_negative_sizes_that_inference_learns_late(graph, tmp_path):
    """onnx 1.23 ends the process in shape inference."""
    head, rest = graph.replace("SLICED", SLICED).split("\n", 1)
    constants = "<int64[1] s0 = {0}, int64[1] e0 = {2}, int64[1] a0 = {2}, float[3] k = {1, 2, 3}>"
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> {head}\n{constants}\n{rest}'
    )
    for node in model.graph.node:
        for value in (v for a in node.attribute for v in a.g.input):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_value == 77:
                    dim.dim_value = -1
    model.graph.initializer.append(tensor("W", np.ones((3, 3, 5, 5), np.float32)))
    survive(model, tmp_path)
