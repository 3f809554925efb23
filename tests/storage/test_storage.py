"""Storage: byte identity with protobuf, values, atomic pairs of files, refusals."""

import errno
import os
import resource
import subprocess
import sys
import threading

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnx_bnfold.errors import ModelError, UsageError
from onnx_bnfold.storage import (
    ModelFile,
    files,
    read_tensor,
    skeleton,
    tensors,
    wire,
    writer,
)
from onnx_bnfold.storage.data_files import data_files as used_data_files
from onnx_bnfold.storage.data_files import data_files_of
from onnx_bnfold.storage.external import external_range, set_external_range
from onnx_bnfold.storage.small_tensors import SmallTensors

ELEMENT_TYPES = [
    value for name, value in TensorProto.DataType.items() if name not in ("UNDEFINED", "STRING")
]


ODD_TENSORS = {
    "two fields of values": TensorProto(data_type=1, raw_data=bytes(40), float_data=[1] * 10),
    "floats of type int32": TensorProto(data_type=6, float_data=[1] * 10),
    "doubles of type float": TensorProto(data_type=1, double_data=[1] * 10),
}


@pytest.fixture
def all_large(monkeypatch):
    """Every tensor of eight bytes or more is left in its file."""
    monkeypatch.setattr(skeleton, "SMALL", 8)


def floats(name, *dims, seed=0):
    values = np.random.default_rng(seed).standard_normal(dims).astype(np.float32)
    return numpy_helper.from_array(values, name)


def make_model(*initializers, nodes=()):
    graph = helper.make_graph(nodes, "g", [], [], initializers)
    return helper.make_model(graph, producer_name="test", doc_string="doc")


def save(model, path):
    path.write_bytes(model.SerializeToString())
    return path


def make_external(tensor, folder, name, at=0, entries=()):
    """Moves a tensor's raw_data to byte `at` of a file; `entries` overrides what is said of it."""
    with open(folder / name, "r+b" if (folder / name).exists() else "w+b") as file:
        file.truncate(max(at, os.fstat(file.fileno()).st_size))
        file.seek(at)
        file.write(tensor.raw_data)
    said = {"location": name, "offset": at, "length": len(tensor.raw_data)} | dict(entries)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in said.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def in_one_array(pending):
    """What `ModelFile.write` takes, of functions that return all values at once."""
    return {name: lambda compute=compute: [compute()] for name, compute in pending.items()}


def copied(path, target, pending=None, edit=None):
    """Opens, edits and writes; returns the bytes of the new model file."""
    with ModelFile.open(path) as file:
        if edit:
            edit(file.model)
        file.write(file.model, in_one_array(pending or {}), target)
    return target.read_bytes()


def values_of(path):
    """All initializers of a file, read by onnx itself."""
    model = onnx.load(path)
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_a_model_may_be_used_up(tmp_path):
    large = [np.full(1 << 12, value, np.float32) for value in (1, 2)]
    tensors = [numpy_helper.from_array(each, f"w{i}") for i, each in enumerate(large)]
    model = helper.make_model(helper.make_graph([], "g", [], [], tensors))
    path = save(model, tmp_path / "in.onnx")
    pending = in_one_array({"w1": lambda: large[1] * 3})
    with ModelFile.open(path) as file:
        for name, use_up in (("kept", False), ("used", True)):
            copy = onnx.ModelProto()
            copy.CopyFrom(file.model)
            file.write(copy, pending, tmp_path / name, use_up=use_up)
            assert (copy == file.model) is not use_up
    assert (tmp_path / "kept").read_bytes() == (tmp_path / "used").read_bytes()


# --- the same bytes as protobuf ------------------------------------------------------------------

UNKNOWN_FIELDS = {
    "varint": b"\xc0\x3e\x07",
    "bytes": b"\xca\x3e\x0csome content",
    # It holds what would be an initializer outside.
    "group": b"\xd3\x3e" + make_model(floats("w", 20)).graph.SerializeToString() + b"\xd4\x3e",
    "raw_data of another wire type": b"\x48\x05",
    "graph of another wire type": b"\x3d\x05\x00\x00\x00",
    "none": b"",
}


@pytest.mark.parametrize("unknown", UNKNOWN_FIELDS.values(), ids=UNKNOWN_FIELDS)
def test_fields_behind_one_that_nobody_knows(unknown):
    content = unknown + b"\x0a\x03abc"
    found = {
        n: content[at:stop] for n, _, at, stop in wire.fields(wire.Blob(content), 0, len(content))
    }
    assert found.pop(1) == b"abc"
    assert found in ({}, {1001: b"some content"})


@pytest.mark.parametrize("content", [b"\x02\x00", b"\x00\x01"], ids=["bytes", "number"])
def test_a_field_of_number_zero_is_no_field(content):
    with pytest.raises(wire.MalformedError, match="byte 3"):
        [*wire.fields(wire.Blob(b"\x0a\x01a" + content), 0, 3 + len(content))]


@pytest.mark.parametrize("least", [0, 64])
def test_a_field_that_ends_behind_its_message_is_malformed(least):
    content = b"\x0a\x01a\x0a\x02a" + bytes(64)
    with pytest.raises(wire.MalformedError):
        [*wire.fields(wire.Blob(content), 0, 6, least)]


def scrambled(message, rng):
    """Serialises a message with its fields in any order, and with fields that nobody knows."""
    groups = []
    for field, value in message.ListFields():
        route = tensors.ROUTES.get(type(message), {}).get(field.number)
        if route:
            children = [value] if isinstance(value, route[1]) else value
            tag = wire._varint(field.number << 3 | 2)
            bodies = [scrambled(child, rng) for child in children]
            groups.append(b"".join(tag + wire._varint(len(body)) + body for body in bodies))
        else:
            part = type(message)()
            part.CopyFrom(message)
            for other, _ in message.ListFields():
                if other.number != field.number:
                    part.ClearField(other.name)
            groups.append(part.SerializeToString())
    groups.append(UNKNOWN_FIELDS[rng.choice(list(UNKNOWN_FIELDS))])
    rng.shuffle(groups)
    return b"".join(groups)


