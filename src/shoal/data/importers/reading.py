"""Read the units of a source in several processes, as far ahead as memory allows, and yield their rows in order.

The processes are plain ones that talk through pipes: what one has read waits in it until there is room, nothing is left
behind in shared memory when one is killed, and all end by themselves when this process does.
"""

import contextlib
import fcntl
import json
import pickle
import select
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from shoal.data.importers import wire
from shoal.data.importers.reader import Failure, read_unit, split_of
from shoal.data.importers.source import Rows, Source
from shoal.errors import DataError

LOOK_AHEAD_BYTES = 64 << 20
PIPE_BYTES = 1 << 20  # Linux' own 64 KiB wake both sides sixteen times as often
UNITS_PER_READER = 2  # one that it reads, and one to go on with at once

_LAUNCH = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from shoal.data.importers.reader import main; main()"
)

Wanted = Callable[[str | None], bool]
"""Whether more rows of a split are wanted, or (None) of any."""


class ReaderLostError(DataError):
    """A process that read ahead was ended from outside."""


@contextmanager
def reading(
    source: Source,
    start: int,
    *,
    jobs: int,
    wanted: Wanted,
    limit: int | None = None,
    look_ahead_bytes: int = LOOK_AHEAD_BYTES,
) -> Iterator[Iterator[tuple[int, Rows]]]:
    """Give an iterator of the numbers and the rows of the units from ``start`` on; ``jobs`` processes read them.

    With 1 it is this process that reads. Units whose split is known (they have an attribute ``split``) are passed over
    when no more of it is wanted. At most ``look_ahead_bytes`` of rows wait here, and one piece in each process. When
    the block is left the processes have ended. Raises, while it is iterated, what reading a unit raises, at its place
    in the order, and ReaderLostError.
    """
    jobs = min(jobs, len(source.units) - start)
    if jobs <= 1:
        yield _read_here(source, start, wanted)
        return
    readers = _Readers(source, start, jobs, wanted, limit, look_ahead_bytes)
    try:
        yield readers.rows()
    finally:
        readers.end()


def _read_here(source: Source, start: int, wanted: Wanted) -> Iterator[tuple[int, Rows]]:
    for number in range(start, len(source.units)):
        unit = source.units[number]
        split = split_of(unit)
        if not wanted(None):
            return
        if wanted(split):
            for rows in read_unit(source, unit, None):
                yield number, rows
                if not wanted(split):
                    break


class _Readers:
    """The processes, and what they sent that was not asked for yet."""

    def __init__(
        self, source: Source, start: int, jobs: int, wanted: Wanted, limit: int | None, look_ahead_bytes: int
    ) -> None:
        self._units = source.units
        self._numbers = iter(range(start, len(source.units)))
        self._wanted = wanted
        self._look_ahead_bytes = look_ahead_bytes
        self._waiting_bytes = 0
        self._waiting: dict[int, deque[tuple[Rows | Failure | None, int]]] = {}  # by unit, in order
        self._readers: list[_Reader] = []
        try:
            setup = pickle.dumps((source, limit))
        except Exception as error:  # whatever pickling an object of the user's raises
            raise DataError(
                f"the source '{source.kind}' cannot be given to other processes: {error}; read it in this one: jobs=1"
            ) from error
        try:
            self._readers += [_Reader() for _ in range(jobs)]
            for reader in self._readers:
                reader.tell(setup)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """End all processes, and wait for that."""
        for reader in self._readers:
            reader.kill()
        for reader in self._readers:
            reader.join()

    def rows(self) -> Iterator[tuple[int, Rows]]:
        """Yield what the processes read, in order."""
        self._hand_out()
        while self._waiting:
            number = next(iter(self._waiting))
            while not self._waiting[number]:
                self._receive(number, wait=True)
            message, num_bytes = self._waiting[number].popleft()
            self._waiting_bytes -= num_bytes
            if isinstance(message, Failure):
                if message.trace:
                    message.error.add_note(f"In a process that read images:\n{message.trace}")
                raise message.error
            if message is None:
                del self._waiting[number]
                self._hand_out()
                continue
            yield number, message
            if not self._wanted(None):
                return
            self._receive(number, wait=False)  # so that no process stands still while its rows are being written

    def _hand_out(self) -> None:
        """Give each process something to do, those with the least first."""
        for num_asked in range(UNITS_PER_READER):
            for reader in self._readers:
                if len(reader.numbers) > num_asked or reader.has_ended:
                    continue
                if (number := self._next()) is not None:
                    self._waiting[number] = deque()
                    reader.ask(number, self._units[number])

    def _next(self) -> int | None:
        return next((number for number in self._numbers if self._wanted(split_of(self._units[number]))), None)

    def _receive(self, number: int, *, wait: bool) -> None:
        """Take what is there of unit ``number``, and of others while there is room."""
        has_room = self._waiting_bytes < self._look_ahead_bytes
        poll = select.poll()
        by_handle = {}
        for reader in self._readers:
            if reader.numbers and (has_room or reader.numbers[0] == number):
                by_handle[reader.handle] = reader
                poll.register(reader.handle, select.POLLIN)
        for handle, _ in poll.poll(None if wait else 0):
            reader = by_handle[handle]
            try:
                message, num_bytes = reader.answer()
            except wire.ClosedError:
                message, num_bytes = Failure(reader.lost(), ""), 0  # at its place, after all that others read before
            self._waiting[reader.numbers[0]].append((message, num_bytes))
            self._waiting_bytes += num_bytes
            if message is None:
                reader.numbers.popleft()
                self._hand_out()
            elif isinstance(message, Failure):
                reader.numbers.clear()  # it has ended, and nobody will ask for what comes later
                reader.has_ended = True


class _Reader:
    """One process.

    Attributes:
        numbers: of the units that it was asked for and has not finished, in order.
        has_ended: whether there is no use in asking it for more.
        handle: of the pipe that it answers through.
    """

    def __init__(self) -> None:
        self.numbers: deque[int] = deque()
        self.has_ended = False
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # Ctrl-C on the terminal is for this process, which then ends that one
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._asked, self._answers = cast(BinaryIO, self._process.stdin), cast(BinaryIO, self._process.stdout)
        self.handle = self._answers.fileno()
        with contextlib.suppress(AttributeError, OSError):  # not Linux, or too many pipes are that large
            fcntl.fcntl(self.handle, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def tell(self, setup: bytes) -> None:
        """Hand the source over."""
        with contextlib.suppress(BrokenPipeError):  # then it is missed when it does not answer
            wire.send(self._asked, setup)

    def ask(self, number: int, unit: Any) -> None:
        """Have a unit read."""
        self.numbers.append(number)
        with contextlib.suppress(BrokenPipeError):
            wire.send(self._asked, pickle.dumps(unit))

    def answer(self) -> tuple[Rows | Failure | None, int]:
        """Return the next rows of the first unit, or None at its end. Raises ClosedError."""
        return cast(tuple[Rows | Failure | None, int], wire.receive(self._answers))

    def lost(self) -> ReaderLostError:
        """Say what became of a process that does not answer any more."""
        code = self._process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        why = "; Linux does so where memory is short: fewer --jobs need less" if code == -signal.SIGKILL else ""
        return ReaderLostError(f"a process that read images {how}{why}")

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()

    def join(self) -> None:
        """Wait for its end."""
        with self._process:
            pass
