"""Accuracy on streamed data, .npz and IDX."""

import gzip

import numpy as np
import pytest
from onnx import helper
from pairs import CLASSES, finish, fold, model, pair, weights

from onnx_bnfold.check import CheckOptions, check, render_text
from onnx_bnfold.check.data import Dataset
from onnx_bnfold.check.sessions import InputSpec
from onnx_bnfold.errors import ModelError, UsageError

N = 50
CHOICES = 8  # classes of `chooser`


def chooser(order=range(CHOICES), *, shape=("N", CHOICES), head=()):
    """A model that hands its input's columns on in another order: its top class is chosen."""
    eye = np.eye(CHOICES, dtype=np.float32)[:, list(order)]
    ends = ["scores", "y"][: 1 + len(head)]
    ends[-1] = "y"
    nodes = [helper.make_node("Flatten", ["x"], ["flat"])]
    nodes.append(helper.make_node("MatMul", ["flat", "m"], [ends[0]]))
    nodes += [helper.make_node(op, ["scores"], ["y"], axis=1) for op in head]
    return finish(nodes, {"m": eye}, shape)


@pytest.fixture
def data(tmp_path, rng):
    """Scores whose top class is the label in the first 40 of 50 rows."""
    scores = rng.uniform(0, 1, (N, CHOICES)).astype(np.float32)
    labels = rng.integers(0, CHOICES, N)
    scores[np.arange(N), labels] = 2
    scores[40:] = scores[40:, ::-1]
    scores[40:, 3] = 3
    labels[40:] = 4
    path = tmp_path / "test.npz"
    np.savez(path, x=scores, labels=labels)
    return path


def accuracy_of(original, folded, path, **options):
    # A fault is wanted here: the numerics must not end the check.
    result = check(original, folded, CheckOptions(data=path, atol=1e9, **options))
    return result, result.accuracy


@pytest.mark.parametrize("batch", [None, 1, 7, 50, 500])
def test_counts(data, batch):
    result, accuracy = accuracy_of(chooser(), chooser(), data, batch=batch)
    assert result.holds
    assert accuracy.examples == N
    assert (accuracy.top1_original, accuracy.top1_folded) == (0.8, 0.8)
    assert accuracy.changed == 0
    assert accuracy.agreement == 1
    assert 0.8 <= accuracy.top5_original <= 1
    assert "80.0000%" in render_text(result)


def test_changed_predictions(data):
    # 3 and 4 change places: the last ten become right, some of the others wrong.
    _, accuracy = accuracy_of(chooser(), chooser([0, 1, 2, 4, 3, 5, 6, 7]), data)
    with np.load(data) as loaded:
        wrong = int(np.isin(loaded["labels"][:40], (3, 4)).sum())
    assert accuracy.became_right == 10
    assert accuracy.became_wrong == wrong > 0
    assert accuracy.changed == 10 + wrong
    assert accuracy.drop == pytest.approx((wrong - 10) / N)
    assert accuracy.agreement == pytest.approx(1 - (10 + wrong) / N)


@pytest.mark.parametrize(
    ("gate", "failed"),
    [
        ({"max_accuracy_drop": 0.0}, "accuracy"),
        ({"max_accuracy_drop": 1.0}, None),
        ({"min_agreement": 0.9999}, "agreement"),
        ({"min_agreement": 0.0}, None),
        ({}, None),
    ],
    ids=str,
)
def test_gates(data, gate, failed):
    result, accuracy = accuracy_of(chooser(), chooser(np.roll(range(CHOICES), 1)), data, **gate)
    assert accuracy.drop > 0
    assert result.holds is (failed is None)
    if failed:
        assert result.failures[0].startswith(failed)


def test_right_fold_keeps_every_prediction(tmp_path, rng):
    values = weights()
    path = tmp_path / "test.npz"
    x = rng.standard_normal((N, 3, 12, 12)).astype(np.float32)
    np.savez_compressed(path, x=x, labels=rng.integers(0, CLASSES, (N, 1)))
    gates = CheckOptions(data=path, max_accuracy_drop=0, min_agreement=0.9999, batch=16)
    assert check(model(values), model(fold(values)), gates).holds


def test_fixed_batch_is_filled_up(data):
    fixed = chooser(shape=(16, CHOICES))
    _, accuracy = accuracy_of(fixed, fixed, data, batch=3)
    assert (accuracy.batch, accuracy.examples, accuracy.top1_original) == (16, N, 0.8)


def test_model_that_returns_class_ids(data):
    _, accuracy = accuracy_of(chooser(head=["ArgMax"]), chooser(head=["ArgMax"]), data)
    assert accuracy.top1_original == 0.8
    assert accuracy.top5_original is None


def test_no_class_output(tmp_path):
    path = tmp_path / "test.npz"
    np.savez(path, x=np.ones((4, 3, 5, 5), np.float32), labels=np.zeros(4, int))
    relu = finish([helper.make_node("Relu", ["x"], ["y"])], {}, ("N", 3, 5, 5))
    with pytest.raises(ModelError, match="class scores"):
        accuracy_of(relu, relu, path)


