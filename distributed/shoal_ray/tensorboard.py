"""A run in TensorBoard: scalars and pictures over the sample clock, text for the rest. Knows nothing of Ray."""

import time
import warnings
from collections.abc import Sequence

from shoal.loop import Tick
from shoal.run import Run
from shoal.starts import Restarts, restarts
from shoal.worker_stats import WorkerStats, rates_of_hosts

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # tensorboard's generated code warns on import, about itself
    from shoal_ray.event_file import PatientSummaryWriter

FOLDER = "tensorboard"


class TensorBoardSink:
    """Writes ticks into ``RUN/tensorboard``, one directory for the whole life of the run.

    Args:
        run: the run.
        samples: the clock that it goes on from. What an earlier process logged later than that is purged, so that no
            step is shown twice.
    """

    def __init__(self, run: Run, samples: int) -> None:
        if not samples:  # whatever an earlier process logged, all its steps were lost and will be taken again
            for lost in (run.path / FOLDER).glob("events.out.tfevents.*"):
                lost.unlink()
        self._quarantined = 0
        self._path = run.path
        self._restarts: Restarts | None = None  # counted at the first tick: this start is written down before that
        self._writer = PatientSummaryWriter(str(run.path / FOLDER), purge_step=samples + 1 if samples else 0)
        if not samples:
            self._writer.add_text("config", "```yaml\n" + run.config.to_yaml() + "```", 0)

    def write(self, tick: Tick) -> None:
        """Show a tick at its sample."""
        now = time.time()
        for name, value in tick.scalars.items():
            self._writer.add_scalar(name, value, tick.samples, walltime=now)
        for name, value in figures_of_workers(tick.workers).items():
            self._writer.add_scalar(name, value, tick.samples, walltime=now)
        if self._restarts is None:
            self._restarts = restarts(self._path)
        self._writer.add_scalar("speed/restarts", self._restarts.count, tick.samples, walltime=now)
        for name, picture in tick.images.items():
            self._writer.add_image(name, picture, tick.samples, walltime=now, dataformats="HWC")
        if len(tick.quarantined) != self._quarantined:
            self._quarantined = len(tick.quarantined)
            said = "".join(f"- {block}\n" for block in tick.quarantined)
            self._writer.add_text("quarantine", said, tick.samples, walltime=now)
        self._writer.flush()

    def close(self) -> None:
        """Finish the event file."""
        self._writer.close()


def figures_of_workers(workers: Sequence[WorkerStats]) -> dict[str, float]:
    """Return a curve's next value for every worker and every host, by tag; none where one worker is alone."""
    found: dict[str, float] = {}
    if len(workers) > 1:
        for worker in workers:
            found[f"worker/{worker.rank}/samples_per_sec"] = worker.samples_per_sec
            found[f"worker/{worker.rank}/data_wait_share"] = worker.data_wait_share
            found[f"worker/{worker.rank}/communication_share"] = worker.communication_share
        found |= {f"node/{host}/samples_per_sec": rate for host, rate in rates_of_hosts(workers).items()}
    return found
