"""A file that grows by whole records, on storage that may refuse them for a while."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from shoal.files import atomic_file

KNOWN_BYTES = 4096
"""Of what was written last: more than any two files have in common of which one is not a copy of the other."""


class GrowingFile:
    """A file of records; those that could not be written wait in memory, in their order, for the next attempt.

    One process holds one. Where another process that has lost the right to it put a file in its place, or it was
    deleted, it is put back whole: what was appended to the one that is no longer there, nobody would ever read.

    After an error it is opened anew, and may have another number then: that of a file system that was mounted again. It
    is the same file if it is as long and ends with the same bytes.

    Args:
        path: of a file that exists; it goes on at its end.
        durable: whether a record counts as written when it has survived the machine, not this process alone.
        check: called before the file is put back; what it raises keeps it from being so.
    """

    def __init__(self, path: Path, *, durable: bool, check: Callable[[], None] = lambda: None) -> None:
        self._path = path
        self._durable = durable
        self._check = check
        self._waiting = b""
        self._handle: int | None = os.open(path, os.O_RDWR)
        found = os.fstat(self._handle)
        self._inode, self._size = found.st_ino, found.st_size
        self._end = _before(self._handle, self._size)

    @property
    def waits(self) -> bool:
        """Whether there are records that are not written."""
        return bool(self._waiting)

    def write(self, record: bytes) -> None:
        """Take a record; the next `flush` writes it."""
        self._waiting += record

    def flush(self) -> None:
        """Write what waits.

        Raises:
            OSError: the storage refuses; all of it waits on, and what was written of it is written over next time.
        """
        if not self._waiting:
            return
        try:
            handle = self._handle = self._in_place()
            self._append(handle)
        except OSError as error:
            error.filename = error.filename or str(self._path)
            raise
        self._size += len(self._waiting)
        self._end = (self._end + self._waiting)[-KNOWN_BYTES:]
        self._waiting = b""

    def close(self) -> None:
        """Let go of the file; a later `flush` opens it again."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with suppress(OSError):  # what it would tell, the last flush has told
                os.close(handle)

    def _append(self, handle: int) -> None:
        with self._unless_dead():
            written = 0
            while written < len(self._waiting):
                written += os.pwrite(handle, self._waiting[written:], self._size + written)
            if self._durable:
                os.fsync(handle)

    def _in_place(self) -> int:
        """Return a handle of the file that is found at the path."""
        if self._handle is None:
            return self._open()
        with self._unless_dead():
            found = os.fstat(self._handle)
        if found.st_nlink and os.path.samestat(found, self._path.stat()):
            return self._handle
        return self._put_back(self._handle)

    def _open(self) -> int:
        handle = os.open(self._path, os.O_RDWR)
        found = os.fstat(handle)
        if found.st_ino == self._inode:
            self._size = min(self._size, found.st_size)
            self._end = _before(handle, self._size)
            return handle
        try:
            if _before(handle, self._size) != self._end:
                raise OSError(errno.ESTALE, "another file has taken its place", str(self._path))
            return self._put_back(handle)  # as a new file: who was cut off may hold this one, and write on
        except BaseException:
            os.close(handle)
            raise

    def _put_back(self, old: int) -> int:
        """Write what is in an open file to a new one at the path, and return a handle of that."""
        self._path.parent.stat()  # where that is gone too, nothing is made
        self._check()
        with self._unless_dead():
            content = os.pread(old, self._size, 0)
        with atomic_file(self._path) as file:
            file.write(content)
            file.flush()
            handle = os.open(file.name, os.O_RDWR)
        os.close(old)
        self._inode = os.fstat(handle).st_ino
        return handle

    @contextmanager
    def _unless_dead(self) -> Iterator[None]:
        """Let go of the file at an error: a handle on a file system that was mounted anew is dead for good."""
        try:
            yield
        except OSError:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def _before(handle: int, size: int) -> bytes:
    """Return the last bytes of a file's first ``size``."""
    known = min(size, KNOWN_BYTES)
    return os.pread(handle, known, size - known)
