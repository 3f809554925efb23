"""The record that a fold leaves in the model: which version folded what out of which file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from threading import Thread

from onnx import ModelProto

from onnx_bnfold.report import Report
from onnx_bnfold.version import __version__

KEY = "onnx_bnfold"  # in `metadata_props`

_CHUNK = 1 << 20  # bytes read at once
_NO_DIGEST = "0" * 64


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits, as ``sha256sum`` prints it."""
    state = os.stat(path)
    return _sha256_of(os.fspath(path), state.st_ino, state.st_size, state.st_mtime_ns)


# A store asks for the file that is about to be folded, and so does the record in the model.
@lru_cache(maxsize=4)
def _sha256_of(path: str, *_: int) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


class Recorder:
    """Hashes a model file in a thread of its own, and puts the record into what it becomes.

    Args:
        source: the file that is folded.
    """

    def __init__(self, source: str | os.PathLike[str]) -> None:
        self._source = source
        self._digest = _NO_DIGEST
        # hashlib does not hold Python's lock: the plan is made meanwhile.
        self._thread = Thread(target=self._hash, daemon=True)
        self._thread.start()

    def late(self, model: ModelProto, report: Report) -> dict[str, tuple[int, Callable[[], bytes]]]:
        """Give a model the key of the record.

        Returns:
            The value for ``ModelFile.write``, which asks for it when the weights are written.
        """
        if all(item.key != KEY for item in model.metadata_props):
            model.metadata_props.add(key=KEY)
        return {KEY: (len(entry(report, _NO_DIGEST)), lambda: entry(report, self._wait()))}

    def _wait(self) -> str:
        self._thread.join()
        return self._digest

    def _hash(self) -> None:
        with suppress(OSError):  # the file was removed: the digest stays all zeros
            self._digest = sha256_of(self._source)


def entry(report: Report, source_sha256: str) -> bytes:
    """Return the value of the record: compact JSON.

    Args:
        report: of the fold.
        source_sha256: of the model's file before the fold, without its external data.
    """
    record = {
        "version": __version__,
        "folded": len(report.folded),
        "kept": len(report.kept),
        "source_sha256": source_sha256,
    }
    return json.dumps(record, separators=(",", ":")).encode()
