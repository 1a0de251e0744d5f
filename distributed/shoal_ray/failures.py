"""The log of lost workers. Imports no torch: the process that replaces them may have none."""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray.train import UserCallback

CONTROLLER_FAILURES = 10
"""How often a start may fail, a minute each, for want of workers, before the run is given up."""


class FailureLog(UserCallback):
    """Writes down every loss of workers, from the process that replaces them."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Append a row: when, which ranks, and what they said."""
        row = {
            "time": time.time(),
            "workers": {rank: _gist(error) for rank, error in worker_exceptions.items()},
        }
        # A note that cannot be written must not bring down the controller that replaces the workers.
        with suppress(OSError), self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _gist(error: Exception) -> str:
    """Return an exception's last line: before it, Ray puts the traceback of the worker."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
