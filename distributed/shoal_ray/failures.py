"""The log of lost workers. Imports no torch: the process that replaces them may have none."""

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray.train import UserCallback

CONTROLLER_FAILURES = 10
"""How often a start may fail, a minute each, for want of workers, before the run is given up."""


class FailureLog(UserCallback):
    """Writes down every loss of workers when it is noticed, from the process that replaces them.

    Args:
        path: a row is appended to: ``time`` (seconds since 1970), ``attempt`` (which group of workers, from 1; left out
            where nobody counts), ``workers`` (what each lost rank said, by rank).
        attempt: the group of workers.
    """

    def __init__(self, path: Path, attempt: int | None = None) -> None:
        self._path = path
        self._attempt = attempt
        self.lost: dict[Any, str] = {}

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Append a row: when, which ranks, and what they said."""
        self.write({rank: gist(error) for rank, error in worker_exceptions.items()})

    def write(self, workers: Mapping[Any, str]) -> None:
        """Append a row."""
        self.lost = dict(workers)
        row: dict[str, Any] = {"time": time.time()}
        if self._attempt is not None:
            row["attempt"] = self._attempt
        row["workers"] = self.lost
        # A note that cannot be written must not bring down the controller that replaces the workers.
        with suppress(OSError), self._path.open("ab+", buffering=0) as file:
            cut_off = file.seek(0, os.SEEK_END) and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
            file.write((b"\n" if cut_off else b"") + json.dumps(row).encode() + b"\n")


def gist(error: BaseException) -> str:
    """Return an exception's last line: before it, Ray puts the traceback of the worker."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