@st.composite
def some_tensor(draw, name):
    kind = draw(st.sampled_from(["raw", "float_data", "double_data", "int64_data", "int32_data"]))
    count = draw(st.sampled_from([0, 1, 2, 3, 9, 40]))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    if kind == "raw":
        dtype = draw(st.sampled_from([np.float32, np.float16, np.int8, np.float64]))
        tensor = numpy_helper.from_array(rng.integers(0, 99, count).astype(dtype), name)
    elif kind == "float_data":
        bits = rng.integers(0, 1 << 32, count, dtype=np.uint32)  # all kinds of NaN, too
        tensor = TensorProto(name=name, dims=[count], data_type=TensorProto.FLOAT)
        tensor.float_data.extend(bits.view(np.float32))
    else:
        data_type = {"double_data": "DOUBLE", "int64_data": "INT64", "int32_data": "FLOAT16"}[kind]
        tensor = TensorProto(
            name=name, dims=[count], data_type=TensorProto.DataType.Value(data_type)
        )
        getattr(tensor, kind).extend(rng.integers(0, 1 << 14, count).tolist())
    if draw(st.booleans()):
        tensor.doc_string = "about " + name
    if draw(st.booleans()):
        tensor.data_location = TensorProto.DEFAULT
    if draw(st.booleans()):
        tensor.metadata_props.add(key="location", value="x")
    return tensor


@st.composite
def some_model(draw):
    def several(prefix):
        return [draw(some_tensor(f"{prefix}{i}")) for i in range(draw(st.integers(0, 4)))]

    branch = helper.make_graph([], "branch", [], [], several("s"))
    nodes = [
        helper.make_node("Constant", [], ["k"], value=draw(some_tensor("k"))),
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
        helper.make_node("My", [], [], domain="my", graphs=[branch]),
        helper.make_node("Conv", ["x", "location"], ["y"], kernel_shape=[1]),
    ]
    nodes[2].attribute.add(name="many", type="TENSORS", tensors=several("m"))
    model = make_model(*several("w"), nodes=nodes)
    sparse = model.graph.sparse_initializer.add(dims=[9])
    sparse.values.CopyFrom(draw(some_tensor("sparse")))
    sparse.indices.CopyFrom(draw(some_tensor("indices")))
    function = model.functions.add(name="f", domain="my")
    function.node.append(nodes[0])
    model.training_info.add().initialization.initializer.extend(several("t"))
    model.metadata_props.add(key="k", value="v")
    return model


DAMAGES = ["shortened", "external", "segment", "scalar", "huge", "deep", "unknown", "packed"]


@given(st.data(), st.lists(st.sampled_from(DAMAGES), max_size=4))
@settings(max_examples=200, deadline=None)
def test_small_tensors_decoded_together_are_what_each_is_alone(data, damages):
    found = {f"w{i}": data.draw(some_tensor(f"w{i}")) for i in range(6)}
    sound = {n for n, t in [*found.items()][len(damages) :] if t.raw_data}
    for damage, tensor in zip(damages, found.values(), strict=False):
        if damage == "shortened":
            tensor.raw_data = tensor.raw_data[:-1]
        elif damage == "external":
            tensor.data_location = TensorProto.EXTERNAL
        elif damage == "segment":
            tensor.segment.begin = 1
        elif damage == "huge":
            tensor.dims[:] = [2**61]
        elif damage == "deep":
            tensor.dims[:] = [1] * 33
        elif damage == "unknown":
            tensor.data_type = 99
        elif damage == "packed":
            tensor.data_type = TensorProto.INT4
        else:
            tensor.CopyFrom(numpy_helper.from_array(np.float32(3), tensor.name))
    together = SmallTensors(found, {n: tuple(t.dims) for n, t in found.items()})
    assert {name for name in found if together.get(name) is not None} == sound
    for name in sound:
        values, alone = together.get(name), tensors.decode_inline(found[name])
        assert (values.dtype, values.shape) == (alone.dtype, alone.shape)
        np.testing.assert_array_equal(values, alone)


@given(some_model(), st.sets(st.integers(0, 30)))
@settings(max_examples=100, deadline=None)
def test_nodes_that_are_skipped_have_no_tensor_in_a_file(model, outside):
    for number, (_, tensor) in enumerate(tensors.tensors(model)):
        if number in outside:
            set_external_range(tensor, "data.bin", 0, 4)
    pick = tensors.elsewhere()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "_may_refer", lambda node: True)
        plain = [path for path, _ in tensors.tensors(model, pick)]
    assert [path for path, _ in tensors.tensors(model, pick)] == plain


def test_data_files_are_those_that_tensors_use(tmp_path):
    model = make_model(floats("a", 2), floats("b", 2), floats("c", 2000))
    used, stale, large = model.graph.initializer
    set_external_range(used, "used.bin", 0, 8)
    for tensor in (stale, large):  # they name a file, but have their values in the message
        tensor.external_data.add(key="location", value="stale.bin")
    assert used_data_files(model) == ["used.bin"]
    path = save(model, tmp_path / "m.onnx")
    assert data_files_of(path) == ["used.bin"]
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match="not an ONNX model"):
        data_files_of(path)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_rows_of_small_tensors_are_what_each_is_alone(data):
    found = {f"w{i}": data.draw(some_tensor(f"w{i}")) for i in range(6)}
    together = SmallTensors(found, {n: tuple(t.dims) for n, t in found.items()})
    name = st.sampled_from([*found, "unknown"])
    names = data.draw(st.lists(st.tuples(name, name), max_size=6))
    seen = []
    for rows, values in together.rows(names):
        seen += rows
        for row, both in zip(rows, values, strict=True):
            for each, alone in zip(both, map(together.get, names[row]), strict=True):
                np.testing.assert_array_equal(each, alone)
                assert each.dtype == alone.dtype
    kinds = [
        [(t.dtype, t.shape) if (t := together.get(n)) is not None else n for n in row]
        for row in names
    ]
    assert sorted(seen) == [
        i for i, (a, b) in enumerate(kinds) if a == b and not isinstance(a, str)
    ]


