"""Measure the peak memory of a model in a process of its own.

    python -m onnx_bnfold.check.memory_probe model.onnx inputs.npz enabled 1 [library ...]

prints two integers: the process's peak resident bytes before the session and after one run.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from onnx_bnfold.check.models import CheckedModel
from onnx_bnfold.check.options import Mode
from onnx_bnfold.check.sessions import Feed, Session, onnxruntime_version
from onnx_bnfold.errors import ModelError


def peak_memory(
    model: CheckedModel, feed: Feed, mode: Mode, threads: int
) -> tuple[int, int] | tuple[None, None]:
    """Return peak resident memory of a fresh process that loads the model and runs it once.

    Args:
        model: the model file.
        feed: its inputs.
        mode: onnxruntime's optimisations.
        threads: threads within an operator.

    Returns:
        Bytes of the whole process, and bytes beyond those of the imports and inputs; None if the
        system does not report them.

    Raises:
        ModelError: the process fails.
    """
    with tempfile.TemporaryDirectory(prefix="onnx_bnfold-") as folder:
        inputs = Path(folder) / "inputs.npz"
        # Names are not passed as keywords: they may be any string, "file" for example.
        np.savez(inputs, *feed.values(), names=np.array(list(feed)))
        command = [sys.executable, "-m", __name__, str(model.path), str(inputs), mode, str(threads)]
        command += [os.fspath(library) for library in model.custom_ops]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(f"measuring the memory of {model.label} failed: {last}")
    before, after = (int(word) for word in done.stdout.split())
    return (after, after - before) if after else (None, None)


def _peak_resident() -> int:
    """Return peak resident bytes of this process, 0 if the system does not report them."""
    try:
        # Not by getrusage, which on Linux includes the peak of the parent process.
        match = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        if match:
            return int(match[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main(model: str, inputs: str, mode: str, threads: str, *custom_ops: str) -> None:
    """Print the peak before the session and after one run."""
    onnxruntime_version()  # loads onnxruntime, which must not count as memory of the model
    with np.load(inputs) as loaded:
        feed = {str(name): loaded[f"arr_{i}"] for i, name in enumerate(loaded["names"])}
    before = _peak_resident()
    file = CheckedModel(Path(model), model, custom_ops)
    Session(file, optimised=mode == "enabled", threads=int(threads)).run(feed)
    print(before, _peak_resident())


if __name__ == "__main__":
    main(*sys.argv[1:])
