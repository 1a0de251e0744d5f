"""A run's figures at the metrics endpoint of its Ray node, where Prometheus finds them."""

import threading
from collections.abc import Iterator

from ray.util.metrics import Gauge

from shoal.loop import Tick
from shoal.run import Run
from shoal.starts import Restarts, restarts

AGAIN_SEC = 4.0
"""Ray forgets a gauge that nobody sets for two of its reports (10 s each), and ticks may be further apart."""

GAUGES = {
    "shoal_samples": ("Images seen by the whole world.", ()),
    "shoal_duration_samples": ("Images after which the run is finished.", ()),
    "shoal_restarts": ("Starts after the first one.", ()),
    "shoal_samples_redone": ("Images whose steps were lost and taken again.", ()),
    "shoal_metric": ("Newest value of a measure of the run.", ("name",)),
    "shoal_worker_samples_per_sec": ("What a worker would do if it never waited for the others.", ("rank", "host")),
    "shoal_worker_data_wait_share": ("Share of a worker's time in which it waits for images.", ("rank", "host")),
    "shoal_worker_communication_share": (
        "Share of a worker's time in collectives, for the network and the others.",
        ("rank", "host"),
    ),
}
"""By name, to which Ray adds ``ray_``: what it says, and its tags beside ``run``."""

Value = tuple[str, tuple[str, ...], float]


class PrometheusSink:
    """Shows ticks as gauges of Ray; the first worker shows those of all. They go with its process.

    Args:
        run: the run; the name of its directory is the tag ``run``.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._gauges = {
            name: Gauge(name, description=says, tag_keys=("run", *tags)) for name, (says, tags) in GAUGES.items()
        }
        self._started: Restarts | None = None  # counted at the first tick: this start is written down before that
        self._newest: list[Value] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="prometheus", daemon=True)
        self._thread.start()

    def write(self, tick: Tick) -> None:
        """Show a tick."""
        self._newest = list(self._values(tick))
        self._show(self._newest)

    def close(self) -> None:
        """Show nothing more."""
        self._closed.set()
        self._thread.join()

    def _values(self, tick: Tick) -> Iterator[Value]:
        started = self._started = self._started or restarts(self._run.path)
        yield "shoal_samples", (), tick.samples
        yield "shoal_duration_samples", (), self._run.config.duration_samples
        yield "shoal_restarts", (), started.count
        yield "shoal_samples_redone", (), started.redone
        for name, value in tick.scalars.items():
            yield "shoal_metric", (name,), value
        for worker in tick.workers:
            where = (str(worker.rank), worker.host)
            yield "shoal_worker_samples_per_sec", where, worker.samples_per_sec
            yield "shoal_worker_data_wait_share", where, worker.data_wait_share
            yield "shoal_worker_communication_share", where, worker.communication_share

    def _show(self, values: list[Value]) -> None:
        for name, tags, value in values:
            self._gauges[name].set(value, {"run": self._run.place.name} | dict(zip(GAUGES[name][1], tags, strict=True)))

    def _keep(self) -> None:
        while not self._closed.wait(AGAIN_SEC):
            self._show(self._newest)