@given(
    some_model(),
    st.randoms(use_true_random=False),
    st.sampled_from([0, 8, 4096]),
    st.booleans(),
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_output_is_what_protobuf_writes(tmp_path, monkeypatch, model, rng, small, external):
    monkeypatch.setattr(skeleton, "SMALL", small)
    monkeypatch.setattr(files, "_WINDOW", 64)
    raw = [t for _, t in tensors.tensors(model) if t.HasField("raw_data")]
    for tensor in rng.sample(raw, len(raw) // 2) if external else ():
        make_external(tensor, tmp_path, f"d{rng.choice('ab')}", rng.randrange(99) * 512)
    before = {t.name: read_tensor(t, tmp_path) for t in model.graph.initializer}
    source = tmp_path / "in.onnx"
    source.write_bytes(scrambled(model, rng))
    expected = ModelProto.FromString(source.read_bytes())
    new = {
        name: array * array.dtype.type(2) for name, array in before.items() if rng.random() < 0.3
    }

    def edit(model):
        initializers = model.graph.initializer
        for tensor in [t for t in initializers if t.name not in new][:1]:
            initializers.add().CopyFrom(tensor)
            initializers[-1].name = "twice"
        for tensor in initializers:
            if tensor.name in new:
                tensor.ClearField("raw_data")
                tensor.ClearField("float_data")
        del initializers[1 : len(initializers) // 2]

    with ModelFile.open(source) as file:
        for name, array in before.items():
            tensor = next(t for t in file.model.graph.initializer if t.name == name)
            np.testing.assert_array_equal(file.read(tensor), array)
        edit(file.model)
        before_writing = file.model.SerializeToString()
        names = {t.name for t in file.model.graph.initializer}
        pending = {name: new[name].copy for name in new if name in names}
        file.write(file.model, in_one_array(pending), tmp_path / "out.onnx")
        assert file.model.SerializeToString() == before_writing

    edit(expected)
    output = (tmp_path / "out.onnx").read_bytes()
    # Where external values lie is the writer's choice; that they are right is checked below.
    places = dict(tensors.tensors(ModelProto.FromString(output)))
    for path, tensor in tensors.tensors(expected):
        if len(path) == 2 and tensor.name in pending:
            tensors.clear_values(tensor)
            tensor.raw_data = numpy_helper.from_array(new[tensor.name]).raw_data
        if tensors.is_external(tensor):
            array = read_tensor(places[path], tmp_path)
            wanted = new[tensor.name] if tensor.name in pending else read_tensor(tensor, tmp_path)
            np.testing.assert_array_equal(array, wanted)
            set_external_range(tensor, *external_range(places[path]))
    assert output == expected.SerializeToString(deterministic=True)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("tensor", ODD_TENSORS.values(), ids=ODD_TENSORS)
def test_odd_tensors_are_left_to_protobuf(tmp_path, all_large, tensor):
    model = make_model(tensor)
    source = save(model, tmp_path / "m.onnx")
    with ModelFile.open(source) as file:
        assert file.model == model
    assert copied(source, tmp_path / "out.onnx") == model.SerializeToString(deterministic=True)


def test_external_tensor_that_also_has_values(tmp_path, all_large):
    tensor = make_external(floats("w", 10), tmp_path, "d")
    tensor.raw_data = bytes(40)
    source = save(make_model(tensor), tmp_path / "m.onnx")
    with ModelFile.open(source) as file:
        got = file.read(file.model.graph.initializer[0])
    np.testing.assert_array_equal(got, numpy_helper.to_array(floats("w", 10)))
    copied(source, tmp_path / "out.onnx")
    np.testing.assert_array_equal(values_of(tmp_path / "out.onnx")["w"], got)


def test_an_entry_of_an_external_tensor_is_no_mark_of_ours(tmp_path, all_large):
    """Its offset 0, the last thing said of it, is not the number of a tensor left in the file."""
    tensor = make_external(floats("w", 10, seed=1), tmp_path, "d", entries={"length": None})
    source = save(make_model(floats("v", 10), tensor), tmp_path / "m.onnx")
    with ModelFile.open(source) as file:
        got = file.read(file.model.graph.initializer[1])
    np.testing.assert_array_equal(got, numpy_helper.to_array(floats("w", 10, seed=1)))


def test_values_cut_within_a_number(tmp_path, all_large):
    floats = TensorProto(data_type=1, float_data=[1] * 10).SerializeToString()
    content = floats.replace(b"\x22\x28", b"\x22\x26")[:-2]
    path = tmp_path / "m.onnx"
    for tag in (b"\x2a", b"\x3a"):
        content = tag + wire._varint(len(content)) + content
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not an ONNX model"):
        ModelFile.open(path)


def test_routes_reach_every_tensor():
    """Every field through which a message of this onnx version leads to tensors is listed."""
    kinds = {kind.DESCRIPTOR.full_name: kind for kind in tensors.ROUTES}
    reaching = set(kinds) | {TensorProto.DESCRIPTOR.full_name}
    for kind, routes in tensors.ROUTES.items():
        fields = [field for field in kind.DESCRIPTOR.fields if field.message_type]
        leading = {f.number for f in fields if f.message_type.full_name in reaching}
        assert leading == set(routes), kind
    others = [
        message
        for name, message in onnx.ModelProto.DESCRIPTOR.file.message_types_by_name.items()
        if message.full_name not in reaching
    ]
    for message in others:
        assert not any(
            f.message_type and f.message_type.full_name in reaching for f in message.fields
        )


# --- values --------------------------------------------------------------------------------------


def array_of(data_type, count=35):
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    return (np.arange(count) % 2).astype(dtype).reshape(5, -1)


@pytest.mark.parametrize("data_type", ELEMENT_TYPES, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("layout", ["inline", "left in the file", "external", "typed field"])
def test_values_of_every_type(data_type, layout, tmp_path, monkeypatch):
    array = array_of(data_type)
    tensor = numpy_helper.from_array(array, "w")
    if layout == "external":
        make_external(tensor, tmp_path, "d")
    elif layout == "typed field":
        tensor = helper.make_tensor("w", data_type, array.shape, array.reshape(-1).tolist())
    monkeypatch.setattr(skeleton, "SMALL", 1 if layout == "left in the file" else 4096)
    with ModelFile.open(save(make_model(tensor), tmp_path / "m.onnx")) as file:
        stripped = file.model.graph.initializer[0]
        assert tensors.is_external(stripped) == (layout in ("left in the file", "external"))
        got = file.read(stripped)
    for values in (got, read_tensor(tensor, tmp_path)):
        assert (values.dtype, values.shape) == (array.dtype, array.shape)
        assert values.tobytes() == array.tobytes()


@pytest.mark.parametrize("data_type", ELEMENT_TYPES, ids=TensorProto.DataType.Name)
def test_pending_values_of_every_type(data_type, tmp_path):
    array = array_of(data_type)
    tensor = numpy_helper.from_array(array, "w")
    empty = TensorProto(name="w", dims=array.shape, data_type=data_type)
    source = save(make_model(empty), tmp_path / "m.onnx")
    copied(source, tmp_path / "out.onnx", {"w": lambda: array})
    assert onnx.load(tmp_path / "out.onnx").graph.initializer[0] == tensor


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (2, 3, 4)], ids=str)
def test_pending_values_of_every_shape(shape, tmp_path):
    array = np.ones(shape, np.float32, order="F")
    source = save(make_model(floats("w", *shape)), tmp_path / "m.onnx")
    copied(source, tmp_path / "out.onnx", {"w": lambda: array})
    np.testing.assert_array_equal(values_of(tmp_path / "out.onnx")["w"], array)


def test_strings_stay_in_the_message(tmp_path):
    array = np.array(["a" * 5000, "b"], object)
    source = save(make_model(numpy_helper.from_array(array, "s")), tmp_path / "m.onnx")
    with ModelFile.open(source) as file:
        np.testing.assert_array_equal(file.read(file.model.graph.initializer[0]), array)


def refused(*args):
    raise OSError(errno.EXDEV, "not on this file system")


@pytest.mark.parametrize("at", [None, 0, 1, 33, 1000, 1 << 16])
@pytest.mark.parametrize("size", [4096, 1 << 16, (1 << 20) + 4, 37 << 20])
@pytest.mark.parametrize("system", ["copies", "copies in parts", "refuses", "cannot"])
def test_copying_by_every_way(tmp_path, monkeypatch, size, system, at):
    """From the message, or from a data file whose values begin anywhere on a page."""
    copy = os.copy_file_range
    if system == "copies in parts":
        monkeypatch.setattr(
            os, "copy_file_range", lambda *a: copy(*a[:2], min(a[2], 999_999), *a[3:])
        )
    elif system == "refuses":
        monkeypatch.setattr(os, "copy_file_range", refused)
    elif system == "cannot":
        monkeypatch.delattr(os, "copy_file_range")
    weight = floats("w", size // 4)
    expected = numpy_helper.to_array(weight)
    if at is not None:
        make_external(weight, tmp_path, "w.bin", at)
    source = save(make_model(floats("a", 9), weight, floats("b", 99)), tmp_path / "m.onnx")
    copied(source, tmp_path / "out.onnx")
    np.testing.assert_array_equal(values_of(tmp_path / "out.onnx")["w"], expected)


def test_writing_in_many_calls(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, content: write(fd, content[:1000]))
    model = make_model(floats("w", 5000))
    output = copied(save(model, tmp_path / "m.onnx"), tmp_path / "out.onnx")
    assert output == model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("positioned", [True, False])
@pytest.mark.parametrize("inline", [True, False])
def test_computed_values_are_written_by_threads(tmp_path, monkeypatch, positioned, inline):
    if not positioned:  # Windows
        monkeypatch.delattr(os, "pwrite")
        monkeypatch.delattr(os, "pread")
    monkeypatch.setattr("onnx_bnfold.storage.model_file._MOST_OPEN", 1)
    weights = [floats(f"w{i}", 500 + i, seed=i) for i in range(40)]
    if not inline:
        for i, t in enumerate(weights[::2]):
            make_external(t, tmp_path, f"f{i % 3}", at=4096 * i)
    source = save(make_model(*weights), tmp_path / "m.onnx")
    expected = {name: 2 * value for name, value in values_of(source).items()}
    with ModelFile.open(source) as file:
        pending = {t.name: lambda t=t: [2 * file.read(t)] for t in file.model.graph.initializer}
        file.write(file.model, pending, tmp_path / "out.onnx", threads=4)
    np.testing.assert_equal(values_of(tmp_path / "out.onnx"), expected)


def test_weights_are_not_read_on_the_way(tmp_path, monkeypatch):
    """Opening and copying reads what is around the weights; computing one tensor reads that one."""
    weights = [floats(f"w{i}", 1 << 19, seed=i) for i in range(4)]
    source = save(make_model(*weights), tmp_path / "m.onnx")
    read, pread = [], os.pread
    monkeypatch.setattr(
        os, "pread", lambda fd, n, at: read.append(len(pread(fd, n, at))) or pread(fd, n, at)
    )
    with ModelFile.open(source) as file:
        assert file.model.ByteSize() < 1000
        file.write(file.model, {}, tmp_path / "out.onnx")
        assert sum(read) < 1 << 20
        one = file.model.graph.initializer[2]
        file.write(file.model, {"w2": lambda: [file.read(one) * 2]}, tmp_path / "out.onnx")
        assert 1 << 21 <= sum(read) < 3 << 20
    np.testing.assert_array_equal(
        values_of(tmp_path / "out.onnx")["w2"], numpy_helper.to_array(weights[2]) * 2
    )


def test_a_read_in_several_calls(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_LARGEST_READ", 1000)
    tensor = floats("w", 2500)
    with ModelFile.open(save(make_model(tensor), tmp_path / "m.onnx")) as file:
        got = file.read(file.model.graph.initializer[0])
    np.testing.assert_array_equal(got, numpy_helper.to_array(tensor))


def test_inline_file_beyond_2_gib(tmp_path):
    """Such a file cannot come from protobuf, but from writers of their own; weights are holes."""
    count = 300 << 20  # two tensors of 1.2 GiB
    tensor = TensorProto(name="w", dims=[count], data_type=TensorProto.FLOAT).SerializeToString()
    head = tensor + b"\x4a" + wire._varint(4 * count)
    body = b"\x2a" + wire._varint(len(head) + 4 * count) + head
    graph = 2 * (len(body) + 4 * count)
    path = tmp_path / "m.onnx"
    with open(path, "wb") as file:
        file.write(b"\x3a" + wire._varint(graph))
        for last in (1.0, 2.0):
            file.write(body)
            file.seek(4 * count - 4, os.SEEK_CUR)
            file.write(np.float32(last).tobytes())
    with ModelFile.open(path) as file:
        _, second = file.model.graph.initializer
        span = file._span(second)
        assert file._input(None).read(span.offset + span.length - 4, 4) == np.float32(2).tobytes()


# --- external data -------------------------------------------------------------------------------


def data_files(folder, target="out.onnx"):
    return sorted(path.name for path in folder.glob(f"{target}.*.data"))


def places(path):
    model = onnx.load(path, load_external_data=False)
    return {t.name: external_range(t) for t in model.graph.initializer if tensors.is_external(t)}


@pytest.fixture
def external_model(tmp_path):
    """Weights `a`, `b`, `again` (the values of `a`) and `big` in two files, and `inline`."""
    (tmp_path / "sub").mkdir()
    a = make_external(floats("a", 100, seed=1), tmp_path, "sub/one", 512, {"checksum": "1234"})
    again = TensorProto()
    again.CopyFrom(a)
    again.name = "again"
    model = make_model(
        a,
        make_external(floats("b", 7, seed=2), tmp_path, "two", 0, {"offset": None, "length": None}),
        again,
        make_external(floats("big", 1 << 18, seed=3), tmp_path, "two", 1 << 16, {"key": "x"}),
        floats("inline", 2000, seed=4),
    )
    return save(model, tmp_path / "m.onnx")


def test_external_tensors_move_to_one_file(external_model, tmp_path):
    with ModelFile.open(external_model) as file:
        before = {tensor.name: file.read(tensor) for tensor in file.model.graph.initializer}
    np.testing.assert_array_equal(before["b"], numpy_helper.to_array(floats("b", 7, seed=2)))
    copied(external_model, tmp_path / "out.onnx", {"b": lambda: before["b"] + 1})
    (name,) = data_files(tmp_path)
    after = values_of(tmp_path / "out.onnx")
    np.testing.assert_array_equal(after.pop("b"), before.pop("b") + 1)
    np.testing.assert_equal(after, before)
    np.testing.assert_array_equal(after["a"], after["again"])
    assert places(tmp_path / "out.onnx") == {
        "a": (name, 0, 400),
        "b": (name, 448, 28),
        "again": (name, 0, 400),
        "big": (name, 1 << 16, 1 << 20),
    }
    keys = {
        entry.key
        for tensor in onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
        for entry in tensor.external_data
    }
    assert keys == {"location", "offset", "length"}


def test_pending_tensor_leaves_its_data_file_when_told_so(external_model, tmp_path):
    def edit(model):
        tensor = model.graph.initializer[0]
        tensor.ClearField("data_location")
        del tensor.external_data[:]

    copied(external_model, tmp_path / "out.onnx", {"a": lambda: np.ones(100, np.float32)}, edit)
    assert set(places(tmp_path / "out.onnx")) == {"b", "again", "big"}


def test_everything_large_leaves_a_message_beyond_protobufs_limit(tmp_path, monkeypatch):
    typed = helper.make_tensor("t", TensorProto.FLOAT, [2000], np.arange(2000.0))
    constant = helper.make_node("Constant", [], ["k"], value=floats("k", 2000))
    model = make_model(floats("w", 2000), typed, floats("small", 9), nodes=[constant])
    source = save(model, tmp_path / "m.onnx")
    size = source.stat().st_size
    ones = {
        "w": lambda: np.ones(2000, np.float32),
        "small": lambda: np.ones(9, np.float32),
    }

    monkeypatch.setattr(writer, "PROTOBUF_LIMIT", size)
    copied(source, tmp_path / "out.onnx", ones)
    assert data_files(tmp_path) == []

    monkeypatch.setattr(writer, "PROTOBUF_LIMIT", size - 1)
    copied(source, tmp_path / "out.onnx", ones)
    assert set(places(tmp_path / "out.onnx")) == {"w", "t"}
    after = onnx.load(tmp_path / "out.onnx")
    w, t, small = map(numpy_helper.to_array, after.graph.initializer)
    k = numpy_helper.to_array(after.graph.node[0].attribute[0].t)
    np.testing.assert_array_equal(w, 1)
    np.testing.assert_array_equal(t, np.arange(2000))
    np.testing.assert_array_equal(k, numpy_helper.to_array(floats("k", 2000)))
    assert small.size == 9

    monkeypatch.setattr(writer, "PROTOBUF_LIMIT", 100)
    with pytest.raises(ModelError, match="larger than 2 GiB"):
        copied(source, tmp_path / "out2.onnx")


@pytest.fixture
def few_files():
    """The system lets this process open 20 files more than are open now."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (most + 20, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("count", [5, 1 << 15], ids=["small", "large"])
def test_many_data_files(tmp_path, monkeypatch, count, few_files):
    monkeypatch.setattr("onnx_bnfold.storage.model_file._MOST_OPEN", 3)
    weights = [floats(f"w{i}", count, seed=i) for i in range(60)]
    expected = {t.name: numpy_helper.to_array(t) for t in weights}
    model = make_model(*[make_external(t, tmp_path, f"f{i}") for i, t in enumerate(weights)])
    copied(save(model, tmp_path / "m.onnx"), tmp_path / "out.onnx")
    np.testing.assert_equal(values_of(tmp_path / "out.onnx"), expected)


def test_a_file_that_is_closed_can_be_closed_again(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"")
    file = files.InputFile(str(path))
    file.close()
    file.close()


def test_a_file_has_its_size_before_it_is_filled(tmp_path):
    target = tmp_path / "f"
    with files.OutputFile(target) as out:
        out.write(b"head")
        place = out.reserve(5000)
        out.complete()
        (unfinished,) = tmp_path.iterdir()
        assert unfinished.stat().st_size == 5004
        out.fill(place, [b"body"])
        out.commit(target)
    assert target.read_bytes() == b"headbody" + bytes(4996)


# --- whole or not at all -------------------------------------------------------------------------


def listing(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_equal_input_gives_equal_files(external_model, tmp_path):
    copied(external_model, tmp_path / "out.onnx")
    first = listing(tmp_path)
    copied(external_model, tmp_path / "out.onnx")
    assert listing(tmp_path) == first


def test_a_replaced_output_takes_its_data_file_along(external_model, tmp_path):
    ones = {"a": lambda: np.ones(100, np.float32)}
    copied(external_model, tmp_path / "out.onnx")
    old = data_files(tmp_path)
    copied(external_model, tmp_path / "out.onnx", edit=lambda m: m.graph.ClearField("name"))
    assert len(data_files(tmp_path)) == 1
    assert data_files(tmp_path) != old
    copied(save(make_model(), tmp_path / "plain.onnx"), tmp_path / "out.onnx")
    assert data_files(tmp_path) == []
    copied(external_model, tmp_path / "out.onnx", ones)
    assert len(data_files(tmp_path)) == 1


def test_data_files_of_others_stay(external_model, tmp_path):
    """Names like ours that the replaced model does not use, and those that the source uses."""
    copied(external_model, tmp_path / "out.onnx")
    (tmp_path / "out.onnx").rename(tmp_path / "renamed.onnx")
    (tmp_path / f"out.onnx.{16 * 'a'}.data").write_bytes(b"other")
    before = listing(tmp_path)
    zeros = {"a": lambda: np.zeros(100, np.float32)}
    copied(tmp_path / "renamed.onnx", tmp_path / "out.onnx", zeros)
    copied(tmp_path / "renamed.onnx", tmp_path / "out.onnx")
    after = listing(tmp_path)
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("m.onnx.0123456789abcdef.data", True),
        ("m.onnx.0123456789ABCDEF.data", False),
        ("m.onnx.0123456789abcdeg.data", False),
        ("m.onnx.0123456789abcde.data", False),
        ("n.onnx.0123456789abcdef.data", False),
        ("m.onnx.0123456789abcdef.bin", False),
        ("m.onnx.weights-of-mine..data", False),
    ],
)
def test_the_name_of_a_data_file_of_ours(name, ours, tmp_path):
    """Only such a file is removed with the model that it belongs to."""
    assert writer.is_data_name(name, tmp_path / "m.onnx") == ours


def test_a_data_file_of_another_tool_stays_when_its_model_is_replaced(external_model, tmp_path):
    """Whatever it is called: only names that carry a hash are of files written here."""
    target = tmp_path / "out.onnx"
    tensor = floats("w", 100)
    make_external(tensor, tmp_path, "out.onnx.somebodys-weight.data")
    save(make_model(tensor), target)
    copied(external_model, target)
    assert (tmp_path / "out.onnx.somebodys-weight.data").exists()


def test_the_data_file_of_a_copy_stays_while_the_copy_is_the_source(external_model, tmp_path):
    copied(external_model, tmp_path / "out.onnx")
    (data,) = data_files(tmp_path)
    (tmp_path / "copy.onnx").write_bytes((tmp_path / "out.onnx").read_bytes())
    before = values_of(tmp_path / "copy.onnx")
    copied(tmp_path / "copy.onnx", tmp_path / "out.onnx", edit=lambda m: m.ClearField("doc_string"))
    assert data in data_files(tmp_path)
    np.testing.assert_equal(values_of(tmp_path / "copy.onnx"), before)
    np.testing.assert_equal(values_of(tmp_path / "out.onnx"), before)


@pytest.mark.parametrize("same_model_file", [True, False])
@pytest.mark.parametrize("calls", [0, 1, 2])
def test_dying_between_renames_leaves_a_pair(external_model, tmp_path, calls, same_model_file):
    """The process is killed before its first, second or third rename: old pair or new pair."""
    target = tmp_path / "out.onnx"
    copied(external_model, target)
    script = f"""
import os
import numpy as np
from onnx_bnfold.storage import ModelFile

rename, left = os.replace, [{calls}]
def replace(*args):
    if not left[0]:
        os.kill(os.getpid(), 9)
    left[0] -= 1
    rename(*args)
os.replace = replace
with ModelFile.open({str(external_model)!r}) as file:
    if not {same_model_file}:
        file.model.doc_string = "new"
    file.write(file.model, {{"big": lambda: [np.ones(1 << 18, np.float32)]}}, {str(target)!r})
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False).returncode
    assert killed == (-9 if calls < 2 else 0)
    is_new = bool((values_of(target)["big"] == 1).all())
    doc = onnx.load(target, load_external_data=False).doc_string
    if not same_model_file:
        assert is_new == (doc == "new")
    # With the same model file the data file's rename, the first of the two, is the change.
    assert is_new == (calls == 2 or (calls == 1 and same_model_file))


@pytest.mark.parametrize("error", [ZeroDivisionError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["a", "inline"])
def test_nothing_is_left_when_a_computation_fails(external_model, tmp_path, error, name):
    def fail():
        raise raised

    raised = error("no")
    (tmp_path / "out.onnx").write_bytes(b"old")
    before = listing(tmp_path)
    with pytest.raises(error) as caught:
        copied(external_model, tmp_path / "out.onnx", {name: fail})
    assert caught.value is raised
    assert listing(tmp_path) == before


def test_nothing_is_left_when_the_last_rename_fails(external_model, tmp_path, monkeypatch):
    before, replace = listing(tmp_path), os.replace

    def refuse(source, target):
        if str(target).endswith(".onnx"):
            raise OSError(errno.EIO, "the disk has gone")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UsageError, match="cannot be written: the disk has gone"):
        copied(external_model, tmp_path / "out.onnx")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("name", ["data", "onnx"])
def test_interrupt_right_after_a_rename(external_model, tmp_path, monkeypatch, name):
    before, replace = listing(tmp_path), os.replace

    def interrupted(source, target):
        replace(source, target)
        if str(target).endswith(name):
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        copied(external_model, tmp_path / "out.onnx")
    if name == "data":
        assert listing(tmp_path) == before
    else:
        assert values_of(tmp_path / "out.onnx")["big"].size == 1 << 18


def test_full_disk(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    source = save(make_model(floats("w", 1 << 20)), tmp_path / "m.onnx")
    before = listing(tmp_path)
    for name in ("copy_file_range", "pwrite", "write"):
        monkeypatch.setattr(os, name, refuse, raising=False)
    with pytest.raises(UsageError, match="cannot be written: No space left"):
        copied(source, tmp_path / "out.onnx")
    monkeypatch.undo()
    assert listing(tmp_path) == before


@pytest.mark.parametrize("fails", [True, False])
def test_a_computation_ends_in_the_thread_that_began_it(tmp_path, monkeypatch, fails):
    """It may hold settings of that thread, such as what numpy warns of."""
    threads = []

    def parts():
        try:
            yield b"1234"
            yield b"5678"
        finally:
            threads.append(threading.get_ident())

    def refuse(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    met, held = [], parts()
    with files.OutputFile(tmp_path / "out") as out:
        place = out.reserve(8)
        out.complete()
        if fails:
            monkeypatch.setattr(os, "pwrite", refuse, raising=False)

        def work():
            met.append(threading.get_ident())
            try:
                out.fill(place, held)
            except UsageError as error:
                met.append(error)

        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
    assert threads == met[:1]
    assert len(met) == 1 + fails


def test_values_that_overlap_in_a_data_file(tmp_path):
    """Writers share equal bytes, and a hostile model shares any: each tensor is read whole."""
    first, second = floats("a", 100), floats("b", 100, seed=1)
    make_external(first, tmp_path, "w.bin")
    make_external(second, tmp_path, "w.bin", at=200)
    source = save(make_model(first, second), tmp_path / "m.onnx")
    copied(source, tmp_path / "out.onnx")
    wanted, found = (onnx.load(tmp_path / name) for name in ("m.onnx", "out.onnx"))
    for one, other in zip(wanted.graph.initializer, found.graph.initializer, strict=True):
        assert one.raw_data == other.raw_data


def test_new_file_has_the_usual_permissions(tmp_path):
    source = save(make_model(floats("w", 9)), tmp_path / "m.onnx")
    copied(source, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_mode == source.stat().st_mode


def test_each_value_is_computed_once(tmp_path):
    calls = []
    source = save(make_model(floats("a", 2), floats("b", 2000)), tmp_path / "m.onnx")
    pending = {
        name: lambda name=name, n=n: calls.append(name) or np.zeros(n, np.float32)
        for name, n in (("b", 2000), ("a", 2))
    }
    copied(source, tmp_path / "out.onnx", pending)
    assert calls == ["a", "b"]


@pytest.mark.parametrize(
    ("pending", "message"),
    [
        ({"x": lambda: np.zeros(2, np.float32)}, "no initializers named .'x'"),
        (
            {"a": lambda: np.zeros(3, np.float32)},
            "'a' is float32 .2. and lacks 2 values, its new values are float32 .3.",
        ),
        ({"a": lambda: np.zeros(2)}, "its new values are float64"),
    ],
    ids=["unknown name", "wrong shape", "wrong type"],
)
def test_pending_values_must_fit(tmp_path, pending, message):
    source = save(make_model(floats("a", 2)), tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=message):
        copied(source, tmp_path / "out.onnx", pending)
    assert not (tmp_path / "out.onnx").exists()


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "link", [None, os.symlink, os.link], ids=["same path", "symbolic link", "hard link"]
)
@pytest.mark.parametrize("name", ["m.onnx", "two"])
def test_target_is_the_source(external_model, tmp_path, link, name):
    target = tmp_path / (f"link-to-{name}" if link else name)
    if link:
        link(tmp_path / name, target)
    before = listing(tmp_path)
    with pytest.raises(UsageError, match="is a file of the input model"):
        copied(external_model, target)
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("target", "message"),
    [("none/out.onnx", "folder .* does not exist"), ("folder", "not a regular file")],
)
def test_target_cannot_be_written(tmp_path, target, message):
    (tmp_path / "folder").mkdir()
    source = save(make_model(), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=message):
        copied(source, tmp_path / target)


def test_a_link_as_target_is_replaced(tmp_path):
    source = save(make_model(), tmp_path / "m.onnx")
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "out.onnx").symlink_to(tmp_path / "other")
    copied(source, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").is_symlink()
    assert (tmp_path / "other").read_bytes() == b"other"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"This is a README.\n" * 9, "is a text that begins with 'This is a README.'"),
        (bytes(99), "zeros alone"),
        (b"\xff" * 99, "not an ONNX model or was cut off"),
        (b"\x08\x07", "has no graph"),
        (b"\x3a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", "was cut off"),
        (b"\x08\x07\x3a\x02\x0b\x0b", "was cut off"),
    ],
    ids=["empty", "text", "zeros", "noise", "no graph", "endless length", "open group"],
)
def test_not_a_model(tmp_path, content, message):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        ModelFile.open(path)
    assert str(path) in str(caught.value)


def test_every_truncation_is_noticed(tmp_path, all_large):
    content = make_model(floats("a", 9), floats("b", 5)).SerializeToString()
    path = tmp_path / "m.onnx"
    graph = content.index(b"\x3a") + 2
    for size in range(graph + 1, graph + content[graph - 1]):
        path.write_bytes(content[:size])
        with pytest.raises(ModelError, match="was cut off"):
            ModelFile.open(path)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "loop"])
