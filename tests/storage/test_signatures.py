"""What is not a model is named for what it is."""

import gzip
import io
import json
import pickle
import struct
import subprocess
import tarfile
import zipfile

import numpy as np
import onnx
import pytest
from google.protobuf import json_format, text_format
from graphs import Net
from support import saved_external

from onnx_bnfold.errors import ModelError
from onnx_bnfold.storage import ModelFile
from onnx_bnfold.storage.signatures import EMPTY, HEAD, LFS, kind_of

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 102442450\n"
)


def model() -> onnx.ModelProto:
    net = Net([1, 3, 4, 4])
    return net.model(net.conv("x", 2, 5))


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.onnx"))
    return buffer.getvalue()


def array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


def field(number: int, body: bytes) -> bytes:
    assert len(body) < 0x80
    return bytes([number << 3 | 2, len(body)]) + body


GRAPH = field(1, field(1, b"input") + field(2, b"Placeholder")) + field(4, b"\x08\x1b")
SAVED = b"\x08\x01" + field(2, field(1, field(2, field(1, field(1, b"Add")))))

NAMED = {
    "LFS": (POINTER, "Git LFS pointer"),
    "gzip": (gzip.compress(b"model" * 99), "gzip"),
    "zip": (zipped("model.onnx"), "zip archive"),
    "PyTorch": (zipped("archive/data.pkl", "archive/version"), "PyTorch"),
    "npz": (zipped("x.npy"), "npz"),
    "Keras": (zipped("metadata.json", "config.json"), "Keras"),
    "pickle": (pickle.dumps({"a": 1}), "pickle"),
    "tar": (tarred(), "tar archive"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
    "TensorFlow Lite": (b"\x1c\0\0\0TFL3" + bytes(99), "TensorFlow Lite"),
    "ORT": (b"\x18\0\0\0ORTM" + bytes(99), "ORT format"),
    "safetensors": (safetensors(), "safetensors"),
    "TensorFlow graph": (GRAPH, "TensorFlow graph"),
    "SavedModel": (SAVED, "SavedModel"),
    "HTML": (b"\n<!DOCTYPE html><html><title>x</title></html>", "web page"),
    "XML": (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "XML"),
    "JSON": (b'{"error": "Repository not found"}', "JSON"),
    "ONNX as JSON": (json_format.MessageToJson(model()).encode(), "ONNX model as JSON"),
    "ONNX as text": (text_format.MessageToString(model()).encode(), "ONNX model as text"),
    "ONNX syntax": (onnx.printer.to_text(model()).encode(), "ONNX model as text"),
    "text": ("# Modèles\n".encode() * 200, "text that begins with '# Modèles'"),
    "array": (array(), "numpy array"),
    "zeros": (bytes(500), "zeros alone"),
    "empty": (b"", "is empty"),
}


@pytest.mark.parametrize(("content", "what"), NAMED.values(), ids=NAMED)
def test_it_is_named(content, what, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        ModelFile.open(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert what in said
    assert "; " in said.partition(what)[2], "what can be done?"


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.gz", "a b"])
def test_the_advice_to_unpack_works(name, tmp_path):
    """Whatever the file is called: gunzip alone takes names in .gz only."""
    content = gzip.compress(b"model" * 99)
    (tmp_path / name).write_bytes(content)
    advice = kind_of(content, len(content)).advice.removeprefix("unpack it: ")
    command = advice.replace("FILE", f"'{tmp_path / name}'").replace("MODEL", str(tmp_path / "out"))
    subprocess.run(command, shell=True, check=True)
    assert (tmp_path / "out").read_bytes() == b"model" * 99


def test_each_kind_has_its_own_name():
    kinds = [kind_of(content[:HEAD], len(content)) for content, _ in NAMED.values()]
    assert None not in kinds
    assert len(set(kinds)) == len(kinds) - 1  # two forms of ONNX as text


def test_a_model_that_was_cut_off_is_none_of_them():
    content = model().SerializeToString()
    for size in range(1, len(content)):
        assert kind_of(content[:size][:HEAD], size) is None, size


def test_random_bytes_are_none_of_them(rng):
    assert kind_of(b"\x08" + rng.bytes(500), 501) is None


def test_a_text_whose_head_ends_within_a_character():
    content = b"a" + "é".encode() * HEAD
    kind = kind_of(content[:HEAD], len(content))
    assert kind is not None
    assert "text that begins with" in kind.what


@pytest.mark.parametrize(("content", "kind"), [(POINTER, LFS), (b"", EMPTY)], ids=["LFS", "empty"])
def test_a_data_file_is_named_too(content, kind, tmp_path):
    path = saved_external(model(), tmp_path / "m.onnx", "w.bin")
    (tmp_path / "w.bin").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        ModelFile.open(path)
    assert kind.what in str(caught.value)
    assert kind.advice in str(caught.value)
    assert "w.bin" in str(caught.value)


def test_a_data_file_that_is_too_short_is_said_to_be(tmp_path):
    path = saved_external(model(), tmp_path / "m.onnx", "w.bin")
    (tmp_path / "w.bin").write_bytes(np.float32([1.5]).tobytes())
    with pytest.raises(ModelError, match="it has 4 bytes, but its values end at byte"):
        ModelFile.open(path)
