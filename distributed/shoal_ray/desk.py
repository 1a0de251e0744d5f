"""Where the driver of a run and its workers leave word for each other. Imports no torch."""

import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import ray

POLL_SEC = 0.2
LAST_WORD_SEC = 5.0


@ray.remote(num_cpus=0)
class Desk:
    """An actor on the driver's node. Workers belong to an attempt: the n-th group that was started, from 1."""

    def __init__(self) -> None:
        self._stopping = 0
        self._training = 0
        self._notes: list[str] = []

    def stop(self, attempt: int) -> None:
        """Have an attempt, and all before it, stop at the next sample."""
        self._stopping = max(self._stopping, attempt)

    def report(self, attempt: int, training: bool, notes: list[str]) -> bool:
        """Take down whether an attempt trains by now, and what its user should read; tell whether it is to stop."""
        if training:
            self._training = max(self._training, attempt)
        self._notes += notes
        return attempt <= self._stopping

    def collect(self) -> tuple[int, list[str]]:
        """Return the newest attempt that trains, and hand over what is to be read."""
        notes, self._notes = self._notes, []
        return self._training, notes


class Errand:
    """The first worker's way to the desk, in a thread of its own: no step waits for it. Closed, it delivers the rest.

    Args:
        desk: of the run.
        attempt: that the worker belongs to.
    """

    def __init__(self, desk: Any, attempt: int) -> None:
        self._desk, self._attempt = desk, attempt
        self._stopping = self._training = False
        self._notes: list[str] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="errand", daemon=True)
        self._thread.start()

    def should_stop(self) -> bool:
        """Tell whether the driver asked to stop."""
        return self._stopping

    def trains(self) -> None:
        """Tell that the workers are through with starting."""
        self._training = True

    def note(self, text: str) -> None:
        """Tell the user something, in a sentence."""
        self._notes.append(text)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Deliver what is left."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        over = False
        while not over:
            over = self._closed.wait(POLL_SEC)
            count = len(self._notes)
            report = self._desk.report.remote(self._attempt, self._training, self._notes[:count])
            # The driver may be gone, and the run goes on without it; or it is out of reach for a moment.
            with suppress(ray.exceptions.RayError):
                self._stopping = ray.get(report, timeout=LAST_WORD_SEC if over else None) or self._stopping
                del self._notes[:count]  # told; what came meanwhile waits for the next time


class FlagWatch:
    """Asks a question from a thread of its own until the answer is yes, so that a step never waits for it."""

    def __init__(self, ask: Callable[[], bool]) -> None:
        self._ask = ask
        self._asked = threading.Event()
        threading.Thread(target=self._watch, name="flag", daemon=True).start()

    def __call__(self) -> bool:
        """Tell whether the answer was yes."""
        return self._asked.is_set()

    def _watch(self) -> None:
        while not self._asked.wait(POLL_SEC):
            with suppress(ray.exceptions.RayError):  # out of reach for a moment
                if self._ask():
                    self._asked.set()
