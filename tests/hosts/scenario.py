"""A fault happens to a run: carried out, looked into, measured by what the run's files say."""

import itertools
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from tests.hosts.cluster import RayCluster
from tests.hosts.faults import Fault
from tests.hosts.store import Store
from tests.hosts.training import CHECKPOINT, DURATION, KINDS, REPORT, Record, Training

from shoal.checkpoint import read

INJECTED_AT = 2 * CHECKPOINT + 4 * REPORT
"""The sample from which on a fault happens: when there is a checkpoint, and work since."""

METRIC = "quality/mse"
TOLERANCE = 0.01


@dataclass(frozen=True)
class Figures:
    """What a fault cost.

    Attributes:
        detected_sec: from the fault until the driver knew of lost workers; None where none were lost.
        again_sec: from the fault until the first step on record of new workers; where none were started, the longest
            time without a step on record since.
        redone: samples whose steps were taken again.
        equal: whether the weights are those of an undisturbed run, bit for bit.
    """

    detected_sec: float | None
    again_sec: float
    redone: int
    equal: bool


def carry_out(
    fault: Fault, cluster: RayCluster, folder: Path, data: Path, undisturbed: Record, store: Store | None = None
) -> Figures:
    """Train a run, let the fault happen to it, and compare what comes out with an undisturbed run.

    Raises:
        AssertionError: more was lost than the work since the last checkpoint, or something was left behind.
    """
    words = (*KINDS["autoencoder"], "--data", str(data), "--workers", fault.workers, *fault.flags)
    with ExitStack() as stack:
        if fault.pace:
            for host in cluster.workers:
                stack.enter_context(cluster.hosts.limited(host, fault.pace))
        training = stack.enter_context(Training(cluster, folder, *words, store=store))
        training.until_sample(INJECTED_AT)
        saved, began = training.saved(), time.time()
        with fault.inject(training):
            if fault.lasts_sec is None:
                training.finish()
            else:
                time.sleep(fault.lasts_sec)
        training.finish()
    record = training.outcome()
    assert_nothing_lost(record, fault, undisturbed, saved)
    return measured(record, began, undisturbed)


def assert_nothing_lost(record: Record, fault: Fault, undisturbed: Record, saved: int) -> None:
    """Compare a run that has ended with an undisturbed one; ``saved``: its newest checkpoint before the fault."""
    ended = record.ended()
    assert (ended["how"], ended["samples"]) == ("finished", DURATION)
    assert len(record.failures()) in fault.losses
    assert all(start["samples"] >= saved for start in record.starts()[1:])
    assert all(start["redone"] < 2 * CHECKPOINT for start in record.starts())
    rows, expected_rows = record.rows(), undisturbed.rows()
    samples = [row["samples"] for row in rows]
    assert samples == sorted(set(samples))
    assert abs(rows[-1][METRIC] / expected_rows[-1][METRIC] - 1) < TOLERANCE
    assert fault.scalar is None or any(row.get(fault.scalar) for row in rows)
    if fault.exact:
        assert samples == [row["samples"] for row in expected_rows]
        names = [name for name in expected_rows[-1] if name.partition("/")[0] in ("loss", "optim", "quality")]
        for row, expected_row in zip(rows, expected_rows, strict=True):
            assert [row.get(name) for name in names] == [expected_row.get(name) for name in names]
        assert differing(record, undisturbed) == []
    for checkpoint in record.whole():
        read(checkpoint)
    assert not record.being_written()


def measured(record: Record, began: float, undisturbed: Record) -> Figures:
    """Return what a fault at a time (Unix seconds) cost a run."""
    detected = [row["time"] - began for row in record.failures() if row["time"] > began]
    times = [began, *(row["time"] for row in record.rows() if row["time"] > began)]
    again = max(after - before for before, after in itertools.pairwise(times))
    for start in [start for start in record.starts() if start["time"] > began][:1]:
        again = next(after for after in times if after > start["time"]) - began
    return Figures(
        detected_sec=min(detected, default=None),
        again_sec=again,
        redone=sum(start["redone"] for start in record.starts()),
        equal=differing(record, undisturbed) == [],
    )


def differing(one: Record, other: Record) -> list[str]:
    """Return what differs between the newest checkpoints of two runs: names of tensors, or the data's position."""
    newest, expected_newest = one.newest(), other.newest()
    found, expected = newest.tensors(), expected_newest.tensors()
    names = sorted(found.keys() | expected.keys())
    unequal = [name for name in names if name not in found or name not in expected]
    unequal += [name for name in names if name not in unequal and not torch.equal(found[name], expected[name])]
    return unequal + (["stream"] if newest.stream != expected_newest.stream else [])
