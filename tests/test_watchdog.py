"""A worker without progress is killed by its watchdog, whatever state it is in; any other is left alone."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.processes import DEADLINE_SEC

from shoal.watchdog import Watchdog

SOON_SEC = 0.5

WORKER = """
import sys, time
from shoal.watchdog import Watchdog
dog = Watchdog({timeout})
for word in sys.stdin:
    getattr(dog, word.strip())() if word.strip().isalpha() else time.sleep(float(word))
    print("done", flush=True)
"""


class Worker:
    """A process with a watchdog that does as it is told, a word a line, and answers each."""

    def __init__(self, timeout: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER.format(timeout=timeout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(word, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "done\n"

    def dog(self) -> int:
        """Return the process of the watchdog."""
        main = Path(f"/proc/{self.process.pid}/task/{self.process.pid}")
        return int((main / "children").read_text())


@pytest.fixture
def start() -> Iterator[type[Worker]]:
    started: list[Worker] = []

    class Started(Worker):
        def __init__(self, timeout: float) -> None:
            super().__init__(timeout)
            started.append(self)

    yield Started
    for worker in started:
        worker.process.kill()
        worker.process.communicate()


def test_silence_after_a_beat_is_the_end(start: type[Worker]) -> None:
    worker = start(SOON_SEC)
    worker.tell("beat")
    began = time.monotonic()
    assert worker.process.wait(DEADLINE_SEC) == -signal.SIGKILL
    assert time.monotonic() - began > SOON_SEC / 2
    assert worker.process.stderr is not None
    assert "no progress for" in worker.process.stderr.read()


def test_a_stopped_group_of_processes_is_killed_too(start: type[Worker]) -> None:
    worker = start(SOON_SEC)
    worker.tell("beat")
    os.killpg(worker.process.pid, signal.SIGSTOP)
    assert worker.process.wait(DEADLINE_SEC) == -signal.SIGKILL


def test_before_the_first_beat_and_with_regular_ones_nothing_happens(start: type[Worker]) -> None:
    worker = start(SOON_SEC)
    worker.tell(str(2 * SOON_SEC))
    for _ in range(20):
        worker.tell("beat")
        worker.tell(str(SOON_SEC / 10))
    assert worker.process.poll() is None


def test_a_watch_ends_with_close_and_with_the_worker(start: type[Worker]) -> None:
    closing, dying = start(SOON_SEC), start(60.0)
    closing.tell("beat")
    closing.tell("close")
    closing.tell(str(2 * SOON_SEC))
    closing.tell("beat")
    assert closing.process.poll() is None
    dog = os.pidfd_open(dying.dog())
    dying.process.kill()
    assert select.select([dog], [], [], DEADLINE_SEC)[0] == [dog]
    os.close(dog)


def test_without_a_timeout_there_is_no_watchdog() -> None:
    with Watchdog(0) as dog:
        dog.beat()
