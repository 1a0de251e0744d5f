"""What each worker did with its time between two ticks: its own work, waiting for data, waiting for the others."""

import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Self

import torch

from shoal.data import Stream
from shoal.world import World

STRAGGLES_BELOW = 0.8
"""Of the median rate of the others."""


@dataclass(frozen=True)
class WorkerStats:
    """One worker between two ticks, or over several of them.

    Attributes:
        rank: of the worker.
        host: the name of the machine that it runs on.
        samples: images that it took itself.
        sec: from the first step to the last.
        data_wait_sec: of these, until its images were read.
        communication_sec: of these, in collectives: until the others had come as far and the figures had travelled.
            On CUDA, how long its stream stood still for that.
    """

    rank: int
    host: str
    samples: int
    sec: float
    data_wait_sec: float
    communication_sec: float

    @property
    def samples_per_sec(self) -> float:
        """What it would do if it never had to wait for the others."""
        return self.samples / max(self.sec - self.communication_sec, 1e-9)

    @property
    def data_wait_share(self) -> float:
        """Of its time."""
        return self.data_wait_sec / self.sec

    @property
    def communication_share(self) -> float:
        """Of its time."""
        return self.communication_sec / self.sec

    def row(self) -> dict[str, Any]:
        """Return it as a row for JSON; `from_row` reads it."""
        return {
            "rank": self.rank,
            "host": self.host,
            "samples": self.samples,
            "sec": round(self.sec, 6),
            "data_wait_sec": round(self.data_wait_sec, 6),
            "communication_sec": round(self.communication_sec, 6),
            "samples_per_sec": round(self.samples_per_sec, 1),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Return what a row says.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        return cls(
            int(row["rank"]),
            str(row["host"]),
            int(row["samples"]),
            float(row["sec"]),
            float(row["data_wait_sec"]),
            float(row["communication_sec"]),
        )


class Stopwatch:
    """Takes the time of all workers of a world; each of them holds one.

    Args:
        world: the workers; they make their stopwatches together.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._hosts = world.gather(socket.gethostname())
        # MPS has no float64.
        self._dtype = torch.float32 if world.device.type == "mps" else torch.float64
        self._began = (0.0, 0.0, 0.0)

    def start(self, stream: Stream) -> None:
        """Begin a stretch."""
        self._began = self._now(stream)

    def read(self, stream: Stream, samples: int) -> list[WorkerStats]:
        """Return the stretch as every worker saw it, the same on all; each says how many samples it took itself.

        One small collective, and on CUDA one wait for the device.
        """
        spent = [now - began for now, began in zip(self._now(stream), self._began, strict=True)]
        table = torch.zeros(self._world.size, 4, dtype=self._dtype)
        table[self._world.rank] = torch.tensor([samples, *spent], dtype=self._dtype)
        rows = self._world.sum(table.to(self._world.device)).tolist()
        return [
            WorkerStats(rank, host, round(row[0]), *row[1:])
            for rank, (host, row) in enumerate(zip(self._hosts, rows, strict=True))
        ]

    def _now(self, stream: Stream) -> tuple[float, float, float]:
        return time.perf_counter(), stream.waited_sec, self._world.waits.sec()


def shares(workers: Sequence[WorkerStats]) -> dict[str, float]:
    """Return where the workers' time went, as shares of it, by metric name.

    ``data_wait_share`` is the mean over the workers. What they spent in collectives is told apart: who came last to
    most of them waited least, and had nobody to wait for, so that time is what the network takes, or a bit more where
    they take turns in coming last (``communication_share``). The rest is what the others waited for the slower ones
    (``straggler_wait_share``), mean over the workers.
    """
    found = {"speed/data_wait_share": sum(worker.data_wait_share for worker in workers) / len(workers)}
    if len(workers) > 1:
        waits = [worker.communication_share for worker in workers]
        found["speed/communication_share"] = min(waits)
        found["speed/straggler_wait_share"] = sum(waits) / len(waits) - min(waits)
        found["speed/slowest_worker"] = float(min(workers, key=lambda worker: worker.samples_per_sec).rank)
    return found


def straggler(workers: Sequence[WorkerStats]) -> tuple[WorkerStats, float] | None:
    """Return the slowest worker and its rate as a share of the others' median, where that is less than 0.8."""
    if len(workers) < 2:
        return None
    slowest = min(workers, key=lambda worker: worker.samples_per_sec)
    others = median(worker.samples_per_sec for worker in workers if worker is not slowest)
    share = slowest.samples_per_sec / others
    return (slowest, share) if share < STRAGGLES_BELOW else None


def rates_of_hosts(workers: Iterable[WorkerStats]) -> dict[str, float]:
    """Return what the workers of each host would do together if they never waited for the others, in samples/s."""
    rates: dict[str, float] = {}
    for worker in workers:
        rates[worker.host] = rates.get(worker.host, 0.0) + worker.samples_per_sec
    return rates


def joined(stretches: Sequence[Sequence[WorkerStats]]) -> list[WorkerStats]:
    """Return all stretches of the newest set of workers as one; earlier sets, of other hosts or sizes, are left out."""
    if not stretches:
        return []

    def places(workers: Sequence[WorkerStats]) -> list[tuple[int, str]]:
        return [(worker.rank, worker.host) for worker in workers]

    same = [workers for workers in stretches if places(workers) == places(stretches[-1])]
    return [
        replace(
            each[0],
            samples=sum(one.samples for one in each),
            sec=sum(one.sec for one in each),
            data_wait_sec=sum(one.data_wait_sec for one in each),
            communication_sec=sum(one.communication_sec for one in each),
        )
        for each in zip(*same, strict=True)
    ]
