"""Stopping at the very next sample: signals of the terminal, and the flag that carries them to workers elsewhere."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last: a terminal that went away


class StopSignals:
    """What signals asked for while ``listening``.

    Attributes:
        asked: set by the first signal: finish the step, save, leave.
        signum: which signal that was.
        insisted: set by the second: leave now.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.insisted = threading.Event()
        self.signum: int | None = None

    @property
    def exit_code(self) -> int:
        """Return 128 + the signal's number, as a shell does; 0 when there was none."""
        return 128 + self.signum if self.signum is not None else 0

    @contextmanager
    def listening(self) -> Iterator["StopSignals"]:
        """Catch the signals inside the block; only the main thread can."""
        before = {number: signal.signal(number, self._caught) for number in CAUGHT}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _caught(self, signum: int, frame: FrameType | None) -> None:
        if self.asked.is_set():
            self.insisted.set()
        self.signum = self.signum or signum
        self.asked.set()