def test_data_that_do_not_fit_are_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("onnx_bnfold.check.numerics.RoundedWeights", None)
    path = tmp_path / "test.npz"
    np.savez(path, x=np.ones((4, 3, 12, 12), np.float32))
    with pytest.raises(UsageError, match="has no array 'labels'; it has x"):
        check(*pair(), CheckOptions(data=path))


def write_idx(path, array, *, code=8):
    header = bytes([0, 0, code, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wb") as file:
        file.write(header + array.tobytes())


@pytest.fixture
def idx(tmp_path, rng):
    """Eight-pixel images whose brightest pixel is the label; a training set to be left alone."""
    images = rng.integers(0, 200, (N, 2, 4), dtype=np.uint8)
    labels = rng.integers(0, 8, N, dtype=np.uint8)
    images.reshape(N, 8)[np.arange(N), labels] = 255
    write_idx(tmp_path / "t10k-images-idx3-ubyte", images)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", labels)
    write_idx(tmp_path / "train-images-idx3-ubyte", images[::-1])
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels)
    return tmp_path


@pytest.mark.parametrize("shape", [("N", 1, 2, 4), ("N", 2, 4, 1), ("N", 8)], ids=str)
def test_idx_folder(idx, shape):
    _, accuracy = accuracy_of(chooser(shape=shape), chooser(shape=shape), idx)
    assert accuracy.examples == N
    assert accuracy.top1_original == 1


def test_idx_pixels_are_scaled(idx):
    with Dataset(idx, [InputSpec("x", "tensor(float)", ("N", 1, 2, 4))]) as data:
        feed, _ = next(data.batches(N))
    assert feed["x"].dtype == np.float32
    assert feed["x"].max() == 1
    with Dataset(idx, [InputSpec("x", "tensor(uint8)", ("N", 1, 2, 4))]) as data:
        feed, _ = next(data.batches(N))
    assert feed["x"].max() == 255


def test_batches_are_read_one_at_a_time(tmp_path):
    path = tmp_path / "big.npz"
    np.savez(path, x=np.arange(4000, dtype=np.float32).reshape(1000, 4), labels=np.arange(1000))
    with Dataset(path, [InputSpec("x", "tensor(float)", ("N", 4))]) as data:
        seen = 0
        for feed, labels in data.batches(300):
            assert np.array_equal(feed["x"][:, 0], 4 * labels)
            assert data._rows["x"].stream.tell() == 128 + 16 * (seen + len(labels))
            seen += len(labels)
    assert seen == 1000


X = np.ones((4, 8), np.float32)
LABELS = np.zeros(4, np.int64)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "has no array 'labels'"),
        ({"y": X, "labels": LABELS}, "has no array 'x'"),
        ({"x": X, "labels": LABELS[:3]}, "has 4 rows, but there are 3 labels"),
        ({"x": X, "labels": LABELS.astype(float)}, "labels must be integers"),
        ({"x": X, "labels": np.eye(4, dtype=int)}, "labels must be integers of shape"),
        ({"x": X, "labels": LABELS + 8}, "labels run from 8 to 8"),
        ({"x": X, "labels": LABELS - 1}, "labels run from -1"),
        ({"x": X[:0], "labels": LABELS[:0]}, "no examples"),
        ({"x": X[:, :5], "labels": LABELS}, r"shape \[4, 5\]"),
        ({"x": np.asfortranarray(X), "labels": LABELS}, "Fortran order"),
        ({"x": X.astype(complex), "labels": LABELS}, "is complex128"),
        ({"x": np.array([None] * 4), "labels": LABELS}, "Python objects"),
        ({"x": np.float32(1), "labels": LABELS}, "single number"),
    ],
)
def test_data_that_do_not_fit(tmp_path, arrays, message):
    path = tmp_path / "test.npz"
    np.savez(path, **arrays)
    with pytest.raises(UsageError, match=message):
        accuracy_of(chooser(), chooser(), path)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("name", ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte.gz"])
def test_truncated_idx(idx, name):
    _cut(idx / name)
    with pytest.raises(UsageError, match=r"truncated|cannot read data"):
        accuracy_of(chooser(), chooser(), idx)


def test_unreadable_data(tmp_path):
    with pytest.raises(UsageError, match="cannot read data"):
        accuracy_of(chooser(), chooser(), tmp_path / "absent.npz")
    with pytest.raises(UsageError, match="has no file"):
        accuracy_of(chooser(), chooser(), tmp_path)
    (tmp_path / "images-idx3-ubyte").write_bytes(b"PNG")
    (tmp_path / "labels-idx1-ubyte").write_bytes(b"")
    with pytest.raises(UsageError, match="not an IDX file"):
        accuracy_of(chooser(), chooser(), tmp_path)
