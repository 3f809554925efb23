"""Small stores of models for the tests of onnx_bnfold.batch."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import onnx
from graphs import Net
from onnx import ModelProto

from onnx_bnfold import fold_file
from onnx_bnfold.batch.locations import STATE


def small_model(seed: int = 0, *, layers: int = 2, channels: int = 4) -> ModelProto:
    """A chain of Conv, BatchNormalization and Relu."""
    net = Net([1, 3, 8, 8], seed=seed)
    x = "x"
    for _ in range(layers):
        x = net.op("Relu", net.bn(net.conv(x, channels, 3, pads=[1, 1, 1, 1])))
    return net.model(x)


def write(path: Path, content: bytes | ModelProto = b"other") -> Path:
    """A file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


def write_external(path: Path, data: str, **options) -> Path:
    """A model whose weights are in the file `data` beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / data).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(
        small_model(**options), path, save_as_external_data=True, location=data, size_threshold=16
    )
    return path


def fill(folder: Path, number: int, **options) -> Path:
    """A store of models in two levels of folders, and some other files."""
    for index in range(number):
        write(folder / f"net{index % 3}" / str(index) / "model.onnx", small_model(index, **options))
    write(folder / "net0" / "config.pbtxt", b"platform: 'onnxruntime_onnx'\n")
    write(folder / "README", b"models\n")
    return folder


def digests(folder: Path) -> dict[str, str]:
    """The content of all files below a folder; links are marked as such."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() and path.is_dir():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def expected(folder: Path, scratch: Path) -> dict[str, str]:
    """What `digests` should find in the output, made file by file."""
    scratch.mkdir()
    for path in sorted(folder.rglob("*")):
        target = scratch / path.relative_to(folder)
        if path.is_dir():
            target.mkdir()
        elif path.suffix == ".onnx":
            fold_file(path, target)
        else:
            write(target, path.read_bytes())
    return digests(scratch)


def state_of(output: Path) -> Path:
    return output.with_name(f"{output.name}{STATE}")


def unfinished(output: Path) -> list[str]:
    """What is left in the state of work that is not complete."""
    return os.listdir(state_of(output) / "unfinished")


def command(*words: str | Path) -> list[str]:
    """The command line of a store."""
    return [sys.executable, "-m", "onnx_bnfold", *map(str, words)]


def start(*words: str | Path) -> subprocess.Popen:
    """A run in a process group of its own."""
    return subprocess.Popen(
        command(*words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def is_running(group: int) -> bool:
    """Whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
