"""How often a run was started again, and what that cost: a sum over starts.jsonl."""

from dataclasses import dataclass
from pathlib import Path

from shoal.run_files import STARTS, read_rows


@dataclass(frozen=True)
class Restarts:
    """What a run's starts.jsonl adds up to.

    Attributes:
        count: starts after the first one, by whoever and for whatever reason.
        redone: samples whose steps were lost with the workers that took them, and were taken again.
    """

    count: int
    redone: int


def restarts(run: Path) -> Restarts:
    """Return how often the run in a directory was started again, so far."""
    rows = read_rows(run / STARTS)
    redone = [row.get("redone") for row in rows]
    return Restarts(max(0, len(rows) - 1), sum(each for each in redone if isinstance(each, int)))
