"""What one rank of a world does for tests/test_data_plane.py: everything in one start, since torch takes seconds.

Usage: data_plane.py DATA OUT, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment, as torchrun does.
DATA holds the data sets. What the objective was given, row and label of each image, is left in OUT/rank0.safetensors…
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from shoal.checkpoint import directory_name
from shoal.config import build_config
from shoal.errors import ShoalError
from shoal.execute import execute
from shoal.noise import Noise
from shoal.objectives import Batch, Scalars, register
from shoal.objectives.autoencoder import Autoencoder, AutoencoderConfig
from shoal.run import Run
from shoal.storage.location import Location
from shoal.world import World, launched_world

BATCH = 20  # over three ranks: 6, 7 and 7
SEEN: dict[int, Tensor] = {}


class WatchedAutoencoder(Autoencoder):
    """An autoencoder that remembers of every batch which rows, by their pixels, and which labels it was given."""

    class Config(AutoencoderConfig):
        name: Any = "watched-autoencoder"

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Scalars]:
        assert batch.labels is not None
        low, high = (batch.images[:, 0, 0, :2] * 255).round().long().unbind(1)
        # The first one counts: DDP settles with a batch that it calls number 0, again after a resume.
        SEEN.setdefault(batch.index, torch.stack([low + 256 * high, batch.labels], dim=1))
        return super().loss(phase, batch, noise)


def new_run(path: Path, data: Path, batches: int, world: World, **section: Any) -> Run:
    config = build_config(
        {
            "objective": {"name": "watched-autoencoder"},
            "nets": {"name": "mlp", "latent": 2, "hidden": [4]},
            "batch": BATCH,
            "duration_samples": batches * BATCH,
            "data": {"window_blocks": 2, **section},
            "report": {"every_samples": 2 * BATCH, "images_every_samples": 0},
            "checkpoint": {"every_samples": 2 * BATCH, "keep": 99},
        }
    )
    world.first_says(lambda: Run.create(path, config, data) and None)
    return Run.open(path)


def seen() -> Tensor:
    """Return rows and labels of all batches so far, int64 [batches, own rows, 2], and forget them."""
    found = torch.stack([SEEN[index] for index in sorted(SEEN)])
    SEEN.clear()
    return found


def balanced(world: World, data: Path, out: Path) -> dict[str, Tensor]:
    """Train three epochs of 400 images, of which four are of the last class."""
    execute(new_run(out / "balanced", data / "rare", 60, world, balance="uniform"), world)
    return {"balanced": seen()}


def quarantined(world: World, data: Path, out: Path, stop_after: list[int]) -> dict[str, Tensor]:
    """Train on damaged data at once; with stops, which the last rank asks for; and with all lost after a checkpoint."""
    found = {}
    run = new_run(out / "straight", data / "damaged", 24, world)
    execute(run, world, quarantine=True)
    found["straight"] = seen()

    run = new_run(out / "stopped", data / "damaged", 24, world)
    for after in stop_after:
        asked = iter(range(1, 100))
        last = world.rank == world.size - 1
        assert execute(
            run,
            world,
            quarantine=True,
            should_stop=lambda asked=asked, after=after, last=last: next(asked) == after and last,  # type: ignore[misc]  # mypy cannot infer a lambda with defaults
        ).stopped
    execute(run, world, quarantine=True)
    found["stopped"] = seen()

    run = new_run(out / "killed", data / "damaged", 24, world)
    execute(run, world, quarantine=True)
    for kept in (14, 2):  # checkpoints come every second batch
        world.first_says(lambda kept=kept: lose_after(run, kept))  # type: ignore[misc]  # as above
        for index in [index for index in SEEN if index >= kept]:
            del SEEN[index]
        execute(run, world, quarantine=True)
    found["killed"] = seen()
    return found


def lose_after(run: Run, batches: int) -> None:
    for path in run.checkpoints.iterdir():
        if path.name > directory_name(batches * BATCH):
            shutil.rmtree(path)


def on_one_node(world: World, data: Path, out: Path) -> dict[str, Tensor]:
    """Train where only the last rank's copy of the data is damaged."""
    run = new_run(out / "one-node", data / "whole", 24, world)
    if world.rank == world.size - 1:
        run = replace(run, data=Location.parse(data / "late"))
    execute(run, world, quarantine=True)
    return {"one-node": seen()}


def refused(world: World, data: Path, out: Path, name: str, **options: Any) -> str:
    """Train to an error; return what this rank raises."""
    run = new_run(out / f"{name}-refused", data / name, 24, world)
    try:
        execute(run, world, **options)
    except ShoalError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        SEEN.clear()
    return "nothing"


def main(data: Path, out: Path) -> None:
    torch.set_num_threads(1)
    register(WatchedAutoencoder)
    stop_after = json.loads((data / "stop-after.json").read_text())
    with launched_world() as world:
        tensors = balanced(world, data, out) | quarantined(world, data, out, stop_after) | on_one_node(world, data, out)
        told = {
            "late": refused(world, data, out, "late"),
            "hopeless": refused(world, data, out, "hopeless", quarantine=True),
        }
        world.barrier()
        save_file(tensors, out / f"rank{world.rank}.safetensors")
        (out / f"rank{world.rank}.json").write_text(json.dumps(told))


main(*map(Path, sys.argv[1:]))
