"""Random inputs and input files."""

import numpy as np
import pytest

from onnx_bnfold.check import CheckOptions
from onnx_bnfold.check.inputs import make_feeds, resolve_shapes
from onnx_bnfold.check.sessions import InputSpec
from onnx_bnfold.errors import UsageError

IMAGE = InputSpec("image", "tensor(float)", ("N", 3, "H", None))
IDS = InputSpec("ids", "tensor(int64)", ("N", "L"))


@pytest.mark.parametrize(
    ("given", "image", "ids"),
    [
        ({}, (2, 3, 64, 64), (2, 8)),
        ({"image": (1, 3, 224, 200)}, (1, 3, 224, 200), (1, 8)),
        ({"N": (5,)}, (5, 3, 64, 64), (5, 8)),
        ({"H": (7,), "ids": (4, 9)}, (4, 3, 7, 64), (4, 9)),
    ],
    ids=["default", "one input", "symbol", "symbol and input"],
)
def test_shapes(given, image, ids):
    assert resolve_shapes([IMAGE, IDS], given) == {"image": image, "ids": ids}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"imgae": (1,)}, "no input or dimension 'imgae'; the model has H, L, N, ids, image"),
        ({"N": (1, 2)}, "takes one size"),
        ({"image": (1, 4, 8, 8)}, r"does not fit input 'image': \[N, 3, H, \?\]"),
        ({"image": (1, 3, 8)}, "does not fit"),
    ],
)
def test_wrong_shapes(given, message):
    with pytest.raises(UsageError, match=message):
        resolve_shapes([IMAGE, IDS], given)


def test_a_scalar_and_an_input_of_unknown_rank():
    spec = InputSpec("s", "tensor(float)", ())
    assert resolve_shapes([spec], {}) == {"s": ()}
    assert resolve_shapes([spec], {"s": (3, 4)}) == {"s": (3, 4)}
    assert make_feeds([spec], CheckOptions())[0]["s"].shape == ()


@pytest.mark.parametrize("bits", ["float16", "float", "double"])
def test_floats(bits):
    spec = InputSpec("x", f"tensor({bits})", (1000,))
    values = make_feeds([spec], CheckOptions())[0]["x"]
    assert values.dtype == {"float16": "f2", "float": "f4", "double": "f8"}[bits]
    assert abs(values.mean()) < 0.2
    assert 0.9 < values.std() < 1.1
    values = make_feeds([spec], CheckOptions(value_range=(2, 3)))[0]["x"]
    assert 2 <= values.min() < values.max() <= 3


@pytest.mark.parametrize("bits", ["int8", "uint8", "int32", "int64", "uint64"])
def test_integers(bits):
    spec = InputSpec("x", f"tensor({bits})", (1000,))
    values = make_feeds([spec], CheckOptions())[0]["x"]
    assert values.dtype == bits
    assert set(values.tolist()) == set(range(10))
    values = make_feeds([spec], CheckOptions(value_range=(3, 4)))[0]["x"]
    assert set(values.tolist()) == {3, 4}


def test_bools():
    values = make_feeds([InputSpec("x", "tensor(bool)", (100,))], CheckOptions())[0]["x"]
    assert values.dtype == bool
    assert 0 < values.sum() < 100


def test_sets_differ_and_repeat():
    specs = [IMAGE, IDS]
    first, second = (make_feeds(specs, CheckOptions(sets=2)) for _ in range(2))
    assert np.array_equal(first[1]["image"], second[1]["image"])
    assert not np.array_equal(first[0]["image"], first[1]["image"])
    other = make_feeds(specs, CheckOptions(seed=1))
    assert not np.array_equal(first[0]["image"], other[0]["image"])


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (InputSpec("s", "tensor(string)", (1,)), {}, "takes strings; give them with --inputs"),
        (InputSpec("s", "seq(tensor(float))", ()), {}, "has type seq"),
        (InputSpec("s", "tensor(uint8)", (1,)), {"value_range": (-1, 1)}, "does not fit input 's'"),
    ],
)
def test_values_that_cannot_be_made(spec, options, message):
    with pytest.raises(UsageError, match=message):
        make_feeds([spec], CheckOptions(**options))


def test_files(tmp_path):
    image = np.ones((1, 3, 5, 6))
    np.savez(tmp_path / "in.npz", image=image, ids=np.ones((1, 4), "i4"), other=1)
    (feed,) = make_feeds([IMAGE, IDS], CheckOptions(inputs=tmp_path / "in.npz"))
    assert feed["image"].dtype == "float32"
    assert feed["ids"].dtype == "int64"
    assert set(feed) == {"image", "ids"}
    np.save(tmp_path / "in.npy", image)
    (feed,) = make_feeds([IMAGE], CheckOptions(inputs=tmp_path / "in.npy"))
    assert feed["image"].shape == (1, 3, 5, 6)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"ids": np.ones((1, 4), "i8")}, "has no array 'image'; it has ids"),
        ({"image": np.ones((1, 3, 5, 6)), "ids": np.ones((1, 4))}, "'ids' is float64"),
        ({"image": np.ones((1, 1, 5, 6)), "ids": np.ones((1, 4), "i8")}, r"shape \[1, 1, 5, 6\]"),
        ({"image": np.array([None]), "ids": np.ones((1, 4), "i8")}, "cannot read inputs"),
    ],
    ids=["missing", "kind", "shape", "object"],
)
def test_files_that_do_not_fit(tmp_path, arrays, message):
    path = tmp_path / "in.npz"
    np.savez(path, **arrays)
    with pytest.raises(UsageError, match=message):
        make_feeds([IMAGE, IDS], CheckOptions(inputs=path))


def test_unreadable_files(tmp_path):
    path = tmp_path / "in.npz"
    with pytest.raises(UsageError, match="cannot read inputs"):
        make_feeds([IMAGE], CheckOptions(inputs=path))
    path.write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(UsageError, match="cannot read inputs"):
        make_feeds([IMAGE], CheckOptions(inputs=path))
    np.save(tmp_path / "in.npy", np.ones(3))
    with pytest.raises(UsageError, match=r"use an \.npz"):
        make_feeds([IMAGE, IDS], CheckOptions(inputs=tmp_path / "in.npy"))
