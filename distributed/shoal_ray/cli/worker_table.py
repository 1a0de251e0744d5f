"""What the table at the end of a run says of its workers and its restarts."""

from collections.abc import Iterator
from pathlib import Path

from shoal.run_files import FAILURES, readable_rows
from shoal.starts import restarts
from shoal.worker_log import read_worker_log
from shoal.worker_stats import WorkerStats, joined, straggler

MOST_SHOWN = 8


def shown(name: str, value: float) -> str:
    """Return the value of a measure as the table shows it."""
    if name.startswith("speed/"):
        return f"{value:.1%}" if name.endswith("_share") else f"{value:,.0f}"
    return f"{value:.5g}"


def restart_rows(run: Path) -> Iterator[tuple[str, str]]:
    """Yield what a run directory says of losses: workers, starts, samples that were trained twice."""
    yield "workers lost and replaced", str(len(list(readable_rows(run / FAILURES))))
    found = restarts(run)
    if found.count:
        yield "started again", f"{found.count} time(s), {found.redone:,} samples redone"


def worker_rows(run: Path) -> Iterator[tuple[str, str]]:
    """Yield a row for each of the workers that trained last, the slowest ones where there are many, and the straggler.

    A worker's rate is what it would do if it never waited for the others.
    """
    workers = joined(read_worker_log(run))
    if len(workers) < 2:
        return
    shown = sorted(sorted(workers, key=lambda worker: worker.samples_per_sec)[:MOST_SHOWN], key=lambda one: one.rank)
    for worker in shown:
        yield f"worker {worker.rank} on {worker.host}", _said(worker)
    if len(shown) < len(workers):
        yield f"{len(workers) - len(shown)} more workers", "all faster; see workers.jsonl"
    if found := straggler(workers):
        slowest, share = found
        yield "straggler", f"worker {slowest.rank} on {slowest.host} is {1 - share:.0%} slower than the others"


def _said(worker: WorkerStats) -> str:
    return (
        f"{worker.samples_per_sec:,.0f} samples/s; waited {worker.data_wait_share:.1%} for data,"
        f" {worker.communication_share:.1%} for the others"
    )
