"""What one rank of a world does for tests/test_changes.py: runs whose latent grows and shrinks on the way.

Usage: changes.py DATA OUT, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment, as torchrun does.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from shoal import loop
from shoal.config import build_config
from shoal.execute import execute
from shoal.run import Run
from shoal.session import Session
from shoal.world import World, launched_world

BATCH = 20  # over three ranks: 6, 7 and 7
COMMON: dict[str, Any] = {
    "nets": {"name": "conv", "latent": 5, "width": 4},
    "batch": BATCH,
    "duration_samples": 7 * BATCH,
    "data": {"range": "symmetric", "window_blocks": 2},
    "optim": {"lr": 1e-3},
    "ema": {"half_life_samples": 100},
    "report": {"every_samples": BATCH, "images_every_samples": 0},
    "checkpoint": {"every_samples": 0},
    "changes": {3 * BATCH: {"nets.latent": 9, "optim.lr": 5e-4}, 5 * BATCH - 3: {"nets.latent": 3}},
}
FAMILIES: dict[str, dict[str, Any]] = {
    "autoencoder": {"objective": {"name": "autoencoder"}},
    "vae": {"objective": {"name": "vae"}},
    "gan": {"objective": {"name": "gan", "r1": 1.0, "penalty_every": 2}},
}
STOPS = {"straight": None, "at": 3, "after": 6}


class Watched(Session):
    """A session whose last tensors, this rank's own, can be looked at."""

    left: dict[str, Tensor]

    def close(self) -> None:
        Watched.left = self.tensors()
        super().close()


def trained(run: Run, world: World, stop_after: int | None) -> dict[str, Tensor]:
    """Train a run, with a stop that the last rank alone asks for; return this rank's own tensors at the end."""
    if stop_after is not None:
        asked = iter(range(1, 1000))
        outcome = execute(run, world, should_stop=lambda: next(asked) == stop_after and world.rank == world.size - 1)
        assert (outcome.stopped, outcome.samples) == (True, stop_after * BATCH), outcome
    assert not execute(run, world).stopped
    return Watched.left


def main(data: Path, out: Path) -> None:
    torch.set_num_threads(1)
    loop.Session = Watched  # type: ignore[attr-defined]  # to look at this rank's own tensors
    tensors: dict[str, Tensor] = {}
    with launched_world() as world:
        for name, family in FAMILIES.items():
            for kind, stop_after in STOPS.items():
                path, config = out / f"{name}-{kind}", build_config({**COMMON, **family})
                world.first_says(lambda path=path, config=config: Run.create(path, config, data) and None)  # type: ignore[misc]  # mypy cannot infer a lambda with defaults
                found = trained(Run.open(path), world, stop_after)
                tensors |= {f"{name}/{kind}/{key}": tensor for key, tensor in found.items()}
        world.barrier()
        save_file({key: value.contiguous() for key, value in tensors.items()}, out / f"rank{world.rank}.safetensors")


main(*map(Path, sys.argv[1:]))
