"""The record of a fold in the model's metadata: version, counts, hash of the source file."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from threading import Thread
from typing import TYPE_CHECKING

from onnx_bnfold.pages import page_aligned
from onnx_bnfold.version import __version__

if TYPE_CHECKING:  # the file is hashed while onnx is imported
    from onnx import ModelProto

KEY = "onnx_bnfold"  # in ``metadata_props``

_CHUNK = 1 << 22  # bytes read at once; between two chunks the thread waits for Python's lock
_NO_DIGEST = "0" * 64


class _Hashing:
    """Hashes a file in a thread of its own; hashlib releases Python's lock."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self._failure: BaseException | None = None
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def result(self) -> str:
        self._thread.join()
        if self._failure is not None:
            _hashing.cache_clear()  # try again when asked again
            raise self._failure
        return self._digest.hexdigest()

    def _run(self) -> None:
        try:
            with open(self._path, "rb", buffering=0) as file:
                buffer = page_aligned(_CHUNK)
                while count := file.readinto(buffer):
                    self._digest.update(buffer[:count])
        except BaseException as failure:  # raised again by ``result``
            self._failure = failure


# Cached, since a batch and the record in the model both ask for the hash of the same file.
@lru_cache(maxsize=4)
def _hashing(path: str, *_: int) -> _Hashing:
    return _Hashing(path)


def _hashing_of(path: str | os.PathLike[str]) -> _Hashing:
    state = os.stat(path)
    return _hashing(os.fspath(path), state.st_ino, state.st_size, state.st_mtime_ns)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits, as ``sha256sum`` prints it."""
    return _hashing_of(path).result()


def begin_hashing(path: str | os.PathLike[str]) -> None:
    """Start to compute, in a thread, what ``sha256_of`` will be asked for."""
    with suppress(OSError):  # opening the file as a model reports the error
        if stat.S_ISREG(os.stat(path).st_mode):
            _hashing_of(path)


class Recorder:
    """Adds the record of a fold to a model.

    Args:
        source: the file that is folded; it is hashed while the fold is planned.
    """

    def __init__(self, source: str | os.PathLike[str]) -> None:
        self._hashing: _Hashing | None = None
        with suppress(OSError):  # the file was removed after it was opened
            self._hashing = _hashing_of(source)

    def late(
        self, model: ModelProto, counts: tuple[int, int]
    ) -> dict[str, tuple[int, Callable[[], bytes]]]:
        """Add the key of the record to a model.

        Args:
            model: changed in place.
            counts: number of BatchNormalizations that are folded, and that are kept.

        Returns:
            The value for ``late`` of ``ModelFile.write``: by then the source has been hashed.
        """
        if all(item.key != KEY for item in model.metadata_props):
            model.metadata_props.add(key=KEY)
        value = entry(counts, _NO_DIGEST)
        return {KEY: (len(value), lambda: value.replace(_NO_DIGEST.encode(), self._digest()))}

    def _digest(self) -> bytes:
        with suppress(OSError):
            if self._hashing:
                return self._hashing.result().encode()
        return _NO_DIGEST.encode()


def entry(counts: tuple[int, int], source_sha256: str) -> bytes:
    """Return the value of the record as compact JSON.

    Args:
        counts: number of BatchNormalizations that were folded, and that were kept.
        source_sha256: of the source file, without its external data, as hexadecimal digits.
    """
    folded, kept = counts
    record = {
        "version": __version__,
        "folded": folded,
        "kept": kept,
        "source_sha256": source_sha256,
    }
    return json.dumps(record, separators=(",", ":")).encode()
