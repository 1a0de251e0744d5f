"""What one rank of a world does for tests/test_worker_stats.py: the last one is slow, and each tells what it saw.

Usage: worker_stats.py DATA OUT, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment.
"""

import json
import sys
import time
from pathlib import Path

import torch
from torch import nn

from shoal.config import build_config
from shoal.execute import execute
from shoal.run import Run
from shoal.session import Tick
from shoal.worker_log import WorkerLog
from shoal.world import World, launched_world

STEP_SEC = 0.1


def gradients_are_those_of_torch(world: World) -> bool:
    """Compare, bit for bit, what the world's backward pass leaves with what torch's own does."""
    found = []
    for ours in (True, False):
        torch.manual_seed(0)
        net = world.wrap(nn.Sequential(nn.Linear(7, 33), nn.GELU(), nn.Linear(33, 5)))
        torch.manual_seed(world.rank)
        for _ in range(3):  # DDP lays out its buckets anew after the first
            net.zero_grad()
            loss = net(torch.randn(11, 7)).square().mean()
            if ours:
                world.backward(loss)
            else:
                loss.backward()
        found.append([parameter.grad for parameter in net.parameters()])
    return all(one is not None and two is not None and one.equal(two) for one, two in zip(*found, strict=True))


def main(data: Path, out: Path) -> None:
    config = build_config(
        {
            "objective": {"name": "autoencoder"},
            "nets": {"name": "mlp", "latent": 4, "hidden": [16]},
            "batch": 20,
            "duration_samples": 400,
            "report": {"every_samples": 200, "images_every_samples": 0},
            "checkpoint": {"every_samples": 0},
        }
    )
    with launched_world() as world:
        world.first_says(lambda: Run.create(out / "run", config, data) and None)
        run = Run.open(out / "run")

        def take_time() -> bool:
            if world.rank == world.size - 1:
                time.sleep(STEP_SEC)  # the work of a slow machine
            return False

        ticks: list[Tick] = []
        execute(
            run,
            world,
            should_stop=take_time,
            on_tick=ticks.append,
            sinks=lambda samples: [WorkerLog(run, samples)],
        )
        told = {
            "same gradients": gradients_are_those_of_torch(world),
            "ticks": [
                {"scalars": dict(tick.scalars), "workers": [worker.row() for worker in tick.workers]} for tick in ticks
            ],
        }
        (out / f"rank{world.rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
