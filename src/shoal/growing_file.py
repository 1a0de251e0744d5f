"""A file that grows by whole records, on storage that may refuse them for a while."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self


class GrowingFile:
    """A file of records; those that could not be written wait in memory, in their order, for the next attempt.

    One process holds one. A file that was put in its place by another process is never written to.

    Args:
        path: of a file that exists; it goes on at its end.
        durable: whether a record counts as written when it has survived the machine, not this process alone.
    """

    def __init__(self, path: Path, *, durable: bool) -> None:
        self._path = path
        self._durable = durable
        self._waiting = b""
        self._handle: int | None = os.open(path, os.O_WRONLY)
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
            handle = self._handle = self._open() if self._handle is None else self._handle
            written = 0
            while written < len(self._waiting):
                written += os.pwrite(handle, self._waiting[written:], self._size + written)
            if self._durable:
                os.fsync(handle)
        except OSError as error:
            self.close()  # a handle may be dead for good: one on a file system that was mounted anew
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

    def _open(self) -> int:
        handle = os.open(self._path, os.O_WRONLY)
        found = os.fstat(handle)
        if found.st_ino != self._inode:
            os.close(handle)
            raise OSError(errno.ESTALE, "another file has taken its place", str(self._path))
        self._size = min(self._size, found.st_size)
        return handle

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()
