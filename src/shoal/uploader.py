"""Keeping a run's URI up to date with the copy that the first worker writes into, beside the training."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from shoal import remote_checkpoint
from shoal.checkpoint import STATE, saved
from shoal.errors import StorageError
from shoal.remote_checkpoint import is_at, publish
from shoal.run import Run
from shoal.run_files import CHECKPOINTS, CONFIG, ENVIRONMENT, FAILURES, METRICS, PLUGIN

PAUSE_SEC = 1.0
"""Between two rounds: what came meanwhile goes together."""
LONGEST_SHARE = 0.1
"""Of the time, for a file that only grows: it is sent whole, so a long one is sent less often."""

NOT_SENT = {CHECKPOINTS, "ray"}
"""Folders: checkpoints have an order of their own, and Ray's notes are of this machine."""
SENT_BY_OTHERS = {CONFIG, ENVIRONMENT, PLUGIN, FAILURES}
"""Files: the run's settings go when they are written, the log of lost workers is the launcher's."""

REWRITTEN = (METRICS, "tensorboard/")
"""What may have changed though its size is the same."""

_log = logging.getLogger("shoal.run")
_Stamp = tuple[int, int, int]


class Uploader:
    """A thread that copies what is new in a run's copy to its URI: small files first, then the newest checkpoint.

    Training goes on meanwhile, and while the store does not answer, for as long as `shoal.storage.retry` is patient.
    One process of all that train the run holds one, from before its first step until after its last file is written.

    Args:
        run: at a URI, opened for writing.
        samples: the clock that it goes on from.

    Attributes:
        failure: why uploading was given up, until `close` tries for a last time.
    """

    def __init__(self, run: Run, samples: int) -> None:
        assert run.mirror is not None
        self._run = run
        self._home = run.mirror.home
        self._sent: dict[str, _Stamp] = {}
        self._due: dict[str, float] = {}
        self._looked_at: dict[str, _Stamp] = {}
        self._newest = samples
        self._asked = threading.Event()
        self._closing = threading.Event()
        self.failure: StorageError | None = None
        if not samples:  # of steps that were lost, and are taken again
            (self._home / "tensorboard").delete()
        there = self._home.files()
        for name, stamp in self._files():
            if there.get(name) == stamp[0] and not name.startswith(REWRITTEN):
                self._sent[name] = stamp
        self._thread = threading.Thread(target=self._work, name="uploader", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Say that there is something new."""
        self._asked.set()

    def close(self) -> None:
        """Wait until all is at the URI.

        Raises:
            StorageError: the store refuses, or did not answer for longer than one waits; the copy is kept.
        """
        self._closing.set()
        self._asked.set()
        self._thread.join()
        try:
            self._send()
        except StorageError as error:
            raise self._explained(error) from None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; where an error is on its way already, what cannot be sent is only told."""
        try:
            self.close()
        except StorageError as problem:
            if error is None:
                raise
            if str(problem) != str(error):
                _log.warning("%s", problem)

    def _work(self) -> None:
        while self._asked.wait() and not self._closing.is_set():
            self._asked.clear()
            try:
                self._send()
            except StorageError as error:
                self.failure = self._explained(error)
                return
            except OSError as error:  # of this node's disk
                self.failure = self._explained(StorageError(f"{error.filename or self._run.path}: {error.strerror}"))
                return
            self._closing.wait(PAUSE_SEC)

    def _send(self) -> None:
        for name, stamp in self._files():
            if self._sent.get(name) == stamp or not self._is_due(name):
                continue
            begin = time.monotonic()
            try:
                content = (self._run.path / name).read_bytes()
            except FileNotFoundError:
                continue  # replaced or removed meanwhile
            (self._home / name).write_bytes(content)
            self._sent[name] = stamp
            self._due[name] = time.monotonic() + (time.monotonic() - begin) / LONGEST_SHARE
        while path := next(filter(self._is_new, saved(self._run.checkpoints)), None):
            self._send_checkpoint(path)

    def _is_new(self, path: Path) -> bool:
        """Return whether it is to be sent: till the end only the newest, since sending may take longer than making."""
        stamp = _stamp(path / STATE)
        worthwhile = int(path.name) > self._newest or self._closing.is_set()
        return worthwhile and stamp is not None and self._looked_at.get(path.name) != stamp

    def _send_checkpoint(self, path: Path) -> None:
        home, stamp = self._home / CHECKPOINTS, _stamp(path / STATE)
        if is_at(home / path.name, path) or publish(path, home / path.name):
            self._newest = max(self._newest, int(path.name))
            remote_checkpoint.prune(home, self._run.config.checkpoint.keep, now=self._newest)
        if stamp is not None:
            self._looked_at[path.name] = stamp

    def _is_due(self, name: str) -> bool:
        return self._closing.is_set() or time.monotonic() >= self._due.get(name, 0.0)

    def _files(self) -> Iterator[tuple[str, _Stamp]]:
        for folder, folders, names in os.walk(self._run.path):
            top = Path(folder) == self._run.path
            folders[:] = sorted(name for name in folders if not (top and name in NOT_SENT) and not name.startswith("."))
            for name in sorted(names):
                if name.startswith(".") or (top and name in SENT_BY_OTHERS):
                    continue
                path = Path(folder, name)
                if (stamp := _stamp(path)) is not None:
                    yield str(path.relative_to(self._run.path)), stamp

    def _explained(self, error: StorageError) -> StorageError:
        return StorageError(
            f"{error}. What is not there yet is kept in {self._run.path} on this machine, and `shoal train --resume"
            f" --out {self._home}` here goes on from it"
        )


def _stamp(path: Path) -> _Stamp | None:
    """Return what changes when a file does; None if it is gone."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino
