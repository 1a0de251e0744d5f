"""Processes that are killed, or stopped and woken up, in the middle of what they write: what a run has then."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.writers import FENCED, STEP, Writers, tensors_at, wait_for

from shoal import checkpoint
from shoal.run import Run
from shoal.run_files import read_ended, read_rows

MakeRun = Callable[..., Run]
Differing = Callable[..., list[str]]

KILLS = 100
LONGEST_SEC = 0.1
"""From a writer's start to its end, or from its first row: half of them are killed in the middle of a checkpoint, the
others perhaps while they claim the run and look where it stands."""


@pytest.fixture(scope="module")
def writers() -> Iterator[Writers]:
    found = Writers()
    yield found
    found.close()


def clocks(run: Run) -> list[int]:
    return [row["samples"] for row in read_rows(run.path / "metrics.jsonl")]


def tree(folder: Path) -> Mapping[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def starts_of(run: Run) -> list[dict[str, Any]]:
    return read_rows(run.path / "starts.jsonl")


def has_gone_on(run: Run, before: int) -> bool:
    """Tell whether there was another start since there were so many, and a row since that."""
    starts = starts_of(run)
    return len(starts) > before and STEP * len(clocks(run)) > starts[-1]["samples"]


def checked(run: Run, differing: Differing) -> int:
    """Verify all that a run has at a moment, and return where it stands."""
    found = run.newest_checkpoint()
    samples = found.samples if found else 0
    if found:
        assert differing(found.tensors(), tensors_at(samples)) == []
    for path in checkpoint.saved(run.checkpoints):
        assert checkpoint.read(path)  # nothing that is half there bears a name
    rows = clocks(run)
    assert rows == list(range(STEP, STEP * len(rows) + 1, STEP))
    assert samples <= STEP * len(rows)  # no checkpoint comes before its row
    return samples


def test_killed_at_a_hundred_moments_a_run_never_loses_a_checkpoint(
    make_run: MakeRun, writers: Writers, differing: Differing
) -> None:
    run = make_run("autoencoder", "checkpoint.keep=2")
    moments = random.Random(0)
    reached, halves = 0, 0
    for number in range(KILLS):
        before = len(starts_of(run))
        pid = writers.start(run.path)
        if number % 2:
            wait_for(partial(has_gone_on, run, before))
        time.sleep(moments.uniform(0, LONGEST_SEC))  # not to wait for anything: any moment will do
        os.kill(pid, signal.SIGKILL)
        assert writers.wait(pid) == -signal.SIGKILL
        stands = checked(run, differing)
        assert stands >= reached
        reached = stands
        halves += any(run.checkpoints.glob(".*.tmp"))
    assert reached > 10 * STEP
    assert halves > 5  # or the kills came at dull moments
    assert writers.wait(writers.start(run.path, ticks=3)) == 0
    assert checked(run, differing) == reached + 3 * STEP
    assert [path.name for path in run.path.rglob("*") if path.name.endswith(".tmp")] == []
    assert len(checkpoint.directories(run.checkpoints)) == 2
    starts = starts_of(run)
    assert [row["samples"] for row in starts] == sorted(row["samples"] for row in starts)
    assert [row["epoch"] for row in starts] == sorted({row["epoch"] for row in starts})
    assert sum(row["redone"] for row in starts) > 0
    assert read_ended(run.path)["how"] == "finished"


def test_who_is_stopped_at_any_point_and_wakes_up_later_touches_nothing_newer(
    make_run: MakeRun, writers: Writers, differing: Differing
) -> None:
    """Every point of a tick with a checkpoint, in turn: files it opens, renames, deletes, or looks for."""
    points = 0
    while True:
        run = make_run("autoencoder", "checkpoint.keep=2")
        stale = writers.start(run.path, ticks=4, stop_at=points)
        if (status := writers.wait(stale)) is not None:
            assert status == 0  # there was no such point any more
            break
        assert writers.wait(writers.start(run.path, ticks=3)) == 0
        stands, before, ended = checked(run, differing), tree(run.path), read_ended(run.path)
        assert stands in (6 * STEP, 7 * STEP)
        os.kill(stale, signal.SIGCONT)
        assert writers.wait(stale) in (FENCED, 0)
        assert checked(run, differing) == stands
        assert read_ended(run.path) in (ended, {})  # told by one that lost the run, it is not believed
        after = {**tree(run.path), "ended.json": before["ended.json"]}
        assert {name: after.get(name) for name in before} == before
        # What it still wrote is of its own epoch, and counts for nobody.
        assert {name.split("/")[1] for name in after.keys() - before.keys()} <= {f"{4 * STEP:012d}"}
        points += 1
    assert points > 20


def test_who_is_stopped_before_it_writes_anything_and_wakes_up_later_costs_the_next_owner_no_row(
    make_run: MakeRun, writers: Writers, differing: Differing
) -> None:
    """Every point between the claim of one and its first tick, in turn; the next one is in the middle of its ticks."""
    points = 0
    while True:
        run = make_run("autoencoder", "checkpoint.keep=2")
        assert writers.wait(writers.start(run.path, ticks=3)) == 0
        stale = writers.start(run.path, ticks=1, stop_at=points, tick=0)
        if (status := writers.wait(stale)) is not None:
            assert status == 0  # there was no such point any more
            break
        owner = writers.start(run.path, ticks=4, stop_at=0, tick=3)
        assert writers.wait(owner) is None
        os.kill(stale, signal.SIGCONT)
        assert writers.wait(stale) == FENCED
        os.kill(owner, signal.SIGCONT)
        assert writers.wait(owner) == 0
        assert checked(run, differing) == 7 * STEP
        assert clocks(run) == [STEP * number for number in range(1, 8)]
        assert (read_ended(run.path)["how"], read_ended(run.path)["epoch"]) == ("finished", 3)
        points += 1
    assert points > 10
