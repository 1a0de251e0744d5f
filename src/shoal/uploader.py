"""Keeping a run's URI up to date with the copy that the first worker writes into, beside the training."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from shoal import remote_checkpoint, storage_trouble
from shoal.checkpoint import STATE, best_of, directories
from shoal.checkpoint_names import newest_first
from shoal.errors import FencedError, StorageError
from shoal.ownership import Hold, claims_on
from shoal.remote_checkpoint import is_at, publish, samples_of
from shoal.run import Run
from shoal.run_files import CHECKPOINTS, CONFIG, ENDED, ENVIRONMENT, FAILURES, HISTORY, PLUGIN

PAUSE_SEC = 1.0
"""Between two rounds: what came meanwhile goes together."""
LONGEST_SHARE = 0.1
"""Of the time, for a file that only grows: it is sent whole, so a long one is sent less often."""

NOT_SENT = {CHECKPOINTS, "ray"}
"""Folders: checkpoints have an order of their own, and Ray's notes are of this machine."""
SENT_BY_OTHERS = {CONFIG, ENVIRONMENT, PLUGIN, FAILURES, ENDED}
"""Files: the run's settings and its end go when they are written, the log of lost workers is the launcher's."""

REWRITTEN = (*HISTORY, "tensorboard/")
"""What may have changed though its size is the same."""

_Stamp = tuple[int, int, int]


class Uploader:
    """A thread that copies what is new in a run's copy to its URI: small files first, then the newest checkpoint.

    Training goes on meanwhile, and while the store does not answer, for as long as `shoal.storage.retry` is patient.
    One process of all that train the run holds one, from before its first step until after its last file is written.

    Args:
        run: at a URI, opened for writing.
        samples: the clock that it goes on from.
        hold: on the run at its URI: who has lost it sends and deletes nothing.

    Raises:
        FencedError: another process goes on with the run.
        StorageError: the store refuses, or did not answer for longer than one waits.

    Attributes:
        trouble: why it does not get on at the moment, if it does not.
        failure: why uploading was given up, until `close` tries for a last time.
    """

    def __init__(self, run: Run, samples: int, hold: Hold) -> None:
        assert run.mirror is not None
        self._run = run
        self._hold = hold
        self._home = run.mirror.home
        self._sent: dict[str, _Stamp] = {}
        self._due: dict[str, float] = {}
        self._looked_at: dict[str, _Stamp] = {}
        self._newest = samples
        self._claims = claims_on(hold.folder)
        self._asked = threading.Event()
        self._closing = threading.Event()
        self.trouble: StorageError | None = None
        self.failure: BaseException | None = None
        if not samples:  # of steps that were lost, and are taken again
            hold.refuse_lost()
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

    def close(self, on_progress: Callable[[], None] = lambda: None) -> None:
        """Wait until all is at the URI.

        Args:
            on_progress: called now and then.

        Raises:
            StorageError: the store refuses, or did not answer for longer than one waits; the copy is kept.
            FencedError: another process goes on with the run.
            Exception: whatever else ended it: a bug, or a node without memory or threads.
        """
        self._closing.set()
        self._asked.set()
        while self._thread.is_alive():
            self._thread.join(PAUSE_SEC)
            on_progress()
        if self.failure is not None:
            raise self.failure

    def _work(self) -> None:
        try:
            self._keep_up()
        except BaseException as error:  # or nobody would hear that this thread is gone
            self.failure = error

    def _keep_up(self) -> None:
        while self._asked.wait() and not self._closing.is_set():
            self._asked.clear()
            begin = time.monotonic()
            while self.failure is None and not self._sent_all() and not self._closing.wait(PAUSE_SEC):
                if time.monotonic() - begin > storage_trouble.PATIENCE_SEC:
                    self.failure = self.trouble
            self._closing.wait(None if self.failure else PAUSE_SEC)
        if not isinstance(self.failure, FencedError):
            self._send_the_rest()

    def _send_the_rest(self) -> None:
        self.failure, begin = None, time.monotonic()
        while not self._sent_all() and self.failure is None:
            if time.monotonic() - begin > storage_trouble.PATIENCE_AT_END_SEC:
                self.failure = self.trouble
            time.sleep(PAUSE_SEC)

    def _sent_all(self) -> bool:
        try:
            self._hold.refuse_lost()
            self._send()
        except FencedError as error:
            self.failure = error
            return False
        except StorageError as error:
            self.trouble = self._explained(error)
            return False
        except OSError as error:  # of this node's disk
            self.trouble = self._explained(StorageError(f"{error.filename or self._run.path}: {error.strerror}"))
            return False
        except Exception as error:  # nothing that waiting mends; `close` tries once more
            self.failure = error
            return False
        self.trouble = None
        return True

    def _send(self) -> None:
        for name, stamp in self._files():
            if self._is_due(name):
                self._send_file(name, stamp)
        while path := next(filter(self._is_new, self._saved()), None):
            self._hold.refuse_lost()
            # A checkpoint before this one may have taken minutes: its rows are newer than those that were sent, and
            # whoever goes on from it elsewhere has no others.
            for name in HISTORY:
                self._send_file(name, _stamp(self._run.path / name))
            self._send_checkpoint(path)

    def _send_file(self, name: str, stamp: _Stamp | None) -> None:
        if stamp is None or self._sent.get(name) == stamp:
            return
        begin = time.monotonic()
        try:
            content = (self._run.path / name).read_bytes()
        except FileNotFoundError:
            return  # replaced or removed meanwhile
        (self._home / name).write_bytes(content)
        self._sent[name] = stamp
        self._due[name] = time.monotonic() + (time.monotonic() - begin) / LONGEST_SHARE

    def _saved(self) -> list[Path]:
        """Return the checkpoints of the copy that count, newest first; claims of other nodes are known at home."""
        return [self._run.checkpoints / name for name in newest_first(directories(self._run.checkpoints), self._claims)]

    def _is_new(self, path: Path) -> bool:
        """Return whether it is to be sent: till the end only the newest and the best, sending may take so long."""
        stamp = _stamp(path / STATE)
        worthwhile = self._closing.is_set() or samples_of(path.name) > self._newest or path == self._best()
        return worthwhile and stamp is not None and self._looked_at.get(path.name) != stamp

    def _best(self) -> Path | None:
        return best_of(self._saved(), self._run.config.checkpoint.keep_best)

    def _send_checkpoint(self, path: Path) -> None:
        home, stamp, kept = self._home / CHECKPOINTS, _stamp(path / STATE), self._run.config.checkpoint
        if is_at(home / path.name, path) or publish(path, home / path.name):
            self._newest = max(self._newest, samples_of(path.name))
            self._hold.refuse_lost()
            remote_checkpoint.prune(home, kept.keep, now=self._newest, epoch=self._hold.epoch, best_by=kept.keep_best)
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
