"""The record that a fold leaves in the model's metadata_props."""

import hashlib
import json
from pathlib import Path

import onnx
import pytest
from support import bn, conv, join, model_of, node

from onnx_bnfold import Options, fold, fold_file
from onnx_bnfold.provenance import KEY, _hashing_of, begin_hashing, sha256_of
from onnx_bnfold.version import __version__

X = {"x": ("N", 3, 5, 6)}


@pytest.fixture
def half(tmp_path, rng) -> Path:
    """A model with a BN that goes and one that stays, and metadata of its own."""
    parts = join(
        conv("x", "c", (8, 3, 3, 3), rng),
        bn("c", "b", 8, rng),
        node("Sigmoid", ["b"], ["s"]),
        bn("s", "y", 8, rng),
    )
    model = model_of(parts.nodes, X, ["y"], parts.initializers)
    model.metadata_props.add(key="author", value="me")
    path = tmp_path / "half.onnx"
    onnx.save(model, path)
    return path


def metadata(path: Path) -> dict[str, str]:
    return {item.key: item.value for item in onnx.load(path).metadata_props}


def test_version_counts_and_source(half, tmp_path):
    fold_file(half, tmp_path / "f.onnx")
    found = metadata(tmp_path / "f.onnx")
    assert found.pop("author") == "me"
    assert json.loads(found.pop(KEY)) == {
        "version": __version__,
        "folded": 1,
        "kept": 1,
        "source_sha256": hashlib.sha256(half.read_bytes()).hexdigest(),
    }
    assert not found


def test_a_process_does_not_wait_for_a_hash_before_it_ends(half):
    assert _hashing_of(half)._thread.daemon


def test_a_second_fold_changes_no_byte(half, tmp_path):
    once, twice = tmp_path / "1.onnx", tmp_path / "2.onnx"
    fold_file(half, once)
    fold_file(once, twice)
    assert once.read_bytes() == twice.read_bytes()


def test_a_fold_that_goes_on_replaces_the_record(half, tmp_path):
    once, twice = tmp_path / "1.onnx", tmp_path / "2.onnx"
    fold_file(half, once)
    fold_file(once, twice, Options(standalone="mul-add"))
    entries = [item for item in onnx.load(twice).metadata_props if item.key == KEY]
    assert len(entries) == 1
    assert json.loads(entries[0].value)["source_sha256"] == sha256_of(once)


def test_a_fold_that_removes_nothing_records_nothing(tmp_path, rng):
    parts = conv("x", "c", (4, 3, 1, 1), rng)
    path = tmp_path / "m.onnx"
    onnx.save(model_of(parts.nodes, X, ["c"], parts.initializers), path)
    fold_file(path, tmp_path / "f.onnx")
    assert not metadata(tmp_path / "f.onnx")


def test_without_metadata(half, tmp_path):
    fold_file(half, tmp_path / "f.onnx", Options(metadata=False))
    assert metadata(tmp_path / "f.onnx") == {"author": "me"}


def test_a_fold_in_memory_has_no_file_to_name(half):
    folded, _ = fold(onnx.load(half))
    assert [item.key for item in folded.metadata_props] == ["author"]


@pytest.mark.parametrize("external", [False, True], ids=["inside", "external data"])
def test_the_file_is_what_protobuf_writes(external, half, tmp_path):
    """The record is written into the bytes last; they are as if it had been there before."""
    model = onnx.load(half)
    if external:
        onnx.save(model, half, save_as_external_data=True, size_threshold=16, location="w")
    target = tmp_path / "out" / "f.onnx"
    target.parent.mkdir()
    fold_file(half, target)
    loaded = onnx.load(target, load_external_data=False)
    assert target.read_bytes() == loaded.SerializeToString(deterministic=True)
    source = json.loads({i.key: i.value for i in loaded.metadata_props}[KEY])["source_sha256"]
    assert source == sha256_of(half)
    onnx.checker.check_model(target)


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1])
def test_sha256(size, tmp_path):
    path = tmp_path / "f"
    path.write_bytes(bytes(size))
    assert sha256_of(path) == hashlib.sha256(bytes(size)).hexdigest()


def test_hashing_begins_before_the_hash_is_asked_for(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr("onnx_bnfold.provenance._Hashing", begun.append)
    (tmp_path / "f").write_bytes(b"content")
    for path in (tmp_path / "f", tmp_path, tmp_path / "nothing"):
        begin_hashing(path)
    assert begun == [str(tmp_path / "f")]


@pytest.mark.parametrize("error", [OSError, MemoryError])
def test_what_cannot_be_hashed_has_no_hash(error, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    (tmp_path / "f").write_bytes(b"content")
    with monkeypatch.context() as patch:
        patch.setattr("onnx_bnfold.provenance.page_aligned", fail)
        with pytest.raises(error):
            sha256_of(tmp_path / "f")
    assert sha256_of(tmp_path / "f") == hashlib.sha256(b"content").hexdigest()
