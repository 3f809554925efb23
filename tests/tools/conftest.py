import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

# `tools` is no installed package: it is found from the repository's root.
sys.path.insert(0, str(Path(__file__).parents[2]))

from tools.mnist import data

VALIDATION_COUNT = 64
TRAIN_COUNT = VALIDATION_COUNT + 5 * 128
TEST_COUNT = 64


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim])
    return header + np.array(values.shape, ">i4").tobytes() + values.tobytes()


@pytest.fixture(scope="session")
def generated() -> dict[str, bytes]:
    """Four IDX files: noise, and in it a bright bar whose row is the label."""
    rng = np.random.default_rng(0)
    files = {}
    for name, count in (("train", TRAIN_COUNT), ("t10k", TEST_COUNT)):
        labels = rng.integers(10, size=count, dtype=np.uint8)
        images = rng.integers(100, size=(count, 28, 28), dtype=np.uint8)
        images[np.arange(count), 4 + 2 * labels.astype(int)] = 255
        files[f"{name}-images-idx3-ubyte"] = idx(images)
        files[f"{name}-labels-idx1-ubyte"] = idx(labels)
    return files


@pytest.fixture
def folder(tmp_path, generated, monkeypatch) -> Path:
    """A folder with the generated files, with hashes and a split of their own."""
    path = tmp_path / "data"
    path.mkdir()
    for name, content in generated.items():
        (path / name).write_bytes(content)
    hashes = {name: hashlib.sha256(generated[name]).hexdigest() for name in data.SHA256}
    monkeypatch.setattr(data, "SHA256", hashes)
    monkeypatch.setattr(data, "VALIDATION_COUNT", VALIDATION_COUNT)
    return path