def test_no_file(tmp_path, kind):
    path = tmp_path / "m.onnx"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    with pytest.raises(ModelError, match="is a folder" if kind == "folder" else "cannot be opened"):
        ModelFile.open(path)


def test_deep_nesting(tmp_path):
    body = b""
    for _ in range(5000):  # graph.node.attribute.g.node. ...
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            body = tag + wire._varint(len(body)) + body
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x3a" + wire._varint(len(body)) + body)
    with pytest.raises(ModelError, match="not an ONNX model"):
        ModelFile.open(path)


BAD_PLACES = {
    "absolute": ({"location": "/etc/hostname"}, "below the model's folder"),
    "absolute inside": ({"location": "{folder}/w"}, "below the model's folder"),
    "above": ({"location": "../w"}, "below the model's folder"),
    "above and back": ({"location": "sub/../w"}, "below the model's folder"),
    "empty": ({"location": ""}, "below the model's folder"),
    "no location": ({"location": None}, "below the model's folder"),
    "the folder": ({"location": "."}, "below the model's folder"),
    "link out": ({"location": "out"}, "below the model's folder"),
    "folder link out": ({"location": "up/w"}, "below the model's folder"),
    "zero byte": ({"location": "w\0"}, "null"),
    "missing": ({"location": "none"}, "cannot be read: No such file"),
    "subfolder": ({"location": "sub"}, "not a regular file"),
    "pipe": ({"location": "pipe"}, "not a regular file"),
    "negative offset": ({"offset": -4}, "offset '-4'"),
    "spaced offset": ({"offset": " 4"}, "offset ' 4'"),
    "signed offset": ({"offset": "+4"}, "offset '.4'"),
    "hexadecimal offset": ({"offset": "0x4"}, "offset '0x4'"),
    "overflowing offset": ({"offset": 1 << 64}, "offset '18446744073709551616'"),
    "arabic digits": ({"offset": "\u0664"}, "offset"),
    "offset behind the end": ({"offset": 4}, "it has 40 bytes, but its values end at byte 44"),
    "length too short": ({"length": 36}, "36 bytes of values where its shape .10. needs 40"),
    "length too long": ({"length": 44}, "44 bytes of values"),
    "empty length": ({"length": ""}, "length ''"),
}


