"""A file that grows by whole records, on storage that may refuse them for a while."""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from shoal.files import atomic_file


class GrowingFile:
    """A file of records; those that could not be written wait in memory, in their order, for the next attempt.

    One process holds one. Where another process that has lost the right to it put a file in its place, or it was
    deleted, it is put back whole: what was appended to the one that is no longer there, nobody would ever read.

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
        self._waiting = b""

    def close(self) -> None:
        """Let go of the file; a later `flush` opens it again."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with suppress(OSError):  # what it would tell, the last flush has told
                os.close(handle)

    def _append(self, handle: int) -> None:
        try:
            written = 0
            while written < len(self._waiting):
                written += os.pwrite(handle, self._waiting[written:], self._size + written)
            if self._durable:
                os.fsync(handle)
        except OSError:
            self.close()  # a handle may be dead for good: one on a file system that was mounted anew
            raise

    def _in_place(self) -> int:
        """Return a handle of the file that is found at the path."""
        if self._handle is None:
            return self._open()
        found = os.fstat(self._handle)
        if found.st_nlink and os.path.samestat(found, self._path.stat()):
            return self._handle
        return self._put_back(self._handle)

    def _open(self) -> int:
        handle = os.open(self._path, os.O_RDWR)
        found = os.fstat(handle)
        if found.st_ino != self._inode:
            os.close(handle)
            raise OSError(errno.ESTALE, "another file has taken its place", str(self._path))
        self._size = min(self._size, found.st_size)
        return handle

    def _put_back(self, old: int) -> int:
        """Write what is in a file that lies nowhere any more at the path again, and return a handle of that."""
        self._path.parent.stat()  # where that is gone too, nothing is made
        self._check()
        try:
            content = os.pread(old, self._size, 0)
        except OSError:
            self.close()
            raise
        with atomic_file(self._path) as file:
            file.write(content)
            file.flush()
            handle = os.open(file.name, os.O_RDWR)
        os.close(old)
        self._inode = os.fstat(handle).st_ino
        return handle

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()
