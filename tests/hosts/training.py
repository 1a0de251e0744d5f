"""Runs of ``shoal train`` over hosts, and what their files say. Nothing here reads a log."""

import json
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from tests.hosts.cluster import RayCluster
from tests.hosts.store import Store

from shoal.checkpoint import Checkpoint, newest, saved
from shoal.data.write import write_dataset
from shoal.run_files import CHECKPOINTS, FAILURES, METRICS, read_rows

DEADLINE_SEC = 240
"""For whatever a test waits for; several times what the slowest of it takes on two busy cores."""

DRIVER, WORKER = b"shoal_ray.cli", b"ray::RayTrainWorker"

BATCH = 64
STEPS = 1200
DURATION = BATCH * STEPS
REPORT = 20 * BATCH
CHECKPOINT = 200 * BATCH
COMMON = (
    f"batch={BATCH}",
    f"duration_samples={DURATION}",
    f"report.every_samples={REPORT}",
    "report.images_every_samples=0",
    f"report.quality_every_samples={DURATION}",
    f"checkpoint.every_samples={CHECKPOINT}",
)
KINDS = {
    "autoencoder": ("seed-autoencoder", "nets.hidden=[16]", "nets.latent=8", *COMMON),
    "gan": ("seed-gan", "nets.hidden=[16]", "nets.latent=8", *COMMON),
}
"""Two small runs of some seconds: at each of 1200 steps, the gradients of 25,000 weights go over the wire."""


def write_images(path: Path) -> None:
    """Write 4096 training and 1024 test images: a bright square somewhere on noise."""
    random = np.random.default_rng(0)
    images = random.integers(0, 60, (5120, 1, 28, 28), dtype=np.uint8)
    places = random.integers(0, 18, (5120, 2))
    for image, (top, left) in zip(images, places, strict=True):
        image[0, top : top + 10, left : left + 10] += 180
    splits = {"train": [(images[:4096], None)], "test": [(images[4096:], None)]}
    write_dataset(path, splits, shape=(1, 28, 28), class_names=None, source="painted", rows_per_block=128)


@dataclass
class Record:
    """What the files of a run say.

    Attributes:
        run: its directory.
    """

    run: Path

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of ``metrics.jsonl``."""
        return read_rows(self.run / METRICS)

    def starts(self) -> list[dict[str, Any]]:
        """Return a row for every time that workers started."""
        return read_rows(self.run / "starts.jsonl")

    def failures(self) -> list[dict[str, Any]]:
        """Return a row for every loss of workers."""
        return read_rows(self.run / FAILURES)

    def ended(self) -> dict[str, Any]:
        """Return how the run ended."""
        return dict(json.loads((self.run / "ended.json").read_text()))

    def newest(self) -> Checkpoint:
        """Return the newest checkpoint that verifies."""
        found = newest(self.run / CHECKPOINTS)
        assert found is not None
        return found

    def being_written(self) -> Sequence[Path]:
        """Return the checkpoints that are not whole yet."""
        return list((self.run / CHECKPOINTS).glob(".*.tmp"))

    def saved(self) -> int:
        """Return the sample of the newest checkpoint that is there; 0: none, or none here."""
        return max((int(path.name.partition("-")[0]) for path in self.whole()), default=0)

    def whole(self) -> list[Path]:
        """Return the checkpoints that are there, newest first."""
        return list(saved(self.run / CHECKPOINTS))


@dataclass
class Undisturbed(Record):
    """A run to which nothing happened.

    Attributes:
        sent: what each host sent meanwhile, in bytes.
    """

    sent: dict[str, int]


class Training(Record):
    """A driver on the client's host that trains a run, until the end of the context.

    Args:
        cluster: where.
        folder: a folder for this run alone, on storage that all hosts share.
        words: of ``shoal train``, but for --out and --address.
        store: where the run is, under the folder's name; None: in the folder.

    Attributes:
        run: where its files can be looked at.
    """

    def __init__(self, cluster: RayCluster, folder: Path, *words: str | Path, store: Store | None = None) -> None:
        name = f"{folder.name}/run"
        super().__init__(store.seen_from(cluster.client, name) if store else folder / "run")
        self.cluster, self.hosts, self.folder, self.store = cluster, cluster.hosts, folder, store
        self._name, self._out = name, store.uri(name) if store else self.run
        self._log = self.hosts.home(cluster.client) / f"{folder.name}.log"  # of its own disk, which never fails
        folder.mkdir(exist_ok=True)
        self._start(*words)

    def _start(self, *words: str | Path) -> None:
        command = ["python", "-m", "shoal_ray.cli", "train", *words, "--out", self._out]
        with self._log.open("a") as output:
            self.process = self.hosts.popen(
                self.cluster.client, [*command, "--address", self.cluster.address], stdout=output
            )

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill the driver if it is still there."""
        self.kill_driver()

    # --- the driver ---

    def kill_driver(self) -> None:
        """Kill the driver with SIGKILL."""
        self.hosts.signal(self.cluster.client, DRIVER, signal.SIGKILL)
        self.process.wait(DEADLINE_SEC)

    def resume(self) -> None:
        """Start another driver that goes on with the run."""
        self._start("--resume")

    def until(self, happened: Callable[[], bool]) -> None:
        """Wait for something to happen while the driver runs."""
        deadline = time.monotonic() + DEADLINE_SEC
        while not happened():
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.said()}"
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.01)  # between two looks; nothing relies on its length

    def until_sample(self, samples: int) -> None:
        """Wait until a sample is on record."""
        self.until(lambda: any(row["samples"] >= samples for row in self.rows()[-1:]))

    def finish(self, code: int = 0) -> None:
        """Wait for the driver's end."""
        self.process.wait(DEADLINE_SEC)
        assert self.process.returncode == code, self.said()

    def said(self) -> str:
        """Return what the driver has said so far."""
        return self._log.read_text()

    def outcome(self) -> Record:
        """Return what is there in the end: of a run in a store, a copy."""
        if self.store is None:
            return self
        self.store.copy(self._name, self.folder / "copy")
        return Record(self.folder / "copy")

    # --- its workers ---

    def hosts_of_workers(self) -> list[str]:
        """Return the hosts on which this run's workers are."""
        return [host for host in self.cluster.workers if self.hosts.pids(host, WORKER)]

    @property
    def first(self) -> str:
        """The host of the first worker, which writes."""
        return str(self.starts()[-1]["host"])

    @property
    def other(self) -> str:
        """The host of another worker."""
        return next(host for host in self.hosts_of_workers() if host != self.first)
