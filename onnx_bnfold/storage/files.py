"""Input files with random access, and output files that appear complete or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock, local
from types import TracebackType
from typing import NamedTuple

from onnx_bnfold.errors import UsageError
from onnx_bnfold.pages import PAGE, page_aligned
from onnx_bnfold.storage.durable import flush_file

_WINDOW = 1 << 16  # bytes read at once where only a field's header is needed
_WINDOW_MARGIN = 64  # bytes that a window shows behind the position asked for, unless the file ends
_CHUNK = 1 << 20  # bytes collected before they are written
_HOLE = PAGE  # runs of at least this many zeros become holes in the file
_LARGEST_READ = 1 << 30  # systems refuse or shorten calls of 2 GiB
_BINARY = getattr(os, "O_BINARY", 0)  # Windows
_NEAR = 64  # bytes by which addresses modulo a page have to differ, see ``onnx_bnfold.pages``
_MEMORY = local()
_SEEKING = Lock()  # for systems without pread (Windows), where all threads share a file's position


class Span(NamedTuple):
    """Bytes of a file, as long as these; ``path`` is None for the model file itself."""

    path: str | None
    offset: int
    length: int

    def __len__(self) -> int:
        return self.length


class InputFile:
    """A regular file, open for reading at any position.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
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
        """Raise OSError if the file ends before byte ``stop``."""
        if stop > self.size:
            reason = f"it has {self.size} bytes, but its values end at byte {stop}"
            raise OSError(errno.EINVAL, reason, self._path)

    def read(self, offset: int, length: int) -> bytes:
        """Return the ``length`` bytes at ``offset``.

        Raises:
            OSError: the file ends before, or cannot be read.
        """
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
        """Fill ``out`` with the bytes at ``offset``.

        Raises:
            OSError: the file ends before, or cannot be read.
        """
        self.require(offset + len(out))
        while out:
            done = _read_into(self.fd, offset, out)
            if not done:
                raise self._shortened()
            out, offset = out[done:], offset + done

    def _shortened(self) -> OSError:
        return OSError(errno.EIO, "it was shortened while it was read", self._path)

    def window(self, start: int) -> tuple[bytes, int]:
        """See ``wire.Data``."""
        content, first = self._window
        if not first <= start <= first + len(content) - _WINDOW_MARGIN:
            self._window = content, first = _read_at(self.fd, start, _WINDOW), start
        return content, first

    def slice(self, start: int, stop: int) -> bytes:
        """See ``wire.Data``."""
        return self.read(start, stop - start)

    def close(self) -> None:
        """Close the file, unless it is closed already."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def __del__(self) -> None:
        self.close()


class OutputFile:
    """A file that is written under a temporary name beside its target; a context manager.

    ``commit`` gives it its final name; leaving the context without ``commit`` removes it.

    Raises:
        UsageError: by every method that fails to write.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        name = f".{target.name[:40]}.{os.getpid()}-{os.urandom(4).hex()}.tmp"
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
        """Append bytes."""
        self.position += len(content)
        if len(self._buffer) + len(content) > _CHUNK:
            self.flush()
        if len(content) > _CHUNK:
            self._write(content)
        else:
            self._buffer += content

    def reserve(self, length: int) -> int:
        """Append room for ``length`` bytes, which are zeros until ``fill`` or ``copy`` writes them.

        Returns:
            The position of the first of them.
        """
        self.flush()
        start = self.position
        self.position += length
        with self._writing():
            os.lseek(self._fd, self.position, os.SEEK_SET)
        return start

    def pad(self, length: int) -> None:
        """Append zeros."""
        if length < _HOLE:
            self.write(bytes(length))
        else:
            self.reserve(length)

    def complete(self) -> None:
        """Set the final size; from now on the file can be filled, but not appended to."""
        self.flush()
        with self._writing():
            # File systems allocate blocks faster for a file that does not grow any more.
            os.ftruncate(self._fd, self.position)

    def fill(self, position: int, parts: Iterable[bytes | memoryview]) -> None:
        """Write reserved bytes; several threads may call this at a time.

        Args:
            position: of the first byte.
            parts: the bytes, one part after the other.
        """
        try:
            for part in parts:
                view = memoryview(part)
                while view:
                    done = self._write_at(view, position)
                    view, position = view[done:], position + done
        finally:
            # Close a generator in the thread that ran it: its clean-up may restore thread settings.
            if isinstance(parts, Generator):
                parts.close()

    def copy(self, position: int, source: InputFile, offset: int, length: int) -> None:
        """Copy reserved bytes from another file; several threads may call this at a time.

        Args:
            position: where the bytes go.
            source: the file that they come from.
            offset: of the first byte there.
            length: number of bytes.
        """
        # If both lie alike on pages, the file system may share them between the files. Otherwise it
        # copies page by page, which takes twice as long as reading and writing here.
        alike = (position - offset) % PAGE == 0
        while length and alike and self._by_system:
            try:
                done = os.copy_file_range(source.fd, self._fd, length, offset, position)
            except OSError:  # not every file system, and not every pair of them, can do it
                done = 0
            self._by_system = done > 0
            position, offset, length = position + done, offset + done, length - done
        buffer = _buffer(position, offset)
        while length:
            part = buffer[: min(length, _CHUNK)]
            source.read_into(offset, part)
            self.fill(position, (part,))
            position, offset, length = position + len(part), offset + len(part), length - len(part)

    def flush(self) -> None:
        """Hand all buffered bytes to the operating system."""
        if self._buffer:
            self._write(self._buffer)
            self._buffer = bytearray()

    def overwrite(self, position: int, content: bytes | memoryview) -> None:
        """Replace bytes that were written before; do not append afterwards."""
        self.flush()
        self.fill(position, (content,))

    def hash(self) -> hashlib.blake2b:
        """Return an 8-byte hash of the file; do not append afterwards."""
        self.flush()
        digest = hashlib.blake2b(digest_size=8)
        with self._writing():
            position = 0
            while content := _read_at(self._fd, position, _CHUNK):
                digest.update(content)
                position += len(content)
        return digest

    def commit(self, path: Path) -> None:
        """Give the complete file another name, replacing any file of that name."""
        self.flush()
        with self._writing():
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)  # Windows renames no open file
            os.replace(self._path, path)

    def sync(self) -> None:
        """Return when the complete file is on the disk; see ``durable``."""
        self.flush()
        flush_file(self._path, self._target)

    @contextmanager
    def lent(self, path: Path) -> Iterator[None]:
        """Give the complete file another name until the context ends."""
        self.commit(path)
        try:
            yield
        finally:
            with self._writing():
                os.replace(path, self._path)

    def is_committed(self) -> bool:
        """Return whether the file has its final name, even if ``commit`` was interrupted."""
        return not self._path.exists()

    def _write(self, content: bytes | bytearray | memoryview) -> None:
        view = memoryview(content)
        with self._writing():
            while view:
                view = view[os.write(self._fd, view) :]

    def _write_at(self, view: memoryview, position: int) -> int:
        try:
            return _write_at(self._fd, view, position)
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
    """Return this thread's buffer of ``_CHUNK`` bytes, for data at these file offsets.

    It starts at an address that differs from all the offsets modulo a page; ``onnx_bnfold.pages``
    says why.
    """
    if not hasattr(_MEMORY, "buffer"):
        _MEMORY.buffer = page_aligned(_CHUNK + PAGE)
    starts = range(0, PAGE, PAGE // 8)
    far = (s for s in starts if all((s - o + _NEAR) % PAGE > 2 * _NEAR for o in offsets))
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
