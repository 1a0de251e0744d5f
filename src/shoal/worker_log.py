"""workers.jsonl: a row per tick with what each worker did with its time, beside metrics.jsonl, which stays readable."""

import json
import time
from contextlib import suppress
from pathlib import Path

from shoal.files import write_text
from shoal.run import Run
from shoal.run_files import WORKERS, readable_rows
from shoal.session import Tick
from shoal.worker_stats import WorkerStats


class WorkerLog:
    """A sink that writes ``RUN/workers.jsonl``. Rows that cannot be written are left out: they tell of speed only.

    Args:
        run: the run.
        samples: the clock that it goes on from; rows of a later sample are dropped.
    """

    def __init__(self, run: Run, samples: int) -> None:
        path = run.path / WORKERS
        kept = [row for row in readable_rows(path) if isinstance(row.get("samples"), int) and row["samples"] <= samples]
        # Always a new file: a worker that was cut off and wakes up goes on writing into the old one.
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("ab", buffering=0)
        self._before = b""

    def write(self, tick: Tick) -> None:
        """Append a row."""
        row = {"samples": tick.samples, "time": time.time(), "workers": [worker.row() for worker in tick.workers]}
        data = self._before + json.dumps(row).encode() + b"\n"
        self._before = b"\n"  # of the next row, should this one be cut off
        with suppress(OSError):
            if self._file.write(data) == len(data):
                self._before = b""

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            self._file.close()


def read_worker_log(run: Path) -> list[list[WorkerStats]]:
    """Return the workers of every tick of a run directory; rows that are damaged are left out."""
    found: list[list[WorkerStats]] = []
    for row in readable_rows(run / WORKERS):
        with suppress(ValueError, KeyError, TypeError):
            found.append([WorkerStats.from_row(worker) for worker in row["workers"]])
    return found
