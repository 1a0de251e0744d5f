"""What one rank of a world does for tests/test_slow_disk.py: it trains onto a disk that is slow.

The first rank's disk takes a checkpoint only after the last rank has told so often, since it began, that it is alive.

Usage: slow_disk.py DATA OUT EVERY_SAMPLES, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment.
"""

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from shoal import storage_trouble
from shoal.config import build_config
from shoal.execute import execute
from shoal.run import Run
from shoal.world import launched_world

BEATS = 10
DEADLINE_SEC = 60


class SlowDisk:
    """Holds back whoever begins to write a checkpoint."""

    def __init__(self, beats: Path) -> None:
        self._beats = beats
        self._mkdir = os.mkdir

    def __call__(self, *arguments: Any) -> None:
        if threading.current_thread().name == "checkpoint":
            until, deadline = self._told() + BEATS, time.monotonic() + DEADLINE_SEC
            while self._told() < until:
                assert time.monotonic() < deadline, "the last rank did not tell that it is alive"
                time.sleep(0.01)  # between two looks; nothing relies on its length
        self._mkdir(*arguments)

    def _told(self) -> int:
        return self._beats.stat().st_size


def main(data: Path, out: Path, every_samples: int) -> None:
    config = build_config(
        {
            "objective": {"name": "autoencoder"},
            "nets": {"name": "mlp", "latent": 4, "hidden": [16]},
            "batch": 20,
            "duration_samples": 80,
            "report": {"every_samples": 20, "images_every_samples": 0},
            "checkpoint": {"every_samples": every_samples},
        }
    )
    storage_trouble.RETRY_SEC = 0.05
    with launched_world() as world:
        world.first_says(lambda: Run.create(out / "run", config, data) and None)
        with (out / "beats").open("ab", buffering=0) as beats:
            if world.first:
                os.mkdir = SlowDisk(out / "beats")  # type: ignore[assignment]  # called as mkdir is

            def beat() -> None:
                if world.rank == world.size - 1:
                    beats.write(b".")

            execute(Run.open(out / "run"), world, on_progress=beat)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
