"""What one rank of a world does for tests/test_ddp.py: everything in one start, since importing torch takes seconds.

Usage: scenario.py DATA OUT, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment, as torchrun does.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from shoal.config import RunConfig, build_config
from shoal.data import DataSet, Stream
from shoal.engine import Engine
from shoal.errors import DataError, ShoalError
from shoal.execute import execute
from shoal.loop import train
from shoal.noise import Noise
from shoal.objectives import Batch, Gan, Scalars, register
from shoal.objectives.gan import GanConfig
from shoal.pixels import to_float
from shoal.run import Run
from shoal.state import State, build_objective
from shoal.world import World, launched_world

BATCH = 20  # over three ranks: 6, 7 and 7


class WatchedGan(Gan):
    """A GAN that remembers which images and which noise it was given."""

    class Config(GanConfig):
        name: Any = "watched-gan"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.seen: list[Tensor] = SEEN

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Scalars]:
        drawn = noise.normal(f"latent/{phase}", self._latent)
        self.seen.append(torch.cat([batch.images.flatten(1), drawn], dim=1))
        return super().loss(phase, batch, noise)


SEEN: list[Tensor] = []


def config(objective: str, batches: int, *overrides: dict[str, Any]) -> RunConfig:
    values: dict[str, Any] = {
        "objective": {"name": objective},
        "nets": {"name": "conv", "latent": 5, "width": 4, "norm": "group"},
        "batch": BATCH,
        "duration_samples": batches * BATCH,
        "data": {"range": "symmetric", "window_blocks": 2},
        "optim": {"lr": 1e-3, "warmup_samples": 50, "schedule": "cosine", "clip": 1.0},
        "ema": {"half_life_samples": 100},
        "report": {"every_samples": 3 * BATCH, "images_every_samples": 0},
        "checkpoint": {"every_samples": 4 * BATCH, "keep": 9},
    }
    for override in overrides:
        values |= override
    return build_config(values)


def new_run(path: Path, settings: RunConfig, data: Path, world: World) -> Run:
    world.first_says(lambda: Run.create(path, settings, data) and None)
    return Run.open(path)


def positions(world: World, data: Path, out: Path) -> dict[str, Tensor]:
    """Train eight batches, crossing an epoch; return what the objective saw in each phase of each batch."""
    register(WatchedGan)
    run = new_run(out / "positions", config("watched-gan", 8), data, world)
    for _ in train(run, world):
        pass
    seen = SEEN[2:] if world.size > 1 else SEEN  # the first batch is seen once more while DDP settles
    return {f"positions/{index:02}": tensor for index, tensor in enumerate(seen)}


def gradients(objective_name: str, world: World, data: Path) -> dict[str, Tensor]:
    """Return the gradients that the optimizers of each phase are given in one step."""
    settings = config(objective_name, 4, {"optim": {"lr": 1e-12}})  # so that one phase does not change the next one's
    dataset = DataSet.open(data)
    objective = build_objective(settings, dataset.shape)
    state = State.fresh(objective, settings)
    found: dict[str, Tensor] = {}

    def note(phase: str) -> Any:
        def hook(optimizer: torch.optim.Optimizer, arguments: Any, keywords: Any) -> None:
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            found.update({f"{objective_name}/{phase}/{i:02}": weight.grad.clone() for i, weight in enumerate(weights)})

        return hook

    for phase, optimizer in state.optimizers.items():
        optimizer.register_step_pre_hook(note(phase))
    rows = world.slice(BATCH)
    with Stream(dataset, split="train", batch=BATCH, seed=0, rows=rows) as stream:
        batch = Batch(images=to_float(next(stream).images, "symmetric"), labels=None)
        Engine(objective, state, settings, world).step(batch, Noise(0, 0, BATCH, rows))
    return found


def resumed(objective_name: str, world: World, data: Path, out: Path) -> None:
    """Train 13 batches at once, and again with a stop after the fifth that the last rank alone asks for."""
    execute(new_run(out / f"{objective_name}-straight", config(objective_name, 13), data, world), world)
    run = new_run(out / f"{objective_name}-stopped", config(objective_name, 13), data, world)
    asked = iter(range(100))
    outcome = execute(run, world, should_stop=lambda: next(asked) == 4 and world.rank == world.size - 1)
    assert outcome.stopped
    assert outcome.samples == 5 * BATCH
    assert not execute(run, world).stopped


def failing(world: World, data: Path, out: Path) -> str:
    """Let the last rank alone meet a user's error in its third step; return what this rank raises."""
    run = new_run(out / "failing", config("gan", 9), data, world)
    asked = iter(range(100))

    def ask() -> bool:
        if next(asked) == 2 and world.rank == world.size - 1:
            raise DataError(f"rank {world.rank} lost its shard")
        return False

    try:
        execute(run, world, should_stop=ask)
    except ShoalError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def damaged_pictures(world: World, data: Path, out: Path) -> str:
    """Train on a data set whose test split, which the first rank alone draws from, is damaged."""
    settings = config("autoencoder", 4, {"report": {"every_samples": 20, "images_every_samples": 20}})
    run = new_run(out / "damaged-pictures", settings, data.parent / "damaged", world)
    try:
        execute(run, world)
    except ShoalError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(arguments: Sequence[str]) -> None:
    torch.set_num_threads(1)
    data, out = map(Path, arguments)
    with launched_world() as world:
        assert world.device.type == "cpu"
        tensors = positions(world, data, out)
        for name in ("autoencoder", "gan"):
            tensors |= gradients(name, world, data)
            resumed(name, world, data, out)
        told = {"error": failing(world, data, out), "damaged pictures": damaged_pictures(world, data, out)}
        world.barrier()
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, out / f"rank{world.rank}.safetensors"
        )
        (out / f"rank{world.rank}.json").write_text(json.dumps(told))


main(sys.argv[1:])
