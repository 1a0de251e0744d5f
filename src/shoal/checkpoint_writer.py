"""Checkpoints written beside the training: it waits while the state is copied, not while the copy is written."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from shoal import checkpoint, storage_trouble
from shoal.checkpoint import MEASURED, Saver
from shoal.config import CheckpointConfig
from shoal.errors import FencedError
from shoal.loop import Tick
from shoal.ownership import Hold
from shoal.quality.better import better

LONGEST_WAIT_SEC = 60.0
"""For the checkpoint before; then training goes on, with the next one in memory: all workers wait for the first one."""


@dataclass
class Job:
    """A state that is being written, or was to be.

    Attributes:
        saver: of the state; nobody changes it.
        thread: of the present attempt, until it is settled.
        failures: of attempts.
        written: whether it is on disk, whole.
        error: what came up; after it was written, in clearing away older ones.
    """

    saver: Saver
    thread: threading.Thread | None = None
    failures: int = 0
    written: bool = False
    error: Exception | None = None

    @property
    def runs(self) -> bool:
        """Whether it is being written."""
        return self.thread is not None and self.thread.is_alive()


class CheckpointWriter:
    """Writes one checkpoint at a time, durably and in its order, and clears away older ones.

    One that failed, or has to wait for longer than training does, is kept until `retry`, or until the next one is due.

    Args:
        folder: of the checkpoints.
        config: how many are kept.
        hold: on the run: nothing is written or deleted by who has lost it.
        on_written: called from the writing thread when a checkpoint is whole.

    Attributes:
        due_since: when the first checkpoint was due that is not on disk yet (`time.monotonic`); None: none is.
        wait_sec: that training has waited since somebody set this to 0.
        failed: attempts that failed, and checkpoints that were never tried, since the same.
    """

    def __init__(
        self, folder: Path, config: CheckpointConfig, hold: Hold, on_written: Callable[[], None] = lambda: None
    ) -> None:
        self._folder = folder
        self._config = config
        self._hold = hold
        self._on_written = on_written
        self._job: Job | None = None
        self._next: Job | None = None
        self._waiting_since: float | None = None
        self.due_since: float | None = None
        self.wait_sec = 0.0
        self.failed = 0

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written, or waits for another attempt."""
        return self._job is not None

    @property
    def writes(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._job is not None and self._job.runs

    @property
    def failing(self) -> bool:
        """Whether it is not the first attempt that is being made, or waited for."""
        return self._job is not None and self._job.failures > 0

    def make_way(self) -> bool:
        """Wait a moment for the checkpoint that is being written, because another one is due.

        Returns:
            Whether that can be saved: until then this is called again, but no longer than training shall wait.
        """
        if not self.writes and self._waiting_since is None:
            return True
        begin = self._waiting_since = self._waiting_since or time.monotonic()
        self.due_since = self.due_since or begin
        self.wait(min(storage_trouble.RETRY_SEC, LONGEST_WAIT_SEC))
        if self.writes and time.monotonic() - begin < LONGEST_WAIT_SEC:
            return False
        self.wait_sec += time.monotonic() - begin
        self._waiting_since = None
        return True

    def save(self, tick: Tick, *, start: bool = True) -> None:
        """Copy the state of a tick and write it in the background, after the one that is being written.

        Args:
            tick: at which a checkpoint is due.
            start: whether the storage is thought to take it; if not, it waits for `retry`.

        Raises:
            OSError: why the one before could not be written; that of this tick takes its place.
            FencedError: another process goes on with the run.
        """
        assert tick.save is not None
        begin = time.monotonic()
        self.due_since = self.due_since or begin
        problem: OSError | None = None
        try:
            self.settle()
        except OSError as error:
            problem = error
        measured = {name: value for name, value in tick.scalars.items() if better(name) and isfinite(value)}
        job = Job(tick.save.copied(epoch=self._hold.epoch, notes={MEASURED: measured} if measured else {}))
        if self._job is not None and self._job.thread is not None:
            self.failed += self._next is not None  # takes its place
            self._next = job
        else:
            self.failed += self._job is not None and not self._job.failures
            self._job = job
            if start:
                self.retry()
        self.wait_sec += time.monotonic() - begin
        if problem is not None:
            raise problem

    def retry(self) -> None:
        """Write what could not be written, if anything."""
        job = self._job
        if job is not None and job.thread is None:
            job.error = None
            job.thread = threading.Thread(target=self._carry_out, args=(job,), name="checkpoint", daemon=True)
            job.thread.start()

    def wait(self, seconds: float) -> None:
        """Wait until nothing is being written, but no longer than this."""
        if self._job is not None and self._job.thread is not None:
            self._job.thread.join(seconds)

    def settle(self) -> None:
        """See what has become of the last attempt, if it has ended.

        Raises:
            OSError: the storage refused it; it is kept for another attempt, unless it was written.
            FencedError: another process goes on with the run.
        """
        job = self._job
        if job is None or job.thread is None or job.runs:
            return
        job.thread, error = None, job.error
        if not job.written:
            job.failures += 1
            self.failed += 1
        if job.written or self._next is not None:
            self._job, self._next = self._next, None
        if job.written:
            self.due_since = None if self._job is None else time.monotonic()
        if error is not None:
            raise error

    def _carry_out(self, job: Job) -> None:
        try:
            self._hold.refuse_lost()
            job.saver(self._folder / checkpoint.directory_name(job.saver.samples, self._hold.epoch))
            job.written = True  # whoever claims the run from now on finds it
            self._on_written()
            self._hold.refuse_lost()
            keep, best_by = self._config.keep, self._config.keep_best
            checkpoint.prune(self._folder, keep, now=job.saver.samples, epoch=self._hold.epoch, best_by=best_by)
        except OSError as error:  # raised in the training's own thread, by `settle`
            job.error = self._why(error)
        except Exception as error:
            job.error = error

    def _why(self, error: OSError) -> Exception:
        """Return what is behind an error: whoever has the run now clears away what others have not finished."""
        try:
            self._hold.refuse_lost()
        except FencedError as fenced:
            return fenced
        except OSError:
            pass
        return error