@pytest.mark.parametrize(("entries", "message"), BAD_PLACES.values(), ids=BAD_PLACES)
def test_bad_place_of_external_data(tmp_path, entries, message):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "w").write_bytes(bytes(40))
    (folder / "out").symlink_to(tmp_path / "w")
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    entries = {key: value and str(value).format(folder=folder) for key, value in entries.items()}
    tensor = make_external(floats("the weight", 10), folder, "w", 0, entries)
    path = save(make_model(tensor), folder / "m.onnx")
    with pytest.raises(ModelError, match=message) as caught:
        ModelFile.open(path)
    assert str(path) in str(caught.value)
    assert "'the weight'" in str(caught.value)
    with pytest.raises(ModelError, match=message):
        read_tensor(tensor, folder)


def test_links_inside_the_folder_are_followed(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "link").symlink_to("blobs/w")
    tensor = make_external(floats("w", 10), tmp_path, "blobs/w")
    tensor.external_data[0].value = "link"
    with ModelFile.open(save(make_model(tensor), tmp_path / "m.onnx")) as file:
        np.testing.assert_array_equal(file.read(tensor), numpy_helper.to_array(floats("w", 10)))


def test_a_link_put_in_place_of_a_data_file_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr("onnx_bnfold.storage.model_file._MOST_OPEN", 1)
    first, second = (make_external(floats(n, 10), tmp_path, n) for n in "ab")
    (tmp_path / "secret").write_bytes(bytes(40))
    with ModelFile.open(save(make_model(first, second), tmp_path / "m.onnx")) as file:
        (tmp_path / "a").unlink()
        (tmp_path / "a").symlink_to("secret")
        with pytest.raises(ModelError, match="cannot be read: Too many levels of symbolic links"):
            file.read(first)
        with pytest.raises(ModelError, match=r"'a': its data file .*: Too many levels"):
            file.write(file.model, {}, tmp_path / "out.onnx")


