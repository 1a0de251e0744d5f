"""Trouble with the disk that a run is written to: what is waited for, for how long, and what the user hears of it."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.errors import StorageError
from shoal.files import CANNOT_WRITE

PASSES = CANNOT_WRITE | {
    errno.EIO,
    errno.ENODEV,
    errno.ENOENT,  # a folder that vanished with its file system, which may be mounted again
    errno.ENOTCONN,
    errno.ENXIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
}
"""What may be over after a while, or after somebody has made room."""

PATIENCE_SEC = 600.0
"""Without a whole checkpoint that was due, until the run ends: whoever is to make room has to hear of it first."""
PATIENCE_AT_END_SEC = 60.0
"""When there is nothing left to train."""
LEAVING_SEC = 30.0
"""For what is being written when a run ends with an error."""
RETRY_SEC = 0.5
"""Between two attempts when there is nothing left to train; before that, every tick is one."""


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Say what a full or read-only disk means to the user; any other trouble is raised as it is.

    Raises:
        StorageError: writing below ``path`` was refused.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise refused(error, path) from error


def refused(error: OSError | StorageError, path: Path) -> StorageError:
    """Return an error of the disk as one for the user."""
    if isinstance(error, StorageError):
        return error
    return StorageError(
        f"cannot write {error.filename or path}: {said(error)}; make room or give another --out."
        " --resume goes on from the last whole checkpoint"
    )


def said(error: OSError) -> str:
    """Return what the system says of an error; libraries raise some that were not given its words."""
    return error.strerror or (os.strerror(error.errno) if error.errno else str(error))


class Trouble:
    """What keeps a run from being written at the moment: told once a kind, and once when it is over.

    Args:
        path: of the run.
        tell: hears a sentence.

    Attributes:
        count: how often there was any.
        last: what came up last; None when it is over.
    """

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        self._path = path
        self._tell = tell
        self._kinds: set[object] = set()
        self._since = 0.0
        self.count = 0
        self.last: OSError | StorageError | None = None

    def met(self, error: OSError | StorageError) -> None:
        """Note an error; one that does not pass is raised again.

        Raises:
            OSError: it.
        """
        if isinstance(error, OSError) and error.errno not in PASSES:
            raise error
        self.last = error
        self.count += 1
        if not self._kinds:
            self._since = time.monotonic()
        kind = error.errno if isinstance(error, OSError) else StorageError
        if kind not in self._kinds:
            self._kinds.add(kind)
            self._tell(f"{self._in_words(error)}. Training goes on, and what could not be written waits")

    def over(self) -> None:
        """Note that all is written."""
        if self._kinds:
            self._kinds.clear()
            self.last = None
            self._tell(
                f"{self._path} can be written again, after {time.monotonic() - self._since:.0f} s; nothing that waited"
                " was lost"
            )

    def _in_words(self, error: OSError | StorageError) -> str:
        if isinstance(error, OSError):
            return f"cannot write {error.filename or self._path}: {said(error)}; make room, or bring it back"
        return str(error)
