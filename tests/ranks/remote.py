"""What one rank of a world does for tests/cli/test_remote_runs.py, each as if on a node of its own.

Usage: remote.py HOME DATA OUT, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment, as torchrun does.
HOME is the run's URI; rank r keeps its copies in OUT/node-r. An undisturbed run is left in OUT/straight.
"""

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from shoal.checkpoint import saved
from shoal.config import build_config
from shoal.execute import execute
from shoal.incarnation import begin
from shoal.remote_checkpoint import names, samples_of
from shoal.run import Run
from shoal.storage.location import Location
from shoal.world import World, launched_world

BATCH = 16


def main(home: Location, data: Location, out: Path) -> None:
    torch.set_num_threads(1)
    config = build_config(
        {
            "objective": {"name": "autoencoder"},
            "nets": {"name": "mlp", "latent": 2, "hidden": [4]},
            "batch": BATCH,
            "duration_samples": 12 * BATCH,
            "report": {"every_samples": 2 * BATCH, "images_every_samples": 0},
            "checkpoint": {"every_samples": 4 * BATCH},
        }
    )
    with launched_world() as world:
        os.environ["SHOAL_CACHE"] = str(out / f"node-{world.rank}")
        world.first_says(lambda: Run.create(out / "straight", config, data) and None)
        execute(Run.open(out / "straight"), world)
        world.first_says(lambda: Run.create(home, config, data) and None)
        for steps in (4, 1):  # the first of them leaves the newest checkpoint at the URI
            asked = iter(range(1, 100))
            outcome = execute(opened(home, world), world, should_stop=partial(said_at, asked, steps))
            assert outcome.stopped
            load_without_the_first_node(home, world, out)
        start_on_the_first_node(home, world, out)
        world.first_says(lambda: take_back(home))
        world.barrier()
        assert not execute(opened(home, world), world).stopped


def said_at(asked: Iterator[int], steps: int) -> bool:
    return next(asked) == steps


def opened(home: Location, world: World) -> Run:
    return world.together(lambda: Run.open(home, writes=True))


def load_without_the_first_node(home: Location, world: World, out: Path) -> None:
    """Start, and load the checkpoint where nothing of the first worker's node can be seen, as on another machine."""
    checkpoint = begin(opened(home, world), world).checkpoint
    assert checkpoint is not None
    world.first_says(lambda: (out / "node-0").rename(out / "elsewhere") and None)
    assert world.first or checkpoint.tensors()
    world.barrier()
    world.first_says(lambda: (out / "elsewhere").rename(out / "node-0") and None)


def start_on_the_first_node(home: Location, world: World, out: Path) -> None:
    """Start with all workers on one node: what its copy keeps is the first one's business."""
    before, os.environ["SHOAL_CACHE"] = os.environ["SHOAL_CACHE"], str(out / "node-0")
    run = opened(home, world)
    begin(run, world)
    world.barrier()
    assert [samples_of(path.name) for path in saved(run.checkpoints)] == [5 * BATCH, 4 * BATCH]
    os.environ["SHOAL_CACHE"] = before


def take_back(home: Location) -> None:
    """Make as if the newest checkpoint had not been sent when its node was lost for a while."""
    newest = names((home / "checkpoints").files())[0]
    assert samples_of(newest) == 5 * BATCH
    (home / "checkpoints" / newest / "state.json").delete()


main(Location.parse(sys.argv[1]), Location.parse(sys.argv[2]), Path(sys.argv[3]))