def test_a_link_put_in_place_of_the_file_of_a_tensor_is_not_followed(tmp_path, monkeypatch):
    """As if it were put there between the look at the path and the opening of the file."""
    tensor = make_external(floats("w", 10), tmp_path, "a")
    (tmp_path / "secret").write_bytes(bytes(40))
    (tmp_path / "a").unlink()
    (tmp_path / "a").symlink_to("secret")
    monkeypatch.setattr("onnx_bnfold.storage.external.resolve", os.path.join)
    with pytest.raises(ModelError, match="Too many levels of symbolic links"):
        read_tensor(tensor, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dims": [11]}, "40 bytes of values where its shape .11. needs 44"),
        ({"dims": [-1, -10]}, "negative dimension"),
        ({"data_type": 99}, "unknown element type 99"),
        ({"data_type": 0}, "unknown element type 0"),
        ({"data_type": TensorProto.STRING}, "strings"),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", ["inline", "left in the file", "external"])
def test_values_that_do_not_fit(tmp_path, monkeypatch, change, message, layout):
    monkeypatch.setattr(skeleton, "SMALL", 8 if layout == "left in the file" else 4096)
    tensor = floats("w", 10)
    if layout == "external":
        make_external(tensor, tmp_path, "d")
    elif layout == "inline" and change.get("data_type") == TensorProto.STRING:
        pytest.skip("strings may be in the message")
    for name, value in change.items():
        tensor.ClearField(name)
        tensor.MergeFrom(TensorProto(**{name: value}))
    path = save(make_model(tensor), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=message), ModelFile.open(path) as file:
        file.read(file.model.graph.initializer[0])


def test_packed_values_too_few_for_their_shape():
    tensor = TensorProto(name="w", dims=[1 << 40], data_type=TensorProto.INT4, int32_data=[1])
    with pytest.raises(ModelError, match="too few values"):
        read_tensor(tensor, None)


def test_external_tensor_without_a_folder(tmp_path):
    tensor = make_external(floats("w", 10), tmp_path, "d")
    with pytest.raises(ModelError, match="not loaded; give the path of the model"):
        read_tensor(tensor, None)


def test_forged_reference_is_external_data_without_a_location(tmp_path):
    tensor = TensorProto(name="w", dims=[1000], data_type=1, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key=tensors.REFERENCE, value="7")
    path = save(make_model(tensor, floats("v", 2000)), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="'w' has its values in ''"):
        ModelFile.open(path)


def test_two_initializers_of_one_name(tmp_path):
    source = save(make_model(floats("w", 2), floats("w", 2)), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="two initializers are named 'w'"):
        copied(source, tmp_path / "out.onnx", {"w": lambda: np.zeros(2, np.float32)})


def test_source_that_shrinks_while_it_is_read(tmp_path):
    source = save(make_model(floats("w", 1 << 20)), tmp_path / "m.onnx")
    with ModelFile.open(source) as file:
        os.truncate(source, 1 << 20)
        with pytest.raises(ModelError, match="was shortened"):
            file.write(file.model, {}, tmp_path / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
