"""The record that a fold leaves in the model: which version folded what out of which file."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from mmap import mmap
from threading import Thread
from typing import TYPE_CHECKING

from onnx_bnfold.version import __version__

if TYPE_CHECKING:  # the file is hashed while onnx is imported
    from onnx import ModelProto

KEY = "onnx_bnfold"  # in `metadata_props`

_CHUNK = 1 << 23  # bytes read at once: between two chunks a thread waits for Python's lock
_NO_DIGEST = "0" * 64


class _Hashing:
    """Hashes a file in a thread; hashlib does not hold Python's lock."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self._failure: BaseException | None = None
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def result(self) -> str:
        self._thread.join()
        if self._failure is not None:
            _hashing.cache_clear()  # it may be readable the next time
            raise self._failure
        return self._digest.hexdigest()

    def _run(self) -> None:
        try:
            with open(self._path, "rb", buffering=0) as file:
                # A map begins on a page: see `blocks._on_a_page`.
                buffer = memoryview(mmap(-1, _CHUNK))
                while count := file.readinto(buffer):
                    self._digest.update(buffer[:count])
        except BaseException as failure:  # raised again by `result`
            self._failure = failure


# A store asks for the file that is about to be folded, and so does the record in the model.
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
    """Begin, in a thread, what ``sha256_of`` will be asked for."""
    with suppress(OSError):  # whoever opens it as a model says so
        if stat.S_ISREG(os.stat(path).st_mode):
            _hashing_of(path)


class Recorder:
    """Puts the record into what a model file becomes.

    Args:
        source: the file that is folded; it is hashed while the plan is made.
    """

    def __init__(self, source: str | os.PathLike[str]) -> None:
        self._hashing: _Hashing | None = None
        with suppress(OSError):  # the file was removed
            self._hashing = _hashing_of(source)

    def late(
        self, model: ModelProto, counts: tuple[int, int]
    ) -> dict[str, tuple[int, Callable[[], bytes]]]:
        """Give a model the key of the record.

        Args:
            model: gets it.
            counts: the BatchNormalizations that go, and those that stay.

        Returns:
            The value for ``ModelFile.write``, which asks for it when the weights are written.
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
    """Return the value of the record: compact JSON.

    Args:
        counts: the BatchNormalizations that went, and those that stay.
        source_sha256: of the model's file before the fold, without its external data.
    """
    folded, kept = counts
    record = {
        "version": __version__,
        "folded": folded,
        "kept": kept,
        "source_sha256": source_sha256,
    }
    return json.dumps(record, separators=(",", ":")).encode()
