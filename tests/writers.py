"""Processes that write a run's rows and checkpoints, as the first worker of its training does, but train nothing.

As a program it imports what they need once and forks one for each line that it is told, so that hundreds take a moment.
A writer records a tick every 10 samples; all that it writes is a function of the clock.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.checkpoint import Saver
from shoal.errors import FencedError
from shoal.incarnation import begin
from shoal.loop import Tick
from shoal.run import Run
from shoal.run_writer import RunWriter
from shoal.world import World

FENCED = 3
"""The exit status of a writer that was told that another one has the run."""

STEP = 10
DEADLINE_SEC = 120

WATCHED = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "open", "shutil.rmtree"}
"""What a process does with files, by the names of Python's audit events."""


def tensors_at(samples: int) -> dict[str, Tensor]:
    """Return the state of a run at a sample: 256 KiB."""
    return {"nets/x": torch.arange(1 << 16, dtype=torch.float32) * samples, "nets/clock": torch.tensor(samples)}


def tick_at(run: Run, samples: int) -> Tick:
    """Return the tick at a sample, with a checkpoint."""
    stream = {"position": samples}
    facts = {"samples": samples, "batches": samples // STEP, "shape": (1, 8, 8), "stream": stream}
    saver = Saver(tensors_at(samples), {**facts, "config": run.config.model_dump(mode="json")})
    return Tick(samples, {"loss/x": 1.0 / samples}, {}, saver)


def record(writer: RunWriter, tick: Tick) -> None:
    """Record a tick as `execute` does."""
    wait_for(writer.make_way)
    writer.record(tick)


@contextmanager
def writing(run: Run, claimed: Callable[[], None] = lambda: None) -> Iterator[tuple[int, RunWriter]]:
    """Claim a run, say so, and yield the clock that it stands at, and what writes it."""
    incarnation = begin(run, World.local("cpu"))
    claimed()
    writer = RunWriter(
        run, incarnation, workers=1, sinks=lambda samples: (), on_trouble=print, on_progress=lambda: None
    )
    with writer:
        yield incarnation.samples, writer


def write(path: Path, ticks: int | None, stop_at: int | None, tick: int) -> None:
    """Write a run.

    Args:
        path: of the run.
        ticks: how many; None: for ever.
        stop_at: how many things are done with files from the beginning of a tick on, until this process stops as by a
            SIGSTOP from elsewhere.
        tick: that tick, from 1; 0: what comes between the claim and the first one, and nothing later.
    """
    done, armed = count(), threading.Event()

    def stop(event: str, arguments: tuple[Any, ...]) -> None:
        if armed.is_set() and event in WATCHED and str(path) in str(arguments) and next(done) == stop_at:
            os.kill(os.getpid(), signal.SIGSTOP)

    if stop_at is not None:
        sys.addaudithook(stop)
    run = Run.open(path)
    with writing(run, armed.set if tick == 0 else lambda: None) as (samples, writer):
        armed.clear()
        for number in count(1) if ticks is None else range(1, ticks + 1):
            if number == tick:
                armed.set()
            writer.refuse_trouble()
            record(writer, tick_at(run, samples + number * STEP))
            if stop_at is not None:
                wait_for(writer.finish)  # one thing after the other, so that the moments are always the same ones
        wait_for(writer.finish)
    writer.end("finished", samples)


def wait_for(happened: Callable[[], bool]) -> None:
    """Look until something is there."""
    deadline = time.monotonic() + DEADLINE_SEC
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.001)  # between two looks; nothing relies on its length


class Writers:
    """Starts writers, one after the other or several at once."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def start(self, run: Path, ticks: int | None = None, stop_at: int | None = None, tick: int = 4) -> int:
        """Start one, as `write` does, and return its pid."""
        return int(self._ask("start", str(run), ticks, stop_at, tick))

    def wait(self, pid: int) -> int | None:
        """Wait until one has ended or stopped; return its status as `subprocess` does, None if it is stopped."""
        status = self._ask("wait", pid)
        return None if status is None else int(status)

    def close(self) -> None:
        """End."""
        self._process.communicate(timeout=DEADLINE_SEC)

    def _ask(self, *words: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(words), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


def main() -> None:
    """Serve `Writers`."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        match json.loads(line):
            case "start", path, *how:
                pid = os.fork()
                if not pid:
                    os._exit(_carried_out(Path(path), *how))
                print(pid, flush=True)
            case "wait", pid:
                print(json.dumps(_status(pid)), flush=True)


def _carried_out(path: Path, ticks: int | None, stop_at: int | None, tick: int) -> int:
    os.dup2(2, 1)  # what it says is no answer
    try:
        write(path, ticks, stop_at, tick)
    except FencedError:
        return FENCED
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _status(pid: int) -> int | None:
    deadline = time.monotonic() + DEADLINE_SEC
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WUNTRACED | os.WNOHANG)
        if found:
            return None if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)
        time.sleep(0.001)  # between two looks; nothing relies on its length
    os.kill(pid, signal.SIGKILL)
    return -999


if __name__ == "__main__":
    main()
