"""All that a run leaves behind, written by the first worker: rows, pictures, checkpoints, its start and its end."""

import json
import logging
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain
from types import TracebackType
from typing import Literal, Self

from shoal import storage_trouble
from shoal.checkpoint_names import OWNERS
from shoal.checkpoint_writer import CheckpointWriter
from shoal.errors import FencedError, ShoalError, StorageError
from shoal.files import write_text
from shoal.incarnation import Incarnation
from shoal.loop import Tick
from shoal.recorder import Recorder, Sink
from shoal.run import Run
from shoal.run_files import CHECKPOINTS, ENDED, METRICS, STARTS, read_rows
from shoal.storage_trouble import Trouble, refused, storage_errors
from shoal.uploader import Uploader

_log = logging.getLogger("shoal.run")

UNFINISHED = (
    f".{METRICS}.*.tmp",
    f".{STARTS}.*.tmp",
    f".{ENDED}.*.tmp",
    "images/.*.tmp",
    f"{CHECKPOINTS}/{OWNERS}/.*.tmp",
)
"""What a writer that was killed may have left in a run; its checkpoints are cleared away with others."""


ROWS_FIRST_SEC = 5.0
"""For so long a checkpoint waits for rows that were refused before it: what was trained is worth more than they are."""


class RunWriter:
    """Writes into a run while it is this incarnation's, and outlives trouble with its storage.

    What the disk refuses waits in memory; it is tried again at every tick. A run at a URI is written into its copy on
    this node, and sent from there by an `Uploader`.

    Args:
        run: the run.
        incarnation: that claimed it.
        workers: that train together.
        sinks: that show the ticks too.
        on_trouble: hears what the storage refuses, and when that is over.
        on_progress: called while it is waited for.

    Raises:
        StorageError: nothing can be written now.
        FencedError: another process has claimed the run since.
    """

    def __init__(
        self,
        run: Run,
        incarnation: Incarnation,
        *,
        workers: int,
        sinks: Callable[[int], Sequence[Sink]],
        on_trouble: Callable[[str], None],
        on_progress: Callable[[], None],
    ) -> None:
        assert incarnation.hold is not None
        self._run = run
        self._hold = incarnation.hold
        self._hold_at_home = incarnation.hold_at_home
        self._on_progress = on_progress
        self._finishing_since: float | None = None
        self._rows_wait_since: float | None = None
        self._trouble = Trouble(run.path, on_trouble)
        samples = incarnation.samples
        with storage_errors(run.path), self._while_it_is_ours():
            for path in chain.from_iterable(run.path.glob(pattern) for pattern in UNFINISHED):
                path.unlink(missing_ok=True)
            self._recorder = Recorder(run, samples=samples, sinks=sinks(samples), check=self._hold.refuse_lost)
        self._start = {
            "time": time.time(),
            "epoch": self._hold.epoch,
            "samples": samples,
            "redone": self._recorder.redone,
            "workers": workers,
            "host": socket.gethostname(),
        }
        with storage_errors(run.path), self._while_it_is_ours():
            self._note_start()
        self._uploader = Uploader(run, samples, incarnation.hold_at_home) if incarnation.hold_at_home else None
        look = self._uploader.look if self._uploader else lambda: None
        self._checkpoints = CheckpointWriter(run.checkpoints, run.config.checkpoint, self._hold, look)

    def make_way(self) -> bool:
        """Wait a moment for the checkpoint before, if a tick has another one; return whether `record` may be called."""
        return self._checkpoints.make_way()

    def record(self, tick: Tick) -> None:
        """Write what a tick has to say. The checkpoint comes after its row, so that none before it can be missing.

        Raises:
            FencedError: another process goes on with the run; nothing is written.
        """
        tick, troubles = self._with_own_scalars(tick), self._trouble.count
        with self._surviving():
            self._recorder.record(tick)
        with self._surviving():
            self._checkpoints.settle()
        with self._surviving():
            if tick.save is not None:
                self._checkpoints.save(tick, start=self._takes_checkpoints())
            elif self._takes_checkpoints():
                self._checkpoints.retry()
        if self._uploader:
            self._uploader.look()
            if self._uploader.trouble is not None:
                self._trouble.met(self._uploader.trouble)
        self._see_whether_it_is_over(troubles)

    def refuse_trouble(self) -> None:
        """Go on only while there is hope that what is trained can be kept; asked at every step.

        Raises:
            StorageError: no checkpoint could be written for too long, or the store of a run at a URI gave up.
            FencedError: another process goes on with the run.
        """
        if self._uploader is not None and self._uploader.failure is not None:
            raise self._uploader.failure
        with self._surviving():
            self._checkpoints.settle()
        since = self._checkpoints.due_since
        if since is not None and time.monotonic() - since > storage_trouble.PATIENCE_SEC:
            raise self._given_up()

    def finish(self) -> bool:
        """Go on for a moment with writing all that was trained to this machine's disk.

        Returns:
            Whether it is all there. Until then it is called again: the other workers wait too, and no longer in one go
            than their process group lets them.

        Raises:
            StorageError: it takes too long.
            FencedError: another process goes on with the run.
        """
        self._finishing_since = self._finishing_since or time.monotonic()
        troubles = self._trouble.count
        with self._surviving():
            self._recorder.flush()
            self._checkpoints.settle()
        self._see_whether_it_is_over(troubles)
        if not self._recorder.waits and not self._checkpoints.busy:
            self._finishing_since = None
            return True
        failing = self._recorder.waits or self._checkpoints.failing
        if failing and time.monotonic() - self._finishing_since > storage_trouble.PATIENCE_AT_END_SEC:
            raise self._given_up()
        self.refuse_trouble()
        if self._takes_checkpoints():
            self._checkpoints.retry()
        if failing:
            time.sleep(storage_trouble.RETRY_SEC)
        self._checkpoints.wait(storage_trouble.RETRY_SEC)
        return False

    def end(self, how: Literal["finished", "stopped", "failed"], samples: int, why: str = "") -> None:
        """Note how the run ended, after all else was written and sent; where that is refused, it is left out.

        So it is where another process goes on with the run: a claim on another node is seen at the run's URI only.
        """
        ended = {"how": how, "samples": samples, "time": time.time(), "why": why, "epoch": self._hold.epoch}
        with suppress(ShoalError, OSError):
            self._hold.refuse_lost()
            self._note_start()
            write_text(self._run.path / ENDED, json.dumps(ended))
            if self._run.mirror and self._hold_at_home:
                self._hold_at_home.refuse_lost()
                self._run.mirror.push([ENDED])

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all files, and wait until all is at the run's URI; on the way of an error, as far as that goes."""
        try:
            until = time.monotonic() + storage_trouble.LEAVING_SEC
            if isinstance(error, Exception):
                with suppress(FencedError):
                    self._save_the_rest(until)
            self._wait(until)
            with suppress(OSError) if error else self._surviving():
                self._recorder.close()
        finally:
            if self._uploader:
                self._close_uploader(self._uploader, error)

    def _save_the_rest(self, until: float) -> None:
        """Give what waits for better times the chances that it has left: one at least."""
        while True:
            for attempt in (self._recorder.flush, self._checkpoints.settle):
                with suppress(OSError, StorageError):
                    attempt()
            if not self._recorder.waits and not self._checkpoints.busy:
                return
            self._checkpoints.retry()
            self._wait(until)
            if time.monotonic() >= until:
                return
            if self._recorder.waits or self._checkpoints.failing:
                time.sleep(storage_trouble.RETRY_SEC)

    def _wait(self, until: float) -> None:
        """Wait for what is being written, alive to whoever watches."""
        while self._checkpoints.writes and (left := until - time.monotonic()) > 0:
            self._checkpoints.wait(min(left, storage_trouble.RETRY_SEC))
            self._on_progress()

    def _close_uploader(self, uploader: Uploader, error: BaseException | None) -> None:
        try:
            uploader.close(self._on_progress)
            self._see_whether_it_is_over(self._trouble.count)
        except Exception as problem:
            if error is None:
                raise
            if str(problem) != str(error):
                _log.warning("%s", problem)

    @contextmanager
    def _while_it_is_ours(self) -> Iterator[None]:
        """Refuse who has lost the run: who hung since the claim would put old files over newer ones.

        What he was writing, whoever has the run now may have cleared away; that is no trouble with the storage.
        """
        self._hold.refuse_lost()
        try:
            yield
        except OSError:
            self._hold.refuse_lost()
            raise

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._trouble.met(error)

    def _see_whether_it_is_over(self, troubles: int) -> None:
        """Tell that there is no trouble any more, where there has been none since there were so many."""
        waits = self._recorder.waits or self._recorder.lags or self._checkpoints.busy
        away = self._uploader is not None and self._uploader.trouble is not None
        if self._trouble.count == troubles and not waits and not away:
            self._trouble.over()

    def _takes_checkpoints(self) -> bool:
        """Return whether the storage is thought to take a checkpoint, or rows have held it back for long enough."""
        if not self._recorder.waits:
            self._rows_wait_since = None
            return True
        self._rows_wait_since = self._rows_wait_since or time.monotonic()
        return time.monotonic() - self._rows_wait_since >= ROWS_FIRST_SEC

    def _with_own_scalars(self, tick: Tick) -> Tick:
        """Return the tick with what its checkpoints have cost since the last one."""
        writer = self._checkpoints
        own = {"checkpoint/wait_sec": writer.wait_sec, "checkpoint/failed": float(writer.failed)}
        writer.wait_sec, writer.failed = 0.0, 0
        return replace(tick, scalars={**tick.scalars, **{name: value for name, value in own.items() if value}})

    def _given_up(self) -> StorageError:
        error = self._trouble.last or TimeoutError("a checkpoint has been on its way for too long")
        return refused(error, self._run.path)

    def _note_start(self) -> None:
        """Make this start the last one that is told of, as it is unless one that woke up later put its own there.

        Who wakes up here himself finds that of the next owner, and leaves it the last.
        """
        path = self._run.path / STARTS
        starts = read_rows(path)
        if starts[-1:] != [self._start] and all(row.get("epoch", 0) <= self._hold.epoch for row in starts):
            rows = [*(row for row in starts if row != self._start), self._start]
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
