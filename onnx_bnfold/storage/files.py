"""Files that are read in places, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from threading import Lock, local
from types import TracebackType

from onnx_bnfold.errors import UsageError

_WINDOW = 1 << 16  # bytes read at once where only a field's header is wanted
_WINDOW_MARGIN = 64  # bytes behind the position that a window at least shows, short of the end
_CHUNK = 1 << 20  # bytes gathered before they are written
_PAGE = 1 << 12  # from this many bytes on, zeros are left out: the file system reads them as such
_LARGEST_READ = 1 << 30  # systems refuse or cut short calls of 2 GiB
_BINARY = getattr(os, "O_BINARY", 0)  # Windows
_NEAR = 64  # bytes between two places that some processors take for one
_MEMORY = local()
_SEEKING = Lock()  # where a file has one position for all threads: Windows


@dataclass(frozen=True)
class Span:
    """Bytes of a file; `path` is None for the file of the model that is read."""

    path: str | None
    offset: int
    length: int

    def __len__(self) -> int:
        return self.length


class InputFile:
    """A regular file, open for reading at any position.

    Raises:
        OSError: it cannot be opened, or is a folder, a pipe or a device.
    """

    def __init__(self, path: str, follow: bool = True) -> None:
        # Without O_NONBLOCK, opening a pipe would wait for a writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY
        self.fd = -1
        self.fd = os.open(path, flags if follow else flags | getattr(os, "O_NOFOLLOW", 0))
        self._path = path
        self._window = b"", 0
        status = os.fstat(self.fd)
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise OSError(errno.EINVAL, "it is not a regular file", path)

    def require(self, stop: int) -> None:
        """Raises OSError if the file ends before byte `stop`."""
        if stop > self.size:
            reason = f"it ends at byte {self.size}, its values at byte {stop}"
            raise OSError(errno.EINVAL, reason, self._path)

    def read(self, offset: int, length: int) -> bytes:
        """Returns `length` bytes from `offset` on; raises OSError if the file ends before."""
        self.require(offset + length)
        content = _read_at(self.fd, offset, length)
        if len(content) == length:
            return content
        parts = [content]
        while parts[-1]:
            done = sum(map(len, parts))
            parts.append(_read_at(self.fd, offset + done, length - done))
        content = b"".join(parts)
        if len(content) < length:
            raise self._shortened()
        return content

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fills `out` with the bytes from `offset` on; raises OSError if the file ends before."""
        self.require(offset + len(out))
        while out:
            done = _read_into(self.fd, offset, out)
            if not done:
                raise self._shortened()
            out, offset = out[done:], offset + done

    def _shortened(self) -> OSError:
        return OSError(errno.EIO, "it became shorter while it was read", self._path)

    def window(self, start: int) -> tuple[bytes, int]:
        """See `wire.Data`."""
        content, first = self._window
        if not first <= start <= first + len(content) - _WINDOW_MARGIN:
            self._window = content, first = _read_at(self.fd, start, _WINDOW), start
        return content, first

    def slice(self, start: int, stop: int) -> bytes:
        """See `wire.Data`."""
        return self.read(start, stop - start)

    def close(self) -> None:
        """Closes the file; once more does no harm."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def __del__(self) -> None:
        self.close()


class OutputFile:
    """A file written under a temporary name beside its target; a context manager.

    It is moved to its final name by `commit`; leaving the context without that removes it.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        name = f".{target.name[:40]}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        self._path = target.with_name(name)
        self._by_system = hasattr(os, "copy_file_range")
        self._buffer = bytearray()
        self._fd = -1
        self.position = 0

    def __enter__(self) -> OutputFile:
        with self._writing():
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        with suppress(FileNotFoundError):
            self._path.unlink()

    def write(self, content: bytes | memoryview) -> None:
        """Appends bytes."""
        self.position += len(content)
        if len(self._buffer) + len(content) > _CHUNK:
            self.flush()
        if len(content) > _CHUNK:
            self._write(content)
        else:
            self._buffer += content

    def reserve(self, length: int) -> int:
        """Leaves room for `length` bytes that `fill` writes, or else are zeros; returns where."""
        self.flush()
        place = self.position
        self.position += length
        with self._writing():
            os.lseek(self._fd, self.position, os.SEEK_SET)
        return place

    def pad(self, length: int) -> None:
        """Appends zeros."""
        if length < _PAGE:
            self.write(bytes(length))
        else:
            self.reserve(length)

    def complete(self) -> None:
        """Gives the file its size; from now on it can be filled, and not be appended to."""
        self.flush()
        with self._writing():
            # A file system finds places for a file that does not grow any more in less time.
            os.ftruncate(self._fd, self.position)

    def fill(self, place: int, parts: Iterable[bytes | memoryview]) -> None:
        """Writes what room was left for; several threads may do so at a time."""
        try:
            for part in parts:
                view = memoryview(part)
                while view:
                    done = self._write_at(view, place)
                    view, place = view[done:], place + done
        finally:
            # What is computed is ended where it began: the rest of it may hold a thread's settings.
            if isinstance(parts, Generator):
                parts.close()

    def copy(self, place: int, source: InputFile, offset: int, length: int) -> None:
        """Copies what room was left for; several threads may do so at a time.

        Args:
            place: where the room begins.
            source: gives the bytes.
            offset: of the first of them.
            length: their number.
        """
        # The system may let two files share what lies alike on their pages; bytes that do not, it
        # copies page by page, in twice the time that it takes here.
        alike = (place - offset) % _PAGE == 0
        while length and alike and self._by_system:
            try:
                done = os.copy_file_range(source.fd, self._fd, length, offset, place)
            except OSError:  # not every file system, and not every pair of them, can do it
                done = 0
            self._by_system = done > 0
            place, offset, length = place + done, offset + done, length - done
        buffer = _buffer(place, offset)
        while length:
            part = buffer[: min(length, _CHUNK)]
            source.read_into(offset, part)
            self.fill(place, (part,))
            place, offset, length = place + len(part), offset + len(part), length - len(part)

    def flush(self) -> None:
        """Hands all bytes to the operating system."""
        if self._buffer:
            self._write(self._buffer)
            self._buffer = bytearray()

    def overwrite(self, position: int, content: bytes | memoryview) -> None:
        """Replaces bytes that were written before; nothing can be appended afterwards."""
        self.flush()
        self.fill(position, (content,))

    def hash(self) -> hashlib.blake2b:
        """Returns an 8-byte hash of the file; nothing can be appended afterwards."""
        self.flush()
        digest = hashlib.blake2b(digest_size=8)
        with self._writing():
            position = 0
            while content := _read_at(self._fd, position, _CHUNK):
                digest.update(content)
                position += len(content)
        return digest

    def commit(self, path: Path) -> None:
        """Gives the file its final name, in place of what had it."""
        self.flush()
        with self._writing():
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)
            os.replace(self._path, path)

    @contextmanager
    def lent(self, path: Path) -> Iterator[None]:
        """Gives the file, which is complete, another name for a while."""
        self.flush()
        with self._writing():
            fd, self._fd = self._fd, -1
            os.close(fd)  # Windows renames no open file
            os.replace(self._path, path)
        try:
            yield
        finally:
            with self._writing():
                os.replace(path, self._path)

    def is_committed(self) -> bool:
        """Tells whether the file has left its temporary name, even if `commit` was interrupted."""
        return not self._path.exists()

    def _write(self, content: bytes | bytearray | memoryview) -> None:
        view = memoryview(content)
        with self._writing():
            while view:
                view = view[os.write(self._fd, view) :]

    def _write_at(self, view: memoryview, place: int) -> int:
        try:
            return _write_at(self._fd, view, place)
        except OSError as error:
            raise self._unwritable(error) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> UsageError:
        return UsageError(f"{self._target}: cannot be written: {error.strerror}")


def _buffer(*offsets: int) -> memoryview:
    """Returns memory of this thread for `_CHUNK` bytes that lie at these offsets of files.

    It begins on a page plus some bytes: systems whose `rep movsb` (AMD's) takes two places for one
    copy many times slower between places that differ by a few bytes modulo a page.
    """
    if not hasattr(_MEMORY, "buffer"):
        _MEMORY.buffer = memoryview(mmap(-1, _CHUNK + _PAGE))
    starts = range(0, _PAGE, _PAGE // 8)
    far = (s for s in starts if all((s - o + _NEAR) % _PAGE > 2 * _NEAR for o in offsets))
    start = next(far)
    buffer: memoryview = _MEMORY.buffer[start : start + _CHUNK]
    return buffer


def _write_at(fd: int, content: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, content, offset)
    with _SEEKING:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, content)


def _read_at(fd: int, offset: int, length: int) -> bytes:
    length = min(length, _LARGEST_READ)
    if hasattr(os, "pread"):
        return os.pread(fd, length, offset)
    with _SEEKING:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, length)


def _read_into(fd: int, offset: int, out: memoryview) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(fd, [out[:_LARGEST_READ]], offset)
    content = _read_at(fd, offset, len(out))
    out[: len(content)] = content
    return len(content)
