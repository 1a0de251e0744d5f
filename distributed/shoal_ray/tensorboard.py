"""A run in TensorBoard: scalars and pictures over the sample clock, text for the rest. Knows nothing of Ray."""

import time
import warnings

from shoal.loop import Tick
from shoal.run import Run

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # tensorboard's generated code warns on import, about itself
    from torch.utils.tensorboard import SummaryWriter

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
        self._writer = SummaryWriter(str(run.path / FOLDER), purge_step=samples + 1 if samples else 0)
        if not samples:
            self._writer.add_text("config", "```yaml\n" + run.config.to_yaml() + "```", 0)

    def write(self, tick: Tick) -> None:
        """Show a tick at its sample."""
        now = time.time()
        for name, value in tick.scalars.items():
            self._writer.add_scalar(name, value, tick.samples, walltime=now)
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
